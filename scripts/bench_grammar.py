"""What a grammar costs a token on Gemma's own vocabulary: python scripts/bench_grammar.py VOCABULARY.gguf

Inside a call, at several shares of rejected tokens, where another of the 64 candidates is allowed ("candidate") and where none
is ("none": all tokens are looked through); and outside of calls. Times are of this thread's processor alone, so that other
programs change them less. Prints a table, and one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from localgemma.gemma4 import grammar
from localgemma.gemma4.tokens import CALL, CALL_END, QUOTE
from localgemma.llamacpp import library
from localgemma.llamacpp.grammar import Guide
from localgemma.llamacpp.model import Vocabulary
from localgemma.llamacpp.prefixes import Prefixes
from localgemma.llamacpp.sampler import Sampler
from localgemma.options import Sampling

TOOL = {
    "type": "function",
    "function": {
        "name": "book_table",
        "parameters": {
            "type": "object",
            "properties": {
                "restaurant": {"type": "string"},
                "people": {"type": "integer", "minimum": 1, "maximum": 20},
                "date": {"type": "string", "format": "date"},
                "seating": {"enum": ["inside", "outside", "bar"]},
                "guest": {"type": "object", "properties": {"name": {"type": "string"}, "phone": {"type": "string"}}},
                "wishes": {"type": "array", "items": {"type": "string"}},
                "budget": {"type": "number"},
                "confirmed": {"type": "boolean"},
            },
            "required": ["restaurant", "people", "date"],
        },
    },
}
ARGUMENTS = (
    'budget:82.50,confirmed:true,date:"2026-03-14",guest:{name:"Ada Lovelace",phone:"+44 20 7946 0958"},people:4,'
    'restaurant:"Trattoria da Enzo al 29",seating:"outside",wishes:["a quiet table","no nuts, please"]'
)


class Bench:
    """A sampler over logits of our own, and the tokens of a call."""

    def __init__(self, path: Path) -> None:
        c = library.load()
        params = c.llama_model_default_params()
        params.vocab_only = True
        self.model = c.llama_model_load_from_file(str(path).encode(), params)
        self.vocab = Vocabulary(c, c.llama_model_get_vocab(self.model))
        self.prefixes = Prefixes(self.vocab)
        self.prefixes.wait()
        self.made = grammar.calls([TOOL])
        self.logits = np.zeros(self.vocab.size, np.float32)
        self.compile_seconds = self._timed(lambda: grammar.calls([TOOL]))
        self.start_seconds = self._timed(self.guide)
        self.call = [self.vocab.control(CALL), *self.vocab.text("call:book_table{")]
        for index, part in enumerate(ARGUMENTS.split('"')):
            self.call += ([self.vocab.control(QUOTE)] if index else []) + self.vocab.text(part)
        self.call += [*self.vocab.text("}"), self.vocab.control(CALL_END)]

    @staticmethod
    def _timed(work: Callable[[], object]) -> float:
        begun = time.thread_time()
        work()
        return time.thread_time() - begun

    def guide(self) -> Guide:
        """The grammar, waiting."""
        return Guide(self.vocab, self.made.constraint, None, False, self.prefixes)

    def sampler(self, guide: Guide) -> Sampler:
        """The released sampling over `logits`."""
        context = SimpleNamespace(model=SimpleNamespace(vocab=self.vocab), pointer=None, size=4096)
        sampler = Sampler(context, Sampling(seed=1), on_device=False, guide=guide)  # type: ignore[arg-type]
        sampler._logits = lambda row: self.logits.ctypes.data_as(ctypes.POINTER(ctypes.c_float))  # type: ignore[method-assign]
        return sampler

    def inside(self, share: float, near: bool, tokens: int) -> dict[str, Any]:
        """Seconds a token inside calls where this share of the sampled tokens is rejected."""
        rng, spent, count, rejected, looked = random.Random(1), 0.0, 0, 0, 0
        while count < tokens:
            guide = self.guide()
            sampler = self.sampler(guide)
            clock = _Clock(sampler, guide)
            for index, token in enumerate(self.call):
                self.logits[:] = np.random.default_rng(count).standard_normal(self.vocab.size)
                self.logits[token] = 40
                wrong = self._wrong(guide, rng) if index and rng.random() < share else np.zeros(0, int)
                if len(wrong):
                    self.logits[wrong] = 60 - np.arange(len(wrong)) / 100
                    self.logits[token] = 59.75 if near else -40  # the 25th, or none of the candidates
                before, passes = clock.spent, clock.passes
                if index:
                    drawn = sampler._guided(0, guide)
                    assert guide.begun
                    spent += clock.spent - before
                    count += 1
                    rejected += len(wrong) > 0
                    looked += clock.passes - passes
                    if drawn != token:  # another spelling of the same text: the next call is as good
                        break
                else:
                    guide.accept(token)
            sampler.close()
            guide.close()
        return {"tokens": count, "rejected": rejected / count, "all_looked_through": looked, "ms": 1000 * spent / count}

    def _wrong(self, guide: Guide, rng: random.Random) -> Any:
        """100 tokens that may not come next; none where all may (inside a string)."""
        some = np.array(rng.sample(range(300, self.vocab.size), 400), np.int32)
        wrong = some[~guide.allowed(some)]
        return wrong[:100] if len(wrong) >= 100 else wrong[:0]

    def outside(self, tokens: int) -> float:
        """Seconds a token of free text."""
        guide = self.guide()
        ids = self.vocab.text("The quick brown fox jumps over the lazy dog. " * 500)[:tokens]

        def follow() -> None:
            for token in ids:
                if not guide.free or guide.allows(token):
                    guide.accept(token)

        return self._timed(follow) / len(ids)

    def whole_pass(self) -> float:
        """Seconds of asking about every token."""
        guide = self.guide()
        guide.accept(self.call[0])
        everything = np.arange(self.vocab.size, dtype=np.int32)
        return self._timed(lambda: guide.allowed(everything))


class _Clock:
    """Times what a sampler does for its guide."""

    def __init__(self, sampler: Sampler, guide: Guide) -> None:
        self.spent, self.passes = 0.0, 0
        held, accept, every = sampler._held_to, guide.accept, guide.every

        def timed(*arguments: Any) -> int:
            begun = time.thread_time()
            token = held(*arguments)
            self.spent += time.thread_time() - begun
            return token

        def accepted(token: int) -> None:
            begun = time.thread_time()
            accept(token)
            self.spent += time.thread_time() - begun

        def looked() -> Any:
            self.passes += 1
            return every()

        sampler._held_to, guide.accept, guide.every = timed, accepted, looked  # type: ignore[method-assign]


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("--tokens", type=int, default=1500)
    arguments = parser.parse_args()
    bench = Bench(arguments.vocabulary)
    rows = [
        {"share": share, "allowed": "candidate" if near else "none", **bench.inside(share, near, arguments.tokens)}
        for share, near in ((0.0, True), (0.05, True), (0.5, True), (0.05, False), (0.5, False))
    ]
    print(f"{'rejected':>9} {'allowed':>10} {'tokens':>7} {'passes':>7} {'ms a token':>11}")
    for row in rows:
        print(f"{row['rejected']:9.1%} {row['allowed']:>10} {row['tokens']:7} {row['all_looked_through']:7} {row['ms']:11.4f}")
    outside, whole = bench.outside(4000), bench.whole_pass()
    print(f"outside of calls: {outside * 1000:.4f} ms a token; one pass over the vocabulary: {whole * 1000:.1f} ms")
    print(f"the tool's grammar: {bench.compile_seconds * 1000:.1f} ms to make, {bench.start_seconds * 1000:.1f} ms to start")
    result = {"vocabulary": bench.vocab.size, "inside": rows, "outside_ms": outside * 1000, "whole_pass_ms": whole * 1000}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
