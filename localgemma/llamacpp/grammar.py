"""A grammar at work: which tokens may come next, as llama.cpp's own grammar sampler says.

It is asked about as few tokens as possible (a pass over Gemma's vocabulary takes 13 ms): the one that was sampled, then the
other candidates, and only then, along the tokens' common beginnings, all of them. It aborts the process when it is told of a
token that it forbids, so it is always asked first. Waiting for a trigger is done here and costs nothing.
"""

from __future__ import annotations

import ctypes
import re
import weakref
from typing import Any

import numpy as np

from localgemma.engine import SpanLimit
from localgemma.errors import UsageError
from localgemma.llamacpp import library, log
from localgemma.llamacpp.model import Vocabulary
from localgemma.llamacpp.prefixes import Prefixes
from localgemma.options import Constraint

CANDIDATE = np.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")])  # llama.h llama_token_data
_ORDINARY = re.compile(r"<\[(?!\d+\])([^\]]+)\]>")  # a token by its text, for which GBNF has a number only
_LONGEST = 4_000_000  # characters of a grammar


class Candidates:
    """A llama_token_data_array over memory of our own, for up to `capacity` tokens."""

    def __init__(self, bindings: Any, capacity: int) -> None:
        self.data = np.zeros(capacity, CANDIDATE)
        pointer = self.data.ctypes.data_as(ctypes.POINTER(bindings.llama_token_data))
        self.array = bindings.llama_token_data_array(pointer, capacity, -1, False)
        self.reference = ctypes.byref(self.array)

    def fill(self, ids: Any, logits: Any) -> Any:
        """These tokens, as an argument for C."""
        count = len(ids)
        data = self.data[:count]
        data["id"], data["logit"] = ids, logits
        self.array.size, self.array.selected, self.array.sorted = count, -1, False
        return self.reference


class Guide:
    """The constraint of one generation. `begun` is True from its first token on, `free` while anything may be said."""

    def __init__(
        self, vocab: Vocabulary, constraint: Constraint, span: SpanLimit | None, inside: bool, prefixes: Prefixes
    ) -> None:
        """Raises UsageError for a grammar that llama.cpp cannot read. `inside`: the prompt ends inside the span."""
        self._c = c = library.load()
        self._vocab, self._prefixes = vocab, prefixes
        self._triggers = frozenset(map(vocab.control, constraint.triggers))
        self._opens, self._closes = (vocab.control(span.opens), vocab.control(span.closes)) if span else (-1, -1)
        self._inside = self._thought = inside and span is not None
        self._quote = vocab.control(constraint.quote) if constraint.quote else -1
        markers = frozenset(map(vocab.control, constraint.markers)) | vocab.ends
        self._barred = frozenset(vocab.names) - markers
        self._barred_in_string = frozenset(vocab.names) - vocab.ends - {self._quote}
        self._in_string = self.begun = False
        self._bytes = b""  # of a character that is not whole yet
        self._ordinary = {name: vocab.text(name)[0] for name in set(_ORDINARY.findall(constraint.grammar))}
        text = _ORDINARY.sub(lambda found: f"<[{self._ordinary[found[1]]}]>", constraint.grammar).encode()
        log.clear()
        self._grammar = c.llama_sampler_init_grammar(vocab.pointer, text, b"root") if len(text) <= _LONGEST else None
        if not self._grammar:
            raise UsageError(f"llama.cpp cannot read the grammar of {len(text):,} characters.", "Correct or simplify it.")
        self.close = weakref.finalize(self, c.llama_sampler_free, self._grammar)
        self._one = c.llama_token_data(0, 0.0, 0.0)
        one = c.llama_token_data_array(ctypes.pointer(self._one), 1, -1, False)
        self._one_alone = ctypes.byref(one)
        self._some = Candidates(c, 8192)

    @property
    def free(self) -> bool:
        """Whether the grammar does not hold now: no trigger came yet, or this is inside the span."""
        return not self.begun and (self._inside or bool(self._triggers))

    def allows(self, token: int) -> bool:
        """Whether this token may come next."""
        if self.free:
            return not (self._inside and not self._triggers and token in self._vocab.ends)
        if token == self._opens and not self.begun and not self._thought:
            return True
        if not self._fits(token):
            return False
        one = self._one
        one.id, one.logit = token, 0.0
        self._c.llama_sampler_apply(self._grammar, self._one_alone)
        return bool(one.logit == 0.0)

    def allowed(self, ids: Any) -> Any:
        """Which of these tokens (int32 array) may come next, as a mask; while the grammar does not hold, too."""
        if self.free:
            return np.isin(ids, list(self._vocab.ends), invert=True) if self._inside and not self._triggers else ids >= 0
        held = self._some if len(ids) <= len(self._some.data) else Candidates(self._c, len(ids))
        self._c.llama_sampler_apply(self._grammar, held.fill(ids, 0.0))
        mask = held.data["logit"][: len(ids)] == 0.0
        for at in np.flatnonzero(mask & self._prefixes.odd[ids]):
            mask[at] = self._fits(int(ids[at]))
        if not self.begun and not self._thought:
            mask |= ids == self._opens
        return mask

    def _fits(self, token: int) -> bool:
        """What llama.cpp does not see to: markers where they may stand, and bytes that are UTF-8 (it takes overlong forms)."""
        if token in (self._barred_in_string if self._in_string else self._barred):
            return False
        return token not in self._vocab.bytes or _utf8(self._bytes + self._vocab.piece(token)) is not None

    def every(self) -> Any:
        """All tokens that may come next (int32 array)."""
        found = self._prefixes.narrowed(self.allowed)
        # A token that the grammar names may come where its beginnings may not.
        more = [token for token in self._ordinary.values() if self.allows(token) and token not in found]
        return np.append(found, np.array(more, np.int32)) if more else found

    def accept(self, token: int) -> None:
        """Follow a token that was sampled, or inserted; one that `allows` is True for."""
        if not self.begun:
            if self._triggers and token not in self._triggers:
                return
            if not self._triggers and (self._inside or token == self._opens):
                self._inside = token != self._closes
                self._thought = True  # one span, or a model that may not say what it wants would think for ever
                return
        self._c.llama_sampler_accept(self._grammar, token)
        self.begun = True
        self._in_string ^= token == self._quote
        self._bytes = (_utf8(self._bytes + self._vocab.piece(token)) or b"") if token in self._vocab.bytes else b""


def _utf8(data: bytes) -> bytes | None:
    """What of the bytes is the beginning of another character; None where they are no UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return data[error.start :] if error.reason == "unexpected end of data" else None
    return b""
