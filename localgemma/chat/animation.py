"""Animated GIF, WebP and PNG files: their pictures, and the time that each one is shown."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from localgemma.chat import media
from localgemma.errors import BadMedia

if TYPE_CHECKING:
    from PIL import Image

_MOST = 20_000  # pictures: more than five minutes at 60 a second
_UNTIMED = Fraction(1, 10)  # seconds; what browsers take for a picture that is shown for no time


class Animation:
    """An animation file; `starts` are the seconds at which its pictures begin, and `duration` is its end.

    Raises BadMedia.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.starts: list[Fraction] = []
        self.duration = Fraction(0)
        with media.pillow(path.name), _opened(path) as image:
            media.measure(image, path.name)
            self.size = image.size
            for index in range(min(getattr(image, "n_frames", 1), _MOST + 1)):
                if index == _MOST:
                    raise BadMedia(f"{path.name} has more than {_MOST:,} pictures.", "Make it shorter and try again.")
                image.seek(index)
                image.load()
                self.starts.append(self.duration)
                self.duration += Fraction(image.info.get("duration") or 0).limit_denominator(1000) / 1000 or _UNTIMED

    def pictures(self) -> Iterator[tuple[Fraction, Image.Image]]:
        """(start in seconds, picture as RGB), one after another."""
        with _opened(self._path) as image:
            for index, start in enumerate(self.starts):
                with media.pillow(self._path.name):
                    image.seek(index)
                    found = media.rgb(image)
                yield start, found


def _opened(path: Path) -> Image.Image:
    from PIL import Image

    return Image.open(path)
