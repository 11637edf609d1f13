"""Pictures are encoded once: together where a batch takes them, from RAM afterwards, from disk where that was asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localgemma.llamacpp import embeddings
from localgemma.llamacpp.embeddings import Embeddings
from localgemma.llamacpp.model import Model
from localgemma.llamacpp.vision import Projector
from localgemma.messages import Pixels
from localgemma.options import LoadOptions

DEMO = Path(__file__).resolve().parent.parent / "localgemma/assets/demo"


def picture(seed: int, width: int = 240, height: int = 192) -> Pixels:
    rgb = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8).tobytes()
    digest = hashlib.sha256(f"{width}x{height}:".encode() + rgb).hexdigest()
    return Pixels(rgb, width, height, width * height // 48**2, digest)


def rows(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((20, 8)).astype(np.float32)


def test_ram_is_bounded_and_the_longest_unused_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "CACHE_BYTES", 3 * rows(0).nbytes)
    kept, seen = Embeddings(8), [picture(n) for n in range(5)]
    for n in range(3):
        kept.put(seen[n], rows(n))
    assert kept.get(seen[0]) is not None
    kept.put(seen[3], rows(3))
    assert kept.get(seen[1]) is None
    assert all((kept.get(seen[n]) == rows(n)).all() for n in (0, 2, 3))


def test_disk_serves_the_next_start_and_damage_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    Embeddings(8, folder).put(picture(1), rows(1))
    (file,) = folder.iterdir()
    assert (Embeddings(8, folder).get(picture(1)) == rows(1)).all()
    assert Embeddings(8, tmp_path / "another model").get(picture(1)) is None
    assert Embeddings(16, folder).get(picture(1)) is None and not file.exists()
    for damage in (lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: b""):
        Embeddings(8, folder).put(picture(1), rows(1))
        file.write_bytes(damage(file.read_bytes()))
        assert Embeddings(8, folder).get(picture(1)) is None and not file.exists()


def test_disk_is_bounded_over_all_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "DISK_BYTES", 3 * (rows(0).nbytes + 32))
    for n in range(6):
        Embeddings(8, tmp_path / f"model {n % 2}").put(picture(n), rows(n))
    left = sorted(path.stem for path in tmp_path.glob("*/*"))
    assert left == sorted(picture(n).sha256 for n in (3, 4, 5))


def test_a_disk_that_takes_nothing_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    kept = Embeddings(8, tmp_path / "file" / "folder")
    kept.put(picture(1), rows(1))
    assert kept.get(picture(1)) is not None


@pytest.mark.live
def test_pictures_of_one_size_are_encoded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = LoadOptions(gpu_layers=0, threads=1, image_tokens=70)
    model = Model(DEMO / "text.gguf", options)
    alone = Projector(DEMO / "mmproj.gguf", model, options)
    together = Projector(DEMO / "mmproj.gguf", model, replace(options, gpu_layers=-1))  # batches are for GPUs
    again = None
    try:
        seen = [picture(1), picture(2), picture(3, 192, 240), picture(2), picture(4), picture(5)]
        expected = [alone.encode(each) for each in seen]
        sizes: list[int] = []
        encode = Projector._encode

        def counted(self: Projector, pictures: Sequence[Pixels]) -> list[Any]:
            sizes.append(len(pictures))
            return encode(self, pictures)

        monkeypatch.setattr(Projector, "_encode", counted)
        found = [together.encode(each, seen[n + 1 :]) for n, each in enumerate(seen)]
        assert sizes == [3, 1, 1]  # three pictures of 20 tokens are no more than one of 70
        assert max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True)) < 1e-4

        keeping = replace(options, picture_folder=tmp_path)
        first = Projector(DEMO / "mmproj.gguf", model, keeping)
        first.encode(seen[0])
        first.close()
        again = Projector(DEMO / "mmproj.gguf", model, keeping)
        assert again.holds(seen[0]) and not again.holds(seen[1])
        assert (again.encode(seen[0]) == expected[0]).all() and sizes == [3, 1, 1, 1]
    finally:
        for projector in (alone, together, again):
            if projector is not None:
                projector.close()
        model.close()
