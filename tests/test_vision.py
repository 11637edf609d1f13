"""Picture sizes, token counts and pixels against transformers' Gemma4ImageProcessorPil (tests/data/vision.npz)."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from localgemma.errors import BadMedia, UsageError
from localgemma.gemma4 import vision
from localgemma.options import IMAGE_BUDGETS

HERE = Path(__file__).parent


def _reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_vision", HERE / "reference" / "make_vision.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = _reference()


@pytest.fixture(scope="module")
def data() -> Any:
    with np.load(HERE / "data" / "vision.npz") as file:
        return {name: file[name] for name in file.files}


def test_sizes_and_tokens_equal_the_reference(data: Any) -> None:
    assert len(data["sizes"]) >= 200
    for size, targets, counts in zip(data["sizes"], data["targets"], data["tokens"], strict=True):
        for budget, target, count in zip(IMAGE_BUDGETS, targets, counts, strict=True):
            got = vision.target_size(int(size[0]), int(size[1]), budget)
            assert got == tuple(target), (size, budget)
            assert vision.tokens(*got) == count <= budget, (size, budget)


def test_pixels_equal_the_reference(data: Any) -> None:
    close = total = exact = 0
    for (seed, height, width, budget, whole), count in zip(MADE.PICTURES, data["picture_tokens"], strict=True):
        pixels = vision.prepare(MADE.picture(seed, height, width), budget)
        assert pixels.tokens == count
        got = np.frombuffer(pixels.rgb, np.uint8).reshape(pixels.height, pixels.width, 3)
        if not whole:
            got = got.reshape(-1, 3)[MADE.samples(seed, pixels.height * pixels.width)]
        away = np.abs(got.astype(int) - data[f"pixels{seed}"].astype(int))
        close, total = close + int((away <= 1).sum()), total + away.size
        exact += pixels.sha256 == data[f"sha{seed}"].tobytes().hex()
    print(f"within 1/255: {close} of {total}; byte for byte: {exact} of {len(MADE.PICTURES)}")
    assert close >= 0.999 * total


def test_pixels_record() -> None:
    picture = MADE.picture(5, 60, 90)
    pixels = vision.prepare(picture, 70)
    assert pixels.width % 48 == pixels.height % 48 == 0 and len(pixels.rgb) == pixels.width * pixels.height * 3
    assert pixels.sha256 == hashlib.sha256(f"{pixels.width}x{pixels.height}:".encode() + pixels.rgb).hexdigest()
    assert pickle.loads(pickle.dumps(pixels)) == pixels
    assert vision.prepare(picture.convert("RGBA"), 70) == pixels
    same = Image.new("RGB", (768, 768), (1, 2, 3))
    assert vision.prepare(same, 280).rgb == same.tobytes()
    with pytest.raises(UsageError):
        vision.from_rgb(b"123", 48, 48)


@pytest.mark.parametrize("budget", [0, -70, 71, 256, 1119, 2240, True, "70", 70.5])
def test_wrong_budget_names_the_five(budget: Any) -> None:
    with pytest.raises(UsageError, match="70, 140, 280, 560 or 1120"):
        vision.target_size(100, 100, budget)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0), (-1, 5)])
def test_sizes_that_give_nothing(size: tuple[int, int]) -> None:
    with pytest.raises(BadMedia):
        vision.target_size(*size, 280)


def test_tokens() -> None:
    assert vision.tokens(48, 48) == 1 and vision.tokens(1440, 1776) == 1110
    for size in ((0, 48), (50, 48), (48, 47)):
        with pytest.raises(UsageError):
            vision.tokens(*size)


@pytest.mark.parametrize(
    ("size", "ceiling", "expected"),
    [
        ((1, 1), 1120, 70),
        ((384, 384), 1120, 70),
        ((385, 384), 1120, 140),
        ((480, 640), 1120, 280),  # 140 would give 480 × 624
        ((768, 768), 1120, 280),
        ((800, 800), 1120, 560),
        ((1080, 1920), 1120, 1120),
        ((3508, 2480), 1120, 1120),
        ((3508, 2480), 280, 280),
        ((3508, 2480), 70, 70),
        ((10, 5000), 1120, 140),
        ((3508, 2480), 600, 560),
    ],
)
def test_auto_budget(size: tuple[int, int], ceiling: int, expected: int) -> None:
    assert vision.auto_budget(*size, ceiling) == expected


def test_auto_budget_keeps_the_resolution(data: Any) -> None:
    for height, width in data["sizes"].tolist():
        chosen = vision.auto_budget(height, width)
        keeps = [b for b in IMAGE_BUDGETS if all(np.array(vision.target_size(height, width, b)) >= (height, width))]
        assert chosen == (keeps[0] if keeps else 1120)
    with pytest.raises(UsageError):
        vision.auto_budget(10, 10, 0)
