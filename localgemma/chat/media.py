"""Pictures from wherever they come: a path, bytes, a data: or https: URL or a Pillow image, as RGB.

Files are read in full before they are decoded, never followed onto the network, and bounded: 64 MiB of file and 200
megapixels. Everything that cannot be read is BadMedia with the source's name and the next step.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import unquote_to_bytes

from localgemma.errors import BadMedia, LocalgemmaError, NotFound, PictureTooLarge, UsageError
from localgemma.gemma4 import vision
from localgemma.messages import ImagePart
from localgemma.options import IMAGE_BUDGETS

if TYPE_CHECKING:
    from PIL import Image

Source: TypeAlias = "str | Path | bytes | Image.Image"
Fetch: TypeAlias = Callable[[str], bytes]

MAX_BYTES = 64 << 20
MAX_PIXELS = 200_000_000
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//)?")
_REFUSED = frozenset({"http", "file", "ftp", "ftps", "sftp", "smb", "ssh", "blob", "about", "javascript", "ws", "wss"})
_HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_CONVERT = "Open it in another program, save it as PNG or JPEG, and try again."
_SMALLER = "Make it smaller and try again."
_LOCK = threading.Lock()  # Pillow's pixel limit and Python's warning filters belong to the whole process


def open_image(source: Source, *, fetch: Fetch | None = None) -> Image.Image:
    """The picture as RGB, upright, on white where it is transparent; the first frame of an animation.

    https: URLs are read by `fetch`, and refused without one. NotFound for a path that is not there, BadMedia for
    everything else that is no picture.
    """
    name = _label(source)
    if isinstance(source, (str, Path, bytes, bytearray, memoryview)):
        return _decode(_read(source, name, fetch), name)
    if not hasattr(source, "convert"):
        raise BadMedia(f"{type(source).__name__} is not a picture.", "Give a path, bytes, a URL or a Pillow image.")
    with pillow(name):
        measure(source, name)
        source.load()
        return _upright(rgb(source), source)


def image_part(
    source: Source,
    budget: int | Literal["auto"] = "auto",
    ceiling: int = IMAGE_BUDGETS[-1],
    *,
    fetch: Fetch | None = None,
) -> ImagePart:
    """The picture as a message part, resized to `budget` tokens; PictureTooLarge if that is more than `ceiling`.

    "auto" is the smallest budget that keeps the picture's own resolution, at most `ceiling`.
    """
    if budget != "auto":
        vision.target_size(1, 1, budget)  # a wrong budget is said before a long decode
    image = open_image(source, fetch=fetch)
    chosen = vision.auto_budget(image.height, image.width, ceiling) if budget == "auto" else budget
    needed = vision.tokens(*vision.target_size(image.height, image.width, chosen))
    if needed > ceiling:
        raise PictureTooLarge(needed, ceiling)
    return ImagePart(vision.prepare(image, chosen), _named(source), chosen)


def split_budget(text: str) -> tuple[str, int | None]:
    """Splits "scan.png#1120" into source and budget; None without one, and a file of the whole name wins.

    UsageError for a number that is not one of the five budgets.
    """
    source, mark, number = text.rpartition("#")
    if not mark or not source or not (number.isascii() and number.isdigit()) or os.path.exists(text):
        return text, None
    budget = int(number) if len(number) < 6 else -1
    if budget not in IMAGE_BUDGETS:
        allowed = ", ".join(map(str, IMAGE_BUDGETS[:-1])) + f" or {IMAGE_BUDGETS[-1]}"
        raise UsageError(f"A picture budget cannot be {number[:20]}.", f"It takes {allowed} tokens.")
    return source, budget


def _named(source: Source) -> str:
    """The source as a person would name it; empty for bytes, data: URLs and images without a file."""
    if isinstance(source, (str, Path)):
        text = str(source)
        return "" if text[:5].lower() == "data:" else text
    return str(getattr(source, "filename", "") or "")


def _label(source: Source) -> str:
    """The source as errors name it: one line, never long."""
    text = "".join(c if c.isprintable() else "�" for c in _named(source)[:1000])
    if len(text) > 100:
        text = f"{text[:40]}…{text[-59:]}"
    if text:
        return text
    return "The picture in the data: URL" if isinstance(source, str) and source else "The picture"


def _read(source: str | Path | bytes | bytearray | memoryview, name: str, fetch: Fetch | None) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, str) and (match := _SCHEME.match(source)) and _is_url(match):
        scheme = match[1].lower()
        if scheme == "data":
            data = _data_url(source, name)
        elif scheme != "https":
            raise BadMedia(f"{name} is refused: {scheme}: is not read.", "Give a path or an https: URL.")
        elif fetch is None:
            raise BadMedia(f"{name} is on the network, which is not allowed here.", "Download it and give its path.")
        else:
            data = fetch(source)
    else:
        data = _file(source, name)
    if len(data) > MAX_BYTES:
        raise BadMedia(f"{name} is larger than {MAX_BYTES >> 20} MiB.", _SMALLER)
    if not data:
        raise BadMedia(f"{name} is empty (0 bytes).", "Make or download the file again.")
    return data


def _is_url(match: re.Match[str]) -> bool:
    return bool(match[2]) or match[1].lower() in _REFUSED or match[1].lower() in ("data", "https")


def _file(source: str | Path, name: str) -> bytes:
    check = "Check the path."
    if not str(source):
        raise BadMedia("No picture is named.", "Give its path.")
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            raise BadMedia(f"{name} is a directory.", "Give the path of one picture.")
        if path.exists() and not path.is_file():
            raise BadMedia(f"{name} is a device or pipe and not a file.", "Give the path of a picture.")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {name}.", check) from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadMedia(f"{name} cannot be read ({reason.rstrip('.')}).", "Check the path and its permissions.") from error


def _data_url(text: str, name: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma:
        raise BadMedia(f"{name} has no comma and so no data.", "Write it as data:image/png;base64,…")
    if len(body) > 4 * MAX_BYTES:
        raise BadMedia(f"{name} is larger than {MAX_BYTES >> 20} MiB.", _SMALLER)
    raw = unquote_to_bytes(body)
    if not head.lower().rstrip().endswith(";base64"):
        return raw
    packed = b"".join(raw.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadMedia(f"{name} is not valid base64.", "Encode the file again.") from error


@contextmanager
def pillow(name: str) -> Iterator[None]:
    """Pillow with our pixel limit, silent, and with everything that a broken file can raise turned into BadMedia."""
    from PIL import Image, UnidentifiedImageError

    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2  # Pillow refuses above twice its limit
        try:
            yield
        except LocalgemmaError:
            raise
        except Image.DecompressionBombError as error:
            raise BadMedia(f"{name} has more than {MAX_PIXELS // 10**6} megapixels.", _SMALLER) from error
        except UnidentifiedImageError as error:
            raise BadMedia(f"{name} is not a picture, video or document that can be read.", _CONVERT) from error
        except MemoryError as error:
            raise BadMedia(f"{name} does not fit into memory.", _SMALLER) from error
        except Exception as error:  # decoders raise whatever their parsing trips over
            raise BadMedia(f"{name} is damaged or incomplete.", _CONVERT) from error
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _decode(data: bytes, name: str) -> Image.Image:
    from PIL import Image

    heif = data[4:8] == b"ftyp" and data[8:12] in _HEIF
    if heif:
        try:
            import pillow_heif
        except ImportError:
            raise BadMedia(f"{name} is HEIC, which needs one more package.", "Run: pip install 'localgemma[heif]'") from None
        pillow_heif.register_heif_opener()
    with pillow(name), Image.open(io.BytesIO(data)) as image:
        if image.format == "EPS":  # Pillow would run Ghostscript, a whole program interpreter, on it
            raise BadMedia(f"{name} is EPS, a program that draws instead of a picture.", _CONVERT)
        measure(image, name)
        image.load()
        measure(image, name)  # icon files only now know their size
        return _upright(rgb(image), image)


def measure(image: Image.Image, name: str) -> None:
    """BadMedia for a picture without pixels or with more than MAX_PIXELS."""
    width, height = image.size
    if width < 1 or height < 1:
        raise BadMedia(f"{name} has no pixels.", _CONVERT)
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise BadMedia(f"{name} is {width:,} × {height:,} pixels, and {limit} megapixels are allowed.", _SMALLER)


def rgb(image: Image.Image) -> Image.Image:
    """A new RGB picture: wide samples scaled to 8 bits, transparency on white."""
    from PIL import Image as Pillow

    if image.mode.startswith(("I", "F")):
        return _narrow(image)
    if image.mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        made = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        return made if made is not None else image.convert("RGB")
    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        clear = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Pillow.new("RGB", clear.size, (255, 255, 255))
        white.paste(clear.convert("RGB"), mask=clear)
        return white
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floats as RGB.

    I;16 is 0 to 65,535. I and F say no range, so the values do: up to 1 (F), 255 or 65,535, else they are spread.
    """
    import numpy as np
    from PIL import Image as Pillow

    values: Any = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = (values.astype(np.uint32) + 128) // 257
    else:
        wide = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = float(wide.min()), float(wide.max())
        top = next((limit for limit in (1.0, 255.0, 65535.0) if high <= limit and (limit > 1 or image.mode == "F")), high)
        low = 0.0 if low >= 0 and top <= 65535 else low
        grey = np.rint((wide - low) * (255 / ((top if low == 0 else high) - low or 1)))
    clear = image.info.get("transparency")
    grey = np.where(values == clear, 255, grey) if isinstance(clear, int) else grey
    return Pillow.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")


def _upright(picture: Image.Image, origin: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says, without the EXIF; what cannot be read turns nothing."""
    from PIL import Image as Pillow

    way = Pillow.Transpose
    turns = {
        2: way.FLIP_LEFT_RIGHT,
        3: way.ROTATE_180,
        4: way.FLIP_TOP_BOTTOM,
        5: way.TRANSPOSE,
        6: way.ROTATE_270,
        7: way.TRANSVERSE,
        8: way.ROTATE_90,
    }
    picture.info = {}  # else whoever opens the result again turns it again
    try:
        turn = turns.get(origin.getexif().get(0x0112, 1))
    except Exception:  # EXIF is untrusted bytes of their own format
        return picture
    return picture if turn is None else picture.transpose(turn)
