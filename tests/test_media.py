"""Pictures of every kind that Pillow writes, broken and hostile files, URLs and budgets."""

from __future__ import annotations

import base64
import io
import os
import random
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from localgemma.chat import media
from localgemma.errors import BadMedia, NotFound, PictureTooLarge, UsageError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def flag() -> Image.Image:
    """64 × 48 of three bands of 16 rows; a blue square top left."""
    picture = Image.new("RGB", (64, 48), RED)
    picture.paste(GREEN, (0, 16, 64, 32))
    picture.paste(WHITE, (0, 32, 64, 48))
    picture.paste(BLUE, (0, 0, 16, 16))
    return picture


def packed(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def near(got: Image.Image, point: tuple[int, int], colour: tuple[int, int, int], by: int = 12) -> bool:
    pixel = got.getpixel(point)
    assert isinstance(pixel, tuple)
    return all(abs(a - b) <= by for a, b in zip(pixel, colour, strict=True))


def huge_png(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "PPM",
    "TGA",
    "PCX",
    "SGI",
    "ICO",
    "ICNS",
    "IM",
    "DDS",
    "MPO",
    "QOI",
    "BLP",
]
FORMATS += [
    name for name, feature in (("WEBP", "webp"), ("AVIF", "avif"), ("JPEG2000", "jpg_2000")) if features.check(feature)
]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(kind: str, tmp_path: Path) -> None:
    picture = flag()
    if kind == "BLP":
        picture = picture.quantize(4)
    if kind == "ICNS":
        picture = picture.resize((128, 128), Image.Resampling.NEAREST)
    data = packed(picture, kind, **({"quality": 95} if kind in ("JPEG", "WEBP", "AVIF", "MPO") else {}))
    path = tmp_path / f"flag.{kind.lower()}"
    path.write_bytes(data)
    for source in (data, path, str(path), bytearray(data)):
        got = media.open_image(source)  # type: ignore[arg-type]
        assert got.mode == "RGB" and type(got) is Image.Image
        w, h = got.size
        for x, y, colour in ((0.8, 0.15, RED), (0.5, 0.5, GREEN), (0.5, 0.85, WHITE), (0.1, 0.1, BLUE)):
            assert near(got, (int(w * x), int(h * y)), colour, 30), (kind, x, y)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = flag()
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse of what the reader does
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    data = packed(stored, kind, exif=exif, **({"quality": 95} if kind != "TIFF" and kind != "PNG" else {}))
    for source in (data, Image.open(io.BytesIO(data))):
        got = media.open_image(source)
        assert got.size == (64, 48)
        assert near(got, (5, 5), BLUE, 30) and near(got, (50, 5), RED, 30) and near(got, (30, 40), WHITE, 30)
        assert got.getexif().get(0x0112, 1) == 1


def test_broken_exif_is_ignored() -> None:
    got = media.open_image(packed(flag(), "JPEG", exif=b"Exif\0\0garbage" + b"\xff" * 40))
    assert got.size == (64, 48)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA"])
def test_alpha_on_white(mode: str) -> None:
    picture = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 255))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    if mode == "PA":
        made = Image.new("PA", (4, 1))
        made.putpalette([0, 0, 0] * 256)
        made.putalpha(picture.getchannel("A"))
    elif mode == "La":
        made = picture.convert("LA").convert("La")
    else:
        made = picture.convert(mode)
    got = media.open_image(made)
    assert near(got, (0, 0), WHITE, 0) and near(got, (1, 0), BLACK, 0) and near(got, (2, 0), (127, 127, 127), 1)


def test_transparent_palette_and_keys() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.putdata([0, 1])
    for kind in ("PNG", "GIF"):
        got = media.open_image(packed(palette, kind, transparency=0))
        assert got.getpixel((0, 0)) == WHITE and got.getpixel((1, 0)) == RED
    got = media.open_image(packed(palette, "PNG", transparency=bytes([255, 0])))
    assert got.getpixel((0, 0)) == BLUE and got.getpixel((1, 0)) == WHITE
    got = media.open_image(packed(flag(), "PNG", transparency=RED))
    assert got.getpixel((50, 5)) == WHITE and got.getpixel((5, 5)) == BLUE
    got = media.open_image(packed(Image.new("L", (2, 2), 7), "PNG", transparency=7))
    assert got.getpixel((0, 0)) == WHITE


def test_cmyk_and_other_colour_spaces() -> None:
    for kind in ("JPEG", "TIFF"):
        got = media.open_image(packed(flag().convert("CMYK"), kind))
        assert near(got, (50, 5), RED, 30) and near(got, (30, 40), WHITE, 30)
    for mode in ("YCbCr", "HSV", "1", "L", "P"):
        assert media.open_image(flag().convert(mode)).getpixel((30, 40)) == WHITE
    lab = Image.new("LAB", (2, 2), (255, 128, 128))
    assert near(media.open_image(lab), (0, 0), WHITE, 3)


