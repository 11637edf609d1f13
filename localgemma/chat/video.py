"""Videos as parts of a message: what they will come to, and the frames that the model sees with their times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from localgemma.chat.clip import CONVERT, Clip, kind_of, open_clip
from localgemma.chat.media import split_budget
from localgemma.engine import EngineInfo
from localgemma.errors import BadMedia, ContextOverflow
from localgemma.gemma4 import video, vision
from localgemma.messages import Notice, Part, Pixels, VideoPart
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


def moving(source: object, options: ChatOptions, info: EngineInfo) -> VideoPart | None:
    """The video of a path or of "clip.mp4#140" for an engine that sees; else None. Raises as video_part."""
    if isinstance(source, VideoPart):
        return source
    if not info.image_tokens or not isinstance(source, (str, Path)) or str(source).startswith("data:"):
        return None
    name, budget = split_budget(str(source))
    return video_part(name, options, budget, info.context) if kind_of(name) else None


def video_part(
    source: str | Path, options: ChatOptions, budget: int | None = None, context: int = 1 << 30
) -> VideoPart | None:
    """The video as a message part; None for a picture that does not move.

    Raises BadMedia, UsageError for a budget that no frame can have, and ContextOverflow, with the frames that would fit,
    before anything is decoded where it needs more than `context` tokens.
    """
    chosen, name = video.check_budget(budget or options.video_tokens), Path(source).name
    with open_clip(source) as clip:
        if clip is None:
            return None
        expected = _plan(clip, options, chosen)[1]
        if expected.tokens >= context:
            fitting = max(1, (context * 3 // 4) // (expected.each + _LABEL))
            hint = f"About {fitting:,} of its {expected.frames:,} frames fit: --frames {fitting}; or load with a larger --ctx."
            raise ContextOverflow(expected.tokens, context, hint)
        found = tuple(_frames(clip, options, chosen))
    if not found:
        raise BadMedia(f"{name} has no frame that can be read.", CONVERT)
    return VideoPart(found, str(source), chosen)


def described(parts: Sequence[Part], options: ChatOptions, speed: float = 0.0) -> list[Notice]:
    """What every video came to: frames, tokens, memory, and the seconds to read it at `speed` tokens a second (0: unknown).

    Where it has as many frames as are allowed, how far apart they are is said too.
    """
    return [Notice(_described(part, options.video_frames, speed)) for part in parts if isinstance(part, VideoPart)]


def _described(part: VideoPart, most: int, speed: float) -> str:
    count, tokens = len(part.frames), sum(pixels.tokens + _LABEL for _, pixels in part.frames)
    memory = format_size(sum(len(pixels.rgb) for _, pixels in part.frames))
    time = f", about {format_duration(tokens / speed)} to read" if speed else ""
    spread = ""
    if count == most > 1:
        spread = f", one every {(part.frames[-1][0] - part.frames[0][0]) / (count - 1):.1f} s (more: --frames N)"
    return f"{part.source or 'video'} → {count:,} frame{'s' * (count != 1)}{spread}, {tokens:,} tokens, {memory}{time}"


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
