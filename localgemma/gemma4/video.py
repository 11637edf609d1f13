"""Which frames of a video Gemma 4 sees; pure arithmetic, in exact fractions of a second.

Where frames are evenly spaced, this is the sampling of transformers' Gemma4VideoProcessor (`fps` or `num_frames`): frame
⌊i · total / n⌋ for i < n. Said in time, which also holds where they are not: the frame on screen at i · duration / n.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

from localgemma.errors import UsageError
from localgemma.options import VIDEO_BUDGETS

_Frame = TypeVar("_Frame")


def moments(duration: Fraction, fps: float | None, most: int, frames: int | None = None) -> list[Fraction]:
    """The times in seconds, from 0, at which a video of `duration` seconds is looked at.

    `fps` a second and at most `most`, which is the number itself where `fps` is None; never more than its `frames`. A
    video without duration is looked at once.
    """
    wanted = most if fps is None else min(most, int(float(duration) * fps))
    count = max(1, wanted if frames is None else min(wanted, frames))
    return [duration * index / count for index in range(count if duration > 0 else 1)]


def shown(
    frames: Iterable[tuple[Fraction, _Frame]], at: Iterable[Fraction], slack: Fraction = Fraction(0)
) -> Iterator[tuple[Fraction, _Frame]]:
    """The frames of ascending time that are on screen `at` ascending times, each once, with the time it appeared.

    A frame counts from `slack` seconds early, as times in a file are rounded to its ticks.
    """
    source = iter(frames)
    following = next(source, None)
    current: tuple[Fraction, _Frame] | None = None
    given: Fraction | None = None
    for moment in at:
        while following is not None and (current is None or following[0] <= moment + slack):
            current, following = following, next(source, None)
        if current is not None and (given is None or current[0] > given):
            yield current
            given = current[0]


def check_budget(budget: int) -> int:
    """The budget, if a frame may have it; else UsageError."""
    if budget not in VIDEO_BUDGETS:
        allowed = ", ".join(map(str, VIDEO_BUDGETS[:-1])) + f" or {VIDEO_BUDGETS[-1]}"
        raise UsageError(f"A frame of a video cannot have {budget} tokens.", f"It takes {allowed}: clip.mp4#140")
    return budget
