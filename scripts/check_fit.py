"""Predicted against measured: memory by device, largest context, speed. A table, then one JSON line.

On a computer with a GPU, with the random 31B shapes (one quantisation on the disk at a time):
    python scripts/check_fit.py --maker make_shape_gguf.py --vocab gemma-4-vocab.gguf --quants Q8_0,Q4_K_M,Q3_K_M
On any computer, with files that are there:
    python scripts/check_fit.py --model demo --model FILE.gguf --fill

Each configuration is loaded by a process of its own without a warm-up; it says what the device and the process hold before
the load, after it, and after one full batch (with --fill, after the last token of the context).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from localgemma.files.header import read_header
from localgemma.fit import decide, prepare, probe, rates
from localgemma.fit.buffers import Table
from localgemma.fit.hardware import Machine
from localgemma.fit.memory import LATER, Setup, Weights, need, resident
from localgemma.fit.planner import Planner, Way, Wishes
from localgemma.fit.speed import tokens_per_second
from localgemma.options import LoadOptions

MIB, GIB = 1 << 20, 1 << 30
DRIVER: list[int] = []


@dataclass(frozen=True)
class Case:
    """One configuration; `layers` counts the output, `pictures` is the projector's largest budget (0: none)."""

    ctx: int
    kv: str
    ubatch: int
    layers: int
    pictures: int = 0
    mmap: bool = True


# Contexts x KV types x batches x layers, thinned so that every value meets every other, and fast loads are the most.
CASES = (
    Case(8192, "f16", 512, 61), Case(32768, "f16", 1152, 61), Case(65536, "q8_0", 2048, 61), Case(131072, "q8_0", 512, 61),
    Case(262144, "q8_0", 1152, 61), Case(32768, "f16", 1152, 61, 1120), Case(32768, "q8_0", 2048, 60),
    Case(8192, "f16", 2048, 45), Case(65536, "q8_0", 512, 45), Case(32768, "f16", 512, 30, 1120),
    Case(131072, "q8_0", 1152, 30), Case(8192, "f16", 512, 0),
)  # fmt: skip
ORDER = ("Q8_0", "Q4_K_M", "Q3_K_M")
HERE = (Case(1024, "f16", 512, 0), Case(1024, "q8_0", 256, 0), Case(1024, "f16", 512, 0, mmap=False))


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maker", type=Path, help="the script that makes a GGUF of the 31B's shape")
    parser.add_argument("--vocab", type=Path)
    parser.add_argument("--quants", default="Q8_0,Q4_K_M,Q3_K_M")
    parser.add_argument("--model", action="append", default=[], help="a file, or demo; instead of shapes")
    parser.add_argument("--mmproj", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("."), help="where shapes are written")
    parser.add_argument("--fill", action="store_true", help="fill each context to its last token")
    parser.add_argument("--all", action="store_true", help="every case with every quantisation")
    parser.add_argument("--no-speed", action="store_true")
    parser.add_argument("--speed-layers", help="layers on the GPU whose speed is measured, as 61,45,0 (the default)")
    parser.add_argument("--no-largest", action="store_true", help="with --fill: leave out the largest context")
    parser.add_argument("--cases", type=int, default=100, help="the first so many cases only")
    parser.add_argument("--only-layers", type=int, help="only cases with so many layers on the GPU")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(json.loads(args.child))
        return
    started, rows, extra = time.time(), [], []
    for text, projector in files(args):
        for row in check(text, projector, args):
            (rows if row["kind"] == "memory" else extra).append(row)
            print(line(row), flush=True)
    summary = summarise(rows)
    print("\nCompute buffers (MiB): context, KV, ubatch, layers: on GPUs and in RAM, dry run | table")
    for row in rows:
        print(f"  {row['case']['ctx']:>7} {row['case']['kv']:5} {row['case']['ubatch']:>5} {row['case']['layers']:>3}: "
              f"{row['dry']} | {row['table']}")  # fmt: skip
    print(json.dumps({"seconds": round(time.time() - started), **summary, "rows": rows, "others": extra}))


