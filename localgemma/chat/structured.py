"""Answers in a form: a JSON schema, OpenAI's `response_format`, or a class whose instance is wanted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localgemma.chat.check import problem
from localgemma.chat.hints import BadArgument, read, schema_of
from localgemma.errors import UsageError

_HOW = 'Give a JSON schema, {"type": "json_schema", …}, {"type": "json_object"}, a pydantic model, dataclass or TypedDict.'
_NONE = object()


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer must be: a JSON schema, and the type hint that its value is read as, if there is one."""

    schema: Any
    hint: Any = _NONE

    @classmethod
    def of(cls, source: Any) -> Form | None:
        """The form that `schema=` asks for; None for None and {"type": "text"}. Raises UsageError."""
        if source is None or isinstance(source, Form):
            return source
        if isinstance(source, Mapping):
            kind = source.get("type")
            if kind == "json_schema":
                inner = source.get("json_schema", source)
                if not isinstance(inner, Mapping) or not isinstance(inner.get("schema"), Mapping):
                    raise UsageError("The response format has no schema.", _HOW)
                return cls(inner["schema"])
            return None if kind == "text" else cls({"type": "object"}) if kind == "json_object" else cls(source)
        if hasattr(source, "model_json_schema") and hasattr(source, "model_validate"):
            return cls(source.model_json_schema(), source)
        if isinstance(source, str | bytes | list | tuple) or source is True:
            raise UsageError(f"An answer cannot have the form {str(source)[:80]!r}.", _HOW)
        try:
            return cls(schema_of(source), source)
        except UsageError as error:
            raise UsageError(f"An answer cannot have the form {source!r}: {error.message}", error.hint) from None

    def read(self, text: str) -> tuple[Any, str | None]:
        """The value that an answer spells, and what is wrong with it (the value is then None)."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None, "it is no JSON"
        wrong = problem(self.schema, value)
        if wrong is not None:
            return None, wrong
        try:
            return (value if self.hint is _NONE else read(self.hint, value, "")), None
        except BadArgument as error:
            return None, str(error)
