"""Decode speed beside the peers, in one run: llama-bench, llama-server and this engine, and the bare loop's overhead.

    python scripts/bench_speed.py MODEL [--peers DIR] [--tokens 128] [--repeats 5] [--threads N] [--cpu]

DIR holds llama-bench and llama-server of the same build. Prints a table and, last, one line of JSON. The overhead is the
difference of neighbouring runs, of which the median counts; by the clock, by this process's CPU time, and of the program's own
steps around an evaluation that does nothing. On a machine with other work, the threads of an evaluation wait for
each other at every operation, so that clock figures with more than one thread say nothing there: take --threads 1.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import time
import unittest.mock
import urllib.request
from pathlib import Path

from localgemma.engine import Control, Finished, Piece, Prompt, Request, Text
from localgemma.llamacpp import devices, generation
from localgemma.llamacpp.context import Context
from localgemma.llamacpp.engine import LlamaEngine, open_engine
from localgemma.llamacpp.sampler import Sampler
from localgemma.options import LoadOptions, Sampling

ENDS = {1: -99.0, 50: -99.0, 106: -99.0}
QUESTION = "Tell me about the capital of France, please."


def ours(engine: LlamaEngine, tokens: int) -> tuple[float, float]:
    """Seconds and CPU seconds a token of Engine.generate with Gemma's sampling (in every contestant a bias bans the ends)."""
    prompt = Prompt((Control("<bos>"), Text(QUESTION)))
    request = Request(prompt, Sampling(seed=1, max_tokens=tokens + 1, logit_bias=ENDS))
    started = worked = 0.0
    for output in engine.generate(request):
        if isinstance(output, Piece) and not started:
            started, worked = time.perf_counter(), time.process_time()
    spent = time.perf_counter() - started, time.process_time() - worked
    assert isinstance(output, Finished) and output.usage.answer == tokens + 1, output
    return spent[0] / tokens, spent[1] / tokens


def bare(engine: LlamaEngine, tokens: int) -> tuple[float, float]:
    """The same of a loop with nothing around it: decode, take the sampled id."""
    context = engine._context
    engine._called(lambda: engine._cache.clear(engine._cache.slots[0]))
    sampler = Sampler(context, Sampling(seed=1, logit_bias=ENDS), on_device=engine._on_device)
    ids = engine.tokenize(Prompt((Control("<bos>"), Text(QUESTION))))
    context.decode(ids, 0, 1)
    token = sampler.sample(len(ids) - 1)
    started, worked = time.perf_counter(), time.process_time()
    for step in range(tokens):
        context.decode_one(token, len(ids) + step)
        token = sampler.sample(0)
    spent = time.perf_counter() - started, time.process_time() - worked
    sampler.close()
    engine._called(lambda: engine._cache.clear(engine._cache.slots[0]))
    return spent[0] / tokens, spent[1] / tokens


def steps_alone(engine: LlamaEngine, tokens: int) -> float:
    """CPU seconds a token of the engine's own steps and its reader: evaluation and sampling do nothing."""
    with (
        unittest.mock.patch.object(Context, "_checked", lambda self, batch: 0),
        unittest.mock.patch.object(generation.Sampler, "sample", lambda self, row: 300),
        unittest.mock.patch.object(Context, "can_resume", lambda self, position, sequence=0: True),
    ):
        return ours(engine, tokens)[1]


def llama_bench(peers: Path, model: Path, tokens: int, layers: int, threads: int) -> float:
    command = [peers / "llama-bench", "-m", model, "-ngl", layers, "-t", threads, "-fa", 1, "-p", 0, "-n", tokens]
    command += ["-r", 3, "-o", "json"]
    answer = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True, timeout=900)
    return float(json.loads(answer.stdout)[0]["avg_ts"])


def llama_server(peers: Path, model: Path, tokens: int, layers: int, extra: list[str]) -> float:
    """llama-server's own decode figure of a streamed completion with the same sampling."""
    command = [peers / "llama-server", "-m", model, "-ngl", layers, "-fa", "on", "-c", 8192, "-np", 1, "--port", 18231, *extra]
    with open("/dev/null", "w") as nowhere:
        server = subprocess.Popen([str(c) for c in command], stdout=nowhere, stderr=nowhere)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen("http://127.0.0.1:18231/health", timeout=2).read()
                break
            except OSError:
                time.sleep(0.5)
        body = {"prompt": QUESTION, "n_predict": tokens, "temperature": 1.0, "top_k": 64, "top_p": 0.95, "min_p": 0.0,
                "seed": 1, "ignore_eos": True, "stream": True, "samplers": ["top_k", "top_p", "temperature"]}  # fmt: skip
        speeds = []
        for _ in range(3):
            request = urllib.request.Request("http://127.0.0.1:18231/completion", json.dumps(body).encode())
            text = urllib.request.urlopen(request, timeout=300).read().decode()
            speeds.append(float(re.findall(r'"predicted_per_second":\s*([\d.]+)', text)[-1]))
        return statistics.median(speeds)
    finally:
        server.terminate()
        server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="one is the least disturbed by other work on the machine")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    args = parser.parse_args()
    layers = 99 if devices.has_gpu() and not args.cpu else 0
    threads = args.threads or devices.default_threads()
    rows: dict[str, float] = {}
    if args.peers:
        rows["llama-bench tg"] = llama_bench(args.peers, args.model, args.tokens, layers, threads)
    engine = open_engine(args.model, None, LoadOptions(ctx=8192, gpu_layers=0 if args.cpu else None, threads=threads))
    ours(engine, args.tokens)
    pairs = [(bare(engine, args.tokens), ours(engine, args.tokens)) for _ in range(args.repeats)]
    rows["bare loop"] = 1 / statistics.median(a[0] for a, _ in pairs)
    rows["localgemma"] = 1 / statistics.median(b[0] for _, b in pairs)
    clock, cpu = (statistics.median(b[i] - a[i] for a, b in pairs) * 1e6 for i in (0, 1))
    alone = statistics.median(steps_alone(engine, 2000) for _ in range(5)) * 1e6
    engine.close()
    if args.peers:
        rows["llama-server"] = llama_server(args.peers, args.model, args.tokens, layers, [])
        on_device = llama_server(args.peers, args.model, args.tokens, layers, ["--backend-sampling"])
        rows["llama-server, device sampling"] = on_device
    for name, speed in rows.items():
        print(f"{name:32} {speed:9.2f} tok/s   localgemma / it = {rows['localgemma'] / speed:.3f}")
    print(
        f"overhead over the bare loop, µs a token: {clock:.0f} by the clock, {cpu:.0f} of CPU time, {alone:.0f} by its steps"
    )
    overhead = {"clock": round(clock, 1), "cpu": round(cpu, 1), "steps": round(alone, 1)}
    print(json.dumps({"tokens_per_second": rows, "overhead_us": overhead, "model": args.model.name}))


if __name__ == "__main__":
    main()
