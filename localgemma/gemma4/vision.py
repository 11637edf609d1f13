"""Picture geometry of Gemma 4: which size a picture gets for a token budget, and the stretch to it.

This follows transformers' Gemma4ImageProcessorPil: a picture is scaled up or down so that it fills its budget, each side
is floored to a multiple of 48 (3 × 3 patches of 16 pixels are one token), and the pixels are stretched to it, bicubic.
Pure arithmetic; Pillow is only touched through the picture that is given.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

from localgemma.errors import BadMedia, UsageError
from localgemma.messages import Pixels
from localgemma.options import IMAGE_BUDGETS

if TYPE_CHECKING:
    from PIL import Image

PATCH = 16  # pixels a side of a patch; vision_config.patch_size
POOL = 3  # patches a side of a token; vision_config.pooling_kernel_size
SIDE = PATCH * POOL


def _names() -> str:
    return ", ".join(map(str, IMAGE_BUDGETS[:-1])) + f" or {IMAGE_BUDGETS[-1]}"


def _check(height: int, width: int, budget: int) -> None:
    if isinstance(budget, bool) or budget not in IMAGE_BUDGETS:
        raise UsageError(f"A picture budget cannot be {budget!r}.", f"It takes {_names()} tokens.")
    if height < 1 or width < 1:
        raise BadMedia(f"A picture of {width} × {height} pixels has nothing to see.", "Give one with at least one pixel.")


def target_size(height: int, width: int, budget: int) -> tuple[int, int]:
    """The (height, width) in pixels that a picture is stretched to for `budget` tokens.

    UsageError for a budget that is not one of the five, BadMedia for a size that gives no picture.
    """
    _check(height, width, budget)
    area = budget * POOL**2 * PATCH**2
    factor = math.sqrt(area / (height * width))
    # The order of operations is the reference's, so that floors fall on the same side.
    high = math.floor(factor * height / SIDE) * SIDE
    wide = math.floor(factor * width / SIDE) * SIDE
    longest = budget * SIDE
    if high == 0 and wide == 0:
        raise BadMedia(f"A picture of {width} × {height} pixels gives no tokens.", "Give a larger one.")
    if high == 0:
        high, wide = SIDE, min(math.floor(width / height) * SIDE, longest)
    elif wide == 0:
        high, wide = min(math.floor(height / width) * SIDE, longest), SIDE
    if high * wide > area:
        raise BadMedia(f"A picture of {width} × {height} pixels does not fit {budget} tokens.", "Crop it and try again.")
    return high, wide


def tokens(height: int, width: int) -> int:
    """Soft tokens of a picture that was stretched to (height, width); UsageError if a side is not a multiple of 48."""
    if height < 1 or width < 1 or height % SIDE or width % SIDE:
        raise UsageError(f"{width} × {height} pixels is not a size for the vision tower.", f"Sides are multiples of {SIDE}.")
    return (height // SIDE) * (width // SIDE)


def auto_budget(height: int, width: int, ceiling: int = IMAGE_BUDGETS[-1]) -> int:
    """The smallest budget at which neither side of the picture shrinks, or the largest one up to `ceiling`."""
    allowed = [budget for budget in IMAGE_BUDGETS if budget <= ceiling]
    if not allowed:
        raise UsageError(f"A picture cannot have at most {ceiling} tokens.", f"Budgets are {_names()} tokens.")
    for budget in allowed:
        high, wide = target_size(height, width, budget)
        if high >= height and wide >= width:
            return budget
    return allowed[-1]


def prepare(image: Image.Image, budget: int) -> Pixels:
    """The picture stretched to its size for `budget`, as the bytes that the vision tower takes."""
    high, wide = target_size(image.height, image.width, budget)
    picture = image if image.mode == "RGB" else image.convert("RGB")
    if picture.size != (wide, high):
        from PIL import Image as Pillow

        picture = picture.resize((wide, high), resample=Pillow.Resampling.BICUBIC)
    return from_rgb(picture.tobytes(), wide, high)


def from_rgb(rgb: bytes, width: int, height: int) -> Pixels:
    """Pixels of bytes that already have their size: height × width × 3 of them."""
    if len(rgb) != width * height * 3:
        raise UsageError(f"{len(rgb):,} bytes are not {width} × {height} RGB pixels.", f"Give {width * height * 3:,} bytes.")
    digest = hashlib.sha256(f"{width}x{height}:".encode())
    digest.update(rgb)
    return Pixels(rgb=rgb, width=width, height=height, tokens=tokens(height, width), sha256=digest.hexdigest())
