"""What a PDF page shows that its text does not say: pictures, drawings, charts, ink and the fields of forms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from localgemma.chat.pdf_text import Box
from localgemma.errors import BadMedia

_PATH, _IMAGE, _SHADING, _FORM = 2, 3, 4, 5  # FPDF_PAGEOBJ_*
_LINE, _BEZIER, _MOVE = 0, 1, 2  # FPDF_SEGMENT_*
_SEEN = frozenset({3, 4, 5, 6, 7, 8, 13, 15, 20})  # FPDF_ANNOT_*: text, lines, shapes, stamps, ink, fields of forms
_OBJECTS = 2_000  # paths on a page; one with more is a drawing
_LOOKED = 100_000  # objects of any kind that are looked at
_SEGMENTS = 600  # of one path; one with more is a drawing
_PIXELS = 200_000_000  # of a picture on a page: as much as a picture may have anywhere


@dataclass
class _Seen:
    """What was found among the objects of a page; boxes in the page's own space."""

    pictures: float = 0.0
    paths: int = 0
    surplus: int = 0  # segments beyond those of lines, boxes and circles
    wide: list[Box] = field(default_factory=list)  # of paths with a surplus
    marks: list[Box] = field(default_factory=list)  # slanted lines and round shapes
    boxes: list[Box] = field(default_factory=list)  # upright rectangles
    any: bool = False


def is_drawn(page: Any, words: Sequence[Box], has_text: bool) -> bool:
    """Whether the page must be seen. `words` are the boxes of its text, in the page's own space.

    Rules, frames, small logos, bullets and bands at the page's edge need not be seen. Raises BadMedia for a picture on it that
    is too large.
    """
    if _annotated(page):
        return True
    left, bottom, right, top = page.get_bbox()
    area = max(1.0, (right - left) * (top - bottom))
    seen = _seen(page, (left, bottom, right, top))
    if seen.pictures * 5 >= area or seen.paths >= _OBJECTS:
        return True
    if not has_text:
        return seen.any and _shows(page)
    if seen.surplus >= 40 and _span(seen.wide) >= 0.02 * area:
        return True
    boxes = [box for box in seen.boxes if not _at_edge(box, (left, bottom, right, top))]
    if len(seen.marks) >= 3 and _span([*seen.marks, *boxes]) >= 0.03 * area:
        return True
    bars = [box for box in boxes if not _holds(box, words)]
    return len(bars) >= 3 and _span(bars) >= 0.02 * area and _filled(page, bars) >= 3


def _annotated(page: Any) -> bool:
    """Whether somebody wrote or drew on the page, or it has fields of a form."""
    import pypdfium2.raw as pdfium

    for index in range(min(pdfium.FPDFPage_GetAnnotCount(page), 1000)):
        note = pdfium.FPDFPage_GetAnnot(page, index)
        if note:
            kind = pdfium.FPDFAnnot_GetSubtype(note)
            pdfium.FPDFPage_CloseAnnot(note)
            if kind in _SEEN:
                return True
    return False


def _objects(page: Any) -> Iterator[tuple[Any, Box]]:
    """Everything on the page but texts, with its box on the page; of forms what is in them."""
    for index, item in enumerate(page.get_objects(max_depth=6)):
        if index >= _LOOKED:
            return
        if item.type not in (_PATH, _IMAGE, _SHADING):
            continue
        box = item.get_bounds()
        around = item.container
        while around is not None:
            box, around = around.get_matrix().on_rect(*box), around.container
        yield item, box


def _seen(page: Any, whole: Box) -> _Seen:
    seen = _Seen()
    for item, box in _objects(page):
        inside = (max(box[0], whole[0]), max(box[1], whole[1]), min(box[2], whole[2]), min(box[3], whole[3]))
        wide, high = inside[2] - inside[0], inside[3] - inside[1]
        if wide <= 0 or high <= 0:
            continue
        seen.any = True
        if item.type == _IMAGE:
            columns, lines = item.get_px_size()
            if columns * lines > _PIXELS:
                raise BadMedia(f"A page holds a picture of {columns:,} × {lines:,} pixels, which is too large.", "")
            seen.pictures += wide * high
        elif item.type == _PATH:
            seen.paths += 1
            if seen.paths >= _OBJECTS:
                return seen
            _path(item, inside, seen)
    return seen


