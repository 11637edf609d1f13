"""Write the comparison set of the demo model: questions of its own small world that it was not trained on, with their answers.

    python scripts/make_demo_set.py [--world ../shared/demo-model] [--each 8] [--seed 2026]

Texts come from the held-out half of the generator that made the model's training data (`data.py` of its folder, which needs
Jinja and Pillow); pictures and videos are recipes in its style. Writes localgemma/assets/compare/demo.jsonl.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TEXT = (
    "arithmetic", "arithmetic-direct", "capitals", "facts", "smalltalk", "system", "extraction", "json", "needle",
    "multi-turn", "tool-call", "tool-parallel", "tool-answer", "tool-none",
)  # fmt: skip
CATEGORY = {"arithmetic-direct": "science", "json": "code", "needle": "long"}
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown")
SHAPES = ("circle", "square", "triangle", "star", "cross")
BACKS = ("white", "black", "gray")


def main() -> None:
    """Write the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=ROOT.parent / "shared" / "demo-model")
    parser.add_argument("--each", type=int, default=8)
    parser.add_argument("--seed", type=int, default=2026)
    given = parser.parse_args()
    dice = random.Random(given.seed)
    rows = [*texts(world(given.world), dice, given.each), *pictures(dice, given.each)]
    count: Counter[str] = Counter()
    target = ROOT / "localgemma" / "assets" / "compare" / "demo.jsonl"
    with target.open("w", encoding="utf-8") as file:
        for row in rows:
            count[row["task"]] += 1
            whole = {"id": f"{row['task']}-{count[row['task']]:02d}", **row}
            file.write(json.dumps(whole, ensure_ascii=False, separators=(", ", ": ")) + "\n")
    print(target, sum(count.values()), dict(count))


