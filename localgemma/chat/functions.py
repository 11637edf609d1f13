"""Tools: Python functions with their declarations, and declarations alone.

A function becomes a tool from its signature, type hints and docstring; nothing of it needs to be written twice.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from localgemma.chat.check import problem
from localgemma.chat.declare import declared, is_sayable
from localgemma.chat.docstrings import parse
from localgemma.chat.hints import BadArgument, Field, Fields, object_schema, read_object
from localgemma.errors import UsageError

_NAME = re.compile(r"[^\s\x00-\x1f\x7f-\x9f{}()<>\"'|:]{1,128}")  # what Gemma's call syntax can carry


@dataclass(frozen=True, slots=True)
class Tool:
    """What the model may call: `declaration` in the OpenAI form, and the function behind it, if it is run here.

    `fields` are its parameters by their hints; None: arguments are held to the schema and passed on as they are.
    `schema` is that schema where the declaration cannot say all of it.
    """

    declaration: Mapping[str, Any]
    function: Callable[..., Any] | None = None
    fields: Fields | None = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its name in calls."""
        return str(self.declaration["function"]["name"])

    @property
    def parameters(self) -> Any:
        """The schema of its arguments."""
        return self.schema or self.declaration["function"].get("parameters") or {}

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments as the function's hints want them. Raises BadArgument, for the model to read."""
        if self.fields is not None:
            return read_object(self.fields, arguments, "")
        wrong = problem(self.parameters, dict(arguments))
        if wrong is not None:
            raise BadArgument(wrong)
        return dict(arguments)


@runtime_checkable
class ToolSource(Protocol):
    """Several tools, which may be others before the next turn: those of MCP servers."""

    def tools(self) -> Sequence[Tool]:
        """The tools there are now."""

    def news(self) -> Sequence[str]:
        """What is to be said about them once."""


Source: TypeAlias = "Tool | ToolSource | Callable[..., Any] | Mapping[str, Any]"


def as_tools(sources: Iterable[Source]) -> tuple[Tool, ...]:
    """Every source as a tool. Raises UsageError for one that is none, and for a name that two have."""
    tools = tuple(_each(sources))
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"Two tools are called {name}.", "Rename one of them.")
    return tools


def _each(sources: Iterable[Source]) -> Iterator[Tool]:
    for source in sources:
        if isinstance(source, ToolSource):
            yield from source.tools()
        else:
            yield as_tool(source)


def as_tool(source: Tool | Callable[..., Any] | Mapping[str, Any]) -> Tool:
    """A function, an OpenAI tool or a JSON schema with a name as a tool. Raises UsageError."""
    if isinstance(source, Tool):
        return source
    if isinstance(source, Mapping):
        return _said(_declared(source))
    if not inspect.isroutine(source):
        raise UsageError(f"{source!r} is no tool.", 'Give a function, or a mapping: {"type": "function", "function": {…}}.')
    description, about = parse(source.__doc__)
    try:
        fields = _parameters(source, about)
        parameters = object_schema(fields)
    except UsageError as error:
        raise UsageError(f"{source.__name__} cannot be a tool: {error.message}", error.hint) from None
    function = {"name": source.__name__, "description": description, "parameters": parameters}
    return Tool(_declared({"type": "function", "function": function}), source, fields)


def _said(declaration: Mapping[str, Any]) -> Tool:
    """A tool of a declaration, whose schema is put as the template can say it if it is not."""
    function = declaration["function"]
    schema = function.get("parameters")
    if not schema or is_sayable(schema):
        return Tool(declaration)
    try:
        return Tool({**declaration, "function": {**function, "parameters": declared(schema)}}, schema=schema)
    except UsageError as error:
        raise UsageError(f"{function['name']} cannot be a tool. {error.message}", error.hint) from None


def _declared(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """The declaration in the OpenAI form: {"type": "function", "function": {"name", "description", "parameters"}}."""
    if "function" not in source and "name" in source:
        schema = source.get("parameters") or source.get("input_schema") or source.get("inputSchema") or {}
        declared = {"name": source["name"], "description": source.get("description", ""), "parameters": schema}
        source = {"type": "function", "function": declared}
    function = source.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        hint = 'Give {"type": "function", "function": {"name": …}}, with a name of letters, digits, _, - and dots.'
        raise UsageError(f"{str(name)[:80]!r} is no name that a model could call.", hint)
    return source


def _parameters(function: Callable[..., Any], about: Mapping[str, str]) -> Fields:
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise UsageError(f"its type hints cannot be read ({error}).", "Use types that its module imports.") from None
    fields: dict[str, Field] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise UsageError(f"its parameter {parameter} has no name of its own.", "Wrap it in a function without it.")
        if name not in hints:
            raise UsageError(f"its parameter {name} has no type hint.", f"Write one, such as {name}: str.")
        fields[name] = Field(hints[name], parameter.default is parameter.empty, about.get(name, ""))
    return fields
