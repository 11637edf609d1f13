"""Where output goes: the answer to stdout, everything else to stderr, each in the way its stream can show."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from localgemma import settings
from localgemma.engine import CancelToken
from localgemma.messages import (
    Done,
    Event,
    ImagePart,
    Message,
    Notice,
    Progress,
    TextDelta,
    ThinkingDelta,
    Timings,
    ToolCall,
    ToolResult,
    Usage,
)
from localgemma.units import format_duration

if TYPE_CHECKING:
    from localgemma.runtime import Plan

_STAGES = {
    "load": "Loading the model", "encode": "Looking at the picture", "prefill": "Reading", "quantize": "Quantising",
    "checksum": "Making the checksum", "imatrix": "Reading the data", "measure": "Measuring", "compare": "Comparing",
    "ask": "Asking", "frames": "Taking frames of the video", "pages": "Drawing pages",
}  # fmt: skip
# Control characters, which could move the cursor or recolour the terminal; tab and newline stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_RESULT = 300  # characters of a tool's result that are shown
_EMPTY_ENDS = re.compile(r"\A(?:(?:\x1b\[[\d;]*m|[ \t])*\n)+|(?:\n(?:\x1b\[[\d;]*m|[ \t])*)+\Z")


def clean(text: str) -> str:
    """Text that cannot steer a terminal."""
    return _CONTROL.sub("�", text.replace("\r\n", "\n"))


def _wrapped(text: str) -> str:
    """The text with its lines broken between words where stderr is a terminal."""
    if not sys.stderr.isatty():
        return text
    width = shutil.get_terminal_size().columns
    lines = (textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))
    return "\n".join("\n".join(line) for line in lines)


class Output:
    """The sink of one command. `quiet` leaves only the answer and errors, `silent_answer` (--json) holds the answer back."""

    def __init__(self, *, quiet: bool = False, show_thinking: bool = True, silent_answer: bool = False) -> None:
        self.quiet = quiet
        self.show_thinking = show_thinking
        self.silent_answer = silent_answer
        self._styled = settings.load().styled
        self._bar = 0
        self._stage = ("", 0.0)
        self._dimmed = False
        self._speaking = False
        self._blocks = _Blocks() if sys.stdout.isatty() and not silent_answer else None

    def note(self, text: str) -> None:
        """A sentence for the user."""
        if not self.quiet:
            self._clear()
            click.echo(_wrapped(clean(text)), err=True)

    def error(self, text: str) -> None:
        """What went wrong, said even when quiet."""
        self._clear()
        click.echo(_wrapped(f"Error: {clean(text)}"), err=True)

    def progress(self, event: Progress) -> None:
        """How far something is; shown only on a terminal, and only where it takes more than a second.

        One picture is encoded in a single step of unknown length, so that is shown at once, without a share.
        """
        now = time.monotonic()
        if event.stage != self._stage[0]:
            self._stage = (event.stage, now)
        single = event.stage == "encode"
        if now - self._stage[1] < 1 and (event.seconds_left or 0) < 1 and not single:
            return
        if not self.quiet and sys.stderr.isatty() and event.total > 0:
            share = "" if single else f": {min(100, int(100 * event.done / event.total))} %"
            left = f", {format_duration(event.seconds_left)} left" if event.seconds_left is not None else ""
            text = f"{_STAGES.get(event.stage, event.stage)}{share}{left}"
            click.echo(f"\r{text:<{self._bar}}", nl=False, err=True)
            self._bar = len(text)

    def stopping(self) -> None:
        """Said at Ctrl-C where the answer cannot end at once."""
        if self._stage[0] == "encode":
            self.note("Stops when this picture is read; Ctrl-C again leaves.")

    def event(self, event: Event) -> None:
        """Show one event of a turn."""
        if isinstance(event, Progress):
            self.progress(event)
        elif isinstance(event, ThinkingDelta):
            self._think(event.text)
        elif isinstance(event, TextDelta):
            self._answer(event.text)
        elif isinstance(event, ToolCall):
            self._undim()
            wrong = f" (unreadable: {event.error})" if event.error else ""
            self.note(f"Tool call: {call_line(event)}{wrong}")
        elif isinstance(event, ToolResult):
            self.note(f"Tool {'failed' if event.error else 'result'}: {_short(event.error or result_text(event.message))}")
        elif isinstance(event, Notice):
            self._undim()
            self.note(event.text)
        elif isinstance(event, Done):
            self.end()

    def broken(self) -> None:
        """Finish the line of an answer that failed on its way."""
        if self._speaking:
            self.end()
        self._clear()
        self._undim()

    def end(self) -> None:
        """Finish the answer's last line."""
        self._stage = ("", 0.0)
        self._speaking = False
        self._clear()
        self._undim()
        if self._blocks is not None:
            self._blocks.end()
        elif not self.silent_answer:
            click.echo()

    def finished(self, done: Done) -> None:
        """Why the answer ended, if not by itself, and what it cost."""
        reasons = {"length": "The answer was cut at its limit.", "cancelled": "Cancelled."}
        if done.finish_reason in reasons:
            self.note(reasons[done.finish_reason])
        self.note(stats_line(done))

    def _think(self, text: str) -> None:
        if self.quiet or not self.show_thinking:
            return
        self._clear()
        self._dimmed = True
        text = clean(text)
        click.echo(click.style(text, dim=True) if self._styled and sys.stderr.isatty() else text, nl=False, err=True)

    def _answer(self, text: str) -> None:
        if self.silent_answer:
            return
        self._clear()
        self._undim()
        self._speaking = True
        if self._blocks is not None:
            self._blocks.feed(clean(text))
        else:
            click.echo(text, nl=False)

    def _undim(self) -> None:
        if self._dimmed:
            click.echo("\n", err=True)
            self._dimmed = False

    def _clear(self) -> None:
        if self._bar:
            click.echo(f"\r{'':<{self._bar}}\r", nl=False, err=True)
            self._bar = 0