def test_sixteen_bits() -> None:
    ramp = np.array([[0, 257, 32768, 65535]], np.uint16)
    wanted = [0, 1, 128, 255]
    for source in (packed(Image.fromarray(ramp), "PNG"), packed(Image.fromarray(ramp), "TIFF"), Image.fromarray(ramp)):
        got = media.open_image(source)
        assert [got.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in wanted]
    big = Image.frombytes("I;16B", (4, 1), ramp.astype(">u2").tobytes())
    assert media.open_image(big).getpixel((2, 0)) == (128,) * 3
    dark = media.open_image(packed(Image.fromarray(np.full((2, 2), 200, np.uint16)), "PNG"))
    assert dark.getpixel((0, 0)) == (1, 1, 1)
    pgm = b"P5\n4 1\n65535\n" + ramp.astype(">u2").tobytes()
    assert [media.open_image(pgm).getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in wanted]


@pytest.mark.parametrize(
    ("values", "kind", "wanted"),
    [
        ([0, 100, 255, 7], np.int32, [0, 100, 255, 7]),
        ([0, 1, 1, 0], np.int32, [0, 1, 1, 0]),
        ([0, 25700, 65535, 257], np.int32, [0, 100, 255, 1]),
        ([-100, 0, 100, -50], np.int32, [0, 128, 255, 64]),
        ([0, 1 << 30, 1 << 29, 0], np.int32, [0, 255, 128, 0]),
        ([0.0, 0.5, 1.0, 0.25], np.float32, [0, 128, 255, 64]),
        ([0.0, 100.0, 255.0, 1.0], np.float32, [0, 100, 255, 1]),
        ([0.0, 65535.0, 25700.0, 257.0], np.float32, [0, 255, 100, 1]),
        ([-1.0, 0.0, 1.0, -0.5], np.float32, [0, 128, 255, 64]),
        ([float("nan"), float("inf"), 1.0, 0.0], np.float32, [0, 0, 255, 0]),
        ([0.0, 0.0, 0.0, 0.0], np.float32, [0, 0, 0, 0]),
        ([-5.0, -5.0, -5.0, -5.0], np.float32, [0, 0, 0, 0]),
        ([1e6, 3e6, 2e6, 1e6], np.float32, [0, 255, 128, 0]),
    ],
)
def test_wide_values(values: list[float], kind: Any, wanted: list[int]) -> None:
    got = np.asarray(media.open_image(Image.fromarray(np.array([values], kind))))[0, :, 0]
    assert np.abs(got.astype(int) - wanted).max() <= 1


def test_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = packed(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert media.open_image(data).getpixel((4, 4)) == RED


def test_given_image_is_left_alone() -> None:
    given = flag()
    got = media.open_image(given)
    got.paste(BLACK, (0, 0, 64, 48))
    assert given.getpixel((5, 5)) == BLUE
    with pytest.raises(BadMedia, match="int is not a picture"):
        media.open_image(5)  # type: ignore[arg-type]


def test_data_urls() -> None:
    data = packed(flag())
    plain = base64.b64encode(data).decode()
    urls = [
        f"data:image/png;base64,{plain}",
        f"DATA:;BASE64,{plain.rstrip('=')}",
        "data:image/png;base64," + base64.urlsafe_b64encode(data).decode(),
        "data:image/png;base64," + "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76)),
        "data:image/png;base64," + plain.replace("+", "%2B").replace("/", "%2F"),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in data),
    ]
    for url in urls:
        assert media.open_image(url).getpixel((5, 5)) == BLUE
    for bad in ("data:image/png;base64", "data:image/png;base64,%%%", "data:image/png;base64,", "data:,", "data:,hello"):
        with pytest.raises(BadMedia) as caught:
            media.open_image(bad)
        assert "data: URL" in str(caught.value)


def test_network_is_asked_for() -> None:
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return packed(flag())

    url = "https://example.org/flag.png"
    with pytest.raises(BadMedia, match="not allowed"):
        media.open_image(url)
    assert media.open_image(url, fetch=fetch).size == (64, 48) and asked == [url]
    for other in ("http://a/b.png", "HTTP://a/b", "file:///etc/passwd", "file:x", "ftp://a/b", "s3://a/b", "javascript:x"):
        with pytest.raises(BadMedia, match="refused"):
            media.open_image(other, fetch=fetch)
    assert asked == [url]
    with pytest.raises(BadMedia, match="larger than 64 MiB"):
        media.open_image(url, fetch=lambda _: bytes(media.MAX_BYTES + 1))


@pytest.mark.skipif(os.name == "nt", reason="no colons in names there")
def test_names_with_colons_are_paths(tmp_path: Path) -> None:
    flag().save(tmp_path / "shot 10:20:30.png")
    assert media.open_image(tmp_path / "shot 10:20:30.png").size == (64, 48)
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert media.open_image("shot 10:20:30.png").size == (64, 48)
    finally:
        os.chdir(before)


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no file .*gone\.png"):
        media.open_image(tmp_path / "gone.png")
    with pytest.raises(BadMedia, match="is a directory"):
        media.open_image(tmp_path)
    for bad in ("", "a\0b", "x" * 5000, b""):
        with pytest.raises(BadMedia):
            media.open_image(bad)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(BadMedia, match="device or pipe"):
            media.open_image(tmp_path / "pipe")
    if os.path.exists("/dev/zero"):
        with pytest.raises(BadMedia, match="device or pipe"):
            media.open_image("/dev/zero")
    big = tmp_path / "big.png"
    with big.open("wb") as file:
        file.truncate(media.MAX_BYTES + 1)
    with pytest.raises(BadMedia, match=r"big\.png is larger than 64 MiB"):
        media.open_image(big)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"])
