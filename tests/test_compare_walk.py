"""Walking and its figures: exact divergences, kept references, files and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localgemma.compare import lgref, metrics, reference, samples, walk
from localgemma.compare.keep import Store
from localgemma.compare.lgref import Origin
from localgemma.compare.metrics import Tokens
from localgemma.compare.samples import Sample
from localgemma.engine import Control, Prompt, Text
from localgemma.errors import BadReference, ContextOverflow, NotFound
from localgemma.llamacpp.engine import LlamaEngine, open_engine
from localgemma.options import LoadOptions
from localgemma.passages import Passage

DEMO = Path(__file__).parents[1] / "localgemma" / "assets" / "demo"
ORIGIN = Origin("t", "demo", "BF16", "0", "v", "t", "", "b", "CPU", 64, 64, 4, vocabulary_size=5000)


def rows(count: int, width: int, seed: int, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, width)) * scale).astype(np.float32)


def plain_kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """By the definition, in float64."""
    lp, lq = (x.astype(np.float64) for x in (p, q))
    lp -= np.log(np.exp(lp - lp.max(1, keepdims=True)).sum(1, keepdims=True)) + lp.max(1, keepdims=True)
    lq -= np.log(np.exp(lq - lq.max(1, keepdims=True)).sum(1, keepdims=True)) + lq.max(1, keepdims=True)
    found: np.ndarray = (np.exp(lp) * (lp - lq)).sum(1)
    return found


@pytest.mark.parametrize("noise", [1e-3, 0.1, 2.0])
def test_divergences_are_those_of_the_definition(noise: float) -> None:
    base = rows(50, 5000, 1)
    others = [base + rows(50, 5000, seed, noise) for seed in (2, 3)]
    targets = np.arange(50) * 7
    for found, other in zip(metrics.against(base, others, targets), others, strict=True):
        assert np.allclose(found.kl, plain_kl(base, other), rtol=1e-3, atol=1e-6)
        assert (found.same == (base.argmax(1) == other.argmax(1))).all()
        right = other[np.arange(50), targets] - np.log(np.exp(other.astype(np.float64)).sum(1))
        assert np.allclose(found.own, right, atol=1e-5)


@pytest.mark.parametrize("noise", [0.01, 0.3])
def test_a_kept_reference_gives_the_same_divergences(noise: float) -> None:
    base, targets = rows(400, 5000, 1, 2.0), np.arange(400)
    other = base + rows(400, 5000, 2, noise)
    kept = reference.unpacked(reference.packed(reference.compact(base, targets, 5)))
    found, exact = reference.against(kept, other, targets), plain_kl(base, other)
    error = float(np.sqrt(found.variance.sum())) / 400
    assert abs(found.kl.mean() - exact.mean()) < max(0.01 * exact.mean(), 3 * error)
    assert error < 0.02 * exact.mean()
    assert np.allclose(found.base, metrics.against(base, [other], targets)[0].base, atol=1e-5)


def test_a_small_vocabulary_is_kept_whole() -> None:
    base, targets = rows(20, 64, 1), np.zeros(20, np.int64)
    other = base + rows(20, 64, 2, 0.5)
    kept = reference.unpacked(reference.packed(reference.compact(base, targets, 0)))
    found = reference.against(kept, other, targets)
    assert np.allclose(found.kl, plain_kl(base, other), rtol=1e-3, atol=1e-5)
    assert (found.variance == 0).all()


def some_samples() -> list[Sample]:
    return [Sample(f"s{n}", "chat", Passage((tuple(range(10, 20 + n)),), 5), tuple(range(15, 20 + n))) for n in range(3)]


def test_a_reference_file_comes_back_and_damage_is_found(tmp_path: Path) -> None:
    texts = some_samples()
    count = sum(len(sample.targets) for sample in texts)
    kept = reference.compact(rows(count, 5000, 1), np.zeros(count, np.int64), 0)
    path = tmp_path / "a.lgref"
    lgref.write(path, ORIGIN, texts, [reference.packed(kept)])
    opened = lgref.read(path)
    assert opened.samples == tuple(texts) and opened.origin == ORIGIN
    assert (opened.tokens(2, 5).top == kept.top[2:5]).all()
    data = path.read_bytes()
    for at in (3, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(BadReference):
            lgref.read(path)
    for short in (b"", data[:12], data[:-1]):
        path.write_bytes(short)
        with pytest.raises(BadReference):
            lgref.read(path)
    with pytest.raises(NotFound):
        lgref.read(tmp_path / "b.lgref")


def test_damaged_parts_are_walked_again(tmp_path: Path) -> None:
    store, tokens = Store(tmp_path), Tokens.empty(4)
    store.put_tokens("k", 0, tokens)
    assert store.get_tokens("k", 0) is not None and store.get_tokens("k", 1) is None
    part = tmp_path / "k" / "00000.npz"
    part.write_bytes(part.read_bytes()[:-1])
    assert store.get_tokens("k", 0) is None


@pytest.fixture(scope="module")
def engine() -> LlamaEngine:
    return open_engine(DEMO / "text.gguf", None, LoadOptions(ctx=1024, ubatch=64, outputs=32, sequences=4, image_tokens=0))


@pytest.mark.live
def test_a_walk_has_the_logits_of_scoring(engine: LlamaEngine) -> None:
    texts = [
        "A green boat stood behind the bridge.",
        "The tall bridge was near the small tower. " * 9,
        "Rain.",
        "It was a day. " * 5,
    ]
    prompts = [Prompt((Control("<bos>"), Text(text))) for text in texts]
    ids = [tuple(engine.tokenize(prompt)) for prompt in prompts]
    passages = [Passage((each,), min(3, len(each) - 1)) for each in ids]
    found: dict[tuple[int, int], np.ndarray] = {}
    for blocks in engine.walk(passages):
        for block in blocks:
            for at, row in enumerate(block.logits):
                found[block.passage, block.position + at] = row.copy()
    assert len(found) == sum(len(each) - passage.first for each, passage in zip(ids, passages, strict=True))
    differences = []
    for number, prompt in enumerate(prompts):
        for start, block in engine.score(prompt):
            for at, row in enumerate(block, start):
                if at >= passages[number].first:
                    assert np.abs(found[number, at] - row).max() < 0.5  # another batch layout, of a file of 4 bits
                    differences.append(float(np.abs(found[number, at] - row).mean()))
    assert np.mean(differences) < 0.05
    alone = dict(enumerate(np.concatenate([block for _, block in engine.score(prompts[0])])))
    for (block,) in engine.walk([Passage((ids[0],), 0)]):  # as many rows a batch: the same to the bit
        assert all((row == alone[at]).all() for at, row in enumerate(block.logits, block.position))
    with pytest.raises(ContextOverflow):
        engine.walk([Passage((tuple(range(10)) * 200,))])


@pytest.mark.live
def test_a_model_beside_itself_diverges_by_nothing(engine: LlamaEngine) -> None:
    other = open_engine(DEMO / "text.gguf", None, LoadOptions(ctx=1024, ubatch=64, outputs=32, sequences=4, image_tokens=0))
    texts = samples.prepared([samples.raw_item("t", "The children played in the garden until night. " * 40)], engine)
    (found,) = walk.side_by_side([engine, other], texts)
    other.close()
    assert found.kl.max() < 1e-6 and found.same.all() and (found.own == found.base).all()