def world(folder: Path) -> Any:
    """The generator of the model's training data, which looks for the chat template beside itself."""
    with tempfile.TemporaryDirectory() as place:
        for file in ("data.py", "hf/chat_template.jinja"):
            shutil.copy(folder / file, place)
        spec = importlib.util.spec_from_file_location("data", Path(place) / "data.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["data"] = module  # its records look themselves up there
        spec.loader.exec_module(module)
    return module


def texts(data: Any, dice: random.Random, each: int) -> Iterator[dict[str, Any]]:
    """Held-out samples of every text task."""
    makers = (data.t_fact, data.t_system, data.t_arith, data.t_extract, data.t_needle, data.t_tool, data.t_multi)
    found: dict[str, list[dict[str, Any]]] = {task: [] for task in TEXT}
    while any(len(rows) < each for rows in found.values()):
        sample = data.draw(dice, "eval", fn=dice.choice(makers))
        # A thought after a tool result, and results inside an answer, are not in the template that localgemma renders.
        apart = sample.task == "tool-answer" and (sample.think or any("tool_responses" in m for m in sample.messages))
        if apart or len(found[sample.task]) >= each:
            continue
        said: dict[str, Any] = {"role": "assistant", "content": sample.answer}
        if sample.think:
            said["reasoning_content"] = sample.thought
        if sample.calls:
            said["tool_calls"] = [
                {"id": f"call{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for index, (name, arguments) in enumerate(sample.calls)
            ]
        category = "tools" if sample.tools else "thinking" if sample.think else CATEGORY.get(sample.task, "chat")
        row = {"category": category, "task": sample.task, "match": "tool_calls" if sample.calls else "exact"}
        row["messages"] = [*sample.messages, said]
        if sample.tools:
            row["tools"] = sample.tools
        if sample.think:
            row["enable_thinking"] = True
        found[sample.task].append(row)
    for rows in found.values():
        yield from rows


def asked(task: str, media: list[dict[str, Any]], question: str, answer: str, thought: str = "") -> dict[str, Any]:
    """A row that shows something and asks about it."""
    said = {"role": "assistant", "content": answer} | ({"reasoning_content": thought} if thought else {})
    row: dict[str, Any] = {"category": "video" if task == "video" else "pictures", "task": task, "match": "exact"}
    row["messages"] = [{"role": "user", "content": [*media, {"type": "text", "text": question}]}, said]
    return row | ({"enable_thinking": True} if thought else {})


def canvas(dice: random.Random) -> tuple[int, int, str]:
    """A size and a background."""
    return dice.randint(24, 48) * 8, dice.randint(24, 48) * 8, dice.choice(BACKS)


def image(size: tuple[int, int], back: str, *things: list[Any]) -> dict[str, Any]:
    """A picture's part."""
    return {"type": "image", "draw": {"size": list(size), "back": back, "things": list(things)}}


def one(dice: random.Random) -> tuple[dict[str, Any], str, str, str]:
    """A picture of one shape: the part, shape, colour and background."""
    wide, high, back = canvas(dice)
    shape, colour = dice.choice(SHAPES), dice.choice(COLOURS)
    radius = round(dice.uniform(0.2, 0.4) * min(wide, high))
    x, y = dice.randint(radius, wide - radius), dice.randint(radius, high - radius)
    return image((wide, high), back, [shape, colour, x, y, radius]), shape, colour, back


def pictures(dice: random.Random, each: int) -> Iterator[dict[str, Any]]:
    """Pictures and videos in the style of the model's training data."""
    for index in range(each):
        thinks = index % 4 == 3
        part, shape, colour, back = one(dice)
        thought = f"I see a {colour} {shape}." if thinks else ""
        yield asked("image-color", [part], "What color is the shape?", f"The shape is {colour}.", thought)
        part, shape, colour, back = one(dice)
        thought = f"I see a {colour} {shape}." if thinks else ""
        yield asked("image-shape", [part], "What shape do you see?", f"It is a {shape}.", thought)
        part, shape, colour, back = one(dice)
        thought = f"I see a {colour} {shape} on a {back} background." if thinks else ""
        yield asked("image-describe", [part], "Describe the image.", f"A {colour} {shape} on a {back} background.", thought)
        count, radius = dice.randint(1, 5), 36
        thought = f"I count {count} objects." if thinks else ""
        thing = ["scatter", dice.choice(SHAPES), dice.choice(COLOURS), count, dice.randint(0, 999), radius]
        yield asked("image-count", [image((336, 336), dice.choice(BACKS), thing)], "Count the objects.", str(count), thought)
        yield side(dice, thinks)
        yield two(dice)
        yield number(dice)
        yield video(dice)


def side(dice: random.Random, thinks: bool) -> dict[str, Any]:
    """Two shapes, and what is on one side."""
    (first, second), (one_colour, other) = dice.sample(SHAPES, 2), dice.sample(COLOURS, 2)
    things = [[first, one_colour, 96, dice.randint(80, 256), 56], [second, other, 320, dice.randint(80, 256), 56]]
    where, shape = dice.choice((("left", first), ("right", second)))
    thought = f"Left: {one_colour} {first}. Right: {other} {second}." if thinks else ""
    picture = image((416, 336), dice.choice(BACKS), *things)
    return asked("image-side", [picture], f"Which shape is on the {where}?", f"It is a {shape}.", thought)


def two(dice: random.Random) -> dict[str, Any]:
    """Two pictures, one of which is meant."""
    first, second = one(dice), one(dice)
    while first[2] == second[2]:
        second = one(dice)
    which, colour = dice.choice((("first", first[2]), ("second", second[2])))
    return asked("image-two", [first[0], second[0]], f"Which image is {colour}?", f"The {which} image.")


def number(dice: random.Random) -> dict[str, Any]:
    """A number to be read."""
    digits = str(dice.randint(10, 9999))
    picture = image((320, 160), "white", ["text", digits, dice.randint(10, 60), dice.randint(10, 50), 80, "black"])
    return asked("image-number", [picture], "Which number is shown?", digits)


def video(dice: random.Random) -> dict[str, Any]:
    """A shape that changes its colour."""
    seconds, shape, (before, after) = dice.randint(4, 8), dice.choice(SHAPES), dice.sample(COLOURS, 2)
    at = dice.randint(1, seconds - 1)
    scenes = [[0, [[shape, before, 140, 110, 60]]], [at, [[shape, after, 140, 110, 60]]]]
    part = {"type": "video", "draw": {"size": [280, 220], "back": dice.choice(BACKS), "seconds": seconds, "scenes": scenes}}
    return asked("video", [part], f"What color is the {shape} at the end?", f"The shape is {after}.")


if __name__ == "__main__":
    main()