def files(args: argparse.Namespace) -> Iterator[tuple[Path, Path | None]]:
    """(text model, projector) of each model; a shape is deleted before the next is made."""
    for name in args.model:
        if name == "demo":
            folder = Path(__file__).resolve().parent.parent / "localgemma" / "assets" / "demo"
            yield folder / "text.gguf", folder / "mmproj.gguf"
        else:
            yield Path(name), args.mmproj
    if args.model or not args.maker:
        return
    make = [sys.executable, str(args.maker), str(args.vocab)]
    projector = args.folder / "shape-mmproj.gguf"
    subprocess.run([*make, str(projector), "BF16", "vision"], check=True, stdout=subprocess.DEVNULL)
    for quant in args.quants.split(","):
        text = args.folder / f"shape-{quant}.gguf"
        begun = time.time()
        subprocess.run([*make, str(text), quant], check=True, stdout=subprocess.DEVNULL)
        print(f"{quant} made in {time.time() - begun:.0f} s", flush=True)
        yield text, projector
        text.unlink()


def check(text: Path, projector: Path | None, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every case of one file, then its largest context and its speeds."""
    machine, header = probe.machine(), read_header(text)
    weights = decide.from_header(header).weights
    cases = HERE
    if machine.gpus:  # each case with two of the three quantisations, so that a run stays within minutes
        order = ORDER.index(text.stem.removeprefix("shape-")) if text.stem.removeprefix("shape-") in ORDER else 0
        cases = tuple(case for index, case in enumerate(CASES) if args.all or (index + order) % 3)
    if args.only_layers is not None:
        cases = tuple(case for case in CASES if case.layers == args.only_layers)
    cases = cases[: args.cases]
    every = len(weights.layers) + 1
    with decide.Here(machine) as here:
        for case in cases:
            case = replace(case, layers=min(case.layers, every), ctx=min(case.ctx, weights.shape.trained_context))
            yield memory_row(here, weights, text, projector, case, args.fill)
        last = machine.gpus and args.quants.endswith(text.stem.removeprefix("shape-"))
        if (args.fill or last) and not args.no_largest:
            yield from largest(here, weights, text, header.file_size)
            yield from crowded(text, projector)
        if not args.no_speed:
            measured = rates.measure(machine, [kind for kind, _ in weights.types if kind] + [weights.output_type], again=True)
            fast = probe.with_rates(machine, measured)
            print("  reads", {key: f"{rate / 1e9:.1f} GB/s" for key, rate in measured.items()}, flush=True)
            asked = [int(count) for count in args.speed_layers.split(",")] if args.speed_layers else []
            for layers in (asked or [every, every * 3 // 4, 0]) if machine.gpus else [0]:
                yield speed_row(fast, measured, weights, text, layers)


def setup_of(weights: Weights, case: Case, machine: Machine, projector: int) -> Setup:
    """The case as the planner describes it, everything on the first GPU."""
    options = LoadOptions(
        ctx=case.ctx, kv=case.kv, ubatch=case.ubatch, image_tokens=case.pictures, gpu_layers=case.layers, mmap=case.mmap,
        devices=(machine.gpus[0].name,) if machine.gpus and case.layers else (), threads=machine.threads,
        projector_on_gpu=bool(machine.gpus), checkpoint_bytes=0,
    )  # fmt: skip
    placement = (case.layers,) if machine.gpus else ()
    return Setup(weights, options, case.ctx, placement, projector if case.pictures else 0)


def memory_row(
    here: decide.Here, weights: Weights, text: Path, projector: Path | None, case: Case, fill: bool
) -> dict[str, Any]:
    """Predicted and measured bytes of one case."""
    size = projector.stat().st_size if projector and case.pictures else 0
    setup = setup_of(weights, case, here.machine, size)
    table = Table(tuple(gpu.backend for gpu in here.machine.gpus))(setup)
    dry = here.compute.settle(setup)
    taken = need(setup, here.compute)
    device = sum(item.size for item in taken.gpus[0] if item.what not in (*LATER, "driver")) if taken.gpus else 0
    seen = run_child(text, projector if size else None, setup, fill)
    if device and not DRIVER:
        DRIVER.append(seen["device"] - device)  # the first load calibrates, as it does for a user
    driver = DRIVER[0] if DRIVER else 0
    host = resident(setup, here.compute)
    return {
        "kind": "memory", "model": text.name, "case": asdict(case),
        "device": {"predicted": device + (driver if device else 0), "measured": seen["device"], "driver": driver},
        "host": {"predicted": host, "measured": seen["host"]},
        "dry": [[size // MIB for size in dry.gpus], dry.host // MIB],
        "table": [[size // MIB for size in table.gpus], table.host // MIB], "seen": seen,
    }  # fmt: skip


def largest(here: decide.Here, weights: Weights, text: Path, size: int) -> Iterator[dict[str, Any]]:
    """The largest context that a plan promises: it loads and is filled; 2 % more is refused."""
    candidate = decide.Candidate(text.name, weights, decide.Standing(0.0, None, "given"), 0, size)
    base = LoadOptions(threads=here.machine.threads, checkpoint_bytes=0, image_tokens=0)
    # On a GPU only so much of it that the context is not bound by the model, and that filling it takes a minute at most.
    spare = min((gpu.free for gpu in here.machine.gpus), default=0) - size - 5 * GIB
    wishes = Wishes(pictures=False, base=base, reserve=max(0, spare))
    planner = Planner(here.machine, here.compute, wishes, {}, None)
    way = here.settled(planner, (candidate,))
    if way is None:
        return
    most = planner.largest_context(way)
    setup = replace(way.setup, tokens=most)
    here.compute.settle(setup)
    if not planner.fits(setup):
        most = planner.largest_context(way)
        setup = replace(way.setup, tokens=most)
    more = replace(way.setup, tokens=most + most // 50 + 256)
    limit = weights.shape.trained_context
    seen = run_child(text, None, setup, True)
    yield {
        "kind": "largest", "model": text.name, "ctx": most, "filled": seen.get("filled", 0) == most,
        "within": not planner.machine.gpus or seen["device"] <= planner.machine.gpus[0].free,
        "more_refused": not planner.fits(more) or more.tokens > limit, "seen": seen,
    }  # fmt: skip


CROWDED = """
import sys
from dataclasses import replace
from localgemma import runtime
from localgemma.errors import DoesNotFit
from localgemma.fit import planner, probe
from localgemma.fit.planner import Wishes

text, projector = sys.argv[1], sys.argv[2] or None
seen = probe.machine()
held = []
while seen.gpus and probe.machine().gpus[0].free > 45 << 30:  # another program takes its part first
    held.append(runtime.open(text, wishes=Wishes(ctx=131072, kv="f16", pictures=False, gpu_layers=-1)))
roomy = replace(seen, gpus=tuple(replace(gpu, free=gpu.free * 4) for gpu in seen.gpus), ram_free=seen.ram_free * 8)
probe.machine = lambda: roomy  # the plan is made for memory that is not there
planner.WANTED_CONTEXT, planner.CONTEXTS = 262_144, (262_144,)
try:
    with runtime.open(text, projector=projector, wishes=Wishes(kv="f32")) as model:
        print("loaded", model.plan.options.ctx, model.plan.options.gpu_layers, model.plan.notes)
except DoesNotFit as error:
    print("refused:", error)
"""


def crowded(text: Path, projector: Path | None) -> Iterator[dict[str, Any]]:
    """A load that was planned for far more memory than there is: it must step down or refuse, and live."""
    command = [sys.executable, "-c", CROWDED, str(text), str(projector or "")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parent.parent)
    said = done.stdout.strip()[-300:] or done.stderr[-300:]
    yield {"kind": "crowded", "model": text.name, "code": done.returncode, "said": said}


def speed_row(machine: Machine, measured: Any, weights: Weights, text: Path, layers: int) -> dict[str, Any]:
    """Tokens a second, predicted and measured at about 100 tokens of context."""
    setup = setup_of(weights, Case(4096, "f16", 512, layers), machine, 0)
    predicted = tokens_per_second(setup, machine, prepare.as_rates(measured), depth=100)
    seen = run_child(text, None, setup, False, 64 if layers or not machine.gpus else 24)
    return {"kind": "speed", "model": text.name, "layers": layers, "predicted": predicted, "measured": seen["speed"]}


def run_child(text: Path, projector: Path | None, setup: Setup, fill: bool, tokens: int = 0) -> dict[str, Any]:
    """Load in a process of its own and have it say what it holds."""
    options = asdict(Way.options_of(setup))
    job = {"text": str(text), "projector": str(projector or ""), "options": options, "fill": fill, "tokens": tokens}
    done = subprocess.run([sys.executable, __file__, "--child", json.dumps(job)], capture_output=True, text=True)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        found = {"error": (done.stderr or done.stdout)[-400:], "code": done.returncode, "device": 0, "host": 0, "speed": 0.0}
    return found


def child(job: dict[str, Any]) -> None:
    """Load, evaluate, and print one JSON line about memory and speed."""
    from localgemma.llamacpp import devices, library
    from localgemma.llamacpp.context import Context
    from localgemma.llamacpp.model import Model
    from localgemma.llamacpp.vision import Projector

    raw = job["options"]
    raw["devices"] = None if raw["devices"] is None else tuple(raw["devices"])
    options = LoadOptions(**raw)
    smi = [nvidia_smi()]
    library.load()
    import numpy  # noqa: F401  (part of the program before a load; after the library, which needs its own C++ runtime)

    def state() -> tuple[int, int]:
        gpus = [device.free for device in devices.list_devices() if device.kind in ("gpu", "igpu")]
        return sum(gpus), probe.resident()

    before = state()
    smi.append(nvidia_smi())
    model = Model(Path(job["text"]), options)
    vision = Projector(Path(job["projector"]), model, options) if job["projector"] else None
    context = Context(model, options, options.ctx or 512)
    loaded = state()
    smi.append(nvidia_smi())
    end = options.ctx or 512 if job["fill"] else min(options.ctx or 512, options.physical_batch)
    position, batch = 0, options.physical_batch
    while position < end:
        count = min(batch, end - position)
        context.decode([3 + (position + i) % 200 for i in range(count)], position, 1)
        position += count
    filled, seconds = position, []
    for step in range(job["tokens"]):
        begun = time.perf_counter()
        context.decode_one(5 + step % 100, position + step)
        context.logits(0)
        seconds.append(time.perf_counter() - begun)
    after = state()
    smi.append(nvidia_smi())
    picture = 0
    if vision and before[0]:
        from localgemma.gemma4.vision import from_rgb, target_size

        high, wide = target_size(1000, 1000, options.image_tokens)
        vision.encode(from_rgb(bytes(high * wide * 3), wide, high))
        picture = after[0] - state()[0]
    seconds = sorted(seconds[len(seconds) // 8 :])
    print(json.dumps({
        "device": before[0] - after[0] if before[0] else 0, "device_loaded": before[0] - loaded[0],
        "host": after[1] - before[1], "host_loaded": loaded[1] - before[1], "start": before[1], "filled": filled,
        "nvidia_smi": smi, "mapped": mapped(), "picture": picture, "speed": 1 / seconds[len(seconds) // 2] if seconds else 0.0,
    }))  # fmt: skip


def mapped() -> int:
    """Bytes of mapped files that are resident (Linux): the system drops them where memory is short."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:")), 0)


