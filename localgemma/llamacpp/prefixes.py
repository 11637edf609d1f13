"""The vocabulary by common beginnings: where a token may not come next, none that begins with it may.

So the tokens that a grammar allows are found by asking about a few hundred of 262,144. It is made once a model, in a thread of
its own (about a second for Gemma's vocabulary); until it is there, every token is asked about.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from localgemma.llamacpp.model import Vocabulary

_MANY = 20_000  # tokens at one level: asking about all of them at once is no slower then


class Prefixes:
    """Made at once, usable at once; `ready` when it is fast."""

    def __init__(self, vocab: Vocabulary) -> None:
        self._vocab = vocab
        self.named = np.zeros(vocab.size, bool)
        self.named[list(vocab.names)] = True
        self.named[list(vocab.ends)] = True
        self.odd = self.named.copy()  # what a grammar alone cannot judge
        self.odd[list(vocab.bytes)] = True
        self._all = np.arange(vocab.size, dtype=np.int32)
        self._tree: tuple[Any, Any, Any] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._build, name="localgemma-prefixes", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the tree is made."""
        return self._tree is not None

    def wait(self) -> None:
        """Until it is."""
        self._thread.join()

    def close(self) -> None:
        """End the making, before the vocabulary is freed."""
        self._closed = True
        self._thread.join()

    def narrowed(self, allowed: Callable[[Any], Any]) -> Any:
        """The tokens of the vocabulary for which `allowed`, a mask for an int32 array, is True."""
        if self._tree is None:
            return self._all[allowed(self._all)]
        frontier, starts, children = self._tree
        found = []
        while len(frontier):
            good = frontier[allowed(frontier)]
            found.append(good)
            spans = [
                (begin, end)
                for begin, end in zip(starts[good].tolist(), starts[good + 1].tolist(), strict=True)
                if end > begin
            ]
            if sum(end - begin for begin, end in spans) > _MANY:
                return self._all[allowed(self._all)]
            parts = [children[begin:end] for begin, end in spans]
            frontier = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else children[:0]
        return np.concatenate(found)

    def _build(self) -> None:
        """Each token's parent is the longest other token that it begins with."""
        buckets: dict[bytes, list[tuple[bytes, int]]] = {}
        for token in range(self._vocab.size):
            if self._closed:
                return
            if not self.named[token] and (piece := self._vocab.spelled(token)):
                buckets.setdefault(piece[:1], []).append((piece, token))
        parents = np.full(self._vocab.size, -1, np.int64)
        roots = [int(token) for token in np.flatnonzero(self.named)]
        for bucket in buckets.values():  # small sorts: each holds the interpreter's lock
            if self._closed:
                return
            open_: list[tuple[bytes, int]] = []
            for piece, token in sorted(bucket):
                while open_ and not piece.startswith(open_[-1][0]):
                    open_.pop()
                if open_:
                    parents[token] = open_[-1][1]
                else:
                    roots.append(token)
                open_.append((piece, token))
        below = np.flatnonzero(parents >= 0)
        children = below[np.argsort(parents[below], kind="stable")].astype(np.int32)
        starts = np.searchsorted(parents[children], np.arange(self._vocab.size + 1))
        self._tree = (np.array(roots, np.int32), starts, children)