def test_truncated(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = packed(Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)), kind)
    for part in (0, 1, 4, 20, len(data) // 2, len(data) * 3 // 4):
        path = tmp_path / "cut.img"
        path.write_bytes(data[:part])
        with pytest.raises(BadMedia) as caught:
            media.open_image(path)
        text = str(caught.value)
        assert "cut.img" in text and text.endswith((".", "'")) and "\n" not in text and caught.value.hint


def test_not_pictures(tmp_path: Path) -> None:
    rng = random.Random(3)
    heads = [
        b"%PDF-1.7\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"hello",
        b"\0" * 1000,
        b"GIF89a",
        b"BM",
        b"RIFF",
        b"PK\3\4",
    ]
    heads += [rng.randbytes(200) for _ in range(20)]
    for data in heads:
        with pytest.raises(BadMedia):
            media.open_image(data)
    with pytest.raises(BadMedia, match="EPS"):
        media.open_image(packed(flag(), "EPS"))
    with pytest.raises(BadMedia) as caught:
        media.open_image(b"\0\0\0\x18ftypheic" + bytes(100))
    assert caught.value.hint
    (tmp_path / "a\nb.png").write_bytes(b"no") if os.name != "nt" else None
    if os.name != "nt":
        with pytest.raises(BadMedia) as caught:
            media.open_image(tmp_path / "a\nb.png")
        assert "\n" not in str(caught.value)


def test_damaged_files_never_raise_anything_else() -> None:
    rng = random.Random(5)
    files = [
        packed(flag(), kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "ICO", "TGA", "PCX", "DDS", "JPEG2000", "SGI")
    ]
    for _ in range(40):
        for data in files:
            broken = bytearray(data)
            for _ in range(rng.randint(1, 8)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            try:
                got = media.open_image(bytes(broken))
            except BadMedia:
                continue
            assert got.mode == "RGB"


@pytest.mark.parametrize("size", [(20000, 20000), (14143, 14143), (60000, 60000), (2_000_000_000, 2)])
def test_too_many_pixels_are_refused_before_decoding(size: tuple[int, int]) -> None:
    start = time.monotonic()
    with pytest.raises(BadMedia, match="megapixels") as caught:
        media.open_image(huge_png(*size))
    assert time.monotonic() - start < 1
    assert "smaller" in str(caught.value)


def test_pillow_limit_is_put_back() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadMedia):
        media.open_image(huge_png(20000, 20000))
    with pytest.raises(BadMedia, match="damaged or incomplete"):
        media.open_image(huge_png(13000, 13000))  # allowed by its size, above Pillow's own warning
    assert before == Image.MAX_IMAGE_PIXELS


def test_threads() -> None:
    data, sizes = packed(flag()), []
    threads = [threading.Thread(target=lambda: sizes.append(media.open_image(data).size)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [(64, 48)] * 16


def test_image_part(tmp_path: Path) -> None:
    path = tmp_path / "flag.png"
    flag().save(path)
    part = media.image_part(path)
    assert part.source == str(path) and part.budget == 70 and part.pixels and part.pixels.tokens <= 70
    assert media.image_part(str(path), 280).pixels.tokens == 266  # type: ignore[union-attr]
    assert media.image_part(packed(flag())).source == ""
    assert media.image_part("data:;base64," + base64.b64encode(packed(flag())).decode()).source == ""
    big = ImageOps.contain(flag(), (4000, 4000))
    assert media.image_part(big).budget == 1120 and media.image_part(big, ceiling=280).budget == 280
    with pytest.raises(PictureTooLarge) as caught:
        media.image_part(big, 560, 280)
    assert caught.value.limit == 280
    with pytest.raises(UsageError, match="70, 140, 280, 560 or 1120"):
        media.image_part(path, 300)


def test_split_budget(tmp_path: Path) -> None:
    assert media.split_budget("scan.png#1120") == ("scan.png", 1120)
    assert media.split_budget("a#b.png#70") == ("a#b.png", 70)
    for text in ("scan.png", "a#b.png", "#70", "", "scan.png#", "scan.png#high", "https://x/y#top"):
        assert media.split_budget(text) == (text, None)
    for text in ("scan.png#300", "scan.png#0", "scan.png#" + "9" * 5000):
        with pytest.raises(UsageError, match="70, 140, 280, 560 or 1120"):
            media.split_budget(text)
    (tmp_path / "x.png#70").write_bytes(b"")
    assert media.split_budget(str(tmp_path / "x.png#70")) == (str(tmp_path / "x.png#70"), None)
