"""Walking a reference and its candidates side by side: the same batches, their logits compared as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from localgemma.compare import metrics
from localgemma.compare.metrics import Tokens
from localgemma.compare.samples import Sample
from localgemma.engine import CancelToken, Engine
from localgemma.errors import BackendError, UsageError
from localgemma.passages import Block, Walks

if TYPE_CHECKING:
    import numpy as np


def side_by_side(engines: Sequence[Engine], samples: Sequence[Sample], cancel: CancelToken | None = None) -> list[Tokens]:
    """Walk the samples with all engines, the reference first; the tokens of each of the others. Raises what walking does."""
    places = starts(samples)
    found = [Tokens.empty(places[-1]) for _ in engines[1:]]
    for blocks in lockstep(engines, samples, cancel):
        targets, at = right(samples, places, blocks[0])
        several = metrics.against(blocks[0].logits, [block.logits for block in blocks[1:]], targets)
        for whole, part in zip(found, several, strict=True):
            put(whole, part, at)
    return found


def lockstep(engines: Sequence[Engine], samples: Sequence[Sample], cancel: CancelToken | None = None) -> Iterator[list[Block]]:
    """The same block of every engine, one block at a time, each in its engine's own buffer."""
    passages = [sample.passage for sample in samples]
    walks = [_walks(engine).walk(passages, cancel) for engine in engines]
    while (batches := _step(walks)) is not None:
        for blocks in zip(*batches, strict=True):
            if len({(block.passage, block.position, block.logits.shape) for block in blocks}) != 1:
                raise BackendError("The models did not walk in step.", "Compare them one at a time.")
            if kept := _scored(samples, blocks):
                yield kept


def _step(walks: Sequence[Iterator[list[Block]]]) -> list[list[Block]] | None:
    """The next batch of every walk, all at once: small batches fill few cores, and several models more of them."""
    if len(walks) == 1:
        return next(([batch] for batch in walks[0]), None)
    batches = list(metrics.pool().map(lambda each: next(each, None), walks))
    if all(batch is None for batch in batches):
        return None
    found = [batch for batch in batches if batch is not None]
    if len(found) != len(walks):
        raise BackendError("The models did not walk in step.", "Compare them one at a time.")
    return found


def _scored(samples: Sequence[Sample], blocks: Sequence[Block]) -> list[Block]:
    """The blocks without rows after which nothing is to be predicted; none where no row is left."""
    sample, start = samples[blocks[0].passage], blocks[0].position
    rows = sample.passage.first + len(sample.targets) - start
    if rows >= len(blocks[0].logits):
        return list(blocks)
    return [Block(block.passage, start, block.logits[:rows]) for block in blocks] if rows > 0 else []


def _walks(engine: Engine) -> Walks:
    if not isinstance(engine, Walks):
        raise UsageError(f"{engine.info.model} gives no logits of whole texts.", "Compare models of this machine.")
    return engine


def starts(samples: Sequence[Sample]) -> list[int]:
    """Where each sample's tokens begin among those of all; one more, for their number."""
    places = [0]
    for sample in samples:
        places.append(places[-1] + len(sample.targets))
    return places


def right(samples: Sequence[Sample], places: Sequence[int], block: Block) -> tuple[np.ndarray, int]:
    """The right tokens of a block, and the place of the first among all."""
    import numpy as np

    sample = samples[block.passage]
    start = block.position - sample.passage.first
    targets = sample.targets[start : start + len(block.logits)]
    return np.array(targets, np.int64), places[block.passage] + start


def put(whole: Tokens, part: Tokens, at: int) -> None:
    """Write a block's tokens to their place."""
    end = at + len(part.kl)
    whole.kl[at:end], whole.same[at:end], whole.own[at:end] = part.kl, part.same, part.own
    whole.base[at:end], whole.variance[at:end] = part.base, part.variance
