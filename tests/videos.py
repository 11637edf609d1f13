"""Small videos of which every frame is known by its grey: made with PyAV when a test needs them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

# name: how the video is made, how transformers samples it, tokens a frame
REFERENCE: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "plain.mp4": ({"count": 90, "rate": 30}, {"fps": 1}, 70),
    "slow.mp4": ({"count": 12, "rate": 2}, {"fps": 1}, 70),
    "odd.mp4": ({"count": 75, "rate": 25, "size": (322, 178)}, {"fps": 1}, 70),
    "tall.mp4": ({"count": 48, "rate": 24, "size": (96, 400)}, {"fps": 2}, 140),
    "ntsc.mp4": ({"count": 150, "rate": Fraction(30000, 1001)}, {"fps": 1}, 70),
    "film.mp4": ({"count": 100, "rate": Fraction(24000, 1001)}, {"fps": 3}, 280),
    "fixed.mp4": ({"count": 100, "rate": 25}, {"num_frames": 32}, 70),
    "uneven.mp4": ({"count": 77, "rate": 10}, {"num_frames": 9}, 140),
    "short.mp4": ({"count": 5, "rate": 30}, {"fps": 1}, 70),
    "one.mp4": ({"count": 1, "rate": 25}, {"fps": 1}, 70),
    "long.mp4": ({"count": 1260, "rate": 20, "size": (64, 64), "gop": 40}, {"num_frames": 60}, 70),
    "mpeg4.avi": ({"count": 60, "rate": 15, "codec": "mpeg4"}, {"fps": 1}, 70),
    "fast.mp4": ({"count": 180, "rate": 60}, {"fps": 5}, 70),
    "rare.mp4": ({"count": 9, "rate": 1}, {"fps": 1}, 280),
    "vp9.mp4": ({"count": 40, "rate": 10, "codec": "libvpx-vp9", "size": (160, 120)}, {"fps": 2}, 140),
    "keys.mp4": ({"count": 64, "rate": 16, "gop": 1, "size": (130, 98)}, {"num_frames": 17}, 70),
    "wide.mov": ({"count": 40, "rate": 8, "size": (640, 64)}, {"fps": 2}, 70),
}


def make_video(
    folder: Path, name: str, *, count: int, rate: Any, size: tuple[int, int] = (128, 96), codec: str = "libx264", gop: int = 12
) -> Path:
    """A video of `count` frames; frame i is grey 16 + 7 i mod 220, with a bright left half."""
    path = folder / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = *size, "yuv420p", gop
        for index in range(count):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def picture(index: int, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Frame `index`."""
    pixels = np.full((size[1], size[0], 3), 16 + index * 7 % 220, np.uint8)
    pixels[:, : size[0] // 2] += 15
    return pixels
