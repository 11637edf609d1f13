"""Running the tools that a model calls: checked, approved, limited, and never able to block or break the conversation.

It knows no engine: a Toolbox says what may run, a Round answers the calls of one message, in their order.
"""

from __future__ import annotations

import contextvars
import json
import queue
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from localgemma.chat.functions import Source, Tool, ToolSource, as_tools
from localgemma.chat.hints import BadArgument
from localgemma.chat.results import ToolFailed, failure, success
from localgemma.engine import CancelToken
from localgemma.errors import Cancelled, UsageError
from localgemma.messages import Done, Event, Message, Notice, Part, Timings, ToolCall, ToolResult, ToolStarted, Usage
from localgemma.options import ToolLimits

Tools: TypeAlias = "Iterable[Source] | Toolbox"
Approve: TypeAlias = 'Callable[[ToolCall], bool] | Collection[str] | Literal["always"]'

_TICK = 0.05  # seconds between two looks at the cancel token while a tool runs
_STOPPED = "The user stopped this call."

# The call that this thread runs: cancelled at the moment when nobody waits for its result any more.
RUNNING: contextvars.ContextVar[CancelToken | None] = contextvars.ContextVar("RUNNING", default=None)


@dataclass(frozen=True)
class Toolbox:
    """The tools of a conversation. `approve` is "always", the names that may run, or a function that is asked each time.

    The function may raise Cancelled, which ends the turn. `sources` are what the tools came from, where they may change.
    """

    tools: tuple[Tool, ...] = ()
    approve: Approve = "always"
    limits: ToolLimits = field(default_factory=ToolLimits)
    sources: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.approve, str) and self.approve != "always":  # a name would be searched in it, letter by letter
            raise UsageError(f"approve cannot be {self.approve!r}.", "Give 'always', a list of names, or a function.")

    @classmethod
    def of(cls, sources: Tools, approve: Approve = "always", limits: ToolLimits | None = None) -> Toolbox:
        """A toolbox as it is, or one with these tools. Raises UsageError for what is no tool."""
        if isinstance(sources, Toolbox):
            return sources
        kept = tuple(sources)
        changing = kept if any(isinstance(source, ToolSource) for source in kept) else ()
        return cls(as_tools(kept), approve, limits or ToolLimits(), changing)

    def renewed(self) -> tuple[Toolbox, list[str]]:
        """The toolbox with the tools that its sources have now (itself if they are the same), and what to say about it."""
        said = [text for source in self.sources if isinstance(source, ToolSource) for text in source.news()]
        try:
            tools = as_tools(self.sources) if self.sources else self.tools
        except UsageError as error:
            return self, [*said, f"The tools changed, and stay as they were. {error}"]
        before = {tool.name: tool.declaration for tool in self.tools}
        after = {tool.name: tool.declaration for tool in tools}
        if list(before.items()) == list(after.items()):
            return self, said
        kinds = (
            ("New tools", [name for name in after if name not in before]),
            ("Tools that are gone", [name for name in before if name not in after]),
            ("Tools that changed", [name for name in after if name in before and after[name] != before[name]]),
        )
        said += [f"{kind}: {', '.join(names)}." for kind, names in kinds if names]
        return replace(self, tools=tools), said

    def find(self, name: str) -> Tool | None:
        """The tool of this name; else the only one that a server offers by it (models at times leave `SERVER__` out)."""
        exact = next((tool for tool in self.tools if tool.name == name), None)
        bare = [tool for tool in self.tools if name and tool.name.endswith(f"__{name}")]
        return exact or (bare[0] if len(bare) == 1 else None)

    def declared(self, tools: Sequence[Tool]) -> str:
        """These tools as JSON for a grammar: every name by which `find` gives them, and its schema."""
        bare = ((tool.name.partition("__")[2], tool) for tool in tools)
        names = [*((tool.name, tool) for tool in tools), *((name, tool) for name, tool in bare if self.find(name) is tool)]
        return json.dumps([{"function": {"name": name, "parameters": tool.parameters}} for name, tool in names], default=str)

    def answers(self, calls: Sequence[ToolCall]) -> bool:
        """Whether these calls are answered here: there are functions, and no call is of a tool without one."""
        found = [self.find(call.name) for call in calls]
        return any(tool.function for tool in self.tools) and all(tool is None or tool.function for tool in found)

    def approves(self, call: ToolCall) -> bool:
        """Whether this call may run, asked by the tool's whole name."""
        if self.approve == "always":
            return True
        tool = self.find(call.name)
        call = replace(call, name=tool.name) if tool is not None else call
        return self.approve(call) if callable(self.approve) else call.name in self.approve


