"""From tokens to what a table shows of one subject, and records back from where they were kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from localgemma.compare import metrics, stats
from localgemma.compare.lgref import Reference
from localgemma.compare.metrics import Tokens
from localgemma.compare.records import Divergence, Interval, Result, Subject
from localgemma.compare.samples import Sample

if TYPE_CHECKING:
    import numpy as np


def measured(bare: Result, tokens: Tokens, items: Sequence[int], samples: Sequence[Sample]) -> Result:
    """The result with its divergences: of all tokens, by category, and along the answers."""
    return replace(
        bare,
        overall=_divergence(tokens, items),
        categories=_by_category(tokens, items, samples),
        positions=metrics.by_distance(tokens.kl, _distances(samples)),
    )


def _divergence(tokens: Tokens, items: Sequence[int] | np.ndarray) -> Divergence:
    found = metrics.divergence(tokens, items)
    return replace(found, kl=metrics.with_sampling(found.kl, found.sampled_error))


def _by_category(tokens: Tokens, items: Sequence[int], samples: Sequence[Sample]) -> Mapping[str, Divergence]:
    import numpy as np

    of = np.array([samples[index].category for index in items])
    names = dict.fromkeys(sample.category for sample in samples)
    places = np.asarray(items)
    return {name: _divergence(tokens.chosen(of == name), places[of == name]) for name in names}


def _distances(samples: Sequence[Sample]) -> np.ndarray:
    import numpy as np

    return np.concatenate([np.arange(len(sample.targets)) for sample in samples])


def alike(walked: Mapping[str, tuple[Tokens, list[int]]]) -> Iterator[str]:
    """A sentence for each two neighbours in divergence whose difference may be chance (paired test over items, 95 %)."""
    order = sorted(walked, key=lambda label: float(walked[label][0].kl.mean()))
    for one, other in pairwise(order):
        (first, items), (second, _) = walked[one], walked[other]
        if not stats.paired(first.kl, second.kl, items, log=True).different:
            yield f"{one} and {other} cannot be told apart by divergence on these texts (paired test, 95 %)."


def subject_of(opened: Reference) -> Subject:
    """The subject that a reference file was made from."""
    origin = opened.origin
    return Subject(
        label=origin.label, name=origin.model, quant=origin.quant, bytes=origin.bytes, sha256=origin.sha256,
        bits_per_weight=origin.bits_per_weight, kv=origin.kv, family=origin.family, vocabulary=origin.vocabulary,
        vocabulary_size=origin.vocabulary_size, template=origin.template,
    )  # fmt: skip


def divergence_from(record: object) -> Divergence | None:
    """A divergence that was kept as JSON; None where there is none."""
    if not isinstance(record, Mapping):
        return None
    values = dict(record)
    for name in ("kl", "same_top", "ratio"):
        values[name] = Interval(**values[name])
    return Divergence(**values)
