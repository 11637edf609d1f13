"""What a turn costs beside llama-server: the second turn after a long history, many conversations at once, and drafts.

    python scripts/bench_turns.py MODEL [--peers DIR] [--drafter FILE] [--history 8000] [--conversations 8] [--tokens 128]
        [--threads N] [--cpu-time]

DIR holds llama-server of the same build. Prints tables and, last, one line of JSON. Ends of turn are banned in every
contestant alike, so that random weights do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from localgemma.engine import Finished, Piece, Prompt, Request
from localgemma.fit.drafts import tried
from localgemma.gemma4.prompt import render
from localgemma.llamacpp import devices, draft, generation
from localgemma.llamacpp.draft import DraftLength
from localgemma.llamacpp.engine import LlamaEngine, open_engine
from localgemma.messages import Message, TextPart
from localgemma.options import LoadOptions, Sampling

ENDS = {1: -99.0, 50: -99.0, 106: -99.0}
PORT = 18232
BODY = {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0, "seed": 1, "ignore_eos": True, "stream": True,
        "cache_prompt": True, "samplers": ["top_k", "top_p", "temperature"],
        "logit_bias": [[token, bias] for token, bias in ENDS.items()]}  # fmt: skip


def message(role: Any, text: str) -> Message:
    return Message(role, (TextPart(text),))


def turns(words: int, thinking: bool, salt: str) -> list[Prompt]:
    """The prompts of a first turn with a long history, of the next turn, and of that one again."""
    history: list[Message] = []
    for index in range(words // 200):
        said = message("user", f"{salt} {index} " + "river stone " * 80)
        history += [said, message("assistant", "Yes, that is so. " * 8)]
    first = [*history, message("user", "What is the capital of France?")]
    second = [*first, message("assistant", "The capital of France is Paris. " * 16), message("user", "And of Italy?")]
    return [render(messages, enable_thinking=thinking) for messages in (first, second, second)]


def our_turn(engine: LlamaEngine, prompt: Prompt, tokens: int) -> tuple[float, int]:
    """Seconds to the first token as a reader sees it, and tokens that were evaluated."""
    request = Request(prompt, Sampling(seed=1, max_tokens=tokens, logit_bias=ENDS), conversation="one")
    started, first, fresh = time.perf_counter(), 0.0, 0
    for output in engine.generate(request):
        if isinstance(output, Piece) and not first:
            first = time.perf_counter() - started
        elif isinstance(output, Finished):
            fresh = output.usage.prompt - output.usage.cached
    return first, fresh


@contextlib.contextmanager
def server(peers: Path, model: Path, context: int, parallel: int) -> Iterator[None]:
    command = [peers / "llama-server", "-m", model, "-ngl", 99 if devices.has_gpu() else 0, "-fa", "on", "-c", context,
               "-np", parallel, "--port", PORT, "-t", devices.default_threads()]  # fmt: skip
    with open("/dev/null", "w") as nowhere:
        process = subprocess.Popen([str(c) for c in command], stdout=nowhere, stderr=nowhere)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=2).read()
                break
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(60)


def their_turn(ids: list[int], tokens: int, slot: int = 0) -> tuple[float, int, int]:
    """Seconds to the first token, tokens evaluated, tokens made."""
    body = json.dumps({**BODY, "prompt": ids, "n_predict": tokens, "id_slot": slot}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/completion", body, {"Content-Type": "application/json"})
    started, first, last = time.perf_counter(), 0.0, b""
    with urllib.request.urlopen(request, timeout=900) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - started
                last = line
    timings = json.loads(last[6:])["timings"]
    return first, int(timings["prompt_n"]), int(timings["predicted_n"])


def second_turns(args: argparse.Namespace) -> dict[str, Any]:
    """Time to first token of first turn, second turn, regenerate: ours and llama-server's, thinking off and on."""
    found: dict[str, Any] = {}
    context = args.history + 4096
    engine = open_engine(args.model, None, LoadOptions(ctx=context, threads=args.threads))
    prompts = {thinking: [turns(args.history, thinking, f"{n}") for n in range(args.repeats)] for thinking in (False, True)}
    ids = {thinking: [[engine.tokenize(p) for p in three] for three in sets] for thinking, sets in prompts.items()}
    warm = turns(400, False, "warm")[0]
    warm_ids = engine.tokenize(warm)
    our_turn(engine, warm, 8)
    for thinking, sets in prompts.items():
        rows = [[our_turn(engine, prompt, args.tokens) for prompt in three] for three in sets]
        found[f"localgemma, thinking {'on' if thinking else 'off'}"] = summary(rows)
    engine.close()
    if args.peers:
        with server(args.peers, args.model, context, 1):
            their_turn(warm_ids, 8)
            for thinking, id_sets in ids.items():
                rows = [[their_turn(prompt, args.tokens)[:2] for prompt in three] for three in id_sets]
                found[f"llama-server, thinking {'on' if thinking else 'off'}"] = summary(rows)
    print(f"{'time to first token (tokens evaluated)':34}{'first turn':>22}{'second turn':>22}{'regenerate':>22}")
    for name, row in found.items():
        print(f"{name:34}" + "".join(f"{seconds * 1e3:12.1f} ms ({fresh:5})" for seconds, fresh in row))
    return found


