"""The words of a PDF page in reading order, and whether they say what the page shows.

PDFium gives words in the order in which they were drawn, which most programs make the reading order. Where it is not (columns
drawn line by line, lines drawn in any order) the page is cut into columns and rows instead.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

Box: TypeAlias = "tuple[float, float, float, float]"  # left, bottom, right, top, in points, as the page is shown

_ROWS = 4  # rows that a gutter must part
_COLUMN = 10  # widths of a character that a column of prose has at least; the cells of a table have less
_CHARACTERS = 20_000  # of a page that is put in order; one with more is left as it was drawn
_SMALL = 5.0  # points of a line without its leading, about 7 of type: too small for 560 tokens (116 dots an inch)
_FIGURE = re.compile(r"[-+−±<>~(]*[$€£¥]?\d[\d.,'’ :/]*(?:e[-+]?\d+)?[%‰)]*", re.IGNORECASE)
_VOWELS = frozenset("aeiouyàáâãäåæèéêëìíîïòóôõöøœùúûüýÿāăąēĕėęěīĭįıōŏőūŭůűųạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹơư")


@dataclass(frozen=True, slots=True)
class _Run:
    """Characters side by side on one line."""

    text: str
    box: Box

    @property
    def middle(self) -> float:
        return (self.box[1] + self.box[3]) / 2

    @property
    def height(self) -> float:
        return max(1.0, self.box[3] - self.box[1])


@dataclass(frozen=True, slots=True)
class Words:
    """The text of a page, the boxes of its pieces in the page's own space, and whether much of it is small print."""

    text: str
    boxes: tuple[Box, ...]
    small: bool


