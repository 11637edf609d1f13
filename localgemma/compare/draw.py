"""Pictures and videos of the built-in sets, drawn from recipes, so that the sets stay small and the same everywhere.

A recipe is {"size": [width, height], "back": colour, "tokens": budget, "things": [thing, …]}, and a thing is a list that
begins with what it is: ["circle", colour, x, y, radius] and the other shapes, ["text", words, x, y, size, colour],
["box", colour, left, top, right, bottom], ["scatter", shape, colour, count, seed, radius], ["bars" | "line" | "pie", title,
{name: value}], ["table", [[cell, …], …]]. A video has `seconds`, each of them a frame, `scenes` as [[second, things], …] and
`moves` as [thing, x, y]: a shape that is at (x, y) in the last second.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from localgemma.gemma4 import vision
from localgemma.messages import ImagePart, Pixels, VideoPart

if TYPE_CHECKING:
    from PIL import ImageDraw

BUDGET = 70  # tokens of a picture or frame that says no other
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 30, 30), "green": (30, 160, 50), "blue": (40, 70, 220), "yellow": (245, 220, 40), "orange": (250, 140, 20),
    "purple": (140, 40, 170), "pink": (250, 150, 190), "brown": (120, 70, 30), "white": (255, 255, 255), "black": (10, 10, 10),
    "gray": (150, 150, 150), "cyan": (40, 190, 210), "cream": (250, 244, 225), "navy": (20, 30, 80),
}  # fmt: skip
_SERIES = ("blue", "orange", "green", "red", "purple", "brown", "cyan", "pink")


def picture(recipe: Mapping[str, Any]) -> ImagePart:
    """The picture of a recipe, at the size that the vision tower takes."""
    budget = int(recipe.get("tokens", BUDGET))
    return ImagePart(vision.prepare(_drawn(recipe, recipe["things"]), budget), "drawn.png", budget)


def video(recipe: Mapping[str, Any]) -> VideoPart:
    """The video of a recipe, a frame a second."""
    budget, seconds = int(recipe.get("tokens", BUDGET)), int(recipe["seconds"])
    frames, known = [], dict[str, Pixels]()  # a frame like an earlier one is that one, which saves its megabyte
    for second in range(seconds):
        scene = [things for start, things in recipe.get("scenes", ()) if start <= second]
        things = [*(scene[-1] if scene else ())]
        for thing, x, y in recipe.get("moves", ()):
            part = second / (seconds - 1)
            things.append([*thing[:2], thing[2] + (x - thing[2]) * part, thing[3] + (y - thing[3]) * part, *thing[4:]])
        key = repr(things)
        if key not in known:
            known[key] = vision.prepare(_drawn(recipe, things), budget)
        frames.append((float(second), known[key]))
    return VideoPart(tuple(frames), "drawn.mp4", budget)


def _drawn(recipe: Mapping[str, Any], things: Sequence[Sequence[Any]]) -> Any:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", tuple(recipe["size"]), COLOURS[recipe.get("back", "white")])
    pen = ImageDraw.Draw(image)
    for kind, *values in things:
        if kind in SHAPES:
            colour, x, y, radius = values
            SHAPES[kind](pen, COLOURS[colour], x, y, radius)
        else:
            _OTHERS[kind](pen, image.size, *values)
    return image


def _circle(pen: ImageDraw.ImageDraw, fill: Any, x: float, y: float, r: float) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _square(pen: ImageDraw.ImageDraw, fill: Any, x: float, y: float, r: float) -> None:
    pen.rectangle((x - r * 0.9, y - r * 0.9, x + r * 0.9, y + r * 0.9), fill=fill)


def _triangle(pen: ImageDraw.ImageDraw, fill: Any, x: float, y: float, r: float) -> None:
    pen.polygon([(x, y - r), (x - r, y + r * 0.8), (x + r, y + r * 0.8)], fill=fill)


def _star(pen: ImageDraw.ImageDraw, fill: Any, x: float, y: float, r: float) -> None:
    points = [(r if index % 2 == 0 else r * 0.42, index * math.pi / 5) for index in range(10)]
    pen.polygon([(x + length * math.sin(angle), y - length * math.cos(angle)) for length, angle in points], fill=fill)


def _cross(pen: ImageDraw.ImageDraw, fill: Any, x: float, y: float, r: float) -> None:
    pen.rectangle((x - r, y - r * 0.32, x + r, y + r * 0.32), fill=fill)
    pen.rectangle((x - r * 0.32, y - r, x + r * 0.32, y + r), fill=fill)


SHAPES: Mapping[str, Callable[..., None]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross,
}  # fmt: skip


def _write(pen: ImageDraw.ImageDraw, words: str, at: tuple[float, float], size: float, colour: str, anchor: str) -> None:
    from PIL import ImageFont

    pen.text(at, words, font=ImageFont.load_default(size), fill=COLOURS[colour], anchor=anchor)


def _text(pen: ImageDraw.ImageDraw, _: Any, words: str, x: float, y: float, size: float, colour: str = "black") -> None:
    for index, line in enumerate(words.split("\n")):
        _write(pen, line, (x, y + index * size * 1.3), size, colour, "la")


def _box(pen: ImageDraw.ImageDraw, _: Any, colour: str, left: float, top: float, right: float, bottom: float) -> None:
    pen.rectangle((left, top, right, bottom), fill=COLOURS[colour])


def _scatter(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], shape: str, colour: str, count: int, seed: int, radius: float
) -> None:
    """`count` shapes that do not touch; of Python's random only `random()`, which stays the same in every version."""
    dice, placed = random.Random(seed), list[tuple[float, float]]()
    width, height = size
    for _ in range(10_000):
        x = radius + dice.random() * (width - 2 * radius)
        y = radius + dice.random() * (height - 2 * radius)
        if all(math.hypot(x - a, y - b) > 2.4 * radius for a, b in placed):
            placed.append((x, y))
            SHAPES[shape](pen, COLOURS[colour], x, y, radius)
            if len(placed) == count:
                return
    raise ValueError(f"{count} of {radius} do not fit into {size}")


