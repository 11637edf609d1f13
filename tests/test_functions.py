"""Python functions as tools: declarations from hints and docstrings, and arguments read back."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localgemma.chat.docstrings import parse
from localgemma.chat.functions import Tool, as_tool, as_tools
from localgemma.chat.hints import BadArgument, object_schema, read, schema_of
from localgemma.errors import UsageError
from localgemma.gemma4.prompt import render


class Unit(enum.Enum):
    """Degrees."""

    C = "celsius"
    F = "fahrenheit"


class Mixed(enum.Enum):
    """Values of two kinds: the names are written."""

    ONE = 1
    TWO = "two"


@dataclass
class Place:
    """A place.

    Args:
        city: Its name.
        lat: Degrees north.
    """

    city: str
    lat: float = 0.0

    def __post_init__(self) -> None:
        if not -90 <= self.lat <= 90:
            raise ValueError("lat must be from -90 to 90")


class Row(TypedDict):
    """A row."""

    key: str
    note: NotRequired[str]


class Order(pydantic.BaseModel):
    """An order."""

    item: str
    count: int = pydantic.Field(default=1, ge=1, description="How many.")


@dataclass
class Loop:
    """Contains itself."""

    inner: Loop | None = None


STRING = {"type": "string"}
PLACE = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Its name."},
        "lat": {"type": "number", "description": "Degrees north."},
    },
    "required": ["city"],
}


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str, STRING), (int, {"type": "integer"}), (float, {"type": "number"}), (bool, {"type": "boolean"}), (Any, {}),
        (int | float, {"type": "number"}), (Optional[str], {**STRING, "nullable": True}),  # noqa: UP045
        (str | None, {"type": "string", "nullable": True}), (Annotated[str, "A city."], {**STRING, "description": "A city."}),
        (Literal["a", "b"], {**STRING, "enum": ["a", "b"]}),
        (Literal[1, 2], {"type": "integer", "enum": [1, 2], "description": "One of 1, 2."}),
        (Unit, {**STRING, "enum": ["celsius", "fahrenheit"]}), (Mixed, {**STRING, "enum": ["ONE", "TWO"]}),
        (list[str], {"type": "array", "items": STRING}), (list, {"type": "array"}),
        (tuple[str, ...], {"type": "array", "items": STRING}), (set[str], {"type": "array", "items": STRING}),
        (dict, {"type": "object", "properties": {}}),
        (dict[str, str], {"type": "object", "properties": {}, "additionalProperties": STRING}),
        (Place, PLACE), (list[Place], {"type": "array", "items": PLACE}),
        (Row, {"type": "object", "properties": {"key": STRING, "note": STRING}, "required": ["key"]}),
        (Order, {"type": "object", "required": ["item"], "properties": {
            "item": STRING, "count": {"type": "integer", "description": "How many."}}}),
    ],
)  # fmt: skip
def test_hints_as_schemas(hint: Any, schema: dict[str, Any]) -> None:
    assert schema_of(hint) == schema


@pytest.mark.parametrize("hint", [int | str, Loop, dict[int, str], object, bytes, tuple[int, str], Literal["a", 1]])
def test_hints_without_a_schema_are_refused(hint: Any) -> None:
    with pytest.raises(UsageError):
        schema_of(hint)


@pytest.mark.parametrize(
    ("hint", "given_", "value"),
    [
        (str, "a", "a"), (int, 3, 3), (int, 3.0, 3), (float, 3, 3.0), (bool, True, True), (int | None, None, None),
        (Unit, "celsius", Unit.C), (Mixed, "TWO", Mixed.TWO), (Literal["a"], "a", "a"), (list[Unit], ["celsius"], [Unit.C]),
        (tuple[int, ...], [1, 2], (1, 2)), (set[int], [1, 1], {1}), (dict[str, Unit], {"x": "celsius"}, {"x": Unit.C}),
        (Place, {"city": "Rome", "lat": 41}, Place("Rome", 41.0)), (Place | None, {"city": "Rome"}, Place("Rome")),
        (Row, {"key": "k"}, {"key": "k"}), (Order, {"item": "x", "count": 2}, Order(item="x", count=2)),
        (Any, [1, {}], [1, {}]),
    ],
)  # fmt: skip
def test_arguments_become_the_hinted_types(hint: Any, given_: Any, value: Any) -> None:
    found = read(hint, given_, "x")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("hint", "given_", "says"),
    [
        (str, 1, "x must be a string, not 1."), (int, True, "whole number"), (int, 1.5, "whole number"),
        (int, float("inf"), "whole number"), (float, "1", "a number"), (float, 10**400, "a number"),
        (bool, 1, "true or false"),
        (Unit, "kelvin", "one of 'celsius', 'fahrenheit', not 'kelvin'"), (list[int], "12", "a list"),
        (list[int], [1, "a"], "x[1] must be a whole number"), (dict, [], "an object"), (Place, {}, "x.city is missing"),
        (Place, {"city": "a", "lat": 91}, "lat must be from -90 to 90"),
        (Place, {"city": "a", "zip": 1}, "x.zip is not known"),
        (Row, {"key": 1}, "x.key must be a string"), (Order, {"item": "a", "count": 0}, "count"), (Order, "a", "an object"),
        (set[Any], [{}], "simple values"), (str, ["y" * 1000], "…"), (Literal[1], True, "one of 1"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(hint: Any, given_: Any, says: str) -> None:
    with pytest.raises(BadArgument) as error:
        read(hint, given_, "x")
    assert says in str(error.value)
    assert len(str(error.value)) < 400


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    value=_JSON, hint=st.sampled_from([str, int, float, bool, Unit, list[int], dict[str, int], Place, Row, Order, set[str]])
)
def test_whatever_the_model_writes_is_read_or_refused(value: Any, hint: Any) -> None:
    try:
        read(hint, value, "x")
    except BadArgument as error:
        assert str(error)


GOOGLE = """Get the weather.

    It may rain.

    Args:
        city (str): The city,
            with its country.
        days: How many: 1 to 7.

    Returns:
        The weather.
    """
NUMPY = """Get the weather.

    It may rain.

    Parameters
    ----------
    city : str
        The city,
        with its country.
    days : int, optional
        How many: 1 to 7.

    Returns
    -------
    str
        The weather.
    """
REST = """Get the weather.

    It may rain.

    :param str city: The city,
        with its country.
    :param days: How many: 1 to 7.
    :type days: int
    :returns: The weather.
    """


@pytest.mark.parametrize("docstring", [GOOGLE, NUMPY, REST])
def test_docstrings(docstring: str) -> None:
    description, about = parse(docstring)
    assert description == "Get the weather.\n\nIt may rain."
    assert about == {"city": "The city, with its country.", "days": "How many: 1 to 7."}


@given(st.text() | st.lists(st.sampled_from(["Args:", "  a: b", "", "----", "Parameters", ":param x: y", "z"])).map("\n".join))
def test_no_docstring_breaks_it(text: str) -> None:
    parse(text)


def weather(city: str, unit: Unit = Unit.C, *, days: Annotated[int, "1 to 7."] = 1) -> str:
    """Get the weather.

    Args:
        city: The city.
    """
    return f"{city} {unit} {days}"


def test_a_function_is_a_tool() -> None:
    tool = as_tool(weather)
    assert tool.declaration["function"] == {
        "name": "weather",
        "description": "Get the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city."},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "description": "1 to 7."},
            },
            "required": ["city"],
        },
    }
    assert tool.read({"city": "Rome", "unit": "fahrenheit"}) == {"city": "Rome", "unit": Unit.F}
    assert 'city:{description:<|"|>The city.<|"|>,type:<|"|>STRING<|"|>}' in str(render([], tools=[tool.declaration]))
    assert as_tool(tool) is tool


def test_declarations_are_tools_without_a_function() -> None:
    schema = {"type": "object", "properties": {"a": STRING}}
    expected = {"name": "f", "description": "", "parameters": schema}
    for source in (
        {"type": "function", "function": expected}, {"name": "f", "parameters": schema}, {"name": "f", "inputSchema": schema},
    ):  # fmt: skip
        assert as_tool(source) == Tool({"type": "function", "function": expected})


def _no_hint(a) -> None: ...  # type: ignore[no-untyped-def]
def _star(*a: int) -> None: ...
def _by_position(a: int, /) -> None: ...
def _unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    "source",
    [_no_hint, _star, _by_position, _unknown, "weather", 1, {}, {"function": {}}, {"name": "two words"}, {"name": "a{"},
     {"name": 1}, {"name": '<|"|>'}, {"name": "<|turn>"}, {"name": "x" * 200}],
)  # fmt: skip
def test_what_is_no_tool_is_refused(source: Any) -> None:
    with pytest.raises(UsageError) as error:
        as_tool(source)
    assert error.value.hint


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="Two tools are called weather"):
        as_tools([weather, {"name": "weather"}])


def test_a_schema_of_no_fields_asks_for_nothing() -> None:
    assert object_schema({}) == {"type": "object", "properties": {}}
