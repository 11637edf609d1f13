"""How long a cancel takes, while a long prompt is read and while an answer is written, and whether the next answer is right.

    python scripts/bench_cancel.py [--model demo|FILE] [--ctx 8192] [--times 20] [--threads N]

Each cancel comes at a random moment. Afterwards the same prompt is answered to its end, from what the cancelled turn left in
the cache, and compared with an answer that was made from scratch. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time

import localgemma
from localgemma.engine import CancelToken, Engine, Finished, Piece, Prompt, Request
from localgemma.gemma4.prompt import render
from localgemma.messages import Message, TextPart
from localgemma.options import LoadOptions, Sampling

ENDS = {1: -99.0, 50: -99.0, 106: -99.0}


def asked(tokens: int, number: int) -> Prompt:
    """A question after a text of about so many tokens, which differs from its beginning."""
    said = f"{number} " + "river stone apple " * (tokens // 3) + "\n\nWhat is the capital of France?"
    return render([Message("user", (TextPart(said),))])


def answer(engine: Engine, prompt: Prompt) -> list[int]:
    """The tokens of a greedy answer."""
    outputs = engine.generate(Request(prompt, Sampling(temperature=0, max_tokens=12)))
    return [output.token for output in outputs if isinstance(output, Piece)]


def cancelled(engine: Engine, prompt: Prompt, after: float, *, writing: bool) -> tuple[float, int]:
    """Seconds from a cancel `after` so many seconds (of prefill, or of writing) to the end; tokens that were read."""
    token, at = CancelToken(), [0.0]

    def cancel() -> None:
        at[0] = time.perf_counter()
        token.cancel()

    timer = threading.Timer(after, cancel)
    sampling = Sampling(seed=1, logit_bias=ENDS)  # without its ends an answer lasts until the cancel
    if not writing:
        timer.start()
    for output in engine.generate(Request(prompt, sampling), token):
        if writing and isinstance(output, Piece) and not timer.is_alive():
            writing = False
            timer.start()
    ended = time.perf_counter()
    timer.join()
    assert isinstance(output, Finished) and output.reason == "cancelled", output
    return ended - at[0], output.usage.prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--ctx", type=int, default=8192, help="context in tokens, which the prompt nearly fills")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    chance = random.Random(1)
    long = given.ctx - 500
    load = LoadOptions(ctx=given.ctx, threads=given.threads, image_tokens=0)
    result: dict[str, object] = {"model": given.model}
    with localgemma.open(given.model, options=load) as model:
        engine = model.engine
        started = time.perf_counter()
        answer(engine, asked(long, 0))
        whole = time.perf_counter() - started
        result |= {"tokens": engine.count(asked(long, 0)), "prefill_s": round(whole, 3)}
        print(f"{result['tokens']:,} tokens, read and answered in {whole:.2f} s")
        for where in ("prefill", "decode"):
            seconds, wrong = [], 0
            for number in range(1, given.times + 1):
                prompt = asked(long if where == "prefill" else 60, number)
                after = chance.uniform(0.05, 0.9) * whole if where == "prefill" else chance.uniform(0.02, 0.3)
                seconds.append(cancelled(engine, prompt, after, writing=where == "decode")[0])
                found = answer(engine, prompt)
                answer(engine, asked(40, -number))  # something else takes the sequence
                wrong += found != answer(engine, prompt)
            row = {"median": statistics.median(seconds), "max": max(seconds)}
            result[where] = {**{name: round(value, 4) for name, value in row.items()}, "other_answers": wrong}
            median, most = (row[name] * 1e3 for name in ("median", "max"))
            print(f"{where:8} back after {median:6.1f} ms, {most:6.1f} ms at most; {wrong} answers differ")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
