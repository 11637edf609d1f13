"""What a turn is held to: the sampling, which tools may be called, the form of its answer, and the grammar of all that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from localgemma.chat.functions import Tool
from localgemma.chat.structured import Form
from localgemma.chat.tool_loop import Toolbox
from localgemma.engine import CancelToken
from localgemma.errors import UsageError
from localgemma.gemma4 import grammar
from localgemma.gemma4.tokens import CALL, IDS
from localgemma.messages import Done, Notice
from localgemma.options import ChatOptions, Constraint, Sampling, updated

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Wish:
    """How one turn is asked for. `choice` is auto, none, required, or the name of the tool that must be called."""

    sampling: Sampling
    cancel: CancelToken | None = None
    choice: str = "auto"
    form: Form | None = None

    @classmethod
    def of(
        cls, sampling: Sampling, options: ChatOptions, tools: Sequence[Tool], schema: Any, asked: Mapping[str, Any]
    ) -> Wish:
        """What `send` was given by name: fields of Sampling, `cancel`, `tool_choice` and `schema`. Raises UsageError."""
        rest = dict(asked)
        cancel, form = rest.pop("cancel", None), Form.of(rest.pop("schema", None) or schema)
        choice = _choice(rest.pop("tool_choice", None) or options.tool_choice, tools, options.grammar)
        return cls(updated(sampling, rest), cancel, choice, form)

    def later(self) -> Wish:
        """The wish for what follows the first message of a turn: a call that was demanded has been made."""
        return self if self.choice == "none" else replace(self, choice="auto")

    def held(self, box: Toolbox, options: ChatOptions) -> tuple[Sampling, Constraint | None, tuple[str, ...]]:
        """Sampling and grammar of one message, and what of the schemas the grammar does not hold. Raises UsageError."""
        tools: Sequence[Tool] = box.tools
        sampling, most = self.sampling, box.limits.tool_calls if options.parallel_calls else 1
        if tools and self.choice == "none":
            sampling = replace(sampling, logit_bias={**sampling.logit_bias, IDS[CALL]: _NEVER})
            tools = ()
        if not options.grammar or not (tools or self.form):
            return sampling, None, ()
        if self.choice not in ("auto", "none"):
            tools = [tool for tool in tools if self.choice in ("required", tool.name)]
            found = _grammar("required", box.declared(tools), "", most)
        elif self.form is not None:
            found = _grammar("answer", box.declared(tools), json.dumps(self.form.schema), most)
        else:
            found = _grammar("calls", box.declared(tools), "", most)
        return sampling, found.constraint, found.loose

    def parsed(self, done: Done) -> tuple[Done, list[Notice]]:
        """The end of a turn with its answer read, and why it could not be read."""
        if self.form is None or done.finish_reason == "tool_calls":
            return done, []
        value, wrong = self.form.read(done.message.text)
        if wrong is None:
            return replace(done, parsed=value), []
        if done.finish_reason != "stop":
            wrong = "it was cut before its end"
        return done, [Notice(f"The answer could not be read into its form: {wrong}.")]


def _choice(choice: Any, tools: Sequence[Tool], held: bool) -> str:
    names = [tool.name for tool in tools]
    if isinstance(choice, Mapping):  # OpenAI's form
        function = choice.get("function", choice)
        choice = function.get("name") if isinstance(function, Mapping) else None
    if choice in ("auto", "none"):
        return str(choice)
    if choice != "required" and choice not in names:
        known = f"The tools are: {', '.join(names)}." if names else "There are no tools."
        raise UsageError(f"tool_choice cannot be {choice!r}.", f"Give 'auto', 'none', 'required' or a tool's name. {known}")
    if not names or not held:
        raise UsageError(
            f"tool_choice cannot be {choice!r} without {'the grammar' if names else 'tools'}.",
            "Leave grammar=True." if names else "Give tools, or leave tool_choice out.",
        )
    return str(choice)


@lru_cache(maxsize=32)
def _grammar(kind: str, tools: str, schema: str, most: int) -> grammar.Grammar:
    declared = json.loads(tools)
    if kind == "answer":
        return grammar.answer(json.loads(schema), declared, most)
    return (grammar.required if kind == "required" else grammar.calls)(declared, most)
