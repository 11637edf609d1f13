"""Speculative decoding: the MTP drafter proposes tokens, the model checks several at once, and what it pays decides how many.

A draft is kept only where it is the token that was sampled from the model's own logits, so what is said does not change. The
call pattern (shared KV cache, one position for all steps, hidden states fed back) is that of llama.cpp common/speculative.cpp.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

from localgemma.errors import BackendError, BadModelFile
from localgemma.llamacpp import library, log
from localgemma.llamacpp.batch import Batch, Span
from localgemma.llamacpp.context import GGML_TYPES, Context
from localgemma.llamacpp.model import Model

_PLAIN = 4  # tokens without drafts that measure the plain speed; the first of them is not counted
_FIRST = 3  # drafts of the first trials
_TRIALS = 4  # steps with drafts before they are judged
_AGAIN = 64  # plain tokens after drafts did not pay, before they are tried again; doubled each time
_FRESH = 128  # steps with drafts after which the plain speed is measured again


class Drafter:
    """A drafter model beside a context, sharing its KV cache; closed before it."""

    def __init__(self, path: Path, target: Context) -> None:
        """Load `path` (architecture gemma4-assistant). Raises BadModelFile where it does not fit the model."""
        from llama_cpp import llama_cpp_ext

        self._c, self._x, self._target = library.load(), llama_cpp_ext, target
        c, options = self._c, target.options
        self._model = Model(path, options)
        self._chains: list[Any] = []
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = target.size, 8, 8, options.sequences
        params.ctx_type, params.ctx_other = c.LLAMA_CONTEXT_TYPE_MTP, target.pointer
        params.kv_unified, params.swa_full, params.no_perf = True, False, True
        params.type_k = params.type_v = GGML_TYPES[options.kv]
        params.flash_attn_type = int(options.flash_attention)
        if options.threads:
            params.n_threads = params.n_threads_batch = options.threads
        log.clear()
        self._context = c.llama_init_from_model(self._model.pointer, params)
        self._width = int(c.llama_model_n_embd_out(self._model.pointer))
        if not self._context or self._width != int(c.llama_model_n_embd_out(target.model.pointer)):
            reason = log.last_error() or "it is of another model"
            self.close()
            raise BadModelFile(f"{path.name} is no drafter for this model: {reason}.", "Load without it: --no-draft.")
        self._x.llama_set_embeddings_nextn(target.pointer, True, True)
        self._x.llama_set_embeddings_nextn(self._context, True, True)
        self._batch = Batch(c, 1, self._width, both=True)
        self._chains = [self._greedy(sequence) for sequence in range(options.sequences)]

    def propose(self, token: int, row: int, position: int, count: int, sequence: int) -> list[int]:
        """`count` tokens that may follow `token`, which was sampled from `row` of the last batch and goes to `position`."""
        if not self._context:  # it was dropped while an answer was under way
            return []
        hidden = self._x.llama_get_embeddings_nextn_ith(self._target.pointer, row)
        drafts: list[int] = []
        for _ in range(count):
            if not hidden:
                raise BackendError(f"Row {row} has no hidden state for the drafter.")
            batch = self._batch.fill([Span(sequence, [token], position, 1)], embeddings=hidden)
            if self._c.llama_decode(self._context, batch):
                return drafts
            token = int(self._c.llama_get_sampled_token_ith(self._context, 0))
            if token < 0:
                raise BackendError("The drafter gave no token.")
            drafts.append(token)
            hidden = self._x.llama_get_embeddings_nextn_ith(self._context, 0)
        return drafts

    def _greedy(self, sequence: int) -> Any:
        chain = self._c.llama_sampler_chain_init(self._c.llama_sampler_chain_default_params())
        self._c.llama_sampler_chain_add(chain, self._c.llama_sampler_init_greedy())
        self._c.llama_set_sampler(self._context, sequence, chain)
        return chain

    def close(self) -> None:
        """Free the drafter."""
        if self._context:
            self._c.llama_free(self._context)
            self._context = None
            if self._target.pointer:
                self._x.llama_set_embeddings_nextn(self._target.pointer, False, False)
            for chain in self._chains:
                self._c.llama_sampler_free(chain)
        self._model.close()


class DraftLength:
    """How many tokens to draft, from what was accepted and what each length took; 0 where drafts do not pay."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, deque[float]] = {}
        self.acceptance = 0.5  # of a draft whose predecessors were right
        self._plain, self._drafted, self._quiet, self._pause = 0, 0, 0, _AGAIN

    @property
    def plain_seconds(self) -> float:
        """Seconds of a token without drafts, 0 before it was measured."""
        return self._seconds.get(0, 0.0)

    def took(self, count: int, seconds: float) -> None:
        """A step with `count` drafts took so long."""
        if count == 0:
            self._plain += 1
            if self._plain == 1:
                return
        else:
            self._drafted += 1
        seen = self._seen.setdefault(count, deque(maxlen=9))
        seen.append(seconds)
        self._seconds[count] = statistics.median(seen)

    def saw(self, count: int, accepted: int) -> None:
        """Of `count` drafts the first `accepted` were right."""
        for right in [True] * accepted + [False] * (accepted < count):
            self.acceptance += 0.04 * (right - self.acceptance)

    def tokens(self, count: int) -> float:
        """Tokens that a step with `count` drafts is expected to give."""
        a = min(self.acceptance, 0.999)
        return float((1 - a ** (count + 1)) / (1 - a))

    def cost(self, count: int) -> float:
        """Seconds of a step with `count` drafts: as measured, else on a line from the plain step through the measured ones."""
        if count in self._seconds:
            return self._seconds[count]
        plain = self._seconds[0]
        slopes = [(seconds - plain) / known for known, seconds in self._seconds.items() if known]
        return plain + count * max(sum(slopes) / len(slopes), 0.0)

    def choose(self) -> int:
        """Drafts for the next step."""
        if self._plain < _PLAIN:
            return 0
        if self._drafted < _TRIALS:
            return min(_FIRST, self._most)
        best = max(range(self._most + 1), key=lambda count: self.tokens(count) / self.cost(count))
        if best and self._drafted % _FRESH:
            self._pause = _AGAIN
            return best
        if not best:
            self._quiet += 1
            if self._quiet >= self._pause:
                self._quiet, self._pause = 0, self._pause * 2
                self._drafted = _TRIALS - 2
        else:
            self._drafted += 1
        return 0


