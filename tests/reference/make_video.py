"""Ask transformers' Gemma4VideoProcessor what it sees of videos, for tests/data/video.json.

Run with an environment that has transformers, torch and av:
    PYTHONPATH=tests python tests/reference/make_video.py
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import Gemma4VideoProcessor
from transformers.video_utils import load_video
from videos import REFERENCE, make_video

DATA = Path(__file__).resolve().parents[1] / "data" / "video.json"


def seen(path: Path, sampling: dict[str, float], budget: int) -> dict[str, object]:
    """Frame numbers, times, tokens a frame, and sizes, as the processor makes them of a file."""
    processor = Gemma4VideoProcessor(max_soft_tokens=budget)
    processor.num_frames = sampling.get("num_frames")  # its own 32 would win over fps
    video, metadata = load_video(
        str(path),
        backend="pyav",
        sample_indices_fn=lambda metadata, **_: processor.sample_frames(metadata, **sampling),
    )
    frames = np.moveaxis(np.asarray(video), -1, 1)
    size = processor.aspect_ratio_preserving_resize(torch.from_numpy(frames), 16, budget * 9, 3, 3)
    made = processor([frames], do_sample_frames=False, return_tensors="pt")
    times = [f"{int(s // 60):02d}:{int(s % 60):02d}" for s in metadata.timestamps]
    tokens = int(made["num_soft_tokens_per_video"][0])
    means = [round(float(frame.float().mean()), 3) for frame in size]
    prompt = " ".join(f"{t} <|image>{'<|video|>' * tokens}<image|>" for t in times)
    return {
        "indices": [int(i) for i in metadata.frames_indices],
        "times": times,
        "tokens": tokens,
        "size": [int(size.shape[-1]), int(size.shape[-2])],
        "means": means,
        "prompt": hashlib.sha256(prompt.encode()).hexdigest(),
    }


def main() -> None:
    """Write the data."""
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (spec, sampling, budget) in REFERENCE.items():
            path = make_video(Path(folder), name, **spec)
            rows[name] = seen(path, sampling, budget)
    DATA.write_text(json.dumps(rows, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