class _Blocks:
    """Markdown on a terminal, block by finished block (rich's Live repeats what is taller than the screen)."""

    def __init__(self) -> None:
        self._text = ""

    def feed(self, text: str) -> None:
        self._text += text
        while (end := _block_end(self._text)) is not None:
            block, self._text = self._text[:end], self._text[end:]
            self._print(block)

    def end(self) -> None:
        block, self._text = self._text, ""
        self._print(block)

    @staticmethod
    def _print(block: str) -> None:
        if not block.strip():
            return
        from rich.console import Console
        from rich.markdown import Markdown

        console = Console()
        with console.capture() as captured:  # rich puts empty lines around some kinds of blocks
            console.print(Markdown(block, code_theme="ansi_dark"))  # the terminal's own colours
        click.echo(_EMPTY_ENDS.sub("", captured.get()) + "\n")


def _block_end(text: str) -> int | None:
    """Where the first block ends: after a blank line outside a code fence that no indented line follows."""
    fence, at, blank = "", 0, False
    for line in text.splitlines(keepends=True):
        mark = line.lstrip()[:3]
        if blank and not line[0].isspace():
            return at
        if fence:
            fence = "" if mark == fence else fence
        elif mark in ("```", "~~~") and mark not in line.lstrip()[3:]:
            fence = mark
        at += len(line)
        blank = not fence and not line.strip() and line.endswith("\n") and bool(text[: at - len(line)].strip())
    return None


def call_line(call: ToolCall) -> str:
    """A call as it would be written in Python."""
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"


def result_text(message: Message) -> str:
    """A tool's result in one line."""
    pictures = [f"[picture: {part.source}]" for part in message.content if isinstance(part, ImagePart)]
    data = "" if message.result is None else json.dumps(message.result, ensure_ascii=False, default=str)
    return " ".join(" ".join(filter(None, [data, message.text, *pictures])).split())


def _short(text: str) -> str:
    return text if len(text) <= _RESULT else text[:_RESULT] + "…"


def stats_line(done: Done) -> str:
    """Tokens and speeds of a turn in one line."""
    usage, timings = done.usage, done.timings
    parts = [f"{usage.prompt:,} tokens read" + (f" ({usage.cached:,} remembered)" if usage.cached else "")]
    if usage.thinking:
        parts.append(f"{usage.thinking:,} thought")
    parts.append(f"{usage.answer:,} written")
    if timings.decode_speed and usage.thinking + usage.answer >= 3:
        parts.append(f"{timings.decode_speed:,.1f} tokens/s")
    if timings.first_token:
        parts.append(f"first after {timings.first_token:.2f} s")
    return " · ".join(parts)


def as_json(done: Done, model: str, plan: Plan) -> dict[str, Any]:
    """The object of --json."""
    said: Message = done.message
    usage: Usage = done.usage
    timings: Timings = done.timings
    return {
        "content": said.text,
        "thinking": said.thinking,
        "tool_calls": [asdict(call) | {"arguments": dict(call.arguments)} for call in said.tool_calls],
        "finish_reason": done.finish_reason,
        "usage": asdict(usage),
        "timings": asdict(timings),
        "model": model,
        "plan": [asdict(choice) for choice in plan.choices],
    } | ({} if done.parsed is None else {"parsed": done.parsed})


@contextmanager
def interruptible(token: CancelToken, output: Output) -> Iterator[None]:
    """Ctrl-C cancels the token; a second one raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        if token.cancelled:
            raise KeyboardInterrupt
        token.cancel()
        output.stopping()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
