"""PDF files as parts of a message, page by page: its text where that is good, a picture of it where it is not.

`paper.pdf#p3-7` is pages 3 to 7, `#text` and `#picture` force one way, `#560` sets the tokens of a page's picture; marks can
follow one another, `#password=…` last, and a file of the whole name wins. PDFium reads the file here, without JavaScript and
without any address.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localgemma.chat.pdf_look import is_drawn
from localgemma.chat.pdf_text import is_figures, is_good, words_of
from localgemma.chat.room import Planned, Room
from localgemma.engine import EngineInfo
from localgemma.errors import BadMedia, LockedDocument, UsageError
from localgemma.gemma4 import vision
from localgemma.messages import ImagePart, Part, Progress, TextPart
from localgemma.options import IMAGE_BUDGETS

if TYPE_CHECKING:
    from PIL import Image

_LOCK = threading.Lock()  # PDFium may be entered by one thread at a time
_MARK = re.compile(r"p(?P<first>\d{1,6})(?:-(?P<last>\d{1,6}))?|(?P<way>text|picture)|(?P<budget>\d{2,5})")
_PASSWORD = "#password="
_TITLE = 12  # tokens of a page's number, about
_PRINT = "Print it to a new PDF in another program, and try again."
_EMPTY = "(an empty page)"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a PDF is wanted: its file, pages from `first` to `last` (None: the end), the way, a picture's tokens."""

    path: Path
    first: int = 1
    last: int | None = None
    way: str = ""
    budget: int | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Page:
    """A page that was looked at: its text, or the tokens of its picture (0: none)."""

    number: int
    text: str
    budget: int


def wanted(source: object) -> Wanted | None:
    """A PDF's name with its marks, read; None for what is no PDF. UsageError for marks that no PDF has."""
    if not isinstance(source, (str, Path)) or str(source).startswith(("data:", "http:", "https:")):
        return None
    name, marks = str(source), []
    password: str | None = None
    if not _exists(name) and _PASSWORD in name:
        name, _, password = name.partition(_PASSWORD)
    while not _exists(name) and (found := _MARK.fullmatch(name.rpartition("#")[2])):
        name = name.rpartition("#")[0]
        marks.append(found)
    path = Path(name).expanduser()
    try:
        with path.open("rb") as stream:
            if b"%PDF-" not in stream.read(1024):
                return None
    except (OSError, ValueError):
        return None
    values: dict[str, Any] = {"password": password}
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


def _exists(name: str) -> bool:
    try:
        return os.path.exists(os.path.expanduser(name))
    except ValueError:
        return False


def check(asked: Wanted) -> None:
    """Raises LockedDocument where the password is missing or wrong, and BadMedia where the file cannot be read."""
    with _opened(asked):
        pass


def plan(asked: Wanted, info: EngineInfo, room: Room) -> Planned:
    """What the pages come to: as text or as pictures, and tokens.

    Raises BadMedia, UsageError for pages that it does not have, and ContextOverflow with the pages that fit.
    """
    with _opened(asked) as document:
        pages = list(_looked_at(document, asked, info, room))
        count = len(document)
    needed = sum(_cost(page, room) for page in pages)
    seen = sum(page.budget for page in pages)
    return Planned(_said(asked, pages, count, needed), needed, seen, lambda: _read(asked, pages, count))


@contextmanager
def _opened(asked: Wanted) -> Iterator[Any]:
    """The document, held by this thread."""
    name = asked.path.name
    try:
        import pypdfium2
    except ImportError:
        hint = "Run: pip install 'localgemma[pdf]'"
        raise BadMedia(f"{name} is a PDF, which needs one more package.", hint) from None
    with _LOCK:
        try:
            document = pypdfium2.PdfDocument(asked.path, password=asked.password)
        except (pypdfium2.PdfiumError, OSError) as error:
            if "password" in str(error).lower() and asked.password:
                raise LockedDocument(f"The password of {name} is another one.", f"Give it: {name}{_PASSWORD}…") from None
            if "password" in str(error).lower():
                hint = f"Give it: {name}{_PASSWORD}…, or save the file without one."
                raise LockedDocument(f"{name} is locked with a password.", hint) from None
            if "security" in str(error).lower():
                raise BadMedia(f"{name} is locked in a way that is not known here.", "Save it without a lock.") from None
            raise BadMedia(f"{name} is damaged and cannot be read.", _PRINT) from error
        try:
            if document.get_formtype():
                document.init_forms()
            yield document
        except pypdfium2.PdfiumError as error:
            raise BadMedia(f"{name} is damaged and cannot be read.", _PRINT) from error
        finally:
            document.close()


