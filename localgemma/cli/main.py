"""The root command and the one error boundary: a type becomes one sentence on stderr and an exit code."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from typing import Any, NoReturn

import click

from localgemma import __version__, settings
from localgemma.cli.lazy import LazyGroup
from localgemma.errors import LocalgemmaError

# name: (module, what it does); the modules are imported only when their command runs.
_COMMANDS = {
    "chat": ("localgemma.cli.chat", "Talk with a model: one question, a pipe, or a conversation."),
    "models": ("localgemma.cli.models", "Find, download, check, link, carry and remove model files."),
    "convert": ("localgemma.cli.convert", "Make a model file from a published checkpoint."),
    "quantize": ("localgemma.cli.quantize", "Make a smaller model file, or a whole release."),
    "imatrix": ("localgemma.cli.imatrix", "Read data with a model, for better quantisation."),
    "sessions": ("localgemma.cli.sessions", "List, show, export and remove saved chats."),
    "doctor": ("localgemma.cli.doctor", "Look at this machine; name what stands in the way, and the fix."),
    "plan": ("localgemma.cli.plan", "Say what this machine can do with a model, and why."),
    "compare": ("localgemma.cli.compare", "Say what each quantisation costs, token by token."),
    "bench": ("localgemma.cli.bench", "Measure how fast a model loads, reads and writes here."),
}


class Root(LazyGroup):
    """Every error of every command ends in `main`."""

    table = _COMMANDS

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; that the reader of a pipe has all it wanted (`… | head -1`) is no error."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
            return 0

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run, and turn whatever happens into an exit code."""
        kwargs["standalone_mode"] = False
        try:
            _set_up_streams()
            result = super().main(*args, **kwargs)
        except click.ClickException as error:
            _say_usage(error)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            sys.exit(130)
        except LocalgemmaError as error:
            _say(f"Error: {error}")
            sys.exit(error.exit_code)
        except Exception as error:
            if settings.load().log_level == "debug":
                traceback.print_exc()
            _say(
                f"Error: Something went wrong inside localgemma ({type(error).__name__}: {_one_line(error)}). "
                "See where with: LOCALGEMMA_LOG=debug"
            )
            sys.exit(1)
        sys.exit(result if isinstance(result, int) else 0)


def _set_up_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal's encoding lacks becomes a question mark
            stream.reconfigure(errors="replace")
    level = logging.getLevelName(settings.load().log_level.upper())
    logging.basicConfig(
        stream=sys.stderr, level=level if isinstance(level, int) else logging.ERROR, format="%(name)s: %(message)s"
    )


def _say_usage(error: click.ClickException) -> None:
    """A wrong option in one sentence; the help where there were no words at all."""
    context = getattr(error, "ctx", None)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return
    if isinstance(error, click.NoSuchOption) and context:  # an option cut short is nearer than what merely looks alike
        flags = [flag for parameter in context.command.params for flag in parameter.opts]
        if longer := [flag for flag in flags if flag.startswith(error.option_name)]:
            error = click.NoSuchOption(error.option_name, possibilities=longer, ctx=context)
    words = context.command_path.removeprefix("python -m ").split() if context else ["localgemma"]
    text = " ".join(error.format_message().split()).rstrip(".?")
    if "(Did you mean" in text:  # click's way of naming several
        text = text.replace("(Did you mean", "Did you mean").removesuffix("?)")
    end = "?" if "Did you mean" in text else "."
    _say(f"Error: {text}{end} See what it takes with: {' '.join([*words, '--help'])}")


def _say(text: str) -> None:
    click.echo(text, err=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="localgemma", message="%(prog)s %(version)s")
def cli() -> None:
    """Gemma 4 31B on your own computer."""


def main() -> NoReturn:
    """The console script."""
    cli.main()


if __name__ == "__main__":
    main()
