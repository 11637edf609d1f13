"""Reading a model with texts and rendered chats, for the importance matrix of what it sees."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from localgemma.engine import CancelToken, Prompt
from localgemma.llamacpp.imatrix import Collector, Observed
from localgemma.llamacpp.sequence import Run
from localgemma.make.imatrix import CHUNK, Entry, Imatrix
from localgemma.make.quantize import Told
from localgemma.messages import Pixels, Progress
from localgemma.options import LoadOptions

Piece: TypeAlias = str | Prompt


def has_pictures(pieces: Sequence[Piece]) -> bool:
    """Whether a projector is needed."""
    return any(isinstance(item, Pixels) for piece in pieces if isinstance(piece, Prompt) for item in piece.flat())


def collect(
    model: Path,
    projector: Path | None,
    pieces: Sequence[Piece],
    options: LoadOptions,
    *,
    datasets: Sequence[str] = (),
    progress: Told | None = None,
    cancel: CancelToken | None = None,
) -> Imatrix:
    """The importance matrix of a model over `pieces`; texts are read in chunks of 512 tokens as llama-imatrix does.

    Raises what loading a model raises, PictureTooLarge, Cancelled and BackendError.
    """
    import numpy as np

    collector, cancel = Collector(), cancel or CancelToken()

    def loading(done: float) -> bool:
        _tell(progress, "load", done, 1.0)
        return not cancel.cancelled

    with Observed(model, projector, options, wanted=collector.wanted, watch=collector.watch, progress=loading) as observed:
        runs: list[list[Run]] = []
        for piece in pieces:
            if isinstance(piece, str):
                runs += [[chunk] for chunk in observed.chunks(piece, CHUNK)]
            else:
                runs.append(observed.runs(piece))
        begun = time.monotonic()
        for done, run in enumerate(runs):
            left = (time.monotonic() - begun) / done * (len(runs) - done) if done else None
            _tell(progress, "imatrix", done, len(runs), left)
            collector.forget_inputs()
            observed.evaluate(run, cancel)
    entries = {
        name: Entry(sums[None], np.array([collector.counts[name]], np.int64)) for name, sums in sorted(collector.sums.items())
    }
    made = Imatrix(entries, tuple(datasets))
    return Imatrix(entries, made.datasets, CHUNK, max(1, made.tokens // CHUNK))


def _tell(progress: Told | None, stage: str, done: float, total: float, left: float | None = None) -> None:
    if progress is not None:
        progress(Progress(stage, done, total, left))
