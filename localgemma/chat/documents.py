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
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from localgemma.chat.room import Planned, Room
from localgemma.errors import BadMedia
from localgemma.messages import TextPart

MAX_FILE = 64 << 20  # bytes of a DOCX, most of which are its pictures
MAX_TEXT = 10 << 20  # bytes of text, or of the XML that holds it
PICTURES = frozenset({
    ".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".avif", ".ppm", ".pgm", ".pbm", ".ico",
})  # fmt: skip
_START = 4096  # bytes that tell what a file is
_OLE = b"\xd0\xcf\x11\xe0"  # DOC, XLS and PPT before 2007
_SEEN = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"%PDF-")
_BINARY = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1b")  # bytes that no text has
_TYPOGRAPHIC = frozenset("€‚„…‰Š‹ŒŽ‘’“”•–—™š›œžŸ\xa0§«\xad°´·»".encode("cp1252"))
_CHARSET = re.compile(rb"<(?:meta[^>]+?charset|\?xml[^>]+?encoding)\s*=\s*[\"']?([A-Za-z0-9_:.-]{2,40})", re.IGNORECASE)
_BODY = re.compile(r"/?word/document\d*\.xml")
_NOTES = ("word/footnotes.xml", "word/endnotes.xml")
_OTHER = {
    "xl/workbook": ("a spreadsheet", "Save its sheet as CSV or PDF, and try again."),
    "ppt/presentation": ("a slide show", "Save it as PDF, and try again."),
    "content.xml": ("an OpenDocument file", "Save it as DOCX or PDF, and try again."),
}
_SIGNS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "numPr": "• "}
_SILENT = frozenset({"script", "style", "template", "noscript", "svg", "math", "object", "iframe", "head"})
_BLOCKS = frozenset(re.findall(
    r"\w+",
    "address article aside blockquote body br dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 "
    "h6 header hr li main nav ol option p pre section summary table tbody td tfoot th thead title tr ul",
))  # fmt: skip
_CELLS = frozenset({"td", "th"})
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_AS_TEXT = "Save it as text, HTML or DOCX, and try again."


@dataclass(frozen=True, slots=True)
class Document:
    """A text that was read from a file: its name, and what was taken for its encoding if that is not UTF-8."""

    name: str
    text: str
    encoding: str = ""

    @property
    def titled(self) -> str:
        """The text after its name, as the model reads it."""
        return f"{self.name}:\n\n{self.text}"


def is_text(source: str | Path) -> bool:
    """Whether a file holds text, or is an archive, which may be a DOCX; not for a name that says that it is a picture."""
    path = Path(source).expanduser()
    if path.suffix.lower() in PICTURES:
        return False
    try:
        with path.open("rb") as stream:
            start = stream.read(_START)
    except (OSError, ValueError, RuntimeError):
        return False
    if start.startswith((b"PK\3\4", _OLE, *_MARKS)):
        return True
    return bool(start) and not start.startswith(_SEEN) and not _BINARY & set(start)


def plan(source: str | Path | Document, room: Room) -> Planned:
    """What a text comes to. Raises BadMedia, and ContextOverflow with the lines that fit."""
    document = source if isinstance(source, Document) else read(Path(source).expanduser())
    text = document.titled
    huge = len(text) > 40 * room.size
    needed = len(text) // 4 if huge else room.count(text) + 2
    lines = max(1, len(document.text.splitlines()))
    if needed > room.free:
        fitting = int(lines * max(0, room.free) / needed * 0.9)
        fits = f"About the first {fitting:,} of the {lines:,} lines of {document.name} fit"
        raise room.overflow(needed, fits * (fitting > 0), counted=not huge)
    how = f" (read as {document.encoding})" if document.encoding else ""
    said = f"{document.name} → {lines:,} line{'s' * (lines != 1)} of text{how}, {needed:,} tokens"
    return Planned(said, needed, 0, lambda: iter([TextPart(text, document.name)]))


def read(path: Path) -> Document:
    """The text of a file for which `is_text` is true. Raises BadMedia."""
    name = path.name
    try:
        with path.open("rb") as stream:
            data = stream.read(4)
            if data.startswith(_OLE[:4]):
                raise BadMedia(f"{name} is in an old form of office programs.", _AS_TEXT)
            if data.startswith(b"PK\3\4"):
                return Document(name, _docx(path))
            if path.stat().st_size > MAX_TEXT:
                raise BadMedia(f"{name} is too long a text.", f"Give at most {MAX_TEXT >> 20} MiB of it.")
            data += stream.read(MAX_TEXT)
    except OSError as error:
        raise BadMedia(f"{name} cannot be read: {error.strerror or error}.", "Check the file.") from None
    if data.startswith(b"{\\rtf"):
        raise BadMedia(f"{name} is in Rich Text Format, which is not read.", _AS_TEXT)
    text, encoding = _decoded(data, name)
    if "\0" in text:
        raise BadMedia(f"{name} is not text all through: it has NUL bytes.", _AS_TEXT)
    text = text.replace("\r\n", "\n")
    head = text[:200].lstrip().lower()
    page = path.suffix.lower() in (".html", ".htm", ".xhtml") or head.startswith(("<!doctype html", "<html"))
    return Document(name, html_text(text) if page else text, encoding)