class ToolTurn:
    """The tools' part of one turn: rounds of calls between generations, `total` what all of it cost."""

    def __init__(self, box: Toolbox, cancel: CancelToken | None, picture: Callable[[Any], Part]) -> None:
        self._box, self._picture = box, picture
        self._cancel = cancel or CancelToken()
        self._rounds = 0
        self._before: list[ToolCall] = []  # the calls of the round before
        self._circling = False
        self._dones: list[Done] = []
        self.messages: list[Message] = []  # the answers to the last round's calls, one each, even where it was left
        self.over = False  # no generation follows

    def wants(self, done: Done) -> bool:
        """Whether a generation ended with calls that are answered here."""
        self._dones.append(done)
        return done.finish_reason == "tool_calls" and self._box.answers(done.message.tool_calls)

    def total(self) -> Done:
        """The end of the turn: the last message, and the usage and time of all generations."""
        last, first = self._dones[-1], self._dones[0]
        if self._cancel.cancelled and self.messages and last.finish_reason == "tool_calls":
            last = replace(last, finish_reason="cancelled")
        if len(self._dones) == 1:
            return last
        sums = {name: sum(getattr(done.usage, name) for done in self._dones) for name in Usage.__slots__}
        times = [done.timings for done in self._dones]
        prefill, decode = sum(each.prefill for each in times), sum(each.decode for each in times)
        timings = Timings(
            first.timings.first_token, prefill, sum(each.encode for each in times), decode,
            sum(each.prefill * each.prefill_speed for each in times) / prefill if prefill else 0.0,
            sum(each.decode * each.decode_speed for each in times) / decode if decode else 0.0,
            sum(each.drafted for each in times), sum(each.accepted for each in times), last.timings.draft_gain,
        )  # fmt: skip
        return replace(last, usage=Usage(**sums), timings=timings)

    def answer(self, calls: Sequence[ToolCall]) -> Iterator[Event]:
        """Answer every call of one message, in order; the events of it. Leaving stops, and what is left is answered so."""
        limits = self._box.limits
        self._rounds += 1
        self.messages = []
        done: list[tuple[ToolCall, Message]] = []
        try:
            for index, call in enumerate(calls):
                same = next((message for other, message in done if _same(other, call)), None)
                refusal = self._refusal(call, index)
                if self._cancel.cancelled:
                    break
                if same is not None:
                    message, seconds = replace(same, tool_call_id=call.id), 0.0
                elif refusal is not None:
                    message, seconds = failure(call, refusal), 0.0
                else:
                    message, seconds = yield from self._run(call)
                done.append((call, message))
                self.messages.append(message)
                yield ToolResult(call, message, seconds)
        except Cancelled:
            self._cancel.cancel()
        finally:
            self.messages += [failure(call, _STOPPED) for call in calls[len(self.messages) :]]
        repeated = all(any(_same(call, other) for other in self._before) for call in calls)
        self.over = self._cancel.cancelled or self._rounds > limits.tool_rounds or (repeated and self._circling)
        self._circling, self._before = repeated, list(calls)
        if self.over and not self._cancel.cancelled:
            yield Notice("The model went on calling tools instead of answering, and was stopped.")

    def _refusal(self, call: ToolCall, index: int) -> str | None:
        """Why a call is not run, for the model; None for one that is."""
        limits, tool = self._box.limits, self._box.find(call.name)
        if self._rounds > limits.tool_rounds:
            return "There were too many calls. Answer now with what you know, without calling a tool."
        if index >= limits.tool_calls:
            return f"There were too many calls at once; at most {limits.tool_calls} are run."
        if call.error is not None:
            return f"The call could not be read: {call.error}. Write it again."
        if tool is None:
            return f"There is no tool of this name. The tools are: {', '.join(each.name for each in self._box.tools)}."
        if any(_same(call, other) for other in self._before):
            return "You made this very call just before, and its result is above. Use that, or call it otherwise."
        return None

    def _run(self, call: ToolCall) -> Generator[Event, None, tuple[Message, float]]:
        """Check, ask, run; returns the answer and the seconds that it took."""
        tool = self._box.find(call.name)
        assert tool is not None and tool.function is not None
        try:
            arguments = tool.read(call.arguments)
        except (BadArgument, RecursionError) as error:
            return failure(call, f"Wrong arguments: {error}"), 0.0
        if not self._box.approves(call):
            return failure(call, "The user does not allow this call."), 0.0
        yield ToolStarted(call)
        function, limit = tool.function, self._box.limits.tool_characters
        started = time.monotonic()
        message = self._wait(call, lambda: success(call, function(**arguments), limit, self._picture))
        return message, time.monotonic() - started

    def _wait(self, call: ToolCall, work: Callable[[], Message]) -> Message:
        """The work's result, from a thread that is left alone when time is up or the user stops."""
        box: queue.SimpleQueue[Message] = queue.SimpleQueue()
        context = contextvars.copy_context()
        running = CancelToken()
        context.run(RUNNING.set, running)

        def guarded() -> None:
            try:
                box.put(context.run(work))
            except BaseException as error:  # a tool may raise anything, SystemExit too; the model reads it
                box.put(failure(call, _described(error)))

        threading.Thread(target=guarded, name=f"tool {call.name}", daemon=True).start()
        seconds = self._box.limits.tool_seconds
        end = time.monotonic() + seconds
        try:
            while not self._cancel.cancelled:
                try:
                    return box.get(timeout=max(0.0, min(_TICK, end - time.monotonic())))
                except queue.Empty:
                    if time.monotonic() >= end:
                        return failure(call, f"The tool did not answer within {seconds:g} seconds.")
            return failure(call, _STOPPED)
        finally:
            running.cancel()


def _same(one: ToolCall, other: ToolCall) -> bool:
    """Whether two calls are the same; of those that could not be read, only ones written alike are."""
    return (one.name, _key(one)) == (other.name, _key(other))


def _key(call: ToolCall) -> str:
    return call.raw if call.error is not None else json.dumps(dict(call.arguments), sort_keys=True, default=repr)


def _described(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())[:500]
    except Exception:  # an error of somebody's tool may fail to describe itself
        text = ""
    return f"{type(error).__name__}: {text}" if text and not isinstance(error, ToolFailed) else text or type(error).__name__
