"""The records that the parts (text, vision, drafter) hand to the writer, and checked reading of a config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from localgemma.errors import BadModelFile

Kind: TypeAlias = Literal["u32", "i32", "f32", "bool", "str", "i32[]", "f32[]", "bool[]", "str[]"]
Entry: TypeAlias = tuple[str, Kind, Any]  # a metadata key, the type of its value, the value
UNSUPPORTED = "localgemma converts the dense Gemma 4 models, such as google/gemma-4-31B-it."


@dataclass(frozen=True, slots=True)
class Wanted:
    """One tensor of the output: `source` is its name in the checkpoint, where it must have exactly `shape`.

    `keep` is a type that it has whatever was asked for. `rows` keeps only that many of its first rows. `patch` is the side
    of a picture patch whose pixels are reordered from [height, width, colour] to [colour, height, width].
    """

    source: str
    name: str
    shape: tuple[int, ...]
    keep: str | None = None
    rows: int | None = None
    patch: int | None = None

    @property
    def written_shape(self) -> tuple[int, ...]:
        """Its shape in the output, slowest dimension first."""
        if self.patch is not None:
            return (self.shape[0], 3, self.patch, self.patch)
        return self.shape if self.rows is None else (self.rows, *self.shape[1:])


class Config:
    """A section of a config.json; every read is checked, and what is wrong is a BadModelFile that names the entry."""

    def __init__(self, values: object, where: str = "config.json") -> None:
        if not isinstance(values, dict):
            raise BadModelFile(f"{where} is no JSON object.", "Download config.json again.")
        self.values: dict[str, Any] = values
        self.where = where

    def section(self, key: str) -> Config:
        """The object under `key`."""
        return Config(self.values.get(key), f"{key} of {self.where}")

    def get(self, key: str) -> Any:
        """The value as it is; None where there is none."""
        return self.values.get(key)

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number from `least` to 2^31."""
        value = default if self.get(key) is None else self.get(key)
        if type(value) is not int or not least <= value < 1 << 31:
            raise self.bad(key, f"a whole number from {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self.bad(key, "a number above 0")
        return float(value)

    def must_be(self, key: str, *allowed: Any) -> None:
        """BadModelFile unless the value is one of `allowed`; another value is a model of another kind."""
        value = self.get(key)
        if not any(value is one or (value == one and type(value) is type(one)) for one in allowed):
            raise BadModelFile(f"{self.where} has {key} = {str(value)[:64]}, which is not supported.", UNSUPPORTED)

    def bad(self, key: str, needed: str) -> BadModelFile:
        """The error of a value that is missing or wrong."""
        return BadModelFile(f"{self.where} has {key} = {str(self.get(key))[:64]}, where {needed} is needed.", UNSUPPORTED)