def _decoded(data: bytes, name: str) -> tuple[str, str]:
    """The text and, where it is not UTF-8, its encoding.

    That is what the file's first bytes say, what a web page declares, or Windows-1252 where a text has single letters of it.
    """
    marked = next((found for mark, found in _MARKS.items() if data.startswith(mark)), None)
    declared = _CHARSET.search(data[:2048])
    guesses = [marked or "utf-8", *([declared[1].decode()] if declared else [])]
    for encoding in guesses:
        try:
            return data.decode(encoding), "" if encoding.lower().startswith("utf") else encoding
        except (UnicodeDecodeError, LookupError):
            continue
    high = [byte for byte in data if byte > 127]
    letters = sum(byte >= 0xC0 or byte in _TYPOGRAPHIC for byte in high)
    if len(high) * 5 < len(data) and letters * 20 >= len(high) * 19 and not re.search(rb"[\x80-\xff]{4}", data):
        return data.decode("cp1252", "replace"), "Windows-1252"
    hint = f"Save it as UTF-8: iconv -f ENCODING -t UTF-8 {name} > new.txt"
    raise BadMedia(f"{name} is text in an encoding that it does not name.", hint)


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
    """The paragraphs of a DOCX, then its notes; cells of a table row are parted by tabs."""
    name = path.name
    if path.stat().st_size > MAX_FILE:
        raise BadMedia(f"{name} is larger than {MAX_FILE >> 20} MiB.", _AS_TEXT)
    lines: list[str] = []
    try:
        with zipfile.ZipFile(path) as packed:
            names = packed.namelist()
            body = next((part for part in names if _BODY.fullmatch(part)), None)
            if body is None:
                inside = next((each for each in _OTHER if any(each in part for part in names)), "")
                what, way = _OTHER.get(inside, ("an archive or a document of another kind", _AS_TEXT))
                raise BadMedia(f"{name} is {what}, which is not read.", way)
            for part in (body, *(note for note in _NOTES if note in names)):
                root = ElementTree.fromstring(_unpacked(packed, part, name))
                lines += _lines(next((child for child in root if _local(child) == "body"), root))
    except (
        zipfile.BadZipFile,
        zlib.error,
        ElementTree.ParseError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        RecursionError,
        ValueError,
    ) as error:
        if isinstance(error, RuntimeError) and "password" in str(error):
            raise BadMedia(f"{name} is locked with a password.", "Save it without one and try again.") from None
        raise BadMedia(f"{name} is damaged or incomplete.", _AS_TEXT) from error
    return "\n".join(lines).strip()


def _unpacked(packed: zipfile.ZipFile, part: str, name: str) -> bytes:
    with packed.open(part) as stream:
        body = stream.read(MAX_TEXT + 1)  # what the archive says of its size is not believed
    if len(body) > MAX_TEXT:
        raise BadMedia(f"{name} unpacks to more than {MAX_TEXT >> 20} MiB of text.", "Split it and try again.")
    if b"<!" in body.replace(b"<!--", b"").replace(b"<![CDATA[", b"") or b"\0" in body[:64]:
        raise BadMedia(f"{name} declares entities, which no word processor writes.", _AS_TEXT)
    return body


def _local(piece: ElementTree.Element) -> str:
    return str(piece.tag).rpartition("}")[2]


def _lines(parent: ElementTree.Element) -> Iterator[str]:
    """Paragraphs and table rows in order, also those inside content controls and text boxes."""
    for child in parent:
        if _local(child) == "p":
            yield "".join(_spoken(child))
        elif _local(child) == "tr":
            yield "\t".join(" ".join(_lines(cell)) for cell in child.iter() if _local(cell) == "tc")
        else:
            yield from _lines(child)


def _spoken(parent: ElementTree.Element) -> Iterator[str]:
    """The words of a paragraph. Text boxes are lines of their own; the second copy that old programs read is left out."""
    for piece in parent:
        name = _local(piece)
        if name == "t":
            yield piece.text or ""
        elif name == "txbxContent":
            yield "".join(f"\n{line}" for line in _lines(piece)) + "\n"
        elif name in _SIGNS:
            yield _SIGNS[name]
        elif name not in ("Fallback", "moveFrom"):
            yield from _spoken(piece)