def _looked_at(document: Any, asked: Wanted, info: EngineInfo, room: Room) -> Iterator[_Page]:
    count, name = len(document), asked.path.name
    last = count if asked.last is None else asked.last
    if not 1 <= asked.first <= last <= count:
        pages = "1 page" if count == 1 else f"{count:,} pages"
        given = f"page {asked.first}" if asked.first == last else f"pages {asked.first}-{last}"
        raise UsageError(f"{name} has no {given}: it has {pages}.", f"Give some: {name}#p1-{max(count, 1)}")
    needed = 0
    for number in range(asked.first, last + 1):
        page = _decided(document, number, asked, info)
        needed += _cost(page, room)
        if needed > room.free:
            seen, every = number - asked.first + 1, last - asked.first + 1
            fits = f"{name}#p{asked.first}-{number - 1}"
            which = f"Pages {asked.first} to {number - 1} of {asked.first} to {last} fit: {fits}" if seen > 1 else ""
            raise room.overflow(needed * every / seen, which, counted=seen == every)
        yield page


def _cost(page: _Page, room: Room) -> int:
    return _TITLE + (page.budget or room.count(page.text or _EMPTY))


def _decided(document: Any, number: int, asked: Wanted, info: EngineInfo) -> _Page:
    page = document[number - 1]
    try:
        words = words_of(page)
        if asked.way == "text":
            return _Page(number, words.text, 0)
        good = is_good(words.text)
        seen = is_drawn(page, words.boxes, bool(words.text))
        if asked.way != "picture" and not seen and (not words.text or (good and not is_figures(words.text))):
            return _Page(number, words.text, 0)
    except BadMedia as error:
        raise BadMedia(f"{asked.path.name}, page {number}: {error.message}", f"Leave it out: {asked.path.name}#p…") from None
    finally:
        page.close()
    if not info.image_tokens:
        hint = f"Load the model with --mmproj FILE, or take the text alone: {asked.path.name}#text"
        raise UsageError(f"{asked.path.name} has pages that only a picture shows, and this model sees none.", hint)
    return _Page(number, words.text, min(info.image_tokens, asked.budget or (560 if good and not words.small else 1120)))


def _said(asked: Wanted, pages: list[_Page], count: int, needed: int) -> str:
    """The forecast: which pages, how they are read, and tokens."""
    first, last = pages[0].number, pages[-1].number
    drawn = sum(bool(page.budget) for page in pages)
    which = f"page {first}" if first == last else f"pages {first}-{last}"
    ways = [f"{len(pages) - drawn:,} as text"] * (drawn < len(pages)) + [f"{drawn:,} as pictures"] * bool(drawn)
    return f"{asked.path.name} → {which} of {count:,}, {', '.join(ways)}, about {needed:,} tokens"


def _read(asked: Wanted, pages: list[_Page], count: int) -> Iterator[Part | Progress]:
    """The pages, each after its number; a picture is drawn when it is reached."""
    total, done = sum(bool(page.budget) for page in pages), 0
    for page in pages:
        title = f"{asked.path.name}, page {page.number} of {count}:"
        source = f"{asked.path} page {page.number}"
        if not page.budget:
            yield TextPart(f"{title}\n\n{page.text or _EMPTY}", source)
            continue
        yield Progress("pages", done, total)
        with _opened(asked) as document:
            sheet = document[page.number - 1]
            try:
                picture = ImagePart(vision.prepare(_drawn(sheet, page.budget), page.budget), source, page.budget)
            finally:
                sheet.close()
        done += 1
        yield TextPart(title, source)
        yield picture


def _drawn(page: Any, budget: int) -> Image.Image:
    width, height = page.get_size()
    high, wide = vision.target_size(max(1, round(height)), max(1, round(width)), budget)
    bitmap = page.render(scale=max(wide / max(width, 1), high / max(height, 1)), rev_byteorder=True)
    image: Image.Image = bitmap.to_pil().convert("RGB")
    bitmap.close()
    return image
