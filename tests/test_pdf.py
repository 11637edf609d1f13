"""PDF files: what every page is taken for, its number, and files that cannot be read."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import pytest
from fakes import FakeEngine
from pdfs import CASES, Case, pdf
from PIL import Image, ImageDraw

from localgemma.chat.conversation import Conversation
from localgemma.chat.pdf import Wanted, plan, wanted
from localgemma.chat.pdf_text import is_good
from localgemma.chat.room import Room
from localgemma.cli.attach import attachments
from localgemma.engine import EngineInfo
from localgemma.errors import BadMedia, ContextOverflow, LockedDocument, UsageError
from localgemma.messages import ImagePart, Notice, Part, Progress, TextPart

LOOKS = [case for case in CASES if len(case.pages) < 100]
INFO = EngineInfo("fake", "gemma4", 100_000, 1120)
LINES = "(The quick brown fox jumps over the lazy dog.) Tj 0 -16 Td " * 20


def pdf_parts(asked: Wanted | None, info: EngineInfo) -> list[Part]:
    """The pages as a conversation reads them."""
    assert asked is not None
    planned = plan(asked, info, Room(info.context, lambda text: len(text) // 3))
    return [part for part in planned.read() if not isinstance(part, Progress)]


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
PAGES: dict[str, tuple[str, str]] = {
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


@pytest.mark.parametrize("case", LOOKS, ids=lambda case: case.name)
def test_pages_are_what_they_are_and_read_in_order(tmp_path: Path, case: Case) -> None:
    path = tmp_path / case.name
    case.make(path)
    source = f"{path}#password={case.password}" if case.password else path
    assert "".join("p" if kind == "picture" else "t" for kind in kinds(source)) == case.pages
    text = "\n".join(part.text for part in pdf_parts(wanted(source), INFO) if isinstance(part, TextPart))
    at = 0
    for piece in case.reads:
        at = text.find(piece, at) + 1
        assert at, (piece, text)


@pytest.mark.parametrize("turned", [0, 90, 180, 270])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_read_or_looked_at(tmp_path: Path, name: str, turned: int) -> None:
    content, way = PAGES[name]
    path = pdf(tmp_path / "a.pdf", [content], page=f"/Rotate {turned}", more=(PICTURE,))
    assert kinds(path) == [way]
    assert kinds(f"{path}#text") == ["text"] and kinds(f"{path}#picture") == ["picture"]


def test_pages_keep_their_numbers_and_order(tmp_path: Path) -> None:
    scan = PAGES["scan"][0]
    path = pdf(
        tmp_path / "a.pdf", [words(f"(This is sheet {i}.) Tj") if i % 2 else scan for i in range(1, 6)], more=(PICTURE,)
    )
    engine = FakeEngine()
    assert attachments([f"{path}#p2-4#560"]) == [f"{path}#p2-4#560"]
    chat = Conversation(engine)
    chat.ask("What is on sheet 3?", images=[f"{path}#p2-4#560"])
    first, picture, third, fourth, question = chat.history[0].read
    assert isinstance(picture, ImagePart) and isinstance(fourth, ImagePart)
    assert first == TextPart("a.pdf, page 2 of 5:", f"{path} page 2")
    assert third == TextPart("a.pdf, page 3 of 5:\n\nThis is sheet 3.\n\na.pdf, page 4 of 5:", f"{path} page 4")
    assert question == TextPart("What is on sheet 3?") and picture.budget == 560 and picture.source.endswith("a.pdf page 2")


def test_a_scan_made_by_pillow(tmp_path: Path) -> None:
    image = Image.new("RGB", (800, 1100), "white")
    ImageDraw.Draw(image).text((100, 100), "scanned", fill="black")
    image.save(tmp_path / "scan.pdf", save_all=True, append_images=[image])
    parts = pdf_parts(wanted(tmp_path / "scan.pdf"), INFO)
    pictures = [part for part in parts if isinstance(part, ImagePart) and part.pixels]
    assert [p.budget for p in pictures] == [1120, 1120] and all(p.pixels and 900 < p.pixels.tokens <= 1120 for p in pictures)


def test_more_pages_than_fit_are_said_with_those_that_do(tmp_path: Path) -> None:
    path = pdf(tmp_path / "long.pdf", [LONG] * 2000)
    info = EngineInfo("fake", "gemma4", 8192, 1120)
    with pytest.raises(ContextOverflow, match=r"Pages 1 to \d+ of 1 to 2000 fit: long.pdf#p1-\d+") as caught:
        pdf_parts(wanted(path), info)
    fitting = re.findall(r"fit: long.pdf(#p1-\d+)", str(caught.value))[0]
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


def test_a_password_is_given_with_the_name_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = next(case.make for case in CASES if case.password)
    make(tmp_path / "a.pdf")
    path = str(tmp_path / "a.pdf")
    with pytest.raises(LockedDocument, match=r"Give it: a\.pdf#password=…"):
        attachments([path])
    with pytest.raises(LockedDocument, match="is another one"):
        attachments([f"{path}#p1#password=open"])
    assert attachments([f"{path}#p1#password=open sesame"]) == [f"{path}#p1#password=open sesame"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.prompt", lambda *_, **__: "open sesame")
    (asked,) = attachments([f"{path}#p1"])
    engine = FakeEngine()
    chat = Conversation(engine)
    events = list(chat.send("What is behind it?", [asked]))
    assert "Behind a lock" in str(engine.requests[0].prompt)
    chat.save(tmp_path / "kept")
    assert "sesame" not in repr(events) + (tmp_path / "kept" / "chat.json").read_text() + str(engine.requests[0].prompt)


def test_pdfium_has_no_javascript() -> None:
    import pypdfium2

    assert not {"V8", "XFA"} & set(pypdfium2.PDFIUM_INFO.flags)


def test_documents_share_the_context(tmp_path: Path) -> None:
    one, other = pdf(tmp_path / "one.pdf", [LONG] * 3), pdf(tmp_path / "other.pdf", [LONG] * 8)
    engine = FakeEngine(context=8000)
    with pytest.raises(
        ContextOverflow, match=r"Pages 1 to 5 of 1 to 8 fit: other.pdf#p1-5; or load with --ctx 16384"
    ) as caught:
        Conversation(engine).send("What?", [one, other])
    assert caught.value.available == 8000 and caught.value.needed > 8000
    chat = Conversation(engine)
    notices = [event.text for event in chat.send("What?", [one, f"{other}#p1-5"]) if isinstance(event, Notice)]
    assert [text.split(", about")[0] for text in notices] == [
        "one.pdf → pages 1-3 of 3, 3 as text", "other.pdf → pages 1-5 of 8, 5 as text"
    ]  # fmt: skip
    with pytest.raises(ContextOverflow, match="--ctx"):
        chat.send("And this?", [one])


def test_words_stay_when_the_question_changes(tmp_path: Path) -> None:
    chat = Conversation(FakeEngine())
    chat.ask("How many?", [pdf(tmp_path / "a.pdf", [words("(Three bees.) Tj")])])
    assert chat.history[0].text == "How many?"
    for _ in chat.edit(0, "Which animals?"):
        pass
    assert chat.prompt().parts and "Three bees.\n\nWhich animals?" in str(chat.prompt())


def test_a_model_without_eyes_reads_texts_alone(tmp_path: Path) -> None:
    blind = EngineInfo("fake", "gemma4", 8192, 0)
    path = pdf(tmp_path / "a.pdf", [LONG, PAGES["scan"][0]], more=(PICTURE,))
    assert kinds(f"{path}#p1", blind) == ["text"]
    with pytest.raises(UsageError, match="#text"):
        pdf_parts(wanted(path), blind)


def test_a_name_with_marks_may_be_a_file(tmp_path: Path) -> None:
    path = pdf(tmp_path / "a.pdf#p9", [LONG])
    assert kinds(path) == ["text"] and kinds(f"{path}#p1") == ["text"]


def test_what_a_good_text_layer_is() -> None:
    assert is_good("Grüße 漢字") and not is_good("") and not is_good("\ue001\ue002\ue003") and not is_good("a\x01\x03b")
