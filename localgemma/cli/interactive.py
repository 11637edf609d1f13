"""The conversation on a terminal: a line is said to the model, a line with a slash is a command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localgemma.chat.front import reread
from localgemma.cli.attach import attachments, clipboard, dropped, words
from localgemma.cli.chat import answer
from localgemma.cli.output import Output, stats_line
from localgemma.cli.sessions import save
from localgemma.cli.terminal import reader
from localgemma.cli.tools import listed
from localgemma.engine import CancelToken
from localgemma.errors import LocalgemmaError, UsageError
from localgemma.messages import Event

if TYPE_CHECKING:
    from localgemma.chat.conversation import Conversation
    from localgemma.chat.mcp.servers import Servers
    from localgemma.runtime import Model

COMMANDS = {
    "/file": "FILE…  attach pictures or texts to the next message",
    "/paste": "attach the picture in the clipboard",
    "/think": "on | off | N  think before answering, at most N tokens",
    "/system": "TEXT  set the system message; without TEXT remove it",
    "/retry": "answer the last message again",
    "/edit": "TEXT  replace your last message and answer anew",
    "/undo": "take back your last message and its answer",
    "/clear": "forget the conversation",
    "/tools": "the tools and the MCP servers; restart NAME starts a server again",
    "/stats": "what the last answer cost, and the plan",
    "/save": "FILE  write the conversation as Markdown, or JSON for .json",
    "/help": "this list",
    "/exit": "leave (or Ctrl-D)",
}


class Interactive:
    """One interactive conversation with its attachments; one that is kept has its lines remembered too."""

    def __init__(
        self, model: Model, chat: Conversation, output: Output, files: list[Any], servers: Servers | None = None
    ) -> None:
        self.model, self.chat, self.output, self.servers = model, chat, output, servers
        self.files = files
        self._read = reader(COMMANDS, remember=chat.keep is not None)
        self._interrupted = False

    def run(self) -> None:
        """Read and answer until /exit, the end of input, or Ctrl-C twice."""
        self.output.note(f"{self.model.info.model}. /help lists the commands, Ctrl-D leaves.")
        while True:
            try:
                line = self._read("> ").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                if self._interrupted:
                    raise
                self._interrupted = True
                self.output.note("Ctrl-C again leaves.")
                continue
            self._interrupted = False
            if line == "/exit":
                return
            if line:
                try:
                    self.take(line)
                except LocalgemmaError as error:
                    self.output.error(str(error))

    def take(self, line: str) -> None:
        """Say a line to the model, attach the files that it names, or run a command."""
        name, _, rest = line.partition(" ")
        if name in COMMANDS:
            getattr(self, f"do_{name[1:]}")(rest.strip())
        elif name.startswith("/") and "/" not in name[1:] and not Path(name).exists():
            raise UsageError(f"There is no command {name}.", "See /help.")
        else:
            files, text = dropped(line)
            if files:
                self._attach(files)
            if text:
                self._say(text)

    def _say(self, text: str) -> None:
        self._answer(lambda token: self.chat.send(text, self.files, cancel=token))
        self.files = []

    def _answer(self, start: Callable[[CancelToken], Iterator[Event]]) -> None:
        done = answer(start, self.output)
        self.output.finished(done)
        if done.finish_reason == "cancelled":
            self._interrupted = True
            self.output.note("Ctrl-C again leaves.")

    def _attach(self, files: list[str]) -> None:
        self.files = [*self.files, *attachments(files)]
        self.output.note(f"Attached to the next message: {', '.join(files)}")

    def _reread(self) -> None:
        """What a change at the front of the prompt costs: no prefix of it is remembered."""
        if self.chat.history:
            self.chat.front.saw(self.chat)
            self.output.note(reread(self.chat.engine, self.chat.prompt()))

    def do_file(self, rest: str) -> None:
        """Attach files."""
        files = words(rest)
        if not files:
            raise UsageError("/file needs a file.", "Write: /file picture.png")
        self._attach(files)

    def do_paste(self, rest: str) -> None:
        """Attach what the clipboard holds."""
        found = clipboard()
        if isinstance(found[0], str):
            self._attach(found)
        else:
            self.files = [*self.files, *found]
            self.output.note("Attached to the next message: the clipboard's picture")

    def do_think(self, rest: str) -> None:
        """Set thinking."""
        options = self.chat.options
        if rest in ("on", "off", ""):
            thinking = rest == "on" if rest else not options.thinking
            self.chat.options = replace(options, thinking=thinking)
        elif rest.isdecimal():
            self.chat.options = replace(options, thinking=int(rest) > 0, think_budget=int(rest))
        else:
            raise UsageError(f"/think cannot be {rest!r}.", "Write: /think on, /think off or /think 500")
        options = self.chat.options
        self.output.note(f"Thinking: at most {options.think_budget:,} tokens." if options.thinking else "Thinking is off.")
        self._reread()

    def do_system(self, rest: str) -> None:
        """Set the system message."""
        self.chat.system = rest or None
        self.output.note("The system message is set." if rest else "There is no system message now.")
        self._reread()

    def do_retry(self, rest: str) -> None:
        """Answer again."""
        self._answer(lambda token: self.chat.regenerate(cancel=token))

    def do_edit(self, rest: str) -> None:
        """Replace the last message."""
        mine = [index for index, message in enumerate(self.chat.history) if message.role == "user"]
        if not mine:
            raise UsageError("There is no message of yours yet.", "Say something first.")
        text = rest or self._read("edit> ", self.chat.history[mine[-1]].text).strip()
        if text:
            self._answer(lambda token: self.chat.edit(mine[-1], text, cancel=token))

    def do_undo(self, rest: str) -> None:
        """Take back the last message."""
        self.output.note(f"Taken back: {self.chat.undo().text[:60]}")

    def do_clear(self, rest: str) -> None:
        """Forget everything said."""
        self.chat.clear()
        self.files = []
        self.output.note("The conversation is empty.")

    def do_tools(self, rest: str) -> None:
        """List the tools, or start a server again."""
        what, _, name = rest.partition(" ")
        if what not in ("", "restart") or bool(what) != bool(name):
            raise UsageError(f"/tools cannot be {rest!r}.", "Write: /tools, or /tools restart NAME")
        if name:
            if self.servers is None:
                raise UsageError("There are no MCP servers.", "Start with --mcp CONFIG.")
            self.servers.restart(name.strip())
        self.output.note(listed(self.chat.toolbox, self.servers))

    def do_stats(self, rest: str) -> None:
        """The last answer's cost and the plan."""
        if self.chat.last is not None:
            self.output.note(stats_line(self.chat.last))
        used = self.chat.engine.count(self.chat.prompt())
        self.output.note(f"Context: {used:,} of {self.model.info.context:,} tokens\n{self.model.plan}")

    def do_save(self, rest: str) -> None:
        """Write the conversation to a new file."""
        files = words(rest)
        if len(files) != 1:
            raise UsageError("/save needs one file name.", "Write: /save chat.md")
        path = Path(files[0]).expanduser()
        save(path, self.chat.system, self.chat.history, as_json=path.suffix.lower() == ".json")
        self.output.note(f"Saved to {path}")

    def do_help(self, rest: str) -> None:
        """The list of commands."""
        self.output.note("\n".join(f"{name:8} {text}" for name, text in COMMANDS.items()))
