"""What is known of a quantisation's quality, and how those that nobody measured are put in order without a figure.

One measure is the scale: the one that rated most of a model's quantisations. What it did not rate has no figure. To be
chosen at all it needs a place, and gets the least favourable one that its size allows: a little better than the next
smaller file that was measured, and below all of them where none is smaller. What was compared on this machine goes before
what was published, and is a scale of its own (own.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from localgemma.files.catalog_records import Entry, Measure, Quality, Variant
from localgemma.fit.own import OWN, Own, own, with_kv, words
from localgemma.measured import Loss

A_BIT = 0.06  # a place's advantage a bit a weight: enough to order, too little to outweigh a measured difference
A_STEP = 0.75  # bits a weight that make a file a step larger; below it, the measured one is preferred
BELOW = 0.6  # a place's loss a bit a weight below the smallest measured file, and once more where nothing was published
TRAINED = 0.04  # so much before the usual 4 bits are those that the weights were trained for
UNMEASURED = 0.02  # so much behind a measured file of its size
SAME = 0.02  # bits a weight within which two files are of one size (sizes are rounded)
KV_LOSS = {"f16": 0.0, "bf16": 0.0, "f32": 0.0, "q8_0": 0.108}  # localbench; used where the catalogue has none
KV_UNKNOWN = 1.0  # q4_0 and its kin: not measured on this model, reported to harm; never chosen unasked


@dataclass(frozen=True, slots=True)
class Standing:
    """A place on the scale, lower is better. `figure` is what was measured there, None where the place is an order only."""

    place: float
    figure: Quality | None
    reason: str


def scale_of(entry: Entry) -> Measure | None:
    """The measure that rated most quantisations of this model, among those where lower is better."""
    counts = Counter(q.measure.name for v in entry.variants for q in v.quality if q.measure.lower_is_better)
    if not counts:
        return None
    name = counts.most_common(1)[0][0]
    return next(q.measure for v in entry.variants for q in v.quality if q.measure.name == name)


@dataclass(frozen=True, slots=True)
class _Rated:
    """A measured file: its size, its place, and its figure in words."""

    bits: float
    place: float
    variant: Variant
    told: str


def standings(entry: Entry, losses: Sequence[Loss] = ()) -> dict[str, Standing]:
    """The place of every variant whose size is known, by its name; `losses` measured here go before what was published."""
    scale = scale_of(entry)
    rated = _published(entry, scale)
    places = _places(entry, scale, rated)
    here = _own(entry, losses, rated, places)
    if here is None:
        return places
    rated = [item for item in rated if item.variant.name not in here.losses]
    for variant in entry.variants:
        if variant.name in here.losses and variant.bits_per_weight:
            told = words(here.losses[variant.name])
            rated.append(_Rated(variant.bits_per_weight, here.place(variant.name), variant, told))
    places = _places(entry, scale, rated)
    for variant in entry.variants:
        if variant.name in here.losses and variant.name in places:
            standing = Standing(
                here.place(variant.name), here.figure(variant.name), here.reason(variant.name, variant.quality)
            )
            places[variant.name] = standing
        elif (known := places.get(variant.name)) and known.figure:
            places[variant.name] = replace(known, reason=f"{known.reason}, another scale than what was measured here")
    return places


def with_own_kv(entry: Entry, losses: Sequence[Loss]) -> Entry:
    """The entry with the costs of KV types that were measured here in place of published ones."""
    scale = scale_of(entry)
    rated = _published(entry, scale)
    here = _own(entry, losses, rated, _places(entry, scale, rated))
    return with_kv(entry, losses, here.factor) if here else entry


def _own(entry: Entry, losses: Sequence[Loss], rated: Sequence[_Rated], places: Mapping[str, Standing]) -> Own | None:
    published = {item.variant.name: item.place for item in rated}
    return own(entry, losses, published, {name: standing.place for name, standing in places.items()})


def _published(entry: Entry, scale: Measure | None) -> list[_Rated]:
    return [
        _Rated(variant.bits_per_weight, figure.value, variant, f"{figure.value:g}")
        for variant in entry.variants
        for figure in variant.quality
        if scale and figure.measure == scale and variant.bits_per_weight
    ]


def _places(entry: Entry, scale: Measure | None, rated: Sequence[_Rated]) -> dict[str, Standing]:
    """Places on the published scale, with `rated` as what is known of it."""
    places: dict[str, Standing] = {}
    for variant in entry.variants:
        bits = variant.bits_per_weight
        if bits is None:
            continue
        figure = next((figure for figure in variant.quality if figure.measure == scale), None)
        if figure:
            places[variant.name] = Standing(figure.value, figure, f"{figure.value:g} by {figure.measure.title}")
        elif variant.quant in ("BF16", "F32") and not variant.qat:
            places[variant.name] = Standing(0.0, None, "the full weights, which the others are measured against")
        elif variant.qat:
            places[variant.name] = _trained(variant, bits, rated)
        else:
            places[variant.name] = _unmeasured(variant, bits, rated)
    return places


def _trained(variant: Variant, bits: float, rated: Sequence[_Rated]) -> Standing:
    """Quantisation-aware training: measured against another reference only, so it has the place of the usual 4 bits."""
    usual = [item.place for item in rated if item.variant.quant == "Q4_K_M"]
    place = min(usual) - TRAINED if usual else 0.0
    told = f"; {variant.quality[0].value:g} by {variant.quality[0].measure.title}, another scale" if variant.quality else ""
    return Standing(place + (5 - bits) / 1000, None, f"trained to be held in 4 bits, placed beside Q4_K_M{told}")


def _unmeasured(variant: Variant, bits: float, rated: Sequence[_Rated]) -> Standing:
    smaller = [item for item in rated if item.bits <= bits + SAME]
    if smaller:
        near = min(smaller, key=lambda item: (item.place, -item.bits))
        more = bits - near.bits
        place = near.place - A_BIT * more if more >= A_STEP else near.place + UNMEASURED
        what = "larger than" if more > SAME else "of the size of"
        return Standing(
            place, None, f"not measured; {what} {near.variant.quant}@{near.variant.publisher}, which has {near.told}"
        )
    if not rated:
        return Standing(-A_BIT * bits, None, "not measured")
    floor = min(item.bits for item in rated)
    worst = max(item.place for item in rated)
    told = variant.quality[0] if variant.quality else None
    place = worst + BELOW * (floor - bits) + (0.0 if told else BELOW)
    note = f"{told.value:g} by {told.measure.title}" if told else "nothing is published about it"
    return Standing(place, None, f"not measured on the scale; {note}")


def kv_loss(entry: Entry | None, kv: str) -> tuple[float, str]:
    """What a KV type costs on the weights' scale, and that in words, with who says so."""
    if entry:
        for figure in entry.kv.get(kv, ()):
            own_figure = figure.measure.name == OWN
            return (
                figure.value,
                f"costs {figure.measure.title if own_figure else f'{figure.value:g} by {figure.measure.title}'}",
            )
    value = KV_LOSS.get(kv, KV_UNKNOWN)
    if not value:
        return value, "costs nothing"
    return value, f"costs {value:g} by localbench" if kv in KV_LOSS else "costs what nobody measured on this model"
