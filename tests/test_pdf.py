"""PDF files: what every page is taken for, its number, and files that cannot be read."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from fakes import FakeEngine
from PIL import Image, ImageDraw

from localgemma.chat.conversation import Conversation
from localgemma.chat.pdf import is_good, pdf_parts, wanted
from localgemma.cli.attach import attachments
from localgemma.engine import EngineInfo
from localgemma.errors import BadMedia, ContextOverflow, UsageError
from localgemma.messages import ImagePart, TextPart

INFO = EngineInfo("fake", "gemma4", 100_000, 1120)
LINES = "(The quick brown fox jumps over the lazy dog.) Tj 0 -16 Td " * 20


def pdf(path: Path, pages: list[str], *, page: str = "", trailer: str = "", more: tuple[str, ...] = ()) -> Path:
    """A PDF of content streams; object 3 is the font, `more` objects follow from 4."""
    kids = [4 + len(more) + 2 * i for i in range(len(pages))]
    objects = [
        "<</Type/Catalog/Pages 2 0 R" + ("/AcroForm<</Fields[4 0 R]>>" if "AcroForm" in trailer else "") + ">>",
        f"<</Type/Pages/Count {len(pages)}/Kids[{' '.join(f'{k} 0 R' for k in kids)}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        *more,
    ]
    for kid, content in zip(kids, pages, strict=True):
        resources = "/Resources<</Font<</F 3 0 R>>" + ("/XObject<</I 4 0 R>>" if more and "Image" in more[0] else "") + ">>"
        objects.append(f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents {kid + 1} 0 R{resources}{page}>>")
        objects.append(f"<</Length {len(content)}>>stream\n{content}\nendstream")
    data, places = b"%PDF-1.7\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{text}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    head = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer"
    path.write_bytes(data + f"{head}<</Size {size}/Root 1 0 R{trailer}>>\nstartxref\n{len(data)}\n%%EOF".encode())
    return path


def words(text: str) -> str:
    return f"BT /F 12 Tf 50 780 Td {text} ET"


def kinds(path: Path | str, info: EngineInfo = INFO) -> list[str]:
    """`text` or `picture` of every page."""
    asked = wanted(path)
    assert asked is not None
    parts = pdf_parts(asked, info)
    return [
        "picture" if any(isinstance(p, ImagePart) for p in parts[i + 1 : i + 2]) else "text"
        for i, p in enumerate(parts)
        if isinstance(p, TextPart)
    ]


PICTURE = (
    "<</Type/XObject/Subtype/Image/Width 1/Height 1/ColorSpace/DeviceGray/BitsPerComponent 8/Length 1>>stream\n\x40\nendstream"
)
LONG = words(LINES)
CASES: dict[str, tuple[str, str]] = {
    "text": (LONG, "text"),
    "short": (words("(Chapter 1) Tj"), "text"),
    "empty": ("", "text"),
    "logo": (LONG + " q 60 0 0 60 500 760 cm /I Do Q", "text"),
    "ruled": (LONG + " 50 50 m 500 50 l S" * 20, "text"),
    "scan": ("q 595 0 0 842 0 0 cm /I Do Q", "picture"),
    "scan with a text layer": ("q 595 0 0 842 0 0 cm /I Do Q 3 Tr " + LONG, "picture"),
    "figure": (LONG + " q 400 0 0 400 90 60 cm /I Do Q", "picture"),
    "drawing": (" ".join(f"{i} {i * 3 % 700} m {i * 2 % 500} 90 l S" for i in range(300)), "picture"),
    "table of figures": (words("(12) Tj 20 0 Td " * 40) + " 5 5 m 90 5 l S" * 200, "picture"),
}


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
@pytest.mark.parametrize("name", CASES)
def test_a_page_is_read_or_looked_at(tmp_path: Path, name: str, turned: int) -> None:
    content, way = CASES[name]
    path = pdf(tmp_path / "a.pdf", [content], page=f"/Rotate {turned}", more=(PICTURE,))
    assert kinds(path) == [way]
    assert kinds(f"{path}#text") == ["text"] and kinds(f"{path}#picture") == ["picture"]


def test_pages_keep_their_numbers_and_order(tmp_path: Path) -> None:
    scan = CASES["scan"][0]
    path = pdf(
        tmp_path / "a.pdf", [words(f"(This is sheet {i}.) Tj") if i % 2 else scan for i in range(1, 6)], more=(PICTURE,)
    )
    engine = FakeEngine()
    assert attachments([f"{path}#p2-4#560"]) == ([f"{path}#p2-4#560"], [])
    chat = Conversation(engine)
    chat.ask("What is on sheet 3?", images=[f"{path}#p2-4#560"])
    first, picture, third, fourth, question = chat.history[0].content
    assert first == TextPart("a.pdf, page 2 of 5:") and isinstance(picture, ImagePart) and isinstance(fourth, ImagePart)
    assert third == TextPart("a.pdf, page 3 of 5:\n\nThis is sheet 3.\n\na.pdf, page 4 of 5:")
    assert question == TextPart("What is on sheet 3?") and picture.budget == 560 and picture.source.endswith("a.pdf page 2")


def test_a_scan_made_by_pillow(tmp_path: Path) -> None:
    image = Image.new("RGB", (800, 1100), "white")
    ImageDraw.Draw(image).text((100, 100), "scanned", fill="black")
    image.save(tmp_path / "scan.pdf", save_all=True, append_images=[image])
    parts = pdf_parts(wanted(tmp_path / "scan.pdf"), INFO)  # type: ignore[arg-type]
    pictures = [part for part in parts if isinstance(part, ImagePart) and part.pixels]
    assert [p.budget for p in pictures] == [1120, 1120] and all(p.pixels and 900 < p.pixels.tokens <= 1120 for p in pictures)


def test_more_pages_than_fit_are_said_with_those_that_do(tmp_path: Path) -> None:
    path = pdf(tmp_path / "long.pdf", [LONG] * 2000)
    info = EngineInfo("fake", "gemma4", 8192, 1120)
    with pytest.raises(ContextOverflow, match=r"Pages 1 to \d+ of 1 to 2000 fit: long.pdf#p1-\d+") as caught:
        pdf_parts(wanted(path), info)  # type: ignore[arg-type]
    fitting = str(caught.value).split("fit: long.pdf")[1].split(";")[0]
    assert set(kinds(f"{path}{fitting}", info)) == {"text"}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = pdf(tmp_path / "a.pdf", [LONG])
    lock = f"/Encrypt<</Filter/Standard/V 1/R 2/P -4/O<{'41' * 32}>/U<{'42' * 32}>>>/ID[<41><41>]"
    pdf(tmp_path / "locked.pdf", [LONG], trailer=lock)
    (tmp_path / "noise.pdf").write_bytes(b"%PDF-1.7\n" + zlib.compress(b"noise") * 20)
    for name, reason in {"locked.pdf": "password", "noise.pdf": "damaged"}.items():
        with pytest.raises(BadMedia, match=reason):
            Conversation(FakeEngine()).send("What?", images=[tmp_path / name])
    (tmp_path / "xref.pdf").write_bytes(whole.read_bytes().replace(b"startxref\n", b"startxref\n9"))
    assert kinds(tmp_path / "xref.pdf") == ["text"]
    for marks in ("#p2", "#p0", "#p3-1", "#999"):
        with pytest.raises(UsageError):
            Conversation(FakeEngine()).send("What?", images=[f"{whole}{marks}"])
    assert wanted("missing.pdf#p1") is None and wanted(b"%PDF-") is None


def test_a_model_without_eyes_reads_texts_alone(tmp_path: Path) -> None:
    blind = EngineInfo("fake", "gemma4", 8192, 0)
    path = pdf(tmp_path / "a.pdf", [LONG, CASES["scan"][0]], more=(PICTURE,))
    assert kinds(f"{path}#p1", blind) == ["text"]
    with pytest.raises(UsageError, match="#text"):
        pdf_parts(wanted(path), blind)  # type: ignore[arg-type]


def test_a_name_with_marks_may_be_a_file(tmp_path: Path) -> None:
    path = pdf(tmp_path / "a.pdf#p9", [LONG])
    assert kinds(path) == ["text"] and kinds(f"{path}#p1") == ["text"]


def test_what_a_good_text_layer_is() -> None:
    assert is_good("Grüße 漢字") and not is_good("") and not is_good("\ue001\ue002\ue003") and not is_good("a\x01\x03b")
