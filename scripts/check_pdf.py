"""What every page of forty PDF files is taken for, beside what it is: text or picture, in which order its text reads.

    python scripts/check_pdf.py [--folder DIR]

The files of tests/pdfs.py are made in DIR (default: a temporary folder), and each is read in a process of its own. Prints a
table and, last, one line of JSON. Needs the extras `dev` and `pdf`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def one(path: Path, password: str) -> dict[str, object]:
    """The pages of one file: t or p for each, its whole text, seconds to the forecast and to the last page."""
    from localgemma.chat import pdf
    from localgemma.chat.room import Room
    from localgemma.engine import EngineInfo
    from localgemma.errors import LockedDocument
    from localgemma.messages import ImagePart, TextPart

    name, refused = str(path), False
    if password:
        try:
            pdf.check(pdf.wanted(name))  # type: ignore[arg-type]
        except LockedDocument:
            refused = True
        name += f"#password={password}"
    asked = pdf.wanted(name)
    assert asked is not None and refused == bool(password)
    info = EngineInfo("none", "gemma4", 1 << 30, 1120)
    began = time.perf_counter()
    planned = pdf.plan(asked, info, Room(info.context, lambda text: len(text) // 3))
    forecast = time.perf_counter() - began
    pages, texts = "", []
    for part in planned.read():
        if isinstance(part, TextPart):
            pages += "t"
            texts.append(part.text.partition(":\n\n")[2])
        elif isinstance(part, ImagePart):
            pages = pages[:-1] + "p"
    whole = time.perf_counter() - began
    return {"pages": pages, "text": "\n".join(texts), "said": planned.said, "forecast": forecast, "seconds": whole}


def in_order(text: str, wanted: tuple[str, ...]) -> bool:
    """Whether all of them are found one after another."""
    at = 0
    for piece in wanted:
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("FILE", "PASSWORD"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(Path(asked.one[0]), asked.one[1])))
        return
    from pdfs import CASES

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for each in CASES:
            path = folder / each.name
            if not path.exists():
                each.make(path)
            command = [sys.executable, __file__, "--one", str(path), each.password]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
            assert process.stdout is not None
            output = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            found = json.loads(output) if not status else {"pages": "", "text": "", "forecast": 0, "seconds": 0}
            decided, order = found["pages"] == each.pages, in_order(found["text"], each.reads)
            memory = usage.ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)
            rows.append((each.name, decided, order, memory, found["forecast"], found["seconds"]))
            shown = found["pages"] if len(found["pages"]) < 8 else f"{len(found['pages']):,} pages"
            marks = f"{'right' if decided else 'WRONG':6} {shown:12} {'in order' if order else 'ORDER':9}"
            print(f"{each.name:42} {marks} {memory:5.0f} MiB {found['forecast']:7.2f} s {found['seconds']:7.2f} s", flush=True)
    right, ordered = sum(row[1] for row in rows), sum(row[2] for row in rows)
    most = max(row[3] for row in rows)
    print(f"{right} of {len(rows)} decided right, {ordered} in order, at most {most:.0f} MiB")
    print(json.dumps({"files": len(rows), "right": right, "in_order": ordered, "most_mib": round(most, 1)}))


if __name__ == "__main__":
    main()
