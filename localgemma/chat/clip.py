"""Video and animation files opened: PyAV decodes video, Pillow decodes animated GIF, WebP and PNG.

What a file is, its first bytes say. Only formats that hold their pictures themselves are opened, so that a playlist cannot
make the decoder open other files or addresses. Frames are decoded where they are needed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from localgemma.chat.animation import Animation
from localgemma.chat.media import MAX_PIXELS
from localgemma.errors import BadMedia

if TYPE_CHECKING:
    from PIL import Image

Picture: TypeAlias = "Callable[[], Image.Image]"  # most frames are passed over and never become a picture

CONVERT = "Save it as MP4 or WebM in another program, and try again."
_INSTALL = "Run: pip install 'localgemma[video]'"
_SEEK = Fraction(5)  # seconds ahead from which jumping to a key frame is worth it


@dataclass
class Clip:
    """An open video: display size, duration, frames (0: unknown) and slack in seconds; `frames(wanted)` decodes.

    `wanted` says how far the decoder may jump ahead.
    """

    width: int
    height: int
    duration: Fraction
    count: int
    slack: Fraction
    frames: Callable[[Callable[[], Fraction]], Iterator[tuple[Fraction, Picture]]]


def kind_of(source: object) -> str | None:
    """The decoder for a file by its content: a name of PyAV's, "animation" for Pillow, None for what is no video."""
    if not isinstance(source, (str, Path)) or str(source).startswith(("http:", "https:", "data:")):
        return None
    try:
        with Path(source).expanduser().open("rb") as stream:
            start = stream.read(1024)
    except (OSError, ValueError, RuntimeError):
        return None
    if start[4:8] == b"ftyp":
        still = start[8:12] in (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis", b"hevc", b"hevx")
        return None if still else "mp4"
    if start[4:8] in (b"moov", b"mdat", b"wide", b"free") and start[:2] == b"\0\0":
        return "mp4"
    heads = {b"\x1aE\xdf\xa3": "matroska", b"FLV\x01": "flv", b"OggS": "ogg", b"\0\0\x01\xba": "mpeg", b"0&\xb2u": "asf"}
    if start[:4] in heads:
        return heads[start[:4]]
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return "avi"
    if len(start) > 376 and start[0] == start[188] == start[376] == 0x47:
        return "mpegts"
    animated = start[:4] == b"GIF8" or (start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and start[20] & 2)
    return "animation" if animated or (start[:4] == b"\x89PNG" and b"acTL" in start) else None


def _ready(found: Animation) -> Iterator[tuple[Fraction, Picture]]:
    for seconds, image in found.pictures():
        yield seconds, partial(_same, image)


def _same(image: Image.Image) -> Image.Image:
    return image


@contextmanager
def open_clip(source: str | Path) -> Iterator[Clip | None]:
    path, kind = Path(source).expanduser(), kind_of(source)
    if kind == "animation":
        found = Animation(path)
        if len(found.starts) < 2:
            yield None
        else:
            yield Clip(*found.size, found.duration, len(found.starts), Fraction(0), lambda _: _ready(found))
        return
    try:
        import av
    except ImportError:
        raise BadMedia(f"{path.name} is a video, which needs one more package.", _INSTALL) from None
    av.logging.set_level(None)  # PyAV's own callback waits for the GIL in decoder threads, which who frees a decoder holds
    try:
        with path.open("rb") as stream, av.open(stream, format=kind, metadata_errors="replace") as container:
            yield _clip(container, path.name)
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise BadMedia(f"{path.name} cannot be read as a video ({reason}).", CONVERT) from error


def _clip(container: Any, name: str) -> Clip:
    """The first real picture track; a cover picture beside sound is none."""
    tracks = [track for track in container.streams.video if track.codec_context is not None and track.time_base]
    if not tracks:
        raise BadMedia(f"{name} has no pictures, only sound.", "Sound cannot be heard; give a video or a picture.")
    track = tracks[0]
    track.thread_type, track.codec_context.thread_count = "AUTO", min(4, os.cpu_count() or 1)
    width, height = track.codec_context.width, track.codec_context.height
    if width < 1 or height < 1:
        raise BadMedia(f"{name} has no pictures.", CONVERT)
    if width * height > MAX_PIXELS // 4:
        raise BadMedia(f"{name} is {width:,} × {height:,} pixels, which is too large.", CONVERT)
    aspect = track.sample_aspect_ratio or Fraction(1)
    begin = Fraction(track.start_time or 0) * track.time_base
    reader = _Reader(container, track, begin, aspect)
    turned = reader.turn() in (90, 270)
    wide = max(1, round(width * aspect))
    size = (height, wide) if turned else (wide, height)
    return Clip(*size, reader.duration(), track.frames, track.time_base / 2, reader.frames)


class _Reader:
    """The pictures of one track; times count from its beginning."""

    def __init__(self, container: Any, track: Any, begin: Fraction, aspect: Fraction) -> None:
        self._container, self._track, self._begin, self._aspect = container, track, begin, aspect

    def duration(self) -> Fraction:
        """Seconds: of the track, else of the file, else up to its last packet."""
        base: Fraction = self._track.time_base
        if self._track.duration:
            return Fraction(self._track.duration) * base
        if self._container.duration:
            return Fraction(self._container.duration, 1_000_000)
        ends = [(p.pts + (p.duration or 0)) * base for p in self._container.demux(self._track) if p.pts is not None]
        self._container.seek(0)
        return max(ends, default=Fraction(0)) - self._begin

    def turn(self) -> int:
        """Degrees, counterclockwise, that the first picture is to be turned; the reader is at the start again."""
        frame = next((frame for _, frame in self._decoded()), None)
        self._container.seek(self._track.start_time or 0, stream=self._track)
        return 0 if frame is None else round(frame.rotation / 90) * 90 % 360

    def frames(self, wanted: Callable[[], Fraction]) -> Iterator[tuple[Fraction, Picture]]:
        """The pictures in order, upright; jumps to the key frame before `wanted` where that is far ahead."""
        base, gap, source = self._track.time_base, _SEEK, self._decoded()
        here, jumped, aimed = Fraction(0), False, Fraction(-1)
        while True:
            ahead = wanted() - here
            if ahead > gap and wanted() > aimed:  # once for each: times in a damaged file may fall back again and again
                aimed = wanted()
                self._container.seek(math.floor((wanted() + self._begin) / base), stream=self._track)
                source, jumped, before = self._decoded(), True, here
            found = next(source, None)
            if found is None:
                return
            here, frame = found
            if jumped and here <= before:
                gap = max(gap, 2 * ahead)  # key frames are farther apart than that
            jumped = False
            yield here, partial(self._picture, frame)

    def _decoded(self) -> Iterator[tuple[Fraction, Any]]:
        from av.error import FFmpegError

        packets: Iterable[Any] = self._container.demux(self._track)
        try:
            for packet in packets:
                try:
                    decoded = packet.decode()
                except FFmpegError:  # a damaged picture costs no other one
                    continue
                for frame in decoded:
                    tick = frame.pts if frame.pts is not None else frame.dts
                    if tick is not None:
                        yield tick * self._track.time_base - self._begin, frame
        except FFmpegError:  # a file that was cut off ends here
            return

    def _picture(self, frame: Any) -> Image.Image:
        from PIL import Image as Pillow

        image: Image.Image = Pillow.fromarray(frame.to_ndarray(format="rgb24"))
        if self._aspect != 1:
            image = image.resize((max(1, round(image.width * self._aspect)), image.height), Pillow.Resampling.BICUBIC)
        way = Pillow.Transpose
        turns = {90: way.ROTATE_90, 180: way.ROTATE_180, 270: way.ROTATE_270}
        turn = turns.get(round(frame.rotation / 90) * 90 % 360)
        return image if turn is None else image.transpose(turn)