def nvidia_smi() -> int:
    """MiB in use on the first NVIDIA GPU as its driver says; 0 without one."""
    answer = probe.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"])
    return int(answer.split()[0]) if answer[:1].isdigit() else 0


def allowed(share: float, least: int, measured: int) -> float:
    """The tolerance: a share of what was measured, or so many MiB."""
    return max(share * measured, least * MIB)


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many rows are within the reaches: device 1 % or 64 MiB; host 2 % or 128 MiB (3 % or 64 MiB without a GPU)."""
    gpu = any(row["device"]["measured"] for row in rows)
    share, least = (0.02, 128) if gpu else (0.03, 64)
    device = [row for row in rows if off(row["device"]) <= allowed(0.01, 64, row["device"]["measured"])]
    host = [row for row in rows if off(row["host"]) <= allowed(share, least, row["host"]["measured"])]
    return {"cases": len(rows), "device_within": len(device), "host_within": len(host)}


def off(pair: dict[str, int]) -> int:
    """Bytes between predicted and measured."""
    return abs(pair["predicted"] - pair["measured"])


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    name, error = row["model"], row.get("seen", {}).get("error", "")
    if row["kind"] == "speed":
        share = row["predicted"] / row["measured"] - 1 if row["measured"] else 0
        told = f"{row['predicted']:.1f} tokens/s predicted, {row['measured']:.1f} measured ({share:+.0%})"
        return f"{name:20} {row['layers']:>3} layers: {told}"
    if row["kind"] == "largest":
        told = f"filled {row['filled']}, within its share {row['within']}, 2 % more refused {row['more_refused']}"
        return f"{name:20} largest context {row['ctx']:,}: {told} {error}"
    if row["kind"] == "crowded":
        return f"{name:20} planned for memory that is not there: {row['said']} (exit {row['code']})"
    case, device, host = row["case"], row["device"], row["host"]

    def pair(both: dict[str, int]) -> str:
        wanted, seen = both["predicted"] / MIB, both["measured"] / MIB
        return f"{wanted:9,.0f} {seen:9,.0f} {wanted - seen:+7,.0f}"

    shown = f"{case['ctx']:>7} {case['kv']:5} {case['ubatch']:>5} {case['layers']:>3} {case['pictures']:>5}"
    picture = row["seen"].get("picture", 0)
    more = f" a picture took {picture / MIB:,.0f} more" if picture else ""
    return f"{name:20} {shown} {'mmap' if case['mmap'] else 'read'}  device {pair(device)}  host {pair(host)}{more} {error}"


if __name__ == "__main__":
    main()
