"""This machine: limits of containers, what was measured and kept, the doctor's findings, loads that fail after all."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from localgemma import measured, runtime
from localgemma.cli import main as cli_main
from localgemma.errors import BackendError, DoesNotFit
from localgemma.files.header import read_header
from localgemma.fit import calibrate, doctor, prepare, probe, rates, stub
from localgemma.fit.decide import decide, from_header
from localgemma.fit.doctor import Card, Facts
from localgemma.fit.explain import Decision
from localgemma.fit.hardware import Gpu, Machine
from localgemma.fit.memory import weights_of
from localgemma.fit.planner import Wishes
from localgemma.fit.speed import BESIDE
from localgemma.gemma4.shape import metadata_of
from localgemma.llamacpp import library
from localgemma.llamacpp.dryrun import TensorInfo
from localgemma.llamacpp.trial import seconds_a_token
from localgemma.options import LoadOptions

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "localgemma" / "assets" / "demo"
GIB, MIB = 1 << 30, 1 << 20
CARD = Gpu("CUDA0", "NVIDIA RTX 4090", 22 * GIB, 24 * GIB, 1e12)
HEALTHY = Facts(
    machine=Machine((CARD,), 50 * GIB, 64 * GIB, 5e10, 8), cards=(Card("NVIDIA", "RTX 4090", 24 * GIB, GIB, "570.1"),),
    holders=(), features="AVX2 = 1 | ", library_error="", library_fix=doctor.INSTALL, swap_used=0,
    disk_free=500 * GIB, wired_limit=0, offline=False,
    folder="/data",
)  # fmt: skip


@pytest.mark.parametrize(
    ("membership", "files", "limits"),
    [
        ("0::/a/b\n", {"a/memory.max": "max", "a/memory.current": "9", "a/b/memory.max": str(8 * GIB),
                       "a/b/memory.current": str(3 * GIB), "a/b/memory.stat": f"anon 5\ninactive_file {GIB}\n"},
         [(8 * GIB, 2 * GIB)]),
        ("4:memory:/x\n0::/\n", {"memory/x/memory.limit_in_bytes": str(4 * GIB), "memory/x/memory.usage_in_bytes": str(GIB),
                                "memory/memory.limit_in_bytes": str((1 << 63) - 4096), "memory/memory.usage_in_bytes": "1"},
         [(4 * GIB, GIB)]),
        ("0::/../../outside\n", {}, []),
        ("nonsense\n\n", {}, []),
    ],
)  # fmt: skip
def test_limits_of_containers(tmp_path: Path, membership: str, files: dict[str, str], limits: list[tuple[int, int]]) -> None:
    (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert probe._cgroup_limits(tmp_path / "root", tmp_path / "cgroup") == limits


def test_this_machine() -> None:
    machine = probe.machine()
    assert 0 < machine.ram_free <= machine.ram_total and machine.threads >= 1
    assert machine.key == probe.machine().key


def test_a_tool_that_is_missing_or_fails_says_nothing() -> None:
    assert probe.run(["no-such-tool-anywhere"]) == ""
    assert probe.run([sys.executable, "-c", "import time; time.sleep(9)"], timeout=0.2) == ""
    assert probe.run([sys.executable, "-c", "raise SystemExit(3)"]) == ""


def test_measurements_are_kept_by_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    assert measured.load("a") == measured.Measured()
    one = measured.Measured({"CPU:12": 1e10}, {"CUDA0": 5}, 7).with_load(measured.Load("m", {"RAM": 1}, {"RAM": 2}, 3.0))
    measured.save("a", one)
    measured.save("b", measured.Measured({"CPU:12": 2e10}))
    assert measured.load("a") == one and measured.load("b").rates["CPU:12"] == 2e10
    for index in range(50):
        one = one.with_load(measured.Load(str(index), {}, {}))
    assert len(one.loads) == measured.KEPT_LOADS


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 3}', '{"a": {"rates": {"x": "y"}}}', '{"a": {"loads": [{"b": 1}]}}'])
def test_damaged_measurements_are_as_good_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    measured.file().parent.mkdir(parents=True)
    measured.file().write_text(damage)
    assert measured.load("a") == measured.Measured()
    measured.save("a", measured.Measured({"CPU:2": 1.0}))
    assert measured.load("a").rates == {"CPU:2": 1.0}


@pytest.mark.parametrize(
    ("change", "level", "says", "fix"),
    [
        ({}, None, "", ""),
        ({"library_error": "llama.cpp cannot be loaded: x.", "machine": None}, "problem", "cannot be", "scripts/bootstrap"),
        ({"features": "SSE3 = 1"}, "warning", "without AVX2", "scripts/bootstrap"),
        ({"machine": replace(HEALTHY.machine, gpus=())}, "problem", "cannot use it", "scripts/bootstrap"),  
        ({"machine": replace(HEALTHY.machine, gpus=()), "cards": (Card("AMD", "AMD graphics (card0)"),)}, "problem",  
         "AMD graphics", "scripts/bootstrap"),
        ({"cards": (Card("NVIDIA", "RTX 4090", 24 * GIB, GIB, "470.82"),)}, "problem", "too old", "525"),
        ({"cards": (Card("NVIDIA", "RTX 4090", 24 * GIB, 9 * GIB, "570.1"),), "holders": (("game", 8 * GIB),)}, "warning",
         "game 8 GiB", "Close"),
        ({"swap_used": 5 * GIB}, "warning", "swapped out", "Close"),
        ({"disk_free": 3 * GIB}, "warning", "3 GiB", "prune"),
        ({"machine": replace(HEALTHY.machine, gpus=(), ram_free=5 * GIB), "cards": ()}, "problem", "too little", "-m demo"),  
        ({"machine": replace(HEALTHY.machine, ram_free=2 * GIB)}, "warning", "push other programs out", "Close"),  
        ({"machine": Machine((replace(CARD, total=20 * GIB),), 30 * GIB, 36 * GIB, 1e11, 8, True, system="darwin"),
          "cards": ()}, "warning", "macOS lets the GPU use 20 GiB", "sudo sysctl iogpu.wired_limit_mb="),
    ],
)  # fmt: skip
def test_the_doctor_knows_the_traps(change: dict[str, object], level: str | None, says: str, fix: str) -> None:
    found = doctor.examine(replace(HEALTHY, **change))
    bad = [finding for finding in found if finding.level != "ok"]
    if level is None:
        assert not bad and len(found) >= 4
        return
    assert any(f.level == level and says in f.what and fix in f.fix for f in bad), found
    assert all(finding.fix for finding in bad)


@pytest.mark.parametrize(
    ("code", "says"), [(0, ""), (1, ""), (-4, "an illegal instruction"), (0xC000001D, "an illegal"), (-11, "-11")]
)
def test_the_doctor_tries_the_library_in_another_process(monkeypatch: pytest.MonkeyPatch, code: int, says: str) -> None:
    done = lambda command, **how: subprocess.CompletedProcess(command, code)  # noqa: E731
    monkeypatch.setattr(doctor.subprocess, "run", done)
    said = doctor._dies()
    assert (says in said) if says else said == ""
    if says:
        finding = doctor.examine(replace(HEALTHY, library_error=said))[0]
        assert finding.code == 6 and "scripts/bootstrap" in finding.fix


def test_the_doctor_on_this_machine() -> None:
    result = CliRunner().invoke(cli_main.cli, ["doctor", "--no-measure", "--json"])
    assert result.exit_code in (0, 4), result.output
    assert {"findings", "machine", "cards", "rates", "loads"} == set(json.loads(result.stdout))


@pytest.mark.parametrize(
    ("options", "wishes", "steps"),
    [
        (LoadOptions(ctx=8192, gpu_layers=61), Wishes(),
         [(560, 8192, 61), (280, 8192, 61), (280, 4096, 61), (280, 2048, 61), (280, 2048, 45), (280, 2048, 33)]),
        (LoadOptions(ctx=8192, gpu_layers=2, image_tokens=0), Wishes(ctx=8192), [(0, 8192, 1), (0, 8192, 0)]),
        (LoadOptions(ctx=4096, gpu_layers=2), Wishes(gpu_layers=2, image_tokens=1120), [(1120, 2048, 2)]),
        (LoadOptions(ctx=2048, gpu_layers=0, image_tokens=280), Wishes(), []),
    ],
)  # fmt: skip
def test_steps_down_take_less_and_leave_what_was_asked_for(
    options: LoadOptions, wishes: Wishes, steps: list[tuple[int, int, int]]
) -> None:
    taken = [(o.image_tokens, o.ctx, o.gpu_layers) for o, _ in calibrate.smaller(options, wishes)]
    assert taken[: len(steps)] == steps and (taken[len(steps) :] == [] or len(steps) == 6)


def test_a_load_that_fails_for_memory_steps_down_and_says_so() -> None:
    tried: list[int] = []

    def attempt(options: LoadOptions) -> str:
        tried.append(options.ctx or 0)
        if (options.ctx or 0) > 4096:
            raise DoesNotFit("CUDA0 is full.")
        return "loaded"

    start = LoadOptions(ctx=16384, image_tokens=0)
    roomy = Machine((), 64 * GIB, 64 * GIB, 5e10, 2)
    decision = decide((from_header(read_header(DEMO / "text.gguf")),), Wishes(ctx=8192, pictures=False), roomy)
    engine, options, said = calibrate.load(decision, start, Wishes(), attempt)
    assert (engine, options.ctx, tried) == ("loaded", 4096, [16384, 8192, 4096])
    assert said == ("It did not fit as planned (CUDA0 is full); loaded with a context of 4,096 tokens.",)
    with pytest.raises(DoesNotFit, match="CUDA0 is full") as caught:
        calibrate.load(decision, start, Wishes(ctx=16384), attempt)
    assert "--ctx" in caught.value.hint


def windows(monkeypatch: pytest.MonkeyPatch, taken: list[int]) -> tuple[calibrate.Before, Decision]:
    """A plan for a Windows machine with a card, and what its driver says was taken at each look."""
    machine = replace(HEALTHY.machine, system="win32")
    decision = decide((from_header(read_header(DEMO / "text.gguf"), 30 * GIB),), Wishes(ctx=8192), replace(machine, gpus=(
        replace(machine.gpus[0], free=200 * GIB),), ram_free=200 * GIB))  # fmt: skip
    free = machine.gpus[0].free
    looks = iter(taken)
    monkeypatch.setattr(calibrate, "_free", lambda machine: (free - next(looks),))
    return calibrate.Before(machine, 0, (free,)), decision


def test_windows_spill_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before, decision = windows(monkeypatch, [31 * GIB, 15 * GIB, 15 * GIB])
    assert calibrate.spilled(before, decision, decision.way.load) == ""
    said = calibrate.spilled(before, decision, decision.way.load)
    assert "15.1 GiB" in said and "--reserve 16" in said
    assert "With a picture, Windows" in calibrate.spilled(before, decision, decision.way.load, pictures=True)
    linux = replace(before, machine=replace(before.machine, system="linux"))
    assert calibrate.spilled(linux, decision, decision.way.load) == ""


def test_what_windows_spills_steps_down_and_the_last_way_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    _, decision = windows(monkeypatch, [])
    closed: list[int] = []

    def slow(engine: int, options: LoadOptions, last: bool) -> str:
        if engine <= 4096:
            return ""
        if not last:
            closed.append(engine)
        return "Windows moved it."

    start = LoadOptions(ctx=16384, image_tokens=0)
    attempt = lambda options: options.ctx or 0  # noqa: E731
    engine, _, said = calibrate.load(decision, start, Wishes(), attempt, slow)
    assert (engine, closed) == (4096, [16384, 8192])
    assert said == ("It did not fit as planned (Windows moved it); loaded with a context of 4,096 tokens.",)
    engine, _, said = calibrate.load(decision, start, Wishes(ctx=16384, gpu_layers=0), attempt, slow)
    assert (engine, said) == (16384, ("Windows moved it.",))


def test_rates_are_measured_once_and_not_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    asked: list[tuple[tuple[str, ...] | None, int]] = []

    def seconds(metadata: object, tensors: list[TensorInfo], vocabulary: int, options: LoadOptions) -> float:
        asked.append((options.devices, len(tensors)))
        if options.devices and options.gpu_layers == 0:  # the CPU beside a GPU
            return sum(t.nbytes for t in tensors) / 3e10
        if options.devices == ("CUDA0",):
            return sum(t.nbytes for t in tensors) / 1e12 + 0.001  # the millisecond a token is no part of the rate
        return sum(t.nbytes for t in tensors) / 4e10

    monkeypatch.setattr(rates, "seconds_a_token", seconds)
    monkeypatch.setattr(rates, "busy", lambda: True)
    assert rates.measure(HEALTHY.machine) == {} and not asked
    monkeypatch.setattr(rates, "busy", lambda: False)
    found = rates.measure(HEALTHY.machine, (12,))
    assert found == pytest.approx({"CPU:12": 4e10, f"{BESIDE}:12": 3e10, "CUDA0:12": 1e12})
    count = len(asked)
    assert rates.measure(HEALTHY.machine, (12,)) == found and len(asked) == count
    kept = prepare.rates_of(HEALTHY.machine)
    assert kept == {(name, 12): found[f"{name}:12"] for name in ("CPU", BESIDE, "CUDA0")}
    assert probe.with_rates(HEALTHY.machine, found).gpus[0].bandwidth == pytest.approx(1e12)
    rates.measure(HEALTHY.machine, (12,), again=True)
    assert len(asked) == 2 * count
    monkeypatch.setattr(rates, "busy", lambda: True)  # what is measured then is told, and forgotten where it is worse
    monkeypatch.setattr(rates, "seconds_a_token", lambda *given: 2 * seconds(*given))
    assert rates.measure(HEALTHY.machine, (8, 12), again=True)["CPU:12"] == pytest.approx(2e10)
    assert measured.load(HEALTHY.machine.key).rates == pytest.approx(found)


def test_a_speed_that_was_seen_corrects_the_next_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    candidate = from_header(read_header(DEMO / "text.gguf"))

    def plan(**wishes: Any) -> Decision:
        return decide((candidate,), Wishes(**wishes), Machine((), 8 * GIB, 8 * GIB, 5e10, 2), {})

    first = plan()
    calibrate.saw(first, first.way.speed / 2)
    assert plan().way.speed == pytest.approx(first.way.speed / 2)
    assert "were seen to have here" in str(plan().choices) and "were seen to have here" not in str(first.choices)
    calibrate.saw(plan(), first.way.speed)  # twice as fast as told now: half the way back
    assert plan().way.speed == pytest.approx(first.way.speed / 2**0.5)
    calibrate.saw(plan(), first.way.speed / 10_000)
    assert plan().way.speed == pytest.approx(first.way.speed / 10), "no correction is larger"


@pytest.mark.live
def test_a_device_is_measured_with_layers_of_zeros() -> None:
    shape = weights_of(read_header(DEMO / "text.gguf")).shape
    tensors = stub.tensors_of(replace(shape, vocabulary=256), 8, 8)
    options = LoadOptions(gpu_layers=0, devices=(), threads=1, image_tokens=0)
    assert 0 < seconds_a_token(metadata_of(shape), tensors, 256, options, limit=0.01) < 5
    with pytest.raises(BackendError):
        seconds_a_token({"general.architecture": "gemma4"}, tensors, 256, options)


@pytest.mark.live
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads as Linux lists them")
def test_measuring_leaves_no_threads_waiting() -> None:
    shape = weights_of(read_header(DEMO / "text.gguf")).shape
    tensors = stub.tensors_of(replace(shape, vocabulary=256), 8, 8)
    options = LoadOptions(gpu_layers=0, devices=(), threads=4, image_tokens=0)
    library.load()
    library.release_threads()
    before = len(list(Path("/proc/self/task").iterdir()))
    seconds_a_token(metadata_of(shape), tensors, 256, options, limit=0.01)
    assert len(list(Path("/proc/self/task").iterdir())) <= before


@pytest.mark.live
def test_opening_follows_the_plan_and_keeps_what_it_took(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    with runtime.open("demo", wishes=Wishes(ctx=2048, kv="q8_0", pictures=False)) as model:
        assert model.info.context == 2048 and model.plan.options.kv == "q8_0" and model.info.image_tokens == 0
        assert "you asked for it" in str(model.plan) and model.plan.decision is not None
        key = model.plan.decision.machine.key
    (load,) = measured.load(key).loads
    assert load.taken["RAM"] > 0
    assert abs(load.taken["RAM"] - load.predicted["RAM"]) < 64 * MIB
    with pytest.raises(DoesNotFit):
        prepare.plan(DEMO / "text.gguf", Wishes(), Machine((), 300 * MIB, GIB, 1e10, 2, simulated=True))


LIMITED = """
import resource, sys
from localgemma import runtime
from localgemma.errors import DoesNotFit
from localgemma.fit import probe
from localgemma.llamacpp import library
library.load()
used = probe.resident.__module__ and __import__("psutil").Process().memory_info().vms
limit = used + int(sys.argv[1]) * (1 << 20)
if sys.argv[2] == "unseen":  # the plan is made for more memory than there is
    seen = probe.machine()
    probe.machine = lambda: seen
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    with runtime.open("demo") as model:
        print("loaded", model.plan.options.ctx, model.plan.options.image_tokens, *model.plan.notes)
except DoesNotFit as error:
    print("refused", error)
"""


@pytest.mark.live
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS means address space on Linux only")
@pytest.mark.parametrize("seen", ["seen", "unseen"])
@pytest.mark.parametrize("room", [20, 150, 400, 4000])
def test_too_little_memory_ends_in_a_sentence(room: int, seen: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(room), seen], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-600:]
    assert done.stdout.startswith("loaded" if room == 4000 else ("refused", "loaded")), done.stdout
    assert "\n" not in done.stdout.strip()
