"""Sampler chains: on the device where the chain allows it, on the CPU otherwise."""

from __future__ import annotations

import ctypes
import secrets
from typing import Any

import numpy as np

from localgemma.errors import BackendError, UsageError
from localgemma.llamacpp import library
from localgemma.llamacpp.context import Context
from localgemma.llamacpp.grammar import Candidates, Guide
from localgemma.options import Sampling

_NEAR = 8.0  # logits below the best, of greedy candidates that are tried before all tokens
_NOTHING = -1  # LLAMA_TOKEN_NULL: the device did not finish the chain
_BREAKERS = (b"\n", b":", b'"', b"*")  # DRY's defaults in llama.cpp common/common.h


class Sampler:
    """A chain for one generation; closed before its context.

    With a guide it draws from what the guide allows. It does so on the CPU: a chain on the device leaves no logits to choose
    others from, so it is taken off as soon as the guide's grammar holds.
    """

    def __init__(
        self, context: Context, sampling: Sampling, *, on_device: bool, sequence: int = 0, guide: Guide | None = None
    ) -> None:
        self._c, self._context, self._sequence = library.load(), context, sequence
        self._sampling, self._guide = sampling, guide
        self._past: list[int] = []  # for the penalties of a second chain
        self._candidates: Candidates | None = None
        self.on_device = on_device and sampling.logprobs is None
        self._chain = self._build(sampling)
        if self.on_device:
            self.on_device = bool(self._c.llama_set_sampler(context.pointer, sequence, self._chain))

    def sample(self, row: int) -> int | None:
        """The token sampled for a row of the last batch, accepted.

        None where another must be drawn and the device left no logits for it; from then on the CPU samples: evaluate it again.
        """
        guide = self._guide
        if guide is not None and not guide.free and not self.on_device:
            return self._guided(row, guide)
        token = _NOTHING
        if self.on_device:
            token = int(self._c.llama_get_sampled_token_ith(self._context.pointer, row))
        if token == _NOTHING:
            token = int(self._c.llama_sampler_sample(self._chain, self._context.pointer, row))
        if guide is not None:
            if not guide.allows(token):
                if not self.on_device:
                    return self._guided(row, guide)
                self._take_off()
                return None
            guide.accept(token)
            self._past.append(token)
        return token

    def settle(self) -> bool:
        """Go over to the CPU if the guide's grammar holds now; whether this changed anything for what is evaluated next."""
        if self.on_device and self._guide is not None and not self._guide.free:
            self._take_off()
            return True
        return False

    def accept(self, token: int) -> None:
        """Tell the chain of a token that was inserted."""
        self._c.llama_sampler_accept(self._chain, token)
        if self._guide is not None:
            self._guide.accept(token)
            self._past.append(token)

    def close(self) -> None:
        """Detach from the context and free the chain."""
        if self._chain:
            if self.on_device:
                self._c.llama_set_sampler(self._context.pointer, self._sequence, None)
            self._c.llama_sampler_free(self._chain)
            self._chain = None

    def _take_off(self) -> None:
        """A chain on the CPU instead of the device's."""
        self.close()
        self.on_device = False
        self._chain = self._build(self._sampling)
        for token in self._past:
            self._c.llama_sampler_accept(self._chain, token)

    def _guided(self, row: int, guide: Guide) -> int:
        """A token that the guide allows: the one that the chain draws, else one of those that it leaves, else of all."""
        c, size = self._c, self._context.model.vocab.size
        if self._candidates is None:
            self._candidates, self._ids = Candidates(c, size), np.arange(size, dtype=np.int32)
        held = self._candidates
        raw = np.ctypeslib.as_array(self._logits(row), (size,))
        held.fill(self._ids, raw)
        token = self._held_to(guide, held, raw, self._drawn(held))
        c.llama_sampler_accept(self._chain, token)
        guide.accept(token)
        self._past.append(token)
        return token

    def _held_to(self, guide: Guide, held: Candidates, raw: Any, token: int) -> int:
        """The token that was drawn if the guide allows it, else another."""
        if guide.allows(token):
            return token
        ids, logits = self._left(held)
        mask = guide.allowed(ids)
        if mask.any():
            held.fill(ids[mask], logits[mask])
            return self._last(held)
        ids = guide.every()
        if not len(ids):
            raise BackendError("The grammar allows no token any more.", "Simplify the schema, or leave it out.")
        held.fill(ids, raw[ids])
        return self._drawn(held)

    def _logits(self, row: int) -> Any:
        pointer = self._c.llama_get_logits_ith(self._context.pointer, row)
        if not pointer:
            raise BackendError(f"Row {row} has no logits.")
        return pointer

    def _drawn(self, held: Candidates) -> int:
        """Run the chain over candidates."""
        for index in range(self._parts - 1):
            self._c.llama_sampler_apply(self._c.llama_sampler_chain_get(self._chain, index), held.reference)
        return self._last(held)

    def _last(self, held: Candidates) -> int:
        """Run the chain's last sampler, which chooses."""
        self._c.llama_sampler_apply(self._c.llama_sampler_chain_get(self._chain, self._parts - 1), held.reference)
        return int(held.data["id"][held.array.selected])

    def _left(self, held: Candidates) -> tuple[Any, Any]:
        """The candidates that the chain left, and their logits; of a greedy one, which leaves all, those near the best."""
        data = held.data[: held.array.size]
        if self._sampling.temperature == 0:
            data = data[data["logit"] > data["logit"][held.array.selected] - _NEAR]
        return data["id"].copy(), data["logit"].copy()

    def _build(self, s: Sampling) -> Any:
        c, size = self._c, self._context.model.vocab.size
        params = c.llama_sampler_chain_default_params()
        params.no_perf = True
        chain = c.llama_sampler_chain_init(params)
        parts = []
        if s.logit_bias:
            if max(s.logit_bias) >= size:
                raise UsageError(f"logit_bias names token {max(s.logit_bias)}.", f"This vocabulary has {size:,}.")
            biases = (c.llama_logit_bias * len(s.logit_bias))(*(c.llama_logit_bias(t, b) for t, b in s.logit_bias.items()))
            parts.append(c.llama_sampler_init_logit_bias(size, len(s.logit_bias), biases))
        if s.repeat_penalty != 1 or s.presence_penalty or s.frequency_penalty:
            last = self._context.size if s.penalty_last_n < 0 else s.penalty_last_n
            parts.append(c.llama_sampler_init_penalties(size, last, s.repeat_penalty, s.frequency_penalty, s.presence_penalty))
        if s.dry_multiplier:
            breakers = (ctypes.c_char_p * len(_BREAKERS))(*_BREAKERS)
            last = self._context.size if s.dry_last_n < 0 else s.dry_last_n
            arguments = (s.dry_multiplier, s.dry_base, s.dry_allowed_length, last, breakers, len(_BREAKERS))
            parts.append(c.llama_sampler_init_dry(self._context.model.vocab.pointer, *arguments))
        if s.temperature == 0:
            parts.append(c.llama_sampler_init_greedy())
        else:
            if s.top_k:
                parts.append(c.llama_sampler_init_top_k(s.top_k))
            if s.top_p < 1:
                parts.append(c.llama_sampler_init_top_p(s.top_p, 1))
            if s.min_p:
                parts.append(c.llama_sampler_init_min_p(s.min_p, 1))
            parts.append(c.llama_sampler_init_temp(s.temperature))
            parts.append(c.llama_sampler_init_dist(secrets.randbits(31) if s.seed is None else s.seed))
        self._parts = len(parts)
        for part in parts:
            c.llama_sampler_chain_add(chain, part)
        return chain
