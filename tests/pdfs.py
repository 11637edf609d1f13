"""PDF files of which it is known what every page is, how its text reads, and what it must not do."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from reportlab.lib import pdfencrypt
from reportlab.lib.pagesizes import A4, landscape
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

TEXT = (
    "the river carries stones from old hills down to a wide valley where people grow wheat and keep bees near small "
    "houses of red brick while children walk to school along the water and talk about what they saw on their way"
)
WORDS = TEXT.split()


@dataclass(frozen=True)
class Case:
    """A file: what every page is (t: text, p: picture), texts in the order in which they must be read, a password."""

    name: str
    pages: str
    make: Callable[[Path], None]
    reads: tuple[str, ...] = ()
    password: str = ""


CASES: list[Case] = []


def case(pages: str, *reads: str, password: str = "") -> Callable[[Callable[[Path], None]], None]:
    """Add the file that a function makes."""

    def add(make: Callable[[Path], None]) -> None:
        CASES.append(Case(f"{make.__name__.replace('_', '-')}.pdf", pages, make, reads, password))

    return add


def pdf(
    path: Path, pages: list[str], *, page: str = "", trailer: str = "", root: str = "", more: tuple[str, ...] = ()
) -> Path:
    """A PDF of content streams; object 3 is the font, `more` objects follow from 4."""
    kids = [4 + len(more) + 2 * i for i in range(len(pages))]
    objects = [
        f"<</Type/Catalog/Pages 2 0 R{root}>>",
        f"<</Type/Pages/Count {len(pages)}/Kids[{' '.join(f'{k} 0 R' for k in kids)}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        *more,
    ]
    for kid, content in zip(kids, pages, strict=True):
        shown = "/XObject<</I 4 0 R>>" if more and "XObject" in more[0] else ""
        resources = f"/Resources<</Font<</F 3 0 R>>{shown}>>"
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


def line(rng: random.Random, count: int = 12) -> str:
    """Words at random."""
    return " ".join(rng.choice(WORDS) for _ in range(count)).capitalize()


def prose(canvas: Canvas, seed: int = 0, *, top: float = 780, lines: int = 45, left: float = 60, size: int = 11) -> None:
    """Lines of words."""
    rng = random.Random(seed)
    canvas.setFont("Helvetica", size)
    for index in range(lines):
        canvas.drawString(left, top - 16 * index, line(rng))


def page_of(path: Path, *draw: Callable[[Canvas], None], size: Any = A4, **options: Any) -> None:
    """A file with a page for every function."""
    canvas = Canvas(str(path), pagesize=size, **options)
    for each in draw:
        each(canvas)
        canvas.showPage()
    canvas.save()


def scanned(seed: int = 0, size: tuple[int, int] = (1240, 1754)) -> Image.Image:
    """A page of words as a scanner gives it."""
    rng = random.Random(seed)
    image = Image.new("L", size, 245)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(28)
    for index in range(40):
        draw.text((110, 120 + 38 * index), line(rng, 10), fill=30, font=font)
    return image.rotate(0.6, fillcolor=245)


def photo(size: tuple[int, int] = (400, 300)) -> Image.Image:
    return Image.radial_gradient("L").resize(size).convert("RGB")


def put(canvas: Canvas, image: Image.Image, left: float, bottom: float, wide: float, high: float) -> None:
    stream = io.BytesIO()
    image.save(stream, "JPEG" if image.mode in ("L", "RGB") else "PNG")
    canvas.drawImage(ImageReader(io.BytesIO(stream.getvalue())), left, bottom, wide, high)


def full(canvas: Canvas, image: Image.Image) -> None:
    put(canvas, image, 0, 0, *A4)


def columns(count: int, rows: int = 30) -> list[list[str]]:
    """Lines of columns, each naming its place."""
    return [[f"Col{c} row{r:02d} {line(random.Random(c * 100 + r), 4)}" for r in range(rows)] for c in range(count)]


def in_order(count: int, rows: int = 30) -> tuple[str, ...]:
    return tuple(f"Col{c} row{r:02d}" for c in range(count) for r in range(rows))


# Text.


@case("t", "The first line", "The last line")
def plain(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.drawString(60, 800, "The first line")
        prose(canvas, top=780, lines=40)
        canvas.drawString(60, 60, "The last line")

    page_of(path, draw)


@case("ttttt", "Page 3 of the report")
def report(path: Path) -> None:
    def draw(number: int) -> Callable[[Canvas], None]:
        def one(canvas: Canvas) -> None:
            canvas.drawString(60, 815, "Annual report")
            canvas.line(60, 808, 535, 808)
            canvas.drawString(60, 790, f"Page {number} of the report")
            prose(canvas, number, top=770, lines=42)
            canvas.drawCentredString(297, 30, str(number))

        return one

    page_of(path, *map(draw, range(1, 6)))


@case("t", *in_order(2))
def two_columns_drawn_line_by_line(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica", 10)
        for left, right in zip(*columns(2), strict=True):
            y = canvas.__dict__.setdefault("at", 780)
            canvas.drawString(50, y, left)
            canvas.drawString(310, y, right)
            canvas.__dict__["at"] = y - 14

    page_of(path, draw)


@case("t", *in_order(2))
def two_columns_one_after_the_other(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica", 10)
        for column, x in zip(columns(2), (50, 310), strict=True):
            for row, text in enumerate(column):
                canvas.drawString(x, 780 - 14 * row, text)

    page_of(path, draw)


@case("t", *in_order(3))
def three_columns_drawn_line_by_line(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica", 7)
        for row, texts in enumerate(zip(*columns(3), strict=True)):
            for x, text in zip((40, 220, 400), texts, strict=True):
                canvas.drawString(x, 780 - 12 * row, text)

    page_of(path, draw)


@case("t", "A heading over", *in_order(2), "A note under both")
def heading_over_columns(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica-Bold", 16)
        canvas.drawString(50, 805, "A heading over both columns of this page here")
        canvas.setFont("Times-Roman", 10)
        for row, (left, right) in enumerate(zip(*columns(2), strict=True)):
            canvas.drawString(50, 780 - 14 * row, left)
            canvas.drawString(310, 780 - 14 * row, right)
        canvas.drawString(50, 320, "A note under both columns, which is as wide as the page and as long as this line is.")

    page_of(path, draw)


@case("t", *(f"Line {i:02d}" for i in range(40)))
def lines_in_any_order(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        rows = list(range(40))
        random.Random(5).shuffle(rows)
        for row in rows:
            canvas.drawString(60, 780 - 16 * row, f"Line {row:02d} {line(random.Random(row), 8)}")

    page_of(path, draw)


@case("tttt", *in_order(2, 20) * 4)
def turned_columns(path: Path) -> None:
    def turned(degrees: int) -> Callable[[Canvas], None]:
        def draw(canvas: Canvas) -> None:
            wide, high = A4
            canvas.setPageRotation(degrees)
            canvas.translate(*{0: (0, 0), 90: (wide, 0), 180: (wide, high), 270: (0, high)}[degrees])
            canvas.rotate(degrees)
            canvas.setFont("Helvetica", 10)
            for row, (left, right) in enumerate(zip(*columns(2, 20), strict=True)):
                canvas.drawString(50, 500 - 14 * row, left)
                canvas.drawString(300, 500 - 14 * row, right)

        return draw

    page_of(path, *map(turned, (0, 90, 180, 270)))


@case("t", "吾輩は猫である", "名前はまだ無い", "どこで生れたか")
def japanese(path: Path) -> None:
    pdfmetrics.registerFont(UnicodeCIDFont("HeiseiMin-W3"))

    def draw(canvas: Canvas) -> None:
        canvas.setFont("HeiseiMin-W3", 12)
        for row, text in enumerate(("吾輩は猫である。", "名前はまだ無い。", "どこで生れたか頓と見当がつかぬ。") * 3):
            canvas.drawString(60, 780 - 18 * row, text)

    page_of(path, draw)


@case("t", "学而时习之", "不亦说乎", "한국어")
def chinese_and_korean(path: Path) -> None:
    for name in ("STSong-Light", "HYSMyeongJo-Medium"):
        pdfmetrics.registerFont(UnicodeCIDFont(name))

    def draw(canvas: Canvas) -> None:
        canvas.setFont("STSong-Light", 12)
        for row, text in enumerate(("学而时习之，", "不亦说乎？", "有朋自远方来，不亦乐乎？")):
            canvas.drawString(60, 780 - 18 * row, text)
        canvas.setFont("HYSMyeongJo-Medium", 12)
        canvas.drawString(60, 700, "한국어 문서")

    page_of(path, draw)


@case("t", "Überraschung", "naïve café", "œuvre — €5")
def accents(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        for row, text in enumerate(("Überraschung für Größe", "naïve café, señor", "œuvre — €5 “quoted”")):
            canvas.drawString(60, 780 - 18 * row, text)

    page_of(path, draw)


@case("t", "Chapter 1", "Chapter 12")
def contents(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        for row in range(1, 31):
            canvas.drawString(60, 790 - 18 * row, f"Chapter {row} {line(random.Random(row), 4)} " + "." * 60)
            canvas.drawRightString(535, 790 - 18 * row, str(row * 7))

    page_of(path, draw)


@case("t", "In 2024 the valley")
def figures_in_sentences(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        for row in range(40):
            rng = random.Random(row)
            text = f"In {2024 - row} the valley grew {rng.randint(100, 999)} tons of wheat, {rng.randint(2, 30)} % more than"
            canvas.drawString(60, 790 - 18 * row, f"{text} {line(rng, 5).lower()}")

    page_of(path, draw)


@case("t", "def count(words):", "return found")
def program(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Courier", 9)
        source = [
            "def count(words):",
            "    found = {}",
            "    for word in words:",
            "        found[word] = 1",
            "    return found",
            "",
        ]
        for row, text in enumerate(source * 9):
            canvas.drawString(60, 790 - 12 * row, text)

    page_of(path, draw)


@case("t", "Decorated")
def logo_bullets_and_rules(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFillColorRGB(0.1, 0.3, 0.6)
        canvas.rect(0, 800, 595, 42, stroke=0, fill=1)
        put(canvas, photo((60, 60)), 520, 740, 50, 50)
        canvas.setFillColorRGB(0, 0, 0)
        canvas.drawString(60, 770, "Decorated page with a list")
        rng = random.Random(1)
        for row in range(30):
            canvas.circle(64, 734 - 20 * row, 2, fill=1)
            canvas.drawString(74, 730 - 20 * row, line(rng, 9))
            canvas.line(60, 724 - 20 * row, 535, 724 - 20 * row)

    page_of(path, draw)


@case("t", "Step 0", "Step 5")
def framed_and_shaded_texts(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        for row in range(6):
            canvas.setFillColorRGB(0.85, 0.9, 1)
            canvas.roundRect(60, 700 - 120 * row, 475, 90, 8, fill=1)
            canvas.setFillColorRGB(0, 0, 0)
            for index in range(4):
                canvas.drawString(75, 770 - 120 * row - 17 * index, f"Step {row} {line(random.Random(index), 9)}")

    page_of(path, draw)


@case("t", "Name", "Town", "Anna")
def small_table_of_words(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        prose(canvas, 3, lines=20)
        rows = [("Name", "Town", "Work"), ("Anna", "Bonn", "baker"), ("Bert", "Ulm", "smith"), ("Carl", "Jena", "cook")]
        for r, cells in enumerate(rows):
            for c, text in enumerate(cells):
                canvas.rect(60 + 100 * c, 400 - 20 * r, 100, 20)
                canvas.drawString(64 + 100 * c, 406 - 20 * r, text)
        prose(canvas, 4, top=300, lines=12)

    page_of(path, draw)


@case("tt", "A slide", "Another slide")
def slides(path: Path) -> None:
    def slide(title: str) -> Callable[[Canvas], None]:
        def draw(canvas: Canvas) -> None:
            wide, high = landscape(A4)
            canvas.setFillColorRGB(0.05, 0.1, 0.3)
            canvas.rect(0, 0, wide, high, fill=1)
            canvas.setFillColorRGB(1, 1, 1)
            canvas.setFont("Helvetica", 30)
            canvas.drawString(60, 480, title)
            canvas.setFont("Helvetica", 18)
            for row in range(6):
                canvas.drawString(80, 420 - 40 * row, f"– {line(random.Random(row), 6)}")

        return draw

    page_of(path, slide("A slide"), slide("Another slide"), size=landscape(A4))


@case("ttt", "Before", "After")
def empty_page_between(path: Path) -> None:
    page_of(
        path, lambda canvas: canvas.drawString(60, 780, "Before"), lambda _: None, lambda c: c.drawString(60, 780, "After")
    )


# Pictures.


@case("p")
def scan(path: Path) -> None:
    page_of(path, lambda canvas: full(canvas, scanned()))


@case("pp")
def scan_with_hidden_text(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        full(canvas, scanned())
        text = canvas.beginText(60, 780)
        text.setTextRenderMode(3)
        for row in range(40):
            text.textLine(line(random.Random(row)))
        canvas.drawText(text)

    page_of(path, draw, draw)


@case("p")
def scan_in_a_form(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.beginForm("scan")
        put(canvas, scanned(), 0, 0, 1, 1)
        canvas.endForm()
        canvas.scale(*A4)
        canvas.doForm("scan")

    page_of(path, draw)


@case("p")
def scan_in_strips(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        image = scanned()
        for index in range(12):
            strip = image.crop((0, index * 146, 1240, (index + 1) * 146))
            put(canvas, strip, 0, 842 - (index + 1) * 70.2, 595, 70.2)

    page_of(path, draw)


@case("pp")
def turned_scan(path: Path) -> None:
    def draw(degrees: int) -> Callable[[Canvas], None]:
        def one(canvas: Canvas) -> None:
            canvas.setPageRotation(degrees)
            full(canvas, scanned().rotate(degrees, expand=True))

        return one

    page_of(path, draw(90), draw(180))


@case("tptpt", "Sheet one", "Sheet three", "Sheet five")
def mixed(path: Path) -> None:
    def text(title: str) -> Callable[[Canvas], None]:
        def draw(canvas: Canvas) -> None:
            canvas.drawString(60, 800, title)
            prose(canvas, 1, lines=40)

        return draw

    def figure(canvas: Canvas) -> None:
        prose(canvas, 2, lines=12)
        put(canvas, photo(), 60, 150, 475, 380)

    page_of(path, text("Sheet one"), lambda canvas: full(canvas, scanned()), text("Sheet three"), figure, text("Sheet five"))


def table(canvas: Canvas, *, rows: int, cells: int, ruled: bool, top: float = 790) -> None:
    rng = random.Random(7)
    canvas.setFont("Helvetica", 9)
    for r in range(rows):
        canvas.drawString(50, top - 16 * r, f"Item {r} of {rng.choice(WORDS)}")
        for c in range(cells):
            canvas.drawRightString(220 + 62 * c, top - 16 * r, f"{rng.randint(100, 99999):,}.{rng.randint(0, 99):02d}")
        if ruled:
            canvas.line(45, top - 4 - 16 * r, 550, top - 4 - 16 * r)
    if ruled:
        for c in range(cells + 1):
            canvas.line(160 + 62 * c, top + 12, 160 + 62 * c, top - 16 * rows)


@case("p")
def figures_without_rules(path: Path) -> None:
    page_of(path, lambda canvas: table(canvas, rows=42, cells=6, ruled=False))


@case("pp")
def figures_with_rules(path: Path) -> None:
    def under_text(canvas: Canvas) -> None:
        prose(canvas, 3, lines=10)
        table(canvas, rows=20, cells=5, ruled=True, top=560)

    page_of(path, lambda canvas: table(canvas, rows=40, cells=6, ruled=True), under_text)


@case("p")
def bar_chart(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        prose(canvas, 1, lines=10)
        canvas.line(80, 200, 80, 500)
        canvas.line(80, 200, 520, 200)
        for index, high in enumerate((120, 200, 90, 260, 170, 230)):
            canvas.setFillColorRGB(0.2, 0.4, 0.8)
            canvas.rect(100 + 70 * index, 200, 40, high, fill=1)
            canvas.setFillColorRGB(0, 0, 0)
            canvas.drawString(105 + 70 * index, 185, str(2019 + index))

    page_of(path, draw)


@case("p")
def line_chart(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        prose(canvas, 1, lines=8)
        canvas.rect(80, 200, 440, 320)
        for curve in range(3):
            path_ = canvas.beginPath()
            path_.moveTo(80, 250)
            for index in range(1, 60):
                path_.lineTo(80 + 7.4 * index, 330 + 90 * math.sin(index / 6 + curve))
            canvas.drawPath(path_)
        canvas.drawString(240, 180, "Months since planting")

    page_of(path, draw)


@case("p")
def pie_chart(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        prose(canvas, 1, lines=8)
        begin = 0
        for index, size in enumerate((100, 60, 90, 40, 70)):
            canvas.setFillColorRGB(0.2 * index, 0.5, 1 - 0.2 * index)
            canvas.wedge(180, 220, 420, 460, begin, size, fill=1)
            begin += size
            canvas.setFillColorRGB(0, 0, 0)
            canvas.drawString(440, 440 - 20 * index, WORDS[index])

    page_of(path, draw)


@case("p")
def flow_chart(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        for row in range(5):
            canvas.rect(200, 680 - 130 * row, 180, 60)
            canvas.drawString(215, 705 - 130 * row, f"Step {row}: {WORDS[row]} {WORDS[row + 9]}")
            if row < 4:
                canvas.line(290, 680 - 130 * row, 290, 612 - 130 * row)
                arrow = canvas.beginPath()
                arrow.moveTo(284, 624 - 130 * row)
                arrow.lineTo(296, 624 - 130 * row)
                arrow.lineTo(290, 610 - 130 * row)
                arrow.close()
                canvas.drawPath(arrow, fill=1)

    page_of(path, draw)


def strokes(canvas: Canvas, top: float, rows: int) -> None:
    rng = random.Random(9)
    canvas.setLineWidth(1.4)
    for row in range(rows):
        x = 60.0
        while x < 500:
            stroke = canvas.beginPath()
            y = top - 34 * row
            stroke.moveTo(x, y)
            for _ in range(rng.randint(2, 7)):
                stroke.curveTo(
                    x + rng.uniform(0, 8), y + rng.uniform(-4, 18), x + rng.uniform(2, 12), y + rng.uniform(-10, 14), x + 9, y
                )
                x += 9
            canvas.drawPath(stroke)
            x += 14


@case("p")
def handwriting(path: Path) -> None:
    page_of(path, lambda canvas: strokes(canvas, 780, 18))


@case("p")
def handwriting_beside_print(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        prose(canvas, 1, lines=16)
        strokes(canvas, 420, 6)

    page_of(path, draw)


@case("p")
def ink_over_print(path: Path) -> None:
    ink = "<</Type/Annot/Subtype/Ink/Rect[50 300 500 400]/InkList[[60 310 120 390 180 320 260 380 420 330]]/C[1 0 0]/F 4>>"
    words = "BT /F 12 Tf 50 780 Td " + "(The quick brown fox jumps over the lazy dog.) Tj 0 -16 Td " * 20 + "ET"
    pdf(path, [words], page="/Annots[4 0 R]", more=(ink,))


@case("p")
def letters_as_outlines(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        rng = random.Random(2)
        for row in range(8):
            for column in range(30):
                x, y = 60 + 15 * column, 700 - 30 * row
                glyph = canvas.beginPath()
                glyph.moveTo(x, y)
                for _ in range(rng.randint(3, 9)):
                    glyph.lineTo(x + rng.uniform(0, 9), y + rng.uniform(0, 14))
                glyph.close()
                canvas.drawPath(glyph, fill=1, stroke=0)

    page_of(path, draw)


@case("p")
def letters_without_a_table(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setFont("Helvetica", 11)
        for row in range(40):
            text = line(random.Random(row))
            canvas.drawString(60, 780 - 16 * row, "".join(c if c == " " else chr(ord(c) - 29) for c in text))

    page_of(path, draw)


@case("p")
def plan_of_a_house(path: Path) -> None:
    def draw(canvas: Canvas) -> None:
        rng = random.Random(3)
        for _ in range(260):
            x, y = rng.uniform(60, 500), rng.uniform(100, 760)
            canvas.line(x, y, x + rng.uniform(-60, 60), y + rng.uniform(-60, 60))
        for room in ("Kitchen", "Hall", "Bath"):
            canvas.drawString(rng.uniform(100, 400), rng.uniform(200, 600), room)

    page_of(path, draw)


# Others.


@case("pt", "The second page has no fields")
def form(path: Path) -> None:
    def fields(canvas: Canvas) -> None:
        canvas.drawString(60, 780, "Name:")
        canvas.acroForm.textfield(name="name", x=120, y=770, width=200, height=20, value="Anna Example")
        canvas.acroForm.checkbox(name="yes", x=120, y=730, checked=True)

    def text(canvas: Canvas) -> None:
        canvas.drawString(60, 800, "The second page has no fields")
        prose(canvas, 2, lines=30)

    page_of(path, fields, text)


@case("t", "Behind a lock", password="open sesame")
def locked(path: Path) -> None:
    lock = pdfencrypt.StandardEncryption("open sesame", "owner", strength=128)
    page_of(path, lambda canvas: canvas.drawString(60, 780, "Behind a lock"), encrypt=lock)


@case("t", "May be read by all")
def locked_against_changes(path: Path) -> None:
    lock = pdfencrypt.StandardEncryption("", "owner", canPrint=0, canCopy=0, strength=128)
    page_of(path, lambda canvas: canvas.drawString(60, 780, "May be read by all"), encrypt=lock)


@case("t" * 2000, "Sheet 1 of", "Sheet 2000 of")
def two_thousand_pages(path: Path) -> None:
    def draw(number: int) -> Callable[[Canvas], None]:
        def one(canvas: Canvas) -> None:
            canvas.drawString(60, 800, f"Sheet {number} of 2000")
            prose(canvas, number, lines=40)

        return one

    page_of(path, *(draw(number) for number in range(1, 2001)))


@case("ttt", "Sheet a", "Sheet c")
def broken_xref(path: Path) -> None:
    page_of(path, *(lambda canvas, t=t: (canvas.drawString(60, 800, f"Sheet {t}"), prose(canvas, 1)) for t in "abc"))
    data = path.read_bytes()
    at, trailer = data.rindex(b"xref\n0"), data.rindex(b"trailer")
    body = data[:at].replace(b"endobj\n", b"endobj\n\n")  # no object is where the table says
    path.write_bytes(body + data[at:trailer] + data[trailer : data.rindex(b"startxref")] + b"startxref\n99999\n%%EOF")


@case("t", "Nothing of this runs")
def actions(path: Path) -> None:
    script = "<</S/JavaScript/JS(app.alert\\(1\\); app.launchURL\\('http://127.0.0.1:9/'\\); this.submitForm\\('http://127.0.0.1:9/'\\);)>>"
    link = "<</Type/Annot/Subtype/Link/Rect[0 0 595 842]/A<</S/URI/URI(http://127.0.0.1:9/)>>>>"
    root = "/OpenAction 4 0 R/AA<</WC 4 0 R>>/Names<</JavaScript<</Names[(a) 4 0 R]>>>>"
    page = "/Annots[5 0 R]/AA<</O<</S/Launch/F(/bin/touch)/Win<</F(calc.exe)>>>>>>"
    words = "BT /F 12 Tf 50 780 Td (Nothing of this runs, and nothing is fetched.) Tj ET"
    pdf(path, [words], root=root, page=page, more=(script, link))
