"""The catalogue's records: which models there are, who publishes which file of them, and what a name means.

A name is `model[:quant][@publisher]` in any case; the catalogue answers with variants, each a text model with the
projectors and drafters that belong to it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localgemma.errors import NotFound, UsageError

Role = Literal["text", "projector", "drafter"]
_NAME = re.compile(r"\s*([^:@]+?)\s*(?::\s*([^:@]+?)\s*)?(?:@\s*([^:@]+?)\s*)?")


@dataclass(frozen=True, slots=True)
class Measure:
    """A published way to measure quality; figures of two measures cannot be compared."""

    name: str
    title: str
    metric: str
    lower_is_better: bool
    caution: str


@dataclass(frozen=True, slots=True)
class Quality:
    """A published figure; `measure` says who measured what."""

    value: float
    measure: Measure


@dataclass(frozen=True, slots=True)
class Replaced:
    """An earlier content of a published path, by its sha256; `seen` is the last day it was seen, or empty."""

    sha256: str
    bytes: int | None
    seen: str


@dataclass(frozen=True, slots=True)
class File:
    """One published file.

    `bytes` and `sha256` are exact or None, `about` is a rounded size or None. `revision` is a commit, a branch, or None
    for the repository's newest. `folder` is set for files that lie on this machine and on no hub; `repository` is then
    empty. `replaced` are earlier contents of the same path.
    `bits_per_weight` counts the whole file, None where its size is unknown.
    """

    role: Role
    publisher: str
    repository: str
    revision: str | None
    path: str
    quant: str
    bytes: int | None = None
    about: int | None = None
    sha256: str | None = None
    bits_per_weight: float | None = None
    quality: tuple[Quality, ...] = ()
    folder: Path | None = None
    replaced: tuple[Replaced, ...] = ()

    @property
    def size(self) -> int | None:
        """Bytes: exact where they are known, else rounded, else None."""
        return self.bytes or self.about


@dataclass(frozen=True, slots=True)
class Variant:
    """One quantisation of a model by one publisher: the parts of its text model, and what belongs to it, best first."""

    model: str
    publisher: str
    quant: str
    qat: bool
    text: tuple[File, ...]
    projectors: tuple[File, ...]
    drafters: tuple[File, ...]

    @property
    def name(self) -> str:
        """The name that means this variant and no other."""
        return f"{self.model}:{self.quant}@{self.publisher}"

    @property
    def files(self) -> tuple[File, ...]:
        """What a download brings: every part of the text model, one projector, one drafter."""
        return (*self.text, *self.projectors[:1], *self.drafters[:1])

    @property
    def size(self) -> int | None:
        """Bytes of the text model, rounded where a part's are; None where one is unknown."""
        return total(self.text)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits per weight of the text model, None where its size is unknown."""
        parts = [file.bits_per_weight for file in self.text]
        return sum(part for part in parts if part) if all(parts) else None

    @property
    def quality(self) -> tuple[Quality, ...]:
        """What was published about this quantisation's quality."""
        return self.text[0].quality

    @property
    def folder(self) -> Path | None:
        """Where its files lie, for a model that needs no hub."""
        return self.text[0].folder


@dataclass(frozen=True, slots=True)
class Entry:
    """One model.

    `parameters` and `width` (embedding length) are those of the text model. `kv` are published costs of a quantised KV
    cache by its type, in the measures used for weights.
    """

    name: str
    title: str
    description: str
    aliases: tuple[str, ...]
    parameters: int | None
    width: int | None
    default: str
    default_reason: str
    kv: Mapping[str, tuple[Quality, ...]]
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class Name:
    """`model[:quant][@publisher]` as it was typed."""

    model: str
    quant: str | None = None
    publisher: str | None = None

    @classmethod
    def parse(cls, text: str) -> Name:
        """UsageError where `text` is no such name."""
        found = _NAME.fullmatch(text) if text.isprintable() else None
        if not found:
            raise UsageError(
                f"{text[:80]!r} is no model's name.", "Write it like gemma-4-31b, gemma-4-31b:Q4_K_M or …@unsloth."
            )
        return cls(found[1], found[2], found[3])


