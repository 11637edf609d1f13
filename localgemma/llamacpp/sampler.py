"""Sampler chains: on the device where the chain allows it, on the CPU otherwise."""

from __future__ import annotations

import ctypes
import secrets
from typing import Any

from localgemma.errors import UsageError
from localgemma.llamacpp import library
from localgemma.llamacpp.context import Context
from localgemma.options import Sampling

_NOTHING = -1  # LLAMA_TOKEN_NULL: the device did not finish the chain
_BREAKERS = (b"\n", b":", b'"', b"*")  # DRY's defaults in llama.cpp common/common.h


class Sampler:
    """A chain for one generation; closed before its context."""

    def __init__(self, context: Context, sampling: Sampling, *, on_device: bool, sequence: int = 0) -> None:
        self._c, self._context, self._sequence = library.load(), context, sequence
        self.on_device = on_device and sampling.logprobs is None
        self._chain = self._build(sampling)
        if self.on_device:
            self.on_device = bool(self._c.llama_set_sampler(context.pointer, sequence, self._chain))

    def sample(self, row: int) -> int:
        """The token sampled for a row of the last batch, accepted into the chain."""
        if self.on_device:
            token = int(self._c.llama_get_sampled_token_ith(self._context.pointer, row))
            if token != _NOTHING:
                return token
        return int(self._c.llama_sampler_sample(self._chain, self._context.pointer, row))

    def accept(self, token: int) -> None:
        """Tell the chain of a token that was inserted."""
        self._c.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        """Detach from the context and free the chain."""
        if self._chain:
            if self.on_device:
                self._c.llama_set_sampler(self._context.pointer, self._sequence, None)
            self._c.llama_sampler_free(self._chain)
            self._chain = None

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
            parts.append(c.llama_sampler_init_dry(self._context.model.vocab._vocab, *arguments))
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
        for part in parts:
            c.llama_sampler_chain_add(chain, part)
        return chain