def summary(rows: list[list[tuple[float, int]]]) -> list[tuple[float, int]]:
    return [(statistics.median(s for s, _ in column), column[0][1]) for column in zip(*rows, strict=True)]


def aggregate(count: int, tokens: int, one: Any) -> float:
    """Tokens a second of `count` conversations on threads of their own, prefill included."""
    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count * tokens / (time.perf_counter() - started)


def side_by_side(args: argparse.Namespace) -> dict[str, float]:
    """Aggregate tokens a second of several conversations."""
    count, context = args.conversations, args.conversations * 2048
    prompts = [render([message("user", f"{index} " + "river stone " * 60)]) for index in range(count)]
    engine = open_engine(args.model, None, LoadOptions(ctx=context, sequences=count, image_tokens=0, threads=args.threads))
    ids = [engine.tokenize(prompt) for prompt in prompts]

    def ours(index: int) -> None:
        sampling = Sampling(seed=index, max_tokens=args.tokens, logit_bias=ENDS)
        *_, done = engine.generate(Request(prompts[index], sampling, conversation=str(index)))
        assert isinstance(done, Finished) and done.usage.answer == args.tokens

    aggregate(count, args.tokens, ours)
    found = {"localgemma": statistics.median(aggregate(count, args.tokens, ours) for _ in range(args.repeats))}
    engine.close()
    if args.peers:
        with server(args.peers, args.model, context, count):

            def theirs(index: int) -> None:
                assert their_turn(ids[index], args.tokens, index)[2] == args.tokens

            aggregate(count, args.tokens, theirs)
            found["llama-server"] = statistics.median(aggregate(count, args.tokens, theirs) for _ in range(args.repeats))
    for name, speed in found.items():
        print(f"{count} conversations, {name:14} {speed:9.1f} tok/s")
    return found


def draft_cost(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a step with 0 to 8 drafts, and the acceptance from which each number of drafts pays."""
    options = LoadOptions(ctx=4096, image_tokens=0, drafter=args.drafter, threads=args.threads)
    if args.cpu_time:
        draft.time = generation.time = SimpleNamespace(perf_counter=time.thread_time)  # type: ignore[assignment]
    engine = open_engine(args.model, None, options)
    prompt = render([message("user", "river stone " * 300)])
    request = Request(prompt, Sampling(temperature=0, max_tokens=args.tokens, logit_bias=ENDS))
    rows: dict[str, Any] = {}
    original = DraftLength.choose
    for count in (0, 1, 2, 3, 4, 6, 8):
        engine._lengths = DraftLength(8)
        DraftLength.choose = lambda self, count=count: count  # type: ignore[method-assign,misc]
        for _ in range(2):
            *_, done = engine.generate(request)
        assert isinstance(done, Finished)
        seconds = engine._lengths.cost(count)
        rows[str(count)] = {"ms": seconds * 1e3, "accepted": done.timings.accepted, "drafted": done.timings.drafted}
    DraftLength.choose = original  # type: ignore[method-assign]
    engine._lengths = DraftLength(8)
    gain = tried(engine)  # the plan's own trial: everyday questions, as many drafts as pay
    engine.close()
    plain = rows["0"]["ms"]
    for count, row in rows.items():
        ratio, row["break_even"] = row["ms"] / plain, None
        for percent in range(101):
            a = min(percent / 100, 0.9999)
            if (1 - a ** (int(count) + 1)) / (1 - a) >= ratio:
                row["break_even"] = percent / 100
                break
        share = f"pays from acceptance {row['break_even']}; {row['accepted']} of {row['drafted']} accepted"
        print(f"{count} drafts: {row['ms']:8.2f} ms a step, {ratio:.3f} of plain, {share}")
    print(f"everyday questions: {gain:.2f} times as fast as without drafts")
    return {**rows, "gain": round(gain, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--drafter", type=Path)
    parser.add_argument("--history", type=int, default=8000)
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--cpu-time", action="store_true", help="drafts by CPU time: for --threads 1 beside other work")
    parser.add_argument("--only", choices=("turns", "conversations", "drafts"))
    args = parser.parse_args()
    found: dict[str, Any] = {"model": args.model.name}
    if args.only in (None, "turns"):
        found["turns"] = second_turns(args)
    if args.only in (None, "conversations"):
        found["conversations"] = side_by_side(args)
    if args.drafter and args.only in (None, "drafts"):
        found["drafts"] = draft_cost(args)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
