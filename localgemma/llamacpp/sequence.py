"""What the KV cache holds, and bringing a prompt into it: the longest safe prefix stays, the rest is evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from localgemma.engine import CancelToken, Control, Prompt
from localgemma.errors import BadConversation, PictureTooLarge
from localgemma.llamacpp.context import ABORTED, Context
from localgemma.llamacpp.model import Vocabulary
from localgemma.llamacpp.vision import Projector
from localgemma.messages import Pixels, Progress

Key: TypeAlias = int | str  # a token id, or the hash of the picture that holds the position
Run: TypeAlias = list[int] | Pixels


@dataclass(slots=True)
class Plan:
    """A prompt as runs of token ids and pictures, with one key for each position."""

    runs: list[Run]
    keys: list[Key] = field(default_factory=list)
    pictures: int = 0


def plan(prompt: Prompt, vocab: Vocabulary, largest_picture: int) -> Plan:
    """Tokenise a prompt. Raises PictureTooLarge, and BadConversation for a prompt that does not end in tokens."""
    result = Plan([])
    for item in prompt.flat():
        if isinstance(item, Pixels):
            if not largest_picture:
                raise BadConversation("This model was loaded without its projector.", "Load it with one to send pictures.")
            if item.tokens > largest_picture:
                raise PictureTooLarge(item.tokens, largest_picture)
            result.runs.append(item)
            result.keys += [item.sha256] * item.tokens
            result.pictures += item.tokens
            continue
        ids = [vocab.control(item.text)] if isinstance(item, Control) else vocab.text(item.text)
        if not ids:
            continue
        if result.runs and isinstance(result.runs[-1], list):
            result.runs[-1] += ids
        else:
            result.runs.append(list(ids))
        result.keys += ids
    if not result.runs or isinstance(result.runs[-1], Pixels):
        raise BadConversation("The prompt has no text at its end.", "Add a question.")
    return result


class Sequence:
    """One sequence of a context: `held` says what is at each position."""

    def __init__(self, context: Context, projector: Projector | None) -> None:
        self.context, self._projector = context, projector
        self.held: list[Key] = []
        self.encode_seconds = 0.0

    def prefill(self, wanted: Plan, cancel: CancelToken, report: Callable[[Progress], None]) -> tuple[int, int] | None:
        """Evaluate what the cache lacks. (tokens that were there, row of the last logits), or None when cancelled."""
        start = self._rewind(wanted)
        total, position, row = len(wanted.keys), 0, 0
        self.encode_seconds = 0.0
        begun = time.perf_counter()
        for index, run in enumerate(wanted.runs):
            size = run.tokens if isinstance(run, Pixels) else len(run)
            done = min(max(start - position, 0), size)
            while done < size:
                if cancel.cancelled:
                    return None
                if isinstance(run, Pixels):
                    count, status = size, self._picture(run, report)
                else:
                    count = min(self.context.ubatch, size - done)
                    last = index == len(wanted.runs) - 1 and done + count == size
                    status = self.context.decode(run[done : done + count], position + done, int(last))
                    row = count - 1
                if status == ABORTED:
                    del self.held[self.context.end :]
                    return None
                done += count
                self.held = wanted.keys[: position + done]
                spent, fresh = time.perf_counter() - begun, position + done - start
                report(Progress("prefill", position + done, total, spent / fresh * (total - position - done)))
            position += size
        return start, row

    def _picture(self, run: Pixels, report: Callable[[Progress], None]) -> int:
        assert self._projector is not None  # plan() refuses pictures without one
        begun = time.perf_counter()
        if not self._projector.holds(run):
            report(Progress("encode", 0, run.tokens))
        rows = self._projector.encode(run)
        self.encode_seconds += time.perf_counter() - begun
        return self.context.decode_picture(rows, len(self.held))

    def _rewind(self, wanted: Plan) -> int:
        """Shorten the cache to the longest prefix that may be continued; never inside a picture."""
        limit = min(len(self.held), len(wanted.keys) - 1)
        common = next((i for i in range(limit) if self.held[i] != wanted.keys[i]), limit)
        position = 0
        for run in wanted.runs:
            size = run.tokens if isinstance(run, Pixels) else len(run)
            if position < common < position + size and isinstance(run, Pixels):
                common = position
            position += size
        if common < len(self.held) and not self.context.can_resume(common):
            common = 0
        if common < len(self.held):
            self.context.cut(common)
            del self.held[common:]
        return common

    def clear(self) -> None:
        """Forget everything, after an error that leaves the cache unknown."""
        self.context.cut(0)
        self.held.clear()
