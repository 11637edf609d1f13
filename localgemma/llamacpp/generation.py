"""One generation: prefill, then a token a step, with limits, stop strings and cancelling."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

from localgemma.engine import Control, Finished, Output, Piece, Request, StopReason
from localgemma.llamacpp.batch import Span
from localgemma.llamacpp.cache import Cache, Slot
from localgemma.llamacpp.draft import Speculation
from localgemma.llamacpp.grammar import Guide
from localgemma.llamacpp.model import Vocabulary
from localgemma.llamacpp.sampler import Sampler
from localgemma.llamacpp.sequence import Plan, Prefill
from localgemma.llamacpp.stops import StopStrings
from localgemma.llamacpp.task import Grant, Lost, Rows, Steps, Stopped
from localgemma.llamacpp.vision import Projector
from localgemma.messages import Timings, TokenLogprob, Usage


class Generation:
    """The state of one request while the driver works on it."""

    def __init__(
        self,
        request: Request,
        wanted: Plan,
        cache: Cache,
        projector: Projector | None,
        emit: Callable[[Output], None],
        *,
        on_device: bool,
        speculation: Speculation | None = None,
        guide: Guide | None = None,
    ) -> None:
        self._request, self._plan, self._cache, self._projector = request, wanted, cache, projector
        self._context, self._emit, self._on_device = cache.context, emit, on_device
        self._vocab: Vocabulary = self._context.model.vocab
        self._stops = StopStrings(request.sampling.stop)
        self._forced: deque[int] = deque()
        self._inside = request.prompt.open_span and request.span is not None
        self._answer = self._thinking = 0
        span = request.span
        self._opens = self._vocab.control(span.opens) if span else -1
        self._closes = self._vocab.control(span.closes) if span else -1
        self._speculation, self._guide = speculation, guide
        self._made: list[int] = []
        self._asked = time.perf_counter()
        self._slot = Slot(-1)
        self._prefill = Prefill(self._slot, wanted, cache, projector)

    def steps(self, slot: Slot | None) -> Steps:
        """Evaluate and sample to the end; the last thing emitted is Finished. Without a slot it is cancelled at once."""
        started = ready = time.perf_counter()
        reason: StopReason = "cancelled"
        if slot is not None:
            self._slot = slot
            self._prefill = Prefill(slot, self._plan, self._cache, self._projector)
            sampling, guide = self._request.sampling, self._guide
            sampler = Sampler(self._context, sampling, on_device=self._on_device, sequence=slot.id, guide=guide)
            try:
                yield from self._filled(self._prefill)
                ready = time.perf_counter()
                reason = yield from self._decode(sampler, self._prefill.row)
            except Stopped:
                reason = "cancelled"
            finally:
                sampler.close()
                self._drop_drafts()
        for piece in self._stops.flush() if reason != "stop_string" else ():
            self._emit(piece)
        self._emit(self._finished(reason, started, max(started, ready), time.perf_counter()))

    def _finished(self, reason: StopReason, started: float, ready: float, ended: float) -> Finished:
        cached = self._prefill.start
        usage = Usage(len(self._plan.keys), cached, self._plan.pictures, self._thinking, self._answer)
        made = self._thinking + self._answer
        prefill, decode = ready - started, ended - ready
        guess = self._speculation
        timings = Timings(
            first_token=ready - self._asked,
            prefill=prefill,
            encode=self._prefill.encode_seconds,
            decode=decode,
            prefill_speed=(usage.prompt - cached) / prefill if made and prefill else 0.0,
            decode_speed=made / decode if made and decode else 0.0,
            drafted=guess.drafted if guess else 0,
            accepted=guess.accepted if guess else 0,
            draft_gain=guess.gain(decode / made) if guess and made else 0.0,
        )
        return Finished(reason, usage, timings)

    def _filled(self, prefill: Prefill) -> Steps:
        """Run a prefill; from the start again where its sequence was emptied for another's sake."""
        while True:
            try:
                yield from prefill.steps(self._emit)
                return
            except Lost:
                continue

    def _evaluated(self, span: Span) -> Generator[Span | Rows, Grant, int]:
        """Evaluate a span after what is held; returns the row of its first token."""
        while True:
            try:
                _, row = yield span
                return row
            except Lost:
                yield from self._filled(Prefill(self._slot, self._before(span.position), self._cache, self._projector))

    def _before(self, position: int) -> Plan:
        """The prompt and what was generated, up to `position`, which is in or after the prompt's last text."""
        *runs, last = self._plan.runs
        assert isinstance(last, list)  # plan() lets no prompt end in a picture
        keys = [*self._plan.keys, *self._made]
        return Plan([*runs, [*last, *self._made][: len(last) + position - len(self._plan.keys)]], keys[:position])

    def _decode(self, sampler: Sampler, row: int) -> Generator[Span | Rows, Grant, StopReason]:
        slot, ends = self._slot, self._vocab.ends
        limit, wants = self._request.sampling.max_tokens, self._request.sampling.logprobs
        late = self._prefill.late
        span = Span(slot.id, [0], 0, 1)
        while True:
            if self._forced:
                token = self._forced.popleft()
                sampler.accept(token)
            else:
                found = sampler.sample(row)
                while found is None:
                    row = yield from self._again()
                    found = sampler.sample(row)
                if (token := found) in ends:
                    return "stop"
            logprob = None if wants is None else self._logprob(token, self._context.logits(row), wants)
            drafted = not sampler.settle() and self._speculation is not None and self._speculation.matches(token)
            if not drafted:
                self._drop_drafts()
            reason = self._count(token, limit)
            piece = Piece(token, self._vocab.piece(token), self._vocab.names.get(token), logprob)
            # The next evaluation starts before this token is handed on: a GPU works while the reader does.
            if drafted:
                slot.held.append(token)
                self._made.append(token)
                row += 1
            elif reason is None and late is None:
                span.tokens, span.position = [token, *self._drafts(token, row, limit)], len(slot.held)
                span.outputs = len(span.tokens)
                row = yield from self._evaluated(span)
                slot.held.append(token)
                self._made.append(token)
            out, stopped = self._stops.feed(piece)
            for each in out:
                self._emit(each)
            if stopped:
                return "stop_string"
            if reason is not None:
                return reason
            if late is not None:  # the first token: no drafts yet
                row = (yield from self._marked(late, token)) - 1
                late = None

    def _drafts(self, token: int, row: int, limit: int | None) -> list[int]:
        """Tokens that may follow; never so many that one would be accepted beyond a limit."""
        guess, span = self._speculation, self._request.span
        if guess is None or self._forced:
            return []
        if not self._cache.alone:
            guess.pause()
            return []
        bounds = [self._context.size - len(self._slot.held) - 2, self._context.options.draft_tokens]
        if limit is not None:
            bounds.append(limit - self._answer - 1)
        if span is not None:
            bounds.append(span.tokens - self._thinking - 1)
        return guess.propose(token, row, len(self._slot.held), max(min(bounds), 0), self._slot.id)

    def _drop_drafts(self) -> None:
        """Drafts that were not sampled leave the cache."""
        if self._speculation is not None and self._speculation.pending:
            self._context.cut(len(self._slot.held), self._slot.id)
            self._speculation.pending = []

    def _marked(self, late: int, token: int) -> Generator[Span | Rows, Grant, int]:
        """Take the checkpoint at `late`, now that the first token is out, and evaluate what follows it; row after the last."""
        slot, tail = self._slot, self._plan.ids(late) or []
        if slot.held[late:] != self._plan.keys[late:] or not self._context.can_resume(late, slot.id):
            tail = []
        elif tail:
            self._context.cut(late, slot.id)
            del slot.held[late:]
        if len(slot.held) == late:
            self._cache.mark(slot)
        tokens = [*tail, token]
        row = yield from self._evaluated(Span(slot.id, tokens, len(slot.held), 1))
        slot.held += tokens
        self._made.append(token)
        return row + len(tokens)

    def _again(self) -> Generator[Span | Rows, Grant, int]:
        """Evaluate the last token once more, for logits that the device did not leave; its row."""
        self._drop_drafts()
        held = self._slot.held
        token, position = held[-1], len(held) - 1
        assert isinstance(token, int)  # plan() lets no prompt end in a picture
        self._context.cut(position, self._slot.id)
        del held[position:]
        row = yield from self._evaluated(Span(self._slot.id, [token], position, 1))
        held.append(token)
        return row

    def _count(self, token: int, limit: int | None) -> StopReason | None:
        """Count the token, close a span that is too long, and say why the generation ends after it, if it does."""
        span = self._request.span
        if self._guide is not None and self._guide.begun:
            self._inside = False  # a call that stands inside the thoughts ends them
        elif token == self._opens:
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
        return "context" if len(self._slot.held) >= self._context.size else None

    def _logprob(self, token: int, logits: Any, wanted: int) -> TokenLogprob:
        import numpy as np

        peak = logits.max()
        logs = logits - (peak + np.log(np.exp(logits - peak, dtype=np.float64).sum()))
        best = np.argpartition(logs, -wanted)[-wanted:] if wanted else np.array([], dtype=int)
        top = tuple((int(t), self._vocab.piece(int(t)), float(logs[t])) for t in sorted(best, key=lambda t: -logs[t]))
        return TokenLogprob(token, self._vocab.piece(token), float(logs[token]), top)
