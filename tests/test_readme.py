"""The README does not lie: its Python runs as printed, its transcript is what the demo prints, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from localgemma.cli import main as cli_main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """The README's code blocks of this kind, in order."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in the project's folder, without a terminal; stdout and stderr together."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done


@pytest.mark.live
def test_the_python_example_runs_as_printed() -> None:
    (example,) = blocks("python")
    said = python("-c", example).stdout
    assert said.startswith("model: demo")
    for event in ("TextDelta(text=", "Done(message=Message("):
        assert event in said
    last = said.splitlines()[-1]  # the answer's text
    assert last and not last.startswith("Done(")


@pytest.mark.live
def test_the_transcript_is_what_the_demo_prints() -> None:
    transcript = next(block for block in blocks("") if block.startswith("1. A question"))
    printed = [line for line in python("scripts/demo.py").stdout.splitlines() if not re.match(r"[\d,]+ tokens read", line)]
    at = printed.index("1. A question")
    wanted = [line for line in transcript.splitlines() if line]
    assert [line for line in printed[at:] if line][: len(wanted)] == wanted


def test_it_opens_with_the_two_commands() -> None:
    first = blocks("")[0].splitlines()
    assert [line.split()[0] for line in first] == ["scripts/demo", "scripts/test"]
    assert all((ROOT / line.split()[0]).is_file() for line in first)


def test_the_commands_exist() -> None:
    lines = [line for block in blocks("") for line in block.splitlines() if "localgemma " in line]
    assert len(lines) > 5
    for line in lines:
        words = line.partition("localgemma ")[2].split()
        context = click.Context(cli_main.cli)
        command = cli_main.cli.get_command(context, words[0])
        assert command is not None, line
        if isinstance(command, click.Group) and len(words) > 1:
            command = command.get_command(context, words[1].split("|")[0])
            assert command is not None, line
        known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
        for flag in re.findall(r"(?<!\S)--?[a-z][a-z-]*", " ".join(words)):
            assert flag in known or isinstance(command, click.Group), line
