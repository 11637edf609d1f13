"""Writes tests/data/vision.npz: sizes, token counts and pixels as transformers' Gemma4ImageProcessorPil makes them.

Run with a Python that has transformers 5.24 and Pillow: python tests/reference/make_vision.py
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

BUDGETS = (70, 140, 280, 560, 1120)
SAMPLES = 2000
# Without the format, transformers takes the rows of a picture 1 or 3 pixels high for its channels.
LAST = {"return_tensors": "np", "input_data_format": "channels_last"}
# (seed, height, width, budget, whole): `whole` pictures are stored with all their pixels
PICTURES = (
    (1, 6, 8, 70, True),
    (2, 5, 3, 70, True),
    (3, 1, 7, 140, True),
    (4, 100, 100, 70, False),
    (5, 480, 640, 70, False),
    (6, 480, 640, 280, False),
    (7, 1080, 1920, 140, False),
    (8, 1080, 1920, 1120, False),
    (9, 333, 77, 560, False),
    (10, 1, 400, 70, False),
    (11, 900, 2, 280, False),
    (12, 768, 768, 280, False),
    (13, 48, 48, 1120, False),
    (14, 2000, 100, 1120, False),
    (15, 1754, 1240, 280, False),
    (16, 1754, 1240, 1120, False),
    (17, 448, 448, 560, False),
    (18, 31, 2500, 140, False),
    (19, 384, 384, 70, False),
    (20, 224, 224, 280, False),
    (21, 1599, 1601, 560, False),
)


def picture(seed: int, height: int, width: int) -> Image.Image:
    """A picture from integers alone, so that every machine makes the same: waves, hard edges and noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.uint32)
    planes = [(x * (3 + c) + y * (5 + seed % 7) + 40 * c * seed) % 256 for c in range(3)]
    rgb = np.stack(planes, axis=-1)
    noise = (x * 2654435761 + y * 40503 + seed * 97) >> np.uint32(13)
    rgb = np.where(((x // 9 + y // 7) % 3 == 0)[..., None], noise[..., None] * np.array([1, 3, 7], np.uint32) % 256, rgb)
    rgb[(x // 31 + y // 17) % 5 == 0] = (255, 255, 0) if seed % 2 else (0, 0, 0)
    return Image.fromarray(rgb.astype(np.uint8), "RGB")


def samples(seed: int, count: int) -> np.ndarray:
    """Which of `count` pixels are compared."""
    return (np.arange(SAMPLES, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)) % np.uint64(count)


def sizes() -> np.ndarray:
    """200 sizes (height, width), spread over the logarithm, with the extremes of aspect among them."""
    rng = np.random.default_rng(4)
    drawn = np.exp(rng.uniform(0, np.log(20000), (160, 2))).astype(np.int64)
    near = rng.integers(1, 80, (20, 2)) * 48 + rng.integers(-1, 2, (20, 2))
    fixed = [(1, 1), (1, 2), (1, 20000), (20000, 1), (48, 48), (47, 49), (768, 768), (769, 767), (1080, 1920), (2160, 3840)]
    fixed += [(224, 224), (448, 448), (480, 640), (768, 1024), (1400, 1400), (3508, 2480), (100, 2000)]
    fixed += [(3, 5000), (9999, 7), (1536, 1680)]
    return np.concatenate([drawn, near, np.array(fixed)])


def main() -> None:
    """Writes the file."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import (
        Gemma4ImageProcessorPil,
        get_aspect_ratio_preserving_size,
    )

    where = sizes()
    targets = np.array(
        [[get_aspect_ratio_preserving_size(int(h), int(w), 16, b * 9, 3) for b in BUDGETS] for h, w in where], dtype=np.int32
    )
    counts = []
    out: dict[str, np.ndarray] = {}
    for seed, height, width, budget, whole in PICTURES:
        made = Gemma4ImageProcessorPil(max_soft_tokens=budget)(picture(seed, height, width), **LAST)
        high, wide = get_aspect_ratio_preserving_size(height, width, 16, budget * 9, 3)
        patches = (high // 16) * (wide // 16)
        values = made["pixel_values"][0][:patches].reshape(high // 16, wide // 16, 16, 16, 3)
        rgb = np.rint(values.transpose(0, 2, 1, 3, 4).reshape(high, wide, 3) * 255).astype(np.uint8)
        counts.append(int(made["num_soft_tokens_per_image"][0]))
        out[f"sha{seed}"] = np.frombuffer(hashlib.sha256(f"{wide}x{high}:".encode() + rgb.tobytes()).digest(), np.uint8)
        out[f"pixels{seed}"] = rgb if whole else rgb.reshape(-1, 3)[samples(seed, high * wide)]
    # The processor itself counts the tokens of blank pictures up to 3 megapixels; above, its formula does.
    tokens = np.zeros((len(where), len(BUDGETS)), np.int32)
    for i, (h, w) in enumerate(where):
        for j, b in enumerate(BUDGETS):
            if h * w <= 3_000_000:
                run = Gemma4ImageProcessorPil(max_soft_tokens=b)(Image.new("RGB", (int(w), int(h))), **LAST)
                tokens[i, j] = run["num_soft_tokens_per_image"][0]
            else:
                tokens[i, j] = (targets[i, j][0] // 16) * (targets[i, j][1] // 16) // 9
    path = Path(__file__).parents[1] / "data" / "vision.npz"
    np.savez_compressed(
        path, sizes=where.astype(np.int32), targets=targets, tokens=tokens, picture_tokens=np.array(counts, np.int32), **out
    )
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
