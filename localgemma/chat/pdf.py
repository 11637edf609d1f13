"""PDF files as parts of a message, page by page: its text where that is good, a picture of it where it is not.

`paper.pdf#p3-7` is pages 3 to 7, `#text` and `#picture` force one way, `#560` sets the tokens of a page's picture; marks can
follow one another, and a file of the whole name wins. PDFium reads the file here, without JavaScript and without any address.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localgemma.engine import EngineInfo
from localgemma.errors import BadMedia, ContextOverflow, UsageError
from localgemma.gemma4 import vision
from localgemma.messages import ImagePart, Part, TextPart
from localgemma.options import IMAGE_BUDGETS

if TYPE_CHECKING:
    from PIL import Image

_LOCK = threading.Lock()  # PDFium may be entered by one thread at a time
_MARK = re.compile(r"p(?P<first>\d{1,6})(?:-(?P<last>\d{1,6}))?|(?P<way>text|picture)|(?P<budget>\d{2,5})")
_OBJECTS = 4_000  # looked at on a page; one with more is a drawing
_DRAWN = 150  # lines and shapes from which a page is a drawing
_CHARACTERS = 3.0  # a token, at least: the forecast rather says too many
_PATH, _IMAGE = 2, 3  # FPDF_PAGEOBJ_*
_PRINT = "Print it to a new PDF in another program, and try again."


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a PDF is wanted: its file, pages from `first` to `last` (None: the end), the way, a picture's tokens."""

    path: Path
    first: int = 1
    last: int | None = None
    way: str = ""
    budget: int | None = None


def wanted(source: object) -> Wanted | None:
    """A PDF's name with its marks, read; None for what is no PDF. UsageError for marks that no PDF has."""
    if not isinstance(source, (str, Path)) or str(source).startswith(("data:", "http:", "https:")):
        return None
    name, marks = str(source), []
    while not os.path.exists(os.path.expanduser(name)) and (found := _MARK.fullmatch(name.rpartition("#")[2])):
        name = name.rpartition("#")[0]
        marks.append(found)
    path = Path(name).expanduser()
    try:
        with path.open("rb") as stream:
            if b"%PDF-" not in stream.read(1024):
                return None
    except (OSError, ValueError):
        return None
    values: dict[str, Any] = {}
    for mark in marks:
        if mark["first"]:
            values |= {"first": int(mark["first"]), "last": int(mark["last"] or mark["first"])}
        elif mark["way"]:
            values["way"] = mark["way"]
        elif int(mark["budget"]) in IMAGE_BUDGETS:
            values["budget"] = int(mark["budget"])
        else:
            raise UsageError(f"A page cannot have {mark['budget']} tokens.", "It takes 70 to 1120: paper.pdf#560")
    return Wanted(path, **values)


def pdf_parts(asked: Wanted, info: EngineInfo) -> list[Part]:
    """The pages, each after its number.

    Raises BadMedia, UsageError for pages that it does not have, and ContextOverflow with the pages that fit.
    """
    try:
        import pypdfium2
    except ImportError:
        hint = "Run: pip install 'localgemma[pdf]'"
        raise BadMedia(f"{asked.path.name} is a PDF, which needs one more package.", hint) from None
    name = asked.path.name
    with _LOCK:
        try:
            document = pypdfium2.PdfDocument(asked.path)
        except (pypdfium2.PdfiumError, OSError) as error:
            if "password" in str(error).lower() or "security" in str(error).lower():
                raise BadMedia(f"{name} is locked with a password.", "Save it without one and try again.") from None
            raise BadMedia(f"{name} is damaged and cannot be read.", _PRINT) from error
        try:
            if document.get_formtype():
                document.init_forms()
            return list(_pages(document, asked, info))
        except pypdfium2.PdfiumError as error:
            raise BadMedia(f"{name} is damaged and cannot be read.", _PRINT) from error
        finally:
            document.close()


def _pages(document: Any, asked: Wanted, info: EngineInfo) -> Iterator[Part]:
    count, name = len(document), asked.path.name
    last = count if asked.last is None else asked.last
    if not 1 <= asked.first <= last <= count:
        raise UsageError(
            f"{name} has no pages {asked.first}-{last}: it has {count:,}.", f"Give some: {name}#p1-{max(count, 1)}"
        )
    plan: list[tuple[int, str, int]] = []
    needed = 0
    for number in range(asked.first, last + 1):
        page = document[number - 1]
        text, budget = _decided(page, asked, info)
        page.close()
        needed += (budget or int(len(text) / _CHARACTERS)) + 12
        if needed >= info.context:
            if not plan:
                raise ContextOverflow(needed, info.context, "Load with a larger context: --ctx N.")
            fitting = f"{name}#p{asked.first}-{number - 1}"
            hint = (
                f"Pages {asked.first} to {number - 1} of {asked.first} to {last} fit: {fitting}; or load with a larger --ctx."
            )
            raise ContextOverflow(needed, info.context, hint)
        plan.append((number, text, budget))
    for number, text, budget in plan:
        title = f"{name}, page {number} of {count}:"
        if not budget:
            yield TextPart(f"{title}\n\n{text or '(an empty page)'}")
            continue
        yield TextPart(title)
        page = document[number - 1]
        yield ImagePart(vision.prepare(_drawn(page, budget), budget), f"{asked.path} page {number}", budget)
        page.close()


def _decided(page: Any, asked: Wanted, info: EngineInfo) -> tuple[str, int]:
    """The page's text, and the tokens of its picture: 0 where the text is enough."""
    layer = page.get_textpage()
    text = layer.get_text_range().replace("\r\n", "\n").replace("\x02", "-").strip("\0 \n")
    layer.close()
    if asked.way == "text":
        return text, 0
    good, drawn = is_good(text), is_drawn(page)
    if asked.way != "picture" and not drawn and (good or not text):
        return text, 0
    if not info.image_tokens:
        hint = f"Load the model with --mmproj FILE, or take the text alone: {asked.path.name}#text"
        raise UsageError(f"{asked.path.name} has pages that only a picture shows, and this model sees none.", hint)
    return text, min(info.image_tokens, asked.budget or (560 if good else 1120))


def is_good(text: str) -> bool:
    """Whether a text layer holds words: no more than one in 20 characters is none."""
    seen = [c for c in text if not c.isspace()]
    wrong = sum(c == "�" or not c.isprintable() or "\ue000" <= c <= "\uf8ff" for c in seen)
    return bool(seen) and wrong * 20 <= len(seen)


def is_drawn(page: Any) -> bool:
    """Whether a page shows what its text does not say: pictures on a fifth of it, a drawing, or the fields of a form."""
    width, height = page.get_size()
    pictures, shapes = 0.0, 0
    for index, item in enumerate(page.get_objects(max_depth=3)):
        if index >= _OBJECTS:
            return True
        if item.type == _IMAGE:
            left, bottom, right, top = item.get_bounds()
            pictures += max(0.0, right - left) * max(0.0, top - bottom)
        shapes += item.type == _PATH
    return bool(pictures * 5 >= width * height or shapes >= _DRAWN or page.formenv)


def _drawn(page: Any, budget: int) -> Image.Image:
    width, height = page.get_size()
    high, wide = vision.target_size(max(1, round(height)), max(1, round(width)), budget)
    bitmap = page.render(scale=max(wide / max(width, 1), high / max(height, 1)), rev_byteorder=True)
    image: Image.Image = bitmap.to_pil().convert("RGB")
    bitmap.close()
    return image
