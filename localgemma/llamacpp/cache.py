"""What the KV cache holds, sequence by sequence, and which part of it a new prompt may use.

The sliding layers keep little more than one window, so a sequence can be shortened only where the window before the new
end is still complete; checkpoints (copies of the window, in RAM) serve the places where prompts part ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from localgemma.llamacpp.context import Context

Key: TypeAlias = int | str  # a token id, or the hash of the picture that holds the position

MIN_GAP = 64  # tokens that a checkpoint must save to be worth its bytes; evaluating fewer costs about one step


@dataclass(slots=True)
class Checkpoint:
    """The sliding window before position `end`; serves evaluation from `end` or the position before it."""

    end: int
    blob: Any
    used: int


@dataclass(slots=True)
class Slot:
    """One sequence: `held` says what is at each position. `busy` while a task works in it, `used` its last turn."""

    id: int
    held: list[Key] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    conversation: str = ""
    busy: bool = False
    used: int = 0


def common_prefix(held: Sequence[Key], keys: Sequence[Key]) -> int:
    """How many positions are the same from the start."""
    start, size = 0, min(len(held), len(keys))
    while start < size:
        end = min(start + 1024, size)  # slices compare in C
        if held[start:end] != keys[start:end]:
            return next(i for i in range(start, end) if held[i] != keys[i])
        start = end
    return size


def outside_picture(keys: Sequence[Key], position: int) -> int:
    """`position`, or the start of the picture that it would split."""
    while 0 < position < len(keys) and isinstance(keys[position], str) and keys[position - 1] == keys[position]:
        position -= 1
    return position


def least_useful(slots: Sequence[Slot], now: int, keep: Checkpoint) -> tuple[Slot, Checkpoint] | None:
    """The checkpoint that saves the fewest tokens for its age (in turns); never `keep`, which was just made."""
    worst: tuple[float, Slot, Checkpoint] | None = None
    for slot in slots:
        before = 0
        for checkpoint in slot.checkpoints:
            worth = (checkpoint.end - before) / (now - checkpoint.used + 1)
            before = checkpoint.end
            if checkpoint is not keep and (worst is None or worth < worst[0]):
                worst = (worth, slot, checkpoint)
    return (worst[1], worst[2]) if worst else None


class Cache:
    """The sequences of a context and their checkpoints, which together stay within `limit` bytes."""

    def __init__(self, context: Context, sequences: int, limit: int) -> None:
        self.context, self.limit = context, limit
        self.slots = [Slot(index) for index in range(sequences)]
        self._now = 0

    @property
    def bytes(self) -> int:
        """Bytes of all checkpoints."""
        return sum({id(c.blob): c.blob.nbytes for slot in self.slots for c in slot.checkpoints}.values())

    @property
    def used(self) -> int:
        """Positions that are taken, at most: a shared prefix counts for each sequence."""
        return sum(len(slot.held) for slot in self.slots)

    @property
    def alone(self) -> bool:
        """Whether one sequence is at work."""
        return sum(slot.busy for slot in self.slots) == 1

    def acquire(self, keys: Sequence[Key], conversation: str = "") -> Slot | None:
        """A sequence for a prompt, busy until `release`: the conversation's own, else the one that fits or is idle longest.

        None while all are busy.
        """
        idle = [slot for slot in self.slots if not slot.busy]
        if not idle:
            return None
        own = [slot for slot in idle if conversation and slot.conversation == conversation]
        free = [slot for slot in idle if not conversation or not slot.conversation or not slot.held]
        # A conversation seen for the first time takes another's sequence only where none is free.
        chosen = (own or [max(free or idle, key=lambda slot: (self.kept(slot, keys), -len(slot.held), -slot.used))])[0]
        if not own and not free:
            chosen = min(idle, key=lambda slot: slot.used)
        self._now += 1
        chosen.busy, chosen.conversation, chosen.used = True, conversation or chosen.conversation, self._now
        return chosen

    def release(self, slot: Slot) -> None:
        """The sequence is idle; what it holds stays."""
        slot.busy = False

    def kept(self, slot: Slot, keys: Sequence[Key]) -> int:
        """How much of a prompt the sequence would save."""
        return self._resume(slot, keys)[0]

    def _resume(self, slot: Slot, keys: Sequence[Key]) -> tuple[int, Checkpoint | None]:
        """Where evaluation may begin (the last key is always evaluated: its logits are needed), and what to restore."""
        common = outside_picture(keys, common_prefix(slot.held, keys[:-1]))
        if common == len(slot.held) or self.context.can_resume(common, slot.id):
            return common, None
        for checkpoint in reversed(slot.checkpoints):
            position = outside_picture(keys, min(checkpoint.end, common))
            if position >= checkpoint.end - 1:
                return position, checkpoint
        return 0, None

    def prepare(self, slot: Slot, keys: Sequence[Key]) -> int:
        """Shorten the sequence to the longest prefix of `keys` that may be continued; returns its length."""
        start, checkpoint = self._resume(slot, keys)
        shared = common_prefix(slot.held, keys)
        slot.checkpoints = [c for c in slot.checkpoints if c.end <= shared]
        if checkpoint is not None:
            checkpoint.used = self._now
            if not self.context.restore(checkpoint.blob, start, slot.id):
                start = 0
        elif start < len(slot.held):
            self.context.cut(start, slot.id)
        if not start:
            self.clear(slot)
        del slot.held[start:]
        return self._borrowed(slot, keys, start)

    def _borrowed(self, slot: Slot, keys: Sequence[Key], start: int) -> int:
        """A longer prefix that another sequence holds up to a checkpoint is shared, not evaluated again."""
        best: tuple[Slot, Checkpoint] | None = None
        for other in self.slots:
            if other is slot or not other.checkpoints:
                continue
            common = common_prefix(other.held, keys[:-1])
            for checkpoint in other.checkpoints:
                if checkpoint.end <= common and checkpoint.end >= (best[1].end + 1 if best else start + MIN_GAP):
                    best = other, checkpoint
        if best is None:
            return start
        other, checkpoint = best
        self.clear(slot)
        checkpoint.used = self._now
        self.context.share(other.id, slot.id, checkpoint.end)
        if not self.context.restore(checkpoint.blob, checkpoint.end, slot.id):
            self.clear(slot)
            return 0
        slot.held = list(keys[: checkpoint.end])
        slot.checkpoints = [Checkpoint(checkpoint.end, checkpoint.blob, self._now)]
        return checkpoint.end

    def worth_marking(self, slot: Slot, position: int, planned: int = 0) -> bool:
        """Whether a checkpoint at `position` would save enough over the one before it (or `planned`, which will be made)."""
        before = max((c.end for c in slot.checkpoints if c.end <= position), default=0)
        return self.limit > 0 and position - max(before, planned) >= MIN_GAP

    def mark(self, slot: Slot) -> None:
        """Keep the window at the sequence's end; the least useful checkpoints make room for it."""
        end = len(slot.held)
        if not self.context.can_resume(end, slot.id) or any(c.end == end for c in slot.checkpoints):
            return
        checkpoint = Checkpoint(end, self.context.snapshot(slot.id), self._now)
        slot.checkpoints = sorted([*slot.checkpoints, checkpoint], key=lambda c: c.end)
        while self.bytes > self.limit:
            found = least_useful(self.slots, self._now, checkpoint) or (slot, checkpoint)
            found[0].checkpoints = [c for c in found[0].checkpoints if c is not found[1]]

    def room(self, count: int) -> bool:
        """Whether `count` more positions fit; idle sequences are emptied for it, the longest unused first."""
        while self.used + count > self.context.size:
            idle = [slot for slot in self.slots if not slot.busy and slot.held]
            if not idle:
                return False
            self.clear(min(idle, key=lambda slot: slot.used))
        return True

    def clear(self, slot: Slot) -> None:
        """Empty a sequence."""
        self.context.cut(0, slot.id)
        slot.held, slot.checkpoints = [], []