def words_of(page: Any) -> Words:
    """The page's words in reading order."""
    layer = page.get_textpage()
    try:
        count = layer.count_rects() if layer.count_chars() else 0
        turn, size = page.get_rotation(), page.get_size()
        boxes = [layer.get_rect(index) for index in range(count)]
        drawn = [_Run("", _shown(box, turn, size)) for box in boxes]
        if _jumbled(drawn) and layer.count_chars() <= _CHARACTERS:
            text = "\n".join(_ordered(_runs(layer, turn, size)))
        else:
            text = layer.get_text_bounded()
    finally:
        layer.close()
    text = text.replace("\r\n", "\n").replace("\x02", "-").replace("\ufffe", "-").replace("\xa0", " ")
    heights = sorted(run.box[3] - run.box[1] for run in drawn)
    small = bool(heights) and heights[len(heights) // 2] < _SMALL
    return Words(text.strip("\0 \n"), tuple(boxes), small)


def is_good(text: str) -> bool:
    """Whether a text layer holds words.

    At most one in 20 characters is none, and one in five Latin letters and more is a vowel: of a font without a table of its
    characters, other letters are read.
    """
    seen = [c for c in text if not c.isspace()]
    wrong = sum(c == "�" or not c.isprintable() or "\ue000" <= c <= "\uf8ff" for c in seen)
    if not seen or wrong * 20 > len(seen):
        return False
    latin = [c for c in text.lower() if "a" <= c < "\u0250" or "\u1e00" <= c < "\u1f00"]
    return len(latin) < 100 or sum(c in _VOWELS for c in latin) * 5 >= len(latin)


def is_figures(text: str) -> bool:
    """Whether a page is a table of figures: eight rows of three and more, or as many figures as other words."""
    rows = total = figures = 0
    for line in text.splitlines():
        pieces = line.split()
        found = sum(bool(_FIGURE.fullmatch(piece)) for piece in pieces)
        rows += found >= 3 and found * 2 >= len(pieces)
        total, figures = total + len(pieces), figures + found
    return rows >= 8 or (figures >= 24 and figures * 2 >= total)


def _shown(box: Box, turn: int, size: tuple[float, float]) -> Box:
    """A box in the page's own space, as it is shown after the page's turn (clockwise); `size` is that of the shown page."""
    left, bottom, right, top = box
    wide, high = size
    if turn == 90:
        return bottom, high - right, top, high - left
    if turn == 180:
        return wide - right, high - top, wide - left, high - bottom
    if turn == 270:
        return wide - top, left, wide - bottom, right
    return box


def _same_row(one: _Run, other: _Run) -> bool:
    shared = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    return shared > 0.4 * min(one.height, other.height)


def _jumbled(drawn: Sequence[_Run]) -> bool:
    """Whether what was drawn one after another is not what is read one after another."""
    if len(drawn) < 2 * _ROWS:
        return False
    back = across = 0
    gutter = _gutter(drawn)
    for one, other in pairwise(drawn):
        beside = min(one.box[2], other.box[2]) > max(one.box[0], other.box[0])
        back += beside and other.box[1] > one.box[3]
        if gutter is not None and _same_row(one, other):
            across += one.box[2] <= gutter <= other.box[0]
    return back > max(3, len(drawn) * 0.15) or across >= _ROWS


def _gutter(runs: Sequence[_Run]) -> float | None:
    """Where two columns of prose part: the place that the gaps of most rows share; None where there are no columns."""
    rows, gaps, beside = _rows(runs), list[tuple[float, float]](), 0
    for row in rows:
        for one, other in pairwise(row):
            if other.box[0] - one.box[2] >= max(5.0, 0.7 * one.height):
                gaps.append((one.box[2], other.box[0]))
        beside += len(row) > 1
    if len(gaps) < _ROWS:
        return None
    best = max(((end + begin) / 2 for begin, end in gaps), key=lambda x: sum(begin <= x <= end for begin, end in gaps))
    if sum(begin <= best <= end for begin, end in gaps) < max(_ROWS, beside * 0.6):
        return None
    across = sum(run.box[0] < best < run.box[2] for run in runs)
    sides: tuple[Callable[[_Run], bool], ...] = (lambda run: run.box[2] <= best, lambda run: run.box[0] >= best)
    for inside in sides:
        lengths = [_width(row, inside) for row in rows if any(map(inside, row))]
        if len(lengths) < _ROWS or statistics.median(lengths) < _COLUMN or across > len(lengths):
            return None
    return best


def _width(row: Sequence[_Run], inside: Callable[[_Run], bool]) -> float:
    """Characters, about, that the part of a row takes."""
    mine = [run for run in row if inside(run)]
    return sum(run.box[2] - run.box[0] for run in mine) / (0.6 * max(run.height for run in mine))


def _rows(runs: Sequence[_Run]) -> list[list[_Run]]:
    """Runs row by row from the top, each from the left."""
    rows: list[list[_Run]] = []
    for run in sorted(runs, key=lambda run: -run.middle):
        if rows and _same_row(rows[-1][0], run):
            rows[-1].append(run)
        else:
            rows.append([run])
    return [sorted(row, key=lambda run: run.box[0]) for row in rows]


def _ordered(runs: Sequence[_Run]) -> list[str]:
    """The lines of text: columns one after another between what spans them, rows elsewhere."""
    gutter = _gutter(runs) if len(runs) >= 2 * _ROWS else None
    if gutter is None:
        return [" ".join(run.text.strip() for run in row) for row in _rows(runs)]
    lines: list[str] = []
    left, right = list[_Run](), list[_Run]()
    for row in _rows(runs):
        spanning = any(run.box[0] < gutter < run.box[2] for run in row)
        if spanning:
            lines += [*_ordered(left), *_ordered(right), " ".join(run.text.strip() for run in row)]
            left, right = [], []
            continue
        for run in row:
            (left if run.box[2] <= gutter else right).append(run)
    return [*lines, *_ordered(left), *_ordered(right)]


def _runs(layer: Any, turn: int, size: tuple[float, float]) -> list[_Run]:
    import pypdfium2.raw as pdfium

    runs: list[_Run] = []
    letters, box = "", (0.0, 0.0, 0.0, 0.0)
    for index in range(layer.count_chars()):
        code = pdfium.FPDFText_GetUnicode(layer, index)
        letter = chr(code) if 0 < code < 0x110000 and not 0xD800 <= code < 0xE000 else ""
        here = _shown(layer.get_charbox(index, loose=True), turn, size)
        empty = here[2] <= here[0] or not letter or letter.isspace()
        high = max(1.0, box[3] - box[1])
        apart = here[0] - box[2] > 0.7 * high or here[0] < box[2] - high or abs(here[1] + here[3] - box[1] - box[3]) > high
        if letter in ("\r", "\n") or (not empty and apart):
            if letters.strip():
                runs.append(_Run(letters, box))
            letters = ""
        if letter in ("\r", "\n") or (empty and not letters):
            continue
        wider = (min(box[0], here[0]), min(box[1], here[1]), max(box[2], here[2]), max(box[3], here[3]))
        box = here if not letters else box if empty else wider
        letters += letter
    return [*runs, _Run(letters, box)] if letters.strip() else runs
