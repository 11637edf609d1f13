"""Decode speed beside the peers, in one run: llama-bench, llama-server and this engine, and the bare loop's overhead.

    python scripts/bench_speed.py MODEL [--peers DIR] [--tokens 128] [--repeats 5] [--threads N] [--cpu]

DIR holds llama-bench and llama-server of the same build. Prints a table and, last, one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import time
import urllib.request
from pathlib import Path

from localgemma.engine import Control, Finished, Prompt, Request, Text
from localgemma.llamacpp import devices
from localgemma.llamacpp.engine import LlamaEngine, open_engine
from localgemma.llamacpp.sampler import Sampler
from localgemma.options import LoadOptions, Sampling

ENDS = {1: -99.0, 50: -99.0, 106: -99.0}
QUESTION = "Tell me about the capital of France, please."


def ours(engine: LlamaEngine, tokens: int) -> float:
    """Tokens per second of Engine.generate with Gemma's sampling (ends are banned by a bias, in every contestant alike)."""
    prompt = Prompt((Control("<bos>"), Control("<|turn>"), Text(f"user\n{QUESTION}"), Control("<turn|>")))
    request = Request(prompt, Sampling(seed=1, max_tokens=tokens, logit_bias=ENDS))
    done = list(engine.generate(request))[-1]
    assert isinstance(done, Finished) and done.usage.answer == tokens, done
    return done.timings.decode_speed


def bare(engine: LlamaEngine, tokens: int) -> float:
    """The same loop with nothing around it: decode, take the sampled id."""
    context = engine._context
    engine._called(lambda: engine._cache.clear(engine._cache.slots[0]))
    sampler = Sampler(context, Sampling(seed=1, logit_bias=ENDS), on_device=engine._on_device)
    ids = engine.tokenize(Prompt((Control("<bos>"), Text(QUESTION))))
    context.decode(ids, 0, 1)
    token = sampler.sample(len(ids) - 1)
    started = time.perf_counter()
    for step in range(tokens):
        context.decode_one(token, len(ids) + step)
        token = sampler.sample(0)
    spent = time.perf_counter() - started
    sampler.close()
    engine._called(lambda: engine._cache.clear(engine._cache.slots[0]))
    return tokens / spent


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
    rows["bare loop"] = statistics.median(a for a, _ in pairs)
    rows["localgemma"] = statistics.median(b for _, b in pairs)
    engine.close()
    if args.peers:
        rows["llama-server"] = llama_server(args.peers, args.model, args.tokens, layers, [])
        on_device = llama_server(args.peers, args.model, args.tokens, layers, ["--backend-sampling"])
        rows["llama-server, device sampling"] = on_device
    for name, speed in rows.items():
        print(f"{name:32} {speed:9.2f} tok/s   localgemma / it = {rows['localgemma'] / speed:.3f}")
    overhead = (1 / rows["localgemma"] - 1 / rows["bare loop"]) * 1e6
    print(f"overhead over the bare loop: {overhead:.0f} µs a token")
    print(json.dumps({"tokens_per_second": rows, "overhead_us": round(overhead, 1), "model": args.model.name}))


if __name__ == "__main__":
    main()
