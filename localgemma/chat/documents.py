"""Texts out of files: plain text of any kind as it is, the words of HTML pages and of DOCX documents.

Nothing in a document is run, followed or fetched. XML that declares entities is refused, and so is a DOCX that unpacks to more
than `MAX_TEXT`. Whatever a document spells is text for the model, never a control token.
"""

from __future__ import annotations

import codecs
import re
import zipfile
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from localgemma.errors import BadMedia

MAX_FILE = 64 << 20  # bytes of a DOCX, most of which are its pictures
MAX_TEXT = 10 << 20  # bytes of text, or of the XML that holds it
_BODY = "word/document.xml"
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_SILENT = frozenset({"script", "style", "template", "noscript", "svg", "math", "object", "iframe", "head"})
_BLOCKS = frozenset(re.findall(
    r"\w+",
    "address article aside blockquote body br dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 "
    "h6 header hr li main nav ol option p pre section summary table tbody td tfoot th thead title tr ul",
))  # fmt: skip
_CELLS = frozenset({"td", "th"})
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_AS_TEXT = "Save it as text, HTML or DOCX, and try again."


def text_of(path: Path) -> str | None:
    """The file's text, told by its content; None for a file that is none (a picture, a video, a PDF). Raises BadMedia."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4096)
            if start.startswith(b"PK\x03\x04"):
                return _docx(path)
            marked = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
            if not start or b"%PDF-" in start[:1024] or (b"\0" in start and marked is None):
                return None
            if path.stat().st_size > MAX_TEXT:
                codecs.getincrementaldecoder(marked or "utf-8")().decode(start)
                raise BadMedia(f"{path.name} is too long a text.", f"Give at most {MAX_TEXT >> 20} MiB.")
            text = (start + stream.read()).decode(marked or "utf-8")
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise BadMedia(f"{path.name} cannot be read: {error.strerror or error}.", "Check the file.") from None
    head = text[:200].lstrip().lower()
    page = path.suffix.lower() in (".html", ".htm", ".xhtml") or head.startswith(("<!doctype html", "<html"))
    return html_text(text) if page else text


def html_text(page: str) -> str:
    """The words of an HTML page, block by block; cells of a table row are parted by tabs."""
    reader = _Words()
    reader.feed(page)
    reader.close()
    text = re.sub(r"[ \t]+\n", "\n", "".join(reader.words))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.words: list[str] = []
        self._silent: list[str] = []
        self._kept = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A block begins a line; what no reader sees is left out."""
        if tag in _SILENT:
            self._silent.append(tag)
        elif tag == "body" and self._silent[-1:] == ["head"]:  # its end may be left out
            self._silent.pop()
        elif tag == "title" and self._silent == ["head"]:
            self._silent.append("")  # heard though it stands in the head
        self._kept += tag == "pre"
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        """A block ends its line."""
        if tag == "title" and self._silent[-1:] == [""]:
            self._silent.pop()
            self.words.append("\n")
        elif tag in self._silent:
            del self._silent[self._silent.index(tag) :]
        self._kept -= tag == "pre" and self._kept > 0
        self._break(tag if tag not in _CELLS else "")

    def handle_data(self, data: str) -> None:
        """Words; outside of <pre>, space is one blank."""
        if not self._silent or self._silent[-1] == "":
            words = data if self._kept else re.sub(r"\s+", " ", data)
            self.words.append(words if self._kept or not "".join(self.words[-1:]).endswith("\n") else words.lstrip())

    def _break(self, tag: str) -> None:
        if tag in _BLOCKS and not self._silent:
            self.words.append("\t" if tag in _CELLS and self.words[-1:] != ["\n"] else "\n" if tag not in _CELLS else "")


def _docx(path: Path) -> str:
    """The paragraphs of a DOCX; cells of a table row are parted by tabs."""
    if path.stat().st_size > MAX_FILE:
        raise BadMedia(f"{path.name} is larger than {MAX_FILE >> 20} MiB.", _AS_TEXT)
    try:
        with zipfile.ZipFile(path) as packed:
            if _BODY not in packed.namelist():
                raise BadMedia(f"{path.name} is an archive or document of a kind that is not read.", _AS_TEXT)
            with packed.open(_BODY) as stream:
                body = stream.read(MAX_TEXT + 1)  # what the archive says of its size is not believed
        if len(body) > MAX_TEXT:
            raise BadMedia(f"{path.name} unpacks to more than {MAX_TEXT >> 20} MiB of text.", "Split it and try again.")
        if b"<!" in body.replace(b"<!--", b"").replace(b"<![CDATA[", b"") or b"\0" in body[:64]:
            raise BadMedia(f"{path.name} declares entities, which no word processor writes.", _AS_TEXT)
        root = ElementTree.fromstring(body)
        body_part = root.find(f"{_W}body")
        lines = [] if body_part is None else list(_lines(body_part))
    except (
        zipfile.BadZipFile,
        zlib.error,
        ElementTree.ParseError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        RecursionError,
    ) as error:
        if isinstance(error, RuntimeError) and "password" in str(error):
            raise BadMedia(f"{path.name} is locked with a password.", "Save it without one and try again.") from None
        raise BadMedia(f"{path.name} is damaged or incomplete.", _AS_TEXT) from error
    return "\n".join(lines).strip()


def _lines(parent: ElementTree.Element) -> Iterator[str]:
    """Paragraphs and table rows in order, also those inside content controls and text boxes."""
    for child in parent:
        if child.tag == f"{_W}p":
            yield "".join(map(_spoken, child.iter()))
        elif child.tag == f"{_W}tr":
            yield "\t".join(" ".join(_lines(cell)) for cell in child.iter(f"{_W}tc"))
        else:
            yield from _lines(child)


def _spoken(piece: ElementTree.Element) -> str:
    if piece.tag == f"{_W}t":
        return piece.text or ""
    return {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n"}.get(piece.tag, "")