@dataclass(frozen=True, slots=True)
class Found:
    """What a name means: the model, and the variants that fit the name, in the catalogue's order."""

    entry: Entry
    variants: tuple[Variant, ...]

    def choose(self) -> tuple[Variant, str]:
        """The variant to take where the name leaves it open, and why.

        The model's default if the name allows it; else, by the same publisher, the Q4_K_M; else the one with the best
        published quality; else the first whose content is known exactly.
        """
        for variant in self.variants:
            if f"{variant.quant}@{variant.publisher}" == self.entry.default:
                return variant, self.entry.default_reason
        if len(self.variants) == 1:
            return self.variants[0], "the only one of that name"
        if len({variant.publisher for variant in self.variants}) == 1:
            for variant in self.variants:
                if variant.quant == "Q4_K_M":
                    return variant, "the usual middle between size and quality"
        rated = [(quality, variant) for variant in self.variants for quality in variant.quality]
        if rated:
            measure = rated[0][0].measure
            same = [(quality.value, variant) for quality, variant in rated if quality.measure == measure]
            value, best = (min if measure.lower_is_better else max)(same, key=lambda pair: pair[0])
            return best, f"the best published quality of that name: {value:g} by {measure.title}"
        exact = [variant for variant in self.variants if all(file.sha256 for file in variant.text)]
        return (exact[0], "its content is known exactly") if exact else (self.variants[0], "the first of that name")


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every model by its name."""

    entries: Mapping[str, Entry]
    measures: Mapping[str, Measure]

    def entry(self, model: str) -> Entry:
        """The model of that name, alias or repository; NotFound with near names."""
        wanted = model.casefold()
        for entry in self.entries.values():
            if wanted in (entry.name.casefold(), *(alias.casefold() for alias in entry.aliases)):
                return entry
        known = [name for entry in self.entries.values() for name in (entry.name, *entry.aliases)]
        hint = _near(wanted, known, list(self.entries))
        raise NotFound(f"There is no model {model[:80]!r}.", f"{hint} Or give the path of a .gguf file.")

    def find(self, name: str | Name) -> Found:
        """The variants that `name` means, at least one.

        A repository of the catalogue may stand for the model and the publisher. Raises UsageError and NotFound.
        """
        name = Name.parse(name) if isinstance(name, str) else name
        for entry in self.entries.values():
            of = [
                v for v in entry.variants if v.text[0].repository and v.text[0].repository.casefold() == name.model.casefold()
            ]
            if of:
                return self.find(Name(entry.name, name.quant, of[0].publisher))
        entry = self.entry(name.model)
        variants = entry.variants
        if name.publisher:
            variants = _only(variants, "publisher", name.publisher, entry.name)
        if name.quant:
            variants = _only(variants, "quant", name.quant, entry.name)
        return Found(entry, variants)

    def variants(self) -> Iterator[Variant]:
        """Every variant of every model."""
        for entry in self.entries.values():
            yield from entry.variants

    def files(self) -> Iterator[File]:
        """Every file of every model, each once."""
        seen: set[File] = set()
        for variant in self.variants():
            for file in (*variant.text, *variant.projectors, *variant.drafters):
                if file not in seen:
                    seen.add(file)
                    yield file


def total(files: Sequence[File]) -> int | None:
    """Bytes of them all, None where one is unknown."""
    sizes = [file.size for file in files]
    return sum(size for size in sizes if size) if all(sizes) else None


def _near(wanted: str, known: list[str], all_of: list[str]) -> str:
    lower = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(wanted[:80], lower, 2, 0.5)
    return f"Did you mean {' or '.join(lower[name] for name in near)}?" if near else f"There are: {', '.join(all_of)}."


def _only(variants: tuple[Variant, ...], field: str, wanted: str, model: str) -> tuple[Variant, ...]:
    """Those whose `field` is `wanted` in any case; `Q4_K_XL` also means `UD-Q4_K_XL` where nothing is just that."""
    get: Callable[[Variant], str] = (lambda v: v.quant) if field == "quant" else (lambda v: v.publisher)
    low = wanted.casefold()
    tests: tuple[Callable[[Variant], bool], ...] = (
        lambda v: get(v).casefold() == low,
        lambda v: field == "publisher" and v.text[0].repository.casefold().split("/")[0] == low,
        lambda v: field == "quant" and get(v).casefold() == f"ud-{low}",
    )
    for test in tests:
        if found := tuple(filter(test, variants)):
            return found
    known = list(dict.fromkeys(map(get, variants)))
    what = "quantisation" if field == "quant" else "publisher"
    raise NotFound(f"{model} has no {what} {wanted[:40]!r} here.", _near(low, known, known))
