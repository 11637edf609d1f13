"""Videos as parts of a message: what they will come to, and the frames that the model sees with their times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from localgemma.chat.clip import CONVERT, Clip, kind_of, open_clip
from localgemma.chat.media import split_budget
from localgemma.chat.room import Planned, Room
from localgemma.errors import BadMedia
from localgemma.gemma4 import video, vision
from localgemma.messages import Part, Pixels, Progress, VideoPart
from localgemma.options import ChatOptions
from localgemma.units import format_duration, format_size

_LABEL = 8  # tokens of a frame's time and markers


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a video will come to: frames, tokens a frame, and the seconds that it lasts."""

    frames: int
    each: int
    duration: float

    @property
    def tokens(self) -> int:
        """Tokens of all frames with their times."""
        return self.frames * (self.each + _LABEL)


def forecast(source: str | Path, options: ChatOptions, budget: int | None = None) -> Forecast | None:
    """What the video will come to, without decoding a frame of it; None for a picture that does not move. Raises BadMedia."""
    with open_clip(source) as clip:
        return None if clip is None else _plan(clip, options, budget)[1]


def frames(source: str | Path, options: ChatOptions, budget: int | None = None) -> Iterator[tuple[float, Pixels]]:
    """The frames that the model will see, as (seconds, Pixels), decoded one after another. Raises BadMedia."""
    with open_clip(source) as clip:
        if clip is not None:
            yield from _frames(clip, options, budget)


def is_video(source: object) -> bool:
    """Whether the source is a file of a video or an animation (which may still hold one picture alone), by its content."""
    if not isinstance(source, (str, Path)) or str(source).startswith("data:"):
        return False
    return kind_of(split_budget(str(source))[0]) is not None


def plan(source: str | Path, options: ChatOptions, room: Room) -> Planned | None:
    """What the video of a path or of "clip.mp4#140" comes to: frames, tokens, memory. None for a picture that does not move.

    Raises BadMedia, UsageError for a budget that no frame can have, and ContextOverflow with the frames that would fit.
    """
    path, own = split_budget(str(source))
    budget = video.check_budget(own or options.video_tokens)
    with open_clip(path) as clip:
        if clip is None:
            return None
        expected, area = _plan(clip, options, budget)[1], budget * (vision.SIDE * vision.SIDE * 3)
    if expected.tokens > room.free:
        fitting = room.free // (expected.each + _LABEL)
        fits = f"{fitting:,} of its {expected.frames:,} frames fit: --frames {fitting}"
        raise room.overflow(expected.tokens, fits * (fitting > 0))
    said = _said(Path(path).name, expected, options, area)
    seen = expected.frames * expected.each
    return Planned(said, expected.tokens, seen, lambda: _read(path, options, budget, expected.frames))


def _read(path: str, options: ChatOptions, budget: int, count: int) -> Iterator[Part | Progress]:
    found: list[tuple[float, Pixels]] = []
    yield Progress("frames", 0, count)
    for frame in frames(path, options, budget):
        found.append(frame)
        yield Progress("frames", len(found), count)
    if not found:
        raise BadMedia(f"{Path(path).name} has no frame that can be read.", CONVERT)
    yield VideoPart(tuple(found), path, budget)


def _said(name: str, expected: Forecast, options: ChatOptions, area: int) -> str:
    """The forecast; where the video has more than the frames that are allowed, how far apart they are is said too."""
    spread = ""
    wanted = int(expected.duration * options.video_fps) if options.video_fps else 0
    if wanted > expected.frames == options.video_frames > 1:
        apart = f"one every {expected.duration / expected.frames:.1f} s (more: --frames N)"
        spread = f" of {format_duration(expected.duration)}, {apart}"
    count = f"{expected.frames:,} frame{'s' * (expected.frames != 1)}"
    return f"{name} → {count}{spread}, about {expected.tokens:,} tokens, {format_size(expected.frames * area)} of memory"


def _plan(clip: Clip, options: ChatOptions, budget: int | None) -> tuple[list[Fraction], Forecast]:
    at = video.moments(clip.duration, options.video_fps, options.video_frames, clip.count or None)
    size = vision.target_size(clip.height, clip.width, budget or options.video_tokens)
    return at, Forecast(len(at), vision.tokens(*size), float(clip.duration))


def _frames(clip: Clip, options: ChatOptions, budget: int | None) -> Iterator[tuple[float, Pixels]]:
    at = _plan(clip, options, budget)[0]
    wanted = [Fraction(0)]

    def asked() -> Iterator[Fraction]:
        for moment in at:
            wanted[0] = moment
            yield moment

    for seconds, picture in video.shown(clip.frames(lambda: wanted[0]), asked(), clip.slack):
        yield float(seconds), vision.prepare(picture(), budget or options.video_tokens)
