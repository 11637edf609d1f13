"""The frames of twenty made videos beside what transformers sees, how soon the first is there, and memory of a long one.

    python scripts/check_video.py [--folder DIR] [--minutes 10]

The long one has 1,920 × 1,080 pixels, 24 frames a second and a key frame every ten seconds. Each video is read in a process
of its own, whose first frame is timed from the first look at the file. Prints a table and, last, one line of JSON. Needs the
extras `dev` and `video`.
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


def one(path: str, options: dict[str, object], budget: int) -> dict[str, object]:
    """Frame times of one video, the forecast's tokens, seconds to the forecast, to the first frame and to the last."""
    import av  # noqa: F401  (loading a library is no part of a video)
    import numpy  # noqa: F401
    from PIL import Image  # noqa: F401

    from localgemma.chat.video import forecast, frames
    from localgemma.options import ChatOptions

    chosen = ChatOptions(**options)  # type: ignore[arg-type]
    began = time.perf_counter()
    expected = forecast(path, chosen, budget)
    said = time.perf_counter() - began
    source = frames(path, chosen, budget)
    found = [next(source)[0]]
    first = time.perf_counter() - began
    found += [seconds for seconds, _ in source]
    whole = time.perf_counter() - began
    return {"times": found, "tokens": expected.tokens if expected else 0, "said": said, "first": first, "whole": whole}


def measured(path: Path, options: dict[str, object], budget: int) -> dict[str, object]:
    """`one` in a process of its own, with its memory in MiB at most."""
    command = [sys.executable, __file__, "--one", str(path), json.dumps(options), str(budget)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{path.name} failed")
    return json.loads(output) | {"memory": usage.ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)}


def long_video(path: Path, minutes: float) -> None:
    """Moving bars, 1,920 × 1,080."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 1920, 1080, "yuv420p", 240
        luma = np.tile(np.arange(1920, dtype=np.uint8), (1080, 1))
        for index in range(int(minutes * 60 * 24)):
            planes = np.full((1620, 1920), 128, np.uint8)
            planes[:1080] = np.roll(luma, index * 3, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one[0], json.loads(asked.one[1]), int(asked.one[2]))))
        return
    from videos import REFERENCE, make_video

    told = json.loads((ROOT / "tests" / "data" / "video.json").read_text())
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name, (spec, sampling, budget) in REFERENCE.items():
            options = {"video_fps": sampling.get("fps"), "video_frames": sampling.get("num_frames", 60)}
            found = measured(make_video(folder, name, **spec), options, budget)
            indices = [round(seconds * float(spec["rate"])) for seconds in found["times"]]  # type: ignore[attr-defined]
            rows.append((name, indices == told[name]["indices"], found))
        path = folder / f"long-{asked.minutes:g}.mp4"
        if not path.exists():
            long_video(path, asked.minutes)
        rows.append((path.name, True, measured(path, {}, 70)))
    for name, equal, found in rows:
        times = f"{found['first']:6.2f} s to the first, {found['whole']:6.2f} s to the last"
        shown = f"{len(found['times']):3} frames {found['tokens']:6,} tokens"  # type: ignore[arg-type]
        print(f"{name:16} {'equal' if equal else 'OTHER':6} {shown} {times}, {found['memory']:4.0f} MiB")
    result = {
        "videos": len(rows), "equal": sum(row[1] for row in rows), "first": max(row[2]["first"] for row in rows),
        "long_mib": rows[-1][2]["memory"], "long_seconds": rows[-1][2]["whole"],
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
