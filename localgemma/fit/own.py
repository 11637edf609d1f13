"""What was compared here, put among published figures: which of the kept losses count, and on what scale.

A KL divergence measured here and a published figure are different scales (other texts, other references, other units), so no
figure of one is ever compared with a figure of the other. The rule:

1. Only losses of one scale count (same reference, family, set and positions): the one that rates most files of the model,
   of equals the newest. A loss belongs to the file of its sha256; to a quantisation of its publisher only where the catalogue
   does not know the file's sha256.
2. Files measured here are ordered by what was measured here, whatever is published about them.
3. To stand among files that were not, all of them are moved by one factor: the median, over the files that have both, of the
   published figure per nat; where no file has both, of the place that its size suggests per nat. One factor keeps their order,
   and a single file measured here moves nothing.
4. What a quantised KV cache costs is the median, over the files measured with and without it, of the difference, by the
   same factor.
5. Against a reference that is not the full weights (the best file that fitted), what the reference itself loses is added.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from localgemma.files.catalog_records import Entry, Measure, Quality, Variant
from localgemma.measured import Loss

OWN = "own"  # the name of the measure of losses that were measured here
PLAIN_KV = ("f16", "bf16", "f32")
A_NAT = 15.0  # where nothing is published: 4 bits have 0.61 by localbench, and vramfit's 4-bit file has 0.042 nats


@dataclass(frozen=True, slots=True)
class Own:
    """The losses that count, by variant's name, and how a nat of them counts on the published scale."""

    losses: Mapping[str, Loss]
    factor: float
    base: float
    both: int

    def place(self, name: str) -> float:
        """The variant's place on the published scale."""
        return self.base + self.factor * self.losses[name].kl

    def reason(self, name: str, published: Sequence[Quality]) -> str:
        """What was measured here, in which set, and that a published figure is on another scale."""
        loss = self.losses[name]
        told = f"{words(loss)}, set {loss.set}"
        if published:
            return f"{told}; another scale: {published[0].value:g} by {published[0].measure.title}"
        return told

    def figure(self, name: str) -> Quality:
        """The loss as a figure with a measure of its own."""
        loss = self.losses[name]
        caution = (
            f"KL from {loss.reference} over {loss.positions:,} positions of set {loss.set}; no other figure is on this scale."
        )
        measure = Measure(OWN, f"measured here, set {loss.set}", f"mean KL from {loss.reference}, nats", True, caution)
        return Quality(loss.kl, measure)


def words(loss: Loss) -> str:
    """`0.031 nats measured here`."""
    return f"{loss.kl:.2g} nats measured here" if loss.kl < 0.1 else f"{loss.kl:.2f} nats measured here"


def counting(entry: Entry, losses: Sequence[Loss]) -> dict[str, Loss]:
    """The losses of one scale by variant's name; nothing where none belongs to this model."""
    found: dict[tuple[str, str, str, int], dict[str, Loss]] = {}
    newest: dict[tuple[str, str, str, int], int] = {}
    for age, loss in enumerate(losses):
        if loss.kv not in PLAIN_KV or loss.family:
            continue
        for variant in entry.variants:
            if not variant.qat and belongs(loss, variant):
                found.setdefault(loss.scale, {})[variant.name] = loss
                newest[loss.scale] = age
    if not found:
        return {}
    return found[max(found, key=lambda scale: (len(found[scale]), newest[scale]))]


def belongs(loss: Loss, variant: Variant) -> bool:
    """Whether the loss is this file's."""
    known = sha256_of(variant)
    if known:
        return loss.sha256 == known
    return bool(loss.publisher) and (loss.quant, loss.publisher) == (variant.quant, variant.publisher)


def sha256_of(variant: Variant) -> str:
    """The sha256 of the text model, of several parts that of their sums together; empty where one is unknown."""
    sums = [file.sha256 or "" for file in variant.text]
    if not all(sums):
        return ""
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


def own(entry: Entry, losses: Sequence[Loss], published: Mapping[str, float], by_size: Mapping[str, float]) -> Own | None:
    """The losses of this model on the published scale, or None where there are none.

    `published` are places of variants that have a figure on it, `by_size` those that all would have without own figures.
    """
    counted = counting(entry, losses)
    if not counted:
        return None
    base = _base(next(iter(counted.values())), entry, by_size)
    for anchors in (published, by_size):
        ratios = [
            (anchors[name] - base) / loss.kl
            for name, loss in counted.items()
            if loss.kl > loss.noise and anchors.get(name, base) > base
        ]
        if ratios:
            return Own(counted, median(ratios), base, len(ratios) if anchors is published else 0)
    return Own(counted, A_NAT, base, 0)


def with_kv(entry: Entry, losses: Sequence[Loss], factor: float) -> Entry:
    """The entry with what KV types cost here instead of what is published, on that scale; the title has it in nats."""
    by_file = {(loss.sha256 or loss.name, loss.kv, loss.scale): loss for loss in losses}
    found: dict[str, list[tuple[float, Loss]]] = {}
    for (file, kv, scale), loss in by_file.items():
        plain = next((by_file[key] for kind in PLAIN_KV if (key := (file, kind, scale)) in by_file), None)
        if kv not in PLAIN_KV and plain and any(belongs(loss, variant) for variant in entry.variants):
            found.setdefault(kv, []).append((loss.kl - plain.kl, loss))
    kinds = dict(entry.kv)
    for kv, pairs in found.items():
        more, loss = max(0.0, median(difference for difference, _ in pairs)), pairs[-1][1]
        title = f"{more:.2g} nats measured here, set {loss.set}"
        kinds[kv] = (Quality(more * factor, Measure(OWN, title, "mean KL, nats", True, "")),)
    return replace(entry, kv=kinds) if found else entry


def _base(loss: Loss, entry: Entry, by_size: Mapping[str, float]) -> float:
    """What the reference itself loses on the published scale: nothing for full weights and for what is not known."""
    for variant in entry.variants:
        if loss.reference_sha256 and sha256_of(variant) == loss.reference_sha256:
            return max(0.0, by_size.get(variant.name, 0.0))
    if loss.reference in ("BF16", "F16", "F32"):
        return 0.0
    same = Counter(v.name for v in entry.variants if v.quant == loss.reference and not v.qat)
    places = [by_size[name] for name in same if name in by_size]
    return max(0.0, median(places)) if places else 0.0