def _bars(pen: ImageDraw.ImageDraw, size: tuple[int, int], title: str, values: Mapping[str, float]) -> None:
    width, height = size
    _write(pen, title, (width / 2, 10), 22, "black", "ma")
    step, most = (width - 40) / len(values), max(values.values())
    for index, (name, value) in enumerate(values.items()):
        left, top = 20 + index * step + step * 0.15, height - 40 - (height - 110) * value / most
        pen.rectangle((left, top, left + step * 0.7, height - 40), fill=COLOURS[_SERIES[index % len(_SERIES)]])
        _write(pen, f"{value:g}", (left + step * 0.35, top - 4), 20, "black", "mb")
        _write(pen, name, (left + step * 0.35, height - 34), 18, "black", "ma")


def _line(pen: ImageDraw.ImageDraw, size: tuple[int, int], title: str, values: Mapping[str, float]) -> None:
    width, height = size
    _write(pen, title, (width / 2, 10), 22, "black", "ma")
    step, most = (width - 80) / (len(values) - 1), max(values.values())
    points = [(40 + i * step, height - 50 - (height - 120) * value / most) for i, value in enumerate(values.values())]
    pen.line((20, height - 45, width - 20, height - 45), fill=COLOURS["gray"], width=2)
    pen.line(points, fill=COLOURS["blue"], width=4)
    for (x, y), (name, value) in zip(points, values.items(), strict=True):
        _circle(pen, COLOURS["blue"], x, y, 6)
        _write(pen, f"{value:g}", (x, y - 10), 18, "black", "mb")
        _write(pen, name, (x, height - 38), 18, "black", "ma")


def _pie(pen: ImageDraw.ImageDraw, size: tuple[int, int], title: str, values: Mapping[str, float]) -> None:
    width, height = size
    _write(pen, title, (width / 2, 8), 22, "black", "ma")
    r, total, angle = (height - 70) / 2, sum(values.values()), -90.0
    for index, (name, value) in enumerate(values.items()):
        colour, turn = COLOURS[_SERIES[index % len(_SERIES)]], 360 * value / total
        pen.pieslice((20, 50, 20 + 2 * r, 50 + 2 * r), angle, angle + turn, fill=colour)
        pen.rectangle((40 + 2 * r, 60 + index * 34, 62 + 2 * r, 82 + index * 34), fill=colour)
        _write(pen, f"{name} {value:g} %", (70 + 2 * r, 60 + index * 34), 20, "black", "la")
        angle += turn


def _table(pen: ImageDraw.ImageDraw, size: tuple[int, int], rows: Sequence[Sequence[str]]) -> None:
    width, height = size
    wide, high = (width - 20) / len(rows[0]), (height - 20) / len(rows)
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            left, top = 10 + c * wide, 10 + r * high
            fill = COLOURS["cream"] if r == 0 else None
            pen.rectangle((left, top, left + wide, top + high), fill=fill, outline=COLOURS["black"])
            _write(pen, cell, (left + 8, top + high / 2), min(22, high * 0.5), "black", "lm")


_OTHERS: Mapping[str, Callable[..., None]] = {
    "text": _text, "box": _box, "scatter": _scatter, "bars": _bars, "line": _line, "pie": _pie, "table": _table,
}  # fmt: skip