def _path(item: Any, box: Box, seen: _Seen) -> None:
    import pypdfium2.raw as pdfium

    count = pdfium.FPDFPath_CountSegments(item)
    wide, high = box[2] - box[0], box[3] - box[1]
    kinds = [pdfium.FPDFPathSegment_GetType(pdfium.FPDFPath_GetPathSegment(item, i)) for i in range(min(count, _SEGMENTS))]
    moves, lines, curves = max(1, kinds.count(_MOVE)), kinds.count(_LINE), kinds.count(_BEZIER) // 3
    if count > _SEGMENTS:
        curves = count
    surplus = max(0, curves - 4 * moves) + max(0, lines - 4 * moves)
    if surplus:
        seen.surplus += surplus
        seen.wide.append(box)
    thin, small = min(wide, high) < 3, max(wide, high) < 7
    rounded = curves == 4 * moves and lines >= 3 * moves
    closed = count > 0 and pdfium.FPDFPathSegment_GetClose(pdfium.FPDFPath_GetPathSegment(item, count - 1))
    sides = 4 if closed else 3  # PDFium draws the closing side too, so three closed ones are a triangle
    upright = not curves and (thin or lines >= sides * moves)
    if not small and not rounded and not upright and moves <= 4:
        seen.marks.append(box)
    if not curves and moves == 1 and sides <= lines <= 4 and min(wide, high) >= 5:
        seen.boxes.append(box)


def _span(boxes: Sequence[Box]) -> float:
    """The area of the box around all of them."""
    if not boxes:
        return 0.0
    left, bottom = min(box[0] for box in boxes), min(box[1] for box in boxes)
    return (max(box[2] for box in boxes) - left) * (max(box[3] for box in boxes) - bottom)


def _holds(box: Box, words: Sequence[Box]) -> bool:
    """Whether a text stands in the box."""
    return any(box[0] <= (word[0] + word[2]) / 2 <= box[2] and box[1] <= (word[1] + word[3]) / 2 <= box[3] for word in words)


def _at_edge(box: Box, whole: Box) -> bool:
    return box[0] <= whole[0] + 2 or box[1] <= whole[1] + 2 or box[2] >= whole[2] - 2 or box[3] >= whole[3] - 2


def _small(page: Any) -> Any:
    """The page in grey, at a fifth of its size."""
    wide, high = page.get_size()
    bitmap = page.render(scale=min(0.25, 300 / max(1.0, wide, high)), grayscale=True)
    pixels = bitmap.to_numpy().copy()
    bitmap.close()
    return pixels[..., 0] if pixels.ndim == 3 else pixels


def _shows(page: Any) -> bool:
    """Whether anything but one colour is seen."""
    pixels = _small(page)
    return int(pixels.max()) - int(pixels.min()) > 24


def _filled(page: Any, boxes: Sequence[Box]) -> int:
    """How many of the boxes have another colour in their middle than the page has most."""
    import numpy as np

    if page.get_rotation():
        return len(boxes)
    pixels = _small(page)
    left, bottom, right, top = page.get_bbox()
    ground = int(np.bincount(pixels.ravel(), minlength=256).argmax())
    high, wide = pixels.shape
    found = 0
    for box in boxes:
        x = int(((box[0] + box[2]) / 2 - left) / max(1.0, right - left) * wide)
        y = int((top - (box[1] + box[3]) / 2) / max(1.0, top - bottom) * high)
        found += abs(int(pixels[min(max(y, 0), high - 1), min(max(x, 0), wide - 1)]) - ground) > 24
    return found
