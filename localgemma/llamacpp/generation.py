"""One generation: prefill, then a token a step, with limits, stop strings and cancelling."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from localgemma.engine import CancelToken, Control, Finished, Output, Piece, Request, StopReason
from localgemma.llamacpp.context import ABORTED
from localgemma.llamacpp.model import Vocabulary
from localgemma.llamacpp.sampler import Sampler
from localgemma.llamacpp.sequence import Plan, Sequence
from localgemma.llamacpp.stops import StopStrings
from localgemma.messages import Timings, TokenLogprob, Usage


class Generation:
    """The state of one request while the driver works on it."""

    def __init__(self, request: Request, wanted: Plan, sequence: Sequence, cancel: CancelToken) -> None:
        self._request, self._plan, self._sequence, self._cancel = request, wanted, sequence, cancel
        self._context = sequence.context
        self._vocab: Vocabulary = self._context.model.vocab
        self._stops = StopStrings(request.sampling.stop)
        self._forced: deque[int] = deque()
        self._inside = request.prompt.open_span and request.span is not None
        self._answer = self._thinking = 0
        span = request.span
        self._opens = self._vocab.control(span.opens) if span else -1
        self._closes = self._vocab.control(span.closes) if span else -1

    def run(self, emit: Callable[[Output], None], *, on_device: bool) -> None:
        """Evaluate and sample to the end; the last thing emitted is Finished."""
        started = time.perf_counter()
        sampler = Sampler(self._context, self._request.sampling, on_device=on_device)
        try:
            prefilled = self._sequence.prefill(self._plan, self._cancel, emit)
            ready = time.perf_counter()
            reason: StopReason = "cancelled"
            if prefilled is not None:
                reason = self._decode(sampler, prefilled[1], emit)
        finally:
            sampler.close()
        ended = time.perf_counter()
        for piece in self._stops.flush() if reason != "stop_string" else ():
            emit(piece)
        cached = prefilled[0] if prefilled else 0
        usage = Usage(len(self._plan.keys), cached, self._plan.pictures, self._thinking, self._answer)
        made = self._thinking + self._answer
        prefill, decode = ready - started, ended - ready
        timings = Timings(
            first_token=prefill,
            prefill=prefill,
            encode=self._sequence.encode_seconds,
            decode=decode,
            prefill_speed=(usage.prompt - cached) / prefill if prefilled and prefill else 0.0,
            decode_speed=made / decode if made and decode else 0.0,
        )
        emit(Finished(reason, usage, timings))

    def _decode(self, sampler: Sampler, row: int, emit: Callable[[Output], None]) -> StopReason:
        context, held, ends = self._context, self._sequence.held, self._vocab.ends
        limit, wants = self._request.sampling.max_tokens, self._request.sampling.logprobs
        while True:
            if self._forced:
                token = self._forced.popleft()
                sampler.accept(token)
            else:
                token = sampler.sample(row)
                if token in ends:
                    return "stop"
            logprob = None if wants is None else self._logprob(token, context.logits(row), wants)
            reason = self._count(token, limit)
            # The next evaluation starts before this token is handed on: a GPU works while the reader does.
            if reason is None:
                if self._cancel.cancelled or context.decode_one(token, len(held)) == ABORTED:
                    return "cancelled"
                held.append(token)
            out, stopped = self._stops.feed(Piece(token, self._vocab.piece(token), self._vocab.names.get(token), logprob))
            for piece in out:
                emit(piece)
            if stopped:
                return "stop_string"
            if reason is not None:
                return reason
            row = 0

    def _count(self, token: int, limit: int | None) -> StopReason | None:
        """Count the token, close a span that is too long, and say why the generation ends after it, if it does."""
        span = self._request.span
        if token == self._opens:
            self._inside = True
        if self._inside:
            self._thinking += 1
            if token == self._closes:
                self._inside = False
            elif span and self._thinking >= span.tokens and not self._forced:
                for item in span.insert:
                    ids = [self._vocab.control(item.text)] if isinstance(item, Control) else self._vocab.text(item.text)
                    self._forced.extend(ids)
        else:
            self._answer += 1
            if limit is not None and self._answer >= limit:
                return "length"
        return "context" if len(self._sequence.held) >= self._context.size else None

    def _logprob(self, token: int, logits: Any, wanted: int) -> TokenLogprob:
        import numpy as np

        peak = logits.max()
        logs = logits - (peak + np.log(np.exp(logits - peak, dtype=np.float64).sum()))
        best = np.argpartition(logs, -wanted)[-wanted:] if wanted else np.array([], dtype=int)
        top = tuple((int(t), self._vocab.piece(int(t)), float(logs[t])) for t in sorted(best, key=lambda t: -logs[t]))
        return TokenLogprob(token, self._vocab.piece(token), float(logs[token]), top)