class Speculation:
    """Drafting in one generation: what was proposed and not yet used, and the counts."""

    def __init__(self, drafter: Drafter, length: DraftLength) -> None:
        self._drafter, self._length = drafter, length
        self.pending: list[int] = []
        self.drafted = self.accepted = 0
        self._count = self._right = 0
        self._begun: float | None = None

    def propose(self, token: int, row: int, position: int, most: int, sequence: int) -> list[int]:
        """Drafts after `token`; the step before ends here, for the clock. At most `most`, fewer where more would not pay."""
        now = time.perf_counter()
        if self._begun is not None:
            self._length.took(self._count, now - self._begun)
            self._length.saw(self._count, self._right)
        self._count = min(self._length.choose(), most)
        self._right, self._begun = 0, now
        self.pending = self._drafter.propose(token, row, position, self._count, sequence) if self._count else []
        self._count = len(self.pending)
        self.drafted += self._count
        return self.pending

    def matches(self, token: int) -> bool:
        """Whether the token is the next draft, which is thereby used."""
        if self.pending and self.pending[0] == token:
            self.pending = self.pending[1:]
            self.accepted += 1
            self._right += 1
            return True
        return False

    def pause(self) -> None:
        """The next step is not one to measure."""
        self._begun = None

    def gain(self, seconds_a_token: float) -> float:
        """How many times faster than without drafts; 0 where nothing was drafted."""
        plain = self._length.plain_seconds
        return plain / seconds_a_token if self.drafted and plain and seconds_a_token else 0.0
