"""Stop strings over pieces: nothing of a stop string gets out, nothing else is held longer than it must be."""

from __future__ import annotations

from dataclasses import replace

from localgemma.engine import Piece


class StopStrings:
    """Holds back pieces whose end may be the beginning of a stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = [stop.encode() for stop in stops]
        self._held: list[Piece] = []

    def feed(self, piece: Piece) -> tuple[list[Piece], bool]:
        """The pieces that may go out, and whether a stop string was completed (the last piece is then cut before it)."""
        if not self._stops:
            return [piece], False
        if piece.marker is not None:
            return [*self.flush(), piece], False
        self._held.append(piece)
        data = b"".join(held.data for held in self._held)
        hits = [at for at in (data.find(stop) for stop in self._stops) if at >= 0]
        if hits:
            return self._release(min(hits), cut=True), True
        keep = max((n for stop in self._stops for n in range(1, len(stop)) if data.endswith(stop[:n])), default=0)
        return self._release(len(data) - keep, cut=False), False

    def flush(self) -> list[Piece]:
        """What is still held, when no stop string can follow."""
        held, self._held = self._held, []
        return held

    def _release(self, size: int, *, cut: bool) -> list[Piece]:
        """The held pieces within the first `size` bytes; with `cut`, also the part of the one that crosses it."""
        out: list[Piece] = []
        while self._held and size >= len(self._held[0].data):
            size -= len(self._held[0].data)
            out.append(self._held.pop(0))
        if cut and self._held and size:
            out.append(replace(self._held[0], data=self._held[0].data[:size]))
        return out
