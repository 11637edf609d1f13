"""Does memory stay where it is? Turns with pictures on a model, and the resident memory after each.

    python scripts/bench_steady.py [--model demo] [--turns 300] [--tokens 8] [--picture-tokens 70] [--ctx 1024] [--keep]

Every turn shows a picture that was never seen before. The conversation is cleared when the context is nearly full, or with
--keep only its oldest turns stop being read (a conversation holds its pictures, so memory then grows by each one's pixels).
Checkpoints of the KV cache have a bound of their own, which is set to 4 MiB here. Prints a table and, as its last line, one
JSON object; exits with 1 if memory grew by 20 MiB or more after the first 20 turns.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys

import psutil
from PIL import Image, ImageDraw

import localgemma
from localgemma.options import LoadOptions
from localgemma.units import MIB

WARM_UP, ALLOWED = 20, 20 * MIB


def picture(seed: int) -> Image.Image:
    """A shape on a plain ground, another one for every seed."""
    chance = random.Random(seed)
    image = Image.new("RGB", (336, 384), tuple(chance.randbytes(3)))
    corner = chance.randint(20, 200), chance.randint(20, 200)
    far = corner[0] + chance.randint(40, 130), corner[1] + chance.randint(40, 130)
    ImageDraw.Draw(image).ellipse((*corner, *far), fill=tuple(chance.randbytes(3)))
    return image


def main() -> int:
    """Talk, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=8, help="tokens of each answer at most")
    parser.add_argument("--picture-tokens", type=int, default=70)
    parser.add_argument("--ctx", type=int, default=1024, help="context in tokens")
    parser.add_argument("--keep", action="store_true", help="never clear the conversation")
    given = parser.parse_args()
    process, seen, clears = psutil.Process(), [], 0
    load = LoadOptions(ctx=given.ctx, checkpoint_bytes=4 * MIB)
    with localgemma.open(given.model, options=load) as model:
        overflow = "drop" if given.keep else "error"
        chat = model.chat(temperature=0, image_tokens=given.picture_tokens, max_tokens=given.tokens, overflow=overflow)
        room = model.info.context - given.picture_tokens - given.tokens - 100
        for turn in range(given.turns):
            if not given.keep and chat.last is not None and chat.last.usage.total > room:
                chat.clear()
                clears += 1
            chat.ask("What color is the shape?", [picture(turn)])
            gc.collect()
            seen.append(process.memory_info().rss)
            if turn % 20 == 19 or turn == given.turns - 1:
                assert chat.last is not None
                print(
                    f"turn {turn + 1:4}  {seen[-1] / MIB:8.1f} MiB  {chat.last.usage.prompt:6,} tokens in the prompt",
                    flush=True,
                )
        base = max(seen[:WARM_UP])
        grown = max(seen[WARM_UP:], default=base) - base
        result = {
            "model": model.info.model, "turns": given.turns, "clears": clears, "kept": given.keep,
            "rss_mib": {"first": round(seen[0] / MIB, 1), "after_20": round(base / MIB, 1), "last": round(seen[-1] / MIB, 1)},
            "growth_mib": round(grown / MIB, 2),
        }  # fmt: skip
    print(json.dumps(result))
    return int(grown >= ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
