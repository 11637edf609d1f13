"""A conversation with an engine: turns, their events, and what stays of them.

It knows the Engine protocol, the prompt renderer and the stream parser; it does not know llama.cpp.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from localgemma.chat import record
from localgemma.chat.front import Front
from localgemma.chat.held import Wish
from localgemma.chat.parts import Files
from localgemma.chat.tool_loop import Toolbox, Tools, ToolTurn
from localgemma.chat.turn import Turn, collect, picture_of
from localgemma.engine import Control, Engine, KeepsState, Prompt, Request, SpanLimit, StateInfo, Text
from localgemma.errors import BadConversation, BadState, DiskError, NotFound
from localgemma.gemma4.tokens import CHANNEL, CHANNEL_END
from localgemma.messages import Answer, Done, Event, ImagePart, Message, Notice, TextPart, ToolCall
from localgemma.options import ChatOptions, Sampling


class Conversation:
    """Turns with one engine. `send` streams events, `ask` waits for the whole answer.

    One turn at a time: a second `send` while one is being read raises BadConversation. Calls of Python functions among the
    `tools` are run and the model goes on with their results; calls of declarations alone are for the reader of the events.
    """

    def __init__(
        self,
        engine: Engine,
        system: str | None = None,
        options: ChatOptions | None = None,
        sampling: Sampling | None = None,
        *,
        tools: Tools = (),
        history: Sequence[Message] = (),
        fetch: Callable[[str], bytes] | None = None,
        speeds: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.engine = engine
        self.system = system
        self.options = options or ChatOptions()
        self.sampling = sampling or Sampling()
        self.toolbox = Toolbox.of(tools)
        self.schema: Any = None  # the form of every answer, as `schema` of `send`
        self.last: Done | None = None
        self.keep: Callable[[Conversation], object] | None = None  # called after every change; may raise DiskError
        self._speeds = speeds  # tokens of words and of pictures a second as the model read earlier; 0: not known
        self._notices: list[Notice] = []  # to be said in the next turn
        self._name = uuid.uuid4().hex  # what the engine knows it by
        self._loose: set[str] = set()  # what of schemas no grammar holds, and was said
        self._fetch = fetch
        self.front = Front()
        self._history = list(history)
        self._start = 0  # turns before this one no longer fit into the context
        self._busy = False

    @property
    def history(self) -> tuple[Message, ...]:
        """The messages so far, oldest first, without the system message."""
        return tuple(self._history)

    def send(
        self,
        text: str,
        images: Sequence[Any] = (),
        *,
        image_tokens: int | Literal["auto"] | None = None,
        **asked: Any,
    ) -> Iterator[Event]:
        """Say something and stream the answer's events, Done last; leaving the loop cancels.

        `images` are paths (of videos, PDFs and texts too), bytes, PIL images, URLs or parts; `"a.png#1120"` has its own
        budget. By name also: `cancel`, a CancelToken; `schema`, the form of the answer (JSON schema, response_format, class);
        `tool_choice`; any field of Sampling. Raises UsageError, BadMedia, NotFound, PictureTooLarge and ContextOverflow.
        """
        look, wish = partial(self._picture, budget=image_tokens), self._wish(asked)
        files = Files(images, self.options, self.engine, look, self._speeds, self._used)
        return self._sent(text, files, wish, image_tokens or self.options.image_tokens)

    def _sent(self, text: str, files: Files, wish: Wish, budget: int | str) -> Iterator[Event]:
        parts = yield from files.read(wish.cancel, sized=budget == "auto")
        words = [TextPart(text)] if text or not parts else []
        yield from self._turn([*self._history, Message("user", (*parts, *words))], wish)

    def _used(self) -> int:
        return self.engine.count(self.prompt()) if self._history and self.options.overflow == "error" else 0

    def ask(self, text: str, images: Sequence[Any] = (), **options: Any) -> Answer:
        """`send`, and wait for the whole answer."""
        return collect(self.send(text, images, **options))

    def reply(self, **asked: Any) -> Iterator[Event]:
        """Answer the conversation as it stands, which ends with a user or tool message."""
        if not self._history or self._history[-1].role == "assistant":
            raise BadConversation("There is nothing to answer.", "Say something first.")
        return self._turn(list(self._history), self._wish(asked))

    def regenerate(self, **asked: Any) -> Iterator[Event]:
        """Answer the last user message again; its old answer goes."""
        return self._turn(self._history[: self._last_user() + 1], self._wish(asked))

    def edit(self, index: int, text: str, **asked: Any) -> Iterator[Event]:
        """Replace the words of the user message at `index` of the history, and answer anew; what came after it goes."""
        if not -len(self._history) <= index < len(self._history) or self._history[index].role != "user":
            raise BadConversation(f"Message {index} is not one of yours.", "Choose a user message of the history.")
        old = self._history[index]
        kept = tuple(part for part in old.content if not isinstance(part, TextPart) or part.source)
        return self._turn([*self._history[:index], replace(old, content=(*kept, TextPart(text)))], self._wish(asked))

    def add_result(self, call: ToolCall, result: Any) -> None:
        """Put a tool's result into the conversation; `reply` goes on with it."""
        self._idle()
        self._history.append(Message("tool", tool_call_id=call.id, name=call.name, result=result))
        self._kept()

    def undo(self) -> Message:
        """Take back the last user message and everything after it; returns that message."""
        self._idle()
        index = self._last_user()
        removed = self._history[index]
        del self._history[index:]
        self._start = 0
        self._kept()
        return removed

    def clear(self) -> None:
        """Forget every turn; the system message and the options stay."""
        self._idle()
        self._history, self._start, self.last = [], 0, None
        self._kept()

    def snapshot(self) -> record.Record:
        """What of this conversation is kept on disk."""
        given, model = (self.history, self.system, self.options, self.sampling), self.engine.info.model
        return record.Record(*given, model, tools=tuple(tool.declaration for tool in self.toolbox.tools))

    def save(self, folder: Path | str) -> None:
        """Save into a folder: `chat.json`, its pictures beside it. Raises DiskError, and UsageError where it is in use."""
        with record.held(Path(folder), timeout=10):
            record.write(Path(folder), self.snapshot())

    def save_state(self, folder: Path | str) -> StateInfo | None:
        """Save what the engine has evaluated beside the conversation, so that `load` need not read it again.

        None where the engine keeps no state or has none of this conversation. Raises DiskError.
        """
        if not isinstance(self.engine, KeepsState) or not self._history:
            return None
        return self.engine.save_state(self.prompt(), Path(folder) / record.STATE)

    def load(self, folder: Path | str) -> StateInfo | None:
        """Become the conversation saved in a folder; the engine's saved state comes along if it is there and valid.

        What is lost is said in the next turn. Raises NotFound, DiskError and BadConversation.
        """
        self._idle()
        found, lost = record.read(Path(folder))
        self.system, self.options, self.sampling = found.system, found.options, found.sampling
        self._history, self._start, self.last = list(found.messages), 0, None
        self._notices = [Notice(sentence) for sentence in lost]
        self.front.saw(self)
        try:
            return self.engine.load_state(Path(folder) / record.STATE) if isinstance(self.engine, KeepsState) else None
        except NotFound:
            return None
        except (BadState, DiskError) as error:
            self._notices.append(Notice(str(error)))
            return None

    def _kept(self) -> None:
        """Let `keep` see a change; that it failed is said in the turn, which goes on."""
        try:
            if self.keep is not None:
                self.keep(self)
        except DiskError as error:
            self._notices.append(Notice(str(error)))

    def _waiting(self) -> list[Notice]:
        waiting, self._notices = self._notices, []
        return waiting

    def prompt(self) -> Prompt:
        """What the model would read next."""
        return self._render(self._history[self._start :])

    def _last_user(self) -> int:
        for index in range(len(self._history) - 1, -1, -1):
            if self._history[index].role == "user":
                return index
        raise BadConversation("There is no message of yours yet.", "Say something first.")

    def _idle(self) -> None:
        if self._busy:
            raise BadConversation("An answer is still being written.", "Read it to its end, or cancel it, first.")

    def _picture(self, source: Any, budget: int | Literal["auto"] | None = None) -> ImagePart:
        return picture_of(source, budget or self.options.image_tokens, self.engine.info, self._fetch)

    def _render(self, messages: Sequence[Message]) -> Prompt:
        from localgemma.gemma4.prompt import render, render_with_template

        system = [Message("system", (TextPart(self.system),))] if self.system else []
        options, template = self.options, self.options.template
        write = render if template is None else partial(render_with_template, template)
        return write(
            [*system, *messages],
            tools=[tool.declaration for tool in self.toolbox.tools] or None,
            enable_thinking=options.thinking and options.think_budget > 0,
            preserve_thinking=options.preserve_thinking,
            add_generation_prompt=True,
        )

    def _fitted(self, messages: list[Message], sampling: Sampling) -> Prompt:
        """The prompt, without the oldest turns that leave no room for an answer if that was asked for."""
        start = min(self._start, len(messages) - 1)
        prompt = self._render(messages[start:])
        if self.options.overflow == "drop":
            context = self.engine.info.context
            room = min(sampling.max_tokens or context, context // 4)
            while self.engine.count(prompt) + room > context:
                following = next((i for i in range(start + 1, len(messages)) if messages[i].role == "user"), None)
                if following is None:
                    break
                start = following
                prompt = self._render(messages[start:])
        self._start = start
        return prompt

    def _wish(self, asked: Mapping[str, Any]) -> Wish:
        return Wish.of(self.sampling, self.options, self.toolbox.tools, self.schema, asked)

    def _unheld(self, loose: Sequence[str]) -> Iterator[Notice]:
        if new := [each for each in loose if each not in self._loose]:
            self._loose |= set(new)
            yield Notice(f"The grammar cannot hold: {', '.join(new)}. All but look-around is checked afterwards.")

    def _turn(self, messages: list[Message], wish: Wish, said: Sequence[Notice] = ()) -> Iterator[Event]:
        """Generations, and the tools that they call, until one calls none."""
        self.toolbox, news = self.toolbox.renewed()
        self._notices += map(Notice, news)
        tools = ToolTurn(self.toolbox, wish.cancel, self._picture)
        while tools.wants((yield from self._generation(messages, wish, said))):
            self._busy = True
            try:
                yield from tools.answer(self._history[-1].tool_calls)
            finally:
                self._busy = False
                self._history += tools.messages
                self._kept()
            if tools.over:
                break
            messages, wish, said = list(self._history), wish.later(), ()
        done, wrong = wish.parsed(tools.total())
        yield from [*self._waiting(), *wrong]
        yield done

    def _generation(self, messages: list[Message], wish: Wish, said: Sequence[Notice]) -> Generator[Event, None, Done]:
        """One answer. What was said stays whatever happens; one that failed before its first word leaves no trace."""
        self._idle()
        before, earlier = self._history, (self._start if messages[: self._start] == self._history[: self._start] else 0)
        self._busy, self._history, self._start = True, messages, earlier
        turn = Turn(self.options.repetition_guard, wish.cancel, len(messages))
        done: Done | None = None
        left = False
        try:
            yield from [*self._waiting(), *said]
            sampling, constraint, loose = wish.held(self.toolbox, self.options)
            yield from self._unheld(loose)
            prompt = self._fitted(messages, sampling)
            yield from self.front.told(self, prompt, len(messages) - 1)
            if self._start > earlier:
                gone = sum(message.role == "user" for message in messages[earlier : self._start])
                yield Notice(f"The context is full: the {gone} oldest turn{'s' * (gone > 1)} will no longer be read.")
            limit = SpanLimit(CHANNEL, CHANNEL_END, self.options.think_budget, insert=(Text("\n"), Control(CHANNEL_END)))
            request = Request(prompt, sampling, limit, self._name, constraint)
            yield from turn.run(self.engine.generate(request, turn.token), prompt.open_span)
            done = turn.done()
        except GeneratorExit:
            left = True
            raise
        finally:
            if done is not None:
                self._history.append(done.message)
                self.last = done
            elif left or turn.anything:
                self._history.append(turn.message("cancelled"))
            else:
                self._history, self._start = before, 0
            self._busy = False
            if self._history is not before:
                self._kept()
        return done
