"""The planner: it keeps within every memory, obeys wishes, says its reasons, and never does worse with more."""

from __future__ import annotations

import json
import socket
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from localgemma.cli import main as cli_main
from localgemma.errors import DoesNotFit, UsageError
from localgemma.files import catalog
from localgemma.files.catalog_records import Entry
from localgemma.fit import hardware, prepare
from localgemma.fit.buffers import Table
from localgemma.fit.decide import decide, from_entry
from localgemma.fit.explain import Decision
from localgemma.fit.hardware import Machine, simulated
from localgemma.fit.planner import Candidate, Planner, Way, Wishes
from localgemma.fit.quality import standings
from localgemma.options import LoadOptions

GIB = 1 << 30
SIZES = (0, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96)


@cache
def entry() -> Entry:
    return catalog.load().entry("gemma-4-31b")


@cache
def candidates() -> tuple[Candidate, ...]:
    return from_entry(entry())


def plan(vram: tuple[int, ...], ram: int, unified: bool = False, **wishes: Any) -> Decision:
    machine = simulated(tuple(size * GIB for size in vram), ram * GIB, unified=unified)
    return decide(candidates(), Wishes(**wishes), machine, None, entry())


def best(machine: Machine, wishes: Wishes = Wishes()) -> Way | None:  # noqa: B008
    return Planner(machine, Table(("CUDA",) * len(machine.gpus)), wishes, None, entry()).best(candidates())


machines = st.builds(
    lambda cards, ram, unified: simulated(() if unified else tuple(c * GIB for c in cards), ram * GIB, unified=unified),
    st.lists(st.sampled_from(SIZES[1:]), max_size=3),
    st.sampled_from((8, 12, 16, 24, 32, 48, 64, 128)),
    st.booleans(),
)


def test_no_plan_exceeds_its_memory(full: bool) -> None:
    settings(max_examples=400 if full else 8, deadline=None)(given(machines)(keeps_within))()


def keeps_within(machine: Machine) -> None:
    way = best(machine)
    if way is None:
        return
    taken = way.need
    for index, gpu in enumerate(machine.gpus):
        assert taken.gpu(index) <= gpu.free
    on_gpus = sum(taken.gpu(i) for i in range(len(taken.gpus)))
    assert taken.host_total + (on_gpus if machine.unified else 0) <= machine.ram_free
    assert way.setup.on_gpu <= 61


def test_more_memory_never_gives_a_worse_plan(full: bool) -> None:
    phases = [phase for phase in Phase if phase != Phase.shrink or full]
    settings(max_examples=400 if full else 8, deadline=None, phases=phases)(given(st.data())(is_no_worse))()


def is_no_worse(data: st.DataObject) -> None:
    machine = data.draw(machines)
    more = data.draw(st.integers(0, 32)) * GIB // 2
    which = data.draw(st.integers(-1, len(machine.gpus) - 1))
    if which < 0 or machine.unified:
        gpus = tuple(replace(gpu, free=gpu.free + more) for gpu in machine.gpus) if machine.unified else machine.gpus
        larger = replace(machine, ram_free=machine.ram_free + more, gpus=gpus)
    else:
        gpus = tuple(replace(gpu, free=gpu.free + more * (i == which)) for i, gpu in enumerate(machine.gpus))
        larger = replace(machine, gpus=gpus)
    was, now = best(machine), best(larger)
    if was is not None:
        assert now is not None and now.cost <= was.cost + 1e-9


def test_a_larger_card_is_never_slower() -> None:
    speeds = [hardware.typical_bandwidth(size * GIB) for size in range(1, 129)]
    assert speeds == sorted(speeds)


@pytest.mark.parametrize(
    ("vram", "ram", "quant", "least_speed"),
    [
        ((), 64, "Q4", 2.0),
        ((8,), 32, "Q4", 2.5),
        ((16,), 32, "Q4", 4.0),
        ((24,), 64, "Q4", 25.0),
        ((32,), 64, "Q6_K", 15.0),
        ((24, 24), 64, "Q8_0", 15.0),
        ((48,), 64, "Q8_0", 15.0),
        ((80,), 128, "BF16", 15.0),
    ],
)
def test_usual_machines_get_what_an_expert_would_take(vram: tuple[int, ...], ram: int, quant: str, least_speed: float) -> None:
    decision = plan(vram, ram)
    assert quant in decision.way.candidate.name
    assert decision.way.speed >= least_speed
    assert decision.way.setup.tokens >= 16_384


def test_wishes_win() -> None:
    def way(**wishes: Any) -> Way:
        machine = simulated((24 * GIB,), 64 * GIB)
        found = best(machine, Wishes(**wishes))
        assert found is not None
        return found

    assert way(ctx=65_536).setup.tokens == 65_536
    assert way(kv="q4_0").setup.options.kv == "q4_0"
    assert way(gpu_layers=30).setup.on_gpu == 30
    assert way(gpu_layers=0).load.devices == ()
    assert way(pictures=False).setup.options.image_tokens == 0
    assert way(min_speed=40).speed >= 40
    assert way(reserve=4 * GIB).need.gpu(0) <= 20 * GIB
    assert way(devices=("CPU",)).setup.on_gpu == 0 and way(devices=("CPU",)).load.devices == ()
    second = plan((24, 12), 64, devices=("GPU1",))
    assert second.machine.gpus[0].total == 12 * GIB and second.way.load.devices == ("GPU1",)
    assert not second.way.load.projector_on_gpu


def test_load_options_are_wishes_where_they_say_something() -> None:
    assert Wishes.of(LoadOptions()) == Wishes()
    asked = LoadOptions(ctx=4096, kv="q8_0", gpu_layers=3, devices=("GPU0",), image_tokens=280, sequences=2)
    wishes = Wishes.of(asked)
    assert (wishes.ctx, wishes.kv, wishes.gpu_layers, wishes.devices, wishes.image_tokens) == (4096, "q8_0", 3, ("GPU0",), 280)
    assert not Wishes.of(LoadOptions(image_tokens=0)).pictures
    way = best(simulated((24 * GIB,), 64 * GIB), Wishes.of(replace(asked, projector_on_gpu=False, ubatch=1024)))
    assert way is not None
    options = way.load
    assert (options.image_tokens, options.sequences, options.projector_on_gpu, options.physical_batch) == (280, 2, False, 1024)
    assert options.kv == "q8_0" and options.gpu_layers == 3


def test_a_wish_says_what_it_costs() -> None:
    decision = plan((24,), 64, gpu_layers=20, kv="q8_0", reserve=GIB)
    asked = {choice.chosen: choice.reason for choice in decision.choices if choice.what == "asked"}
    assert list(asked) == ["--kv q8_0", "--gpu-layers 20", "--reserve 1GiB"]
    assert "costs 0.108" in asked["--kv q8_0"]
    assert "tokens/s instead of" in asked["--gpu-layers 20"]
    assert not [choice for choice in plan((24,), 64).choices if choice.what == "asked"]


def test_a_quantised_kv_cache_says_what_it_costs() -> None:
    for decision in (plan((), 24), plan((24,), 64, kv="q8_0")):
        choice = next(choice for choice in decision.choices if choice.what == "KV cache")
        assert decision.way.setup.options.kv == "q8_0"
        assert choice.chosen == "q8_0" and "costs 0.108" in choice.reason


def test_a_promised_context_fits_and_more_is_refused() -> None:
    for vram, ram in [((), 32), ((12,), 32), ((24,), 64), ((12, 12), 64)]:
        decision = plan(vram, ram)
        planner = Planner(decision.machine, Table(("CUDA",) * len(vram)), Wishes(), None, entry())
        setup, most = decision.way.setup, decision.largest_context
        setup = replace(setup, options=replace(setup.options, checkpoint_bytes=None))  # checkpoints give way
        assert planner.fits(replace(setup, tokens=most))
        if most < 262_144:
            assert not planner.fits(replace(setup, tokens=most + 256))


def test_three_neighbours_each_with_its_price() -> None:
    decision = plan((24,), 64)
    assert [other.kind for other in decision.alternatives] == ["better", "faster", "more context"]
    assert all(other.what and other.why for other in decision.alternatives)
    better, faster, longer = decision.alternatives
    assert "Q6_K" in better.what and "tokens/s instead of" in better.why
    assert "GiB" in faster.what and "tokens/s instead of" in faster.why
    assert "65,536" in longer.what


def test_what_nobody_measured_has_no_figure() -> None:
    places = standings(entry())
    assert places["gemma-4-31b:Q6_K@unsloth"].figure is None and "not measured" in places["gemma-4-31b:Q6_K@unsloth"].reason
    assert places["gemma-4-31b:Q8_0@unsloth"].figure is not None
    google = places["gemma-4-31b:Q4_0@google"]
    assert google.figure is None and "another scale" in google.reason
    assert plan((32,), 64).as_json()["quality"] is None
    # in order, an unmeasured file stays between its measured neighbours
    assert places["gemma-4-31b:Q8_0@unsloth"].place < places["gemma-4-31b:Q6_K@unsloth"].place
    assert places["gemma-4-31b:Q6_K@unsloth"].place < places["gemma-4-31b:Q4_K_M@unsloth"].place


@pytest.mark.parametrize(
    ("vram", "ram", "wishes", "says"),
    [
        ((), 8, {}, "the smallest"),
        ((8,), 16, {"ctx": 262_144}, "--ctx"),
        ((), 32, {"min_speed": 50}, "--min-speed"),
        ((8,), 64, {"gpu_layers": 60}, "--gpu-layers"),
    ],
)
def test_a_refusal_says_what_would_do(vram: tuple[int, ...], ram: int, wishes: dict[str, Any], says: str) -> None:
    with pytest.raises(DoesNotFit) as caught:
        plan(vram, ram, **wishes)
    assert says in str(caught.value)
    if says == "--ctx":
        most = int(caught.value.hint.split("--ctx ")[1].split()[0])
        assert plan(vram, ram, ctx=most).way.setup.tokens == most


def test_wrong_wishes() -> None:
    with pytest.raises(UsageError):
        plan((24,), 64, devices=("CUDA7",))
    with pytest.raises(UsageError):
        plan((24,), 64, ctx=300_000)


def test_checkpoints_are_counted_and_give_way() -> None:
    large, tight = plan((24,), 64), plan((), 24)
    for decision in (large, tight):
        size, free = decision.way.load.checkpoint_bytes, decision.machine.ram_free
        counted = [item.size for item in decision.way.need.host if item.what == "checkpoints"]
        assert size is not None and sum(counted) == size and decision.way.need.host_total <= free
        left = free - decision.way.need.host_total + size
        assert size == min(free // 10, 4 * GIB, left)
    own = plan((24,), 64, base=LoadOptions(checkpoint_bytes=GIB))
    assert own.way.load.checkpoint_bytes == GIB
    assert own.way.need.host_total == large.way.need.host_total - 3 * GIB


def test_a_plan_is_quick_and_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for vram, ram in [((24,), 64), ((8, 8), 32), ((), 16)]:
        started = time.process_time()
        prepare.plan("gemma-4-31b", Wishes(), simulated(tuple(v * GIB for v in vram), ram * GIB))
        assert time.process_time() - started < 1.5


def run(*args: str) -> Any:
    return CliRunner().invoke(cli_main.cli, ["plan", *args])


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--vram", "banana"], 2),
        (["--vram", "-4"], 2),
        (["--ram", "0"], 2),
        (["--ram", "1e9"], 2),
        (["--vram", "24", "--ctx", "10M"], 2),
        (["--vram", "24", "--ctx", "10000000"], 2),
        (["--vram", "24", "--ctx", "300000"], 2),
        (["--vram", "24", "--ctx", "-5"], 2),
        (["--vram", "24", "--gpu-layers", "-7"], 2),
        (["--vram", "24", "--reserve", "-1GiB"], 2),
        (["--vram", "24", "--min-speed", "-1"], 2),
        (["--vram", "24", "--min-speed", "nan"], 2),
        (["--vram", "24", "--kv", "q1"], 2),
        (["--vram", "24", "--device", "CUDA9"], 2),
        (["--vram", "24", "-m", "gemma-4-31b:Q9"], 2),
        (["--unified"], 2),
        (["--unified", "--vram", "8", "--ram", "8"], 2),
        (["--ram", "8"], 4),
        (["--vram", "24", "--ram", "32", "--reserve", "30GiB", "--gpu-layers", "61"], 4),
        (["--vram", "24", "-m", "nobody"], 3),
        (["--vram", "24", "-m", "nowhere.gguf"], 3),
    ],
)
def test_bad_input_is_one_sentence(args: list[str], code: int) -> None:
    result = run(*args)
    assert result.exit_code == code, result.output
    assert result.stdout == "" and "Traceback" not in result.stderr


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    demo = Path(__file__).parents[1] / "localgemma" / "assets" / "demo"
    assert run("--vram", "24", "-m", str(demo / "mmproj.gguf")).exit_code == 2
    other = tmp_path / "other.gguf"
    other.write_bytes((demo / "text.gguf").read_bytes().replace(b"gemma4", b"gemma9"))
    result = run("--vram", "24", "-m", str(other))
    assert result.exit_code == 2 and "gemma9" in result.stderr


def test_the_text_and_the_json_say_the_same() -> None:
    text, data = (
        run("--vram", "24GiB", "--ram", "64").stdout,
        json.loads(run("--vram", "24GB", "--ram", "64", "--json").stdout),
    )
    assert data["model"] in text and "Not chosen" in text
    assert {"model", "options", "memory", "memory_total", "tokens_per_second", "choices", "alternatives"} <= set(data)
    assert data["memory_total"]["GPU0"] == sum(item["bytes"] for item in data["memory"]["GPU0"])
    assert {item["source"] for item in data["memory"]["GPU0"]} <= {"file size", "shape", "table", "margin"}
    assert max(map(len, text.splitlines())) <= 100


def test_the_page_of_machines_is_what_the_program_says(full: bool) -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    import simulate_machines as script

    written = script.PAGE.read_text(encoding="utf-8")
    if full:
        assert written == script.page()
    assert len(script.MACHINES) == 40
    for name, cards, ram, unified in (script.MACHINES[3], script.MACHINES[23], script.MACHINES[-3]):
        decision = plan(cards, ram, unified)
        assert script.row(name, ram, decision) in written.splitlines()


def test_of_several_files_here_the_plan_takes_one_and_smaller_ones_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("Q4_K_M@unsloth", "Q8_0@unsloth", "UD-Q3_K_XL@unsloth", "UD-IQ3_XXS@unsloth")
    here = [replace(c, path=Path("x.gguf")) for c in candidates() if c.name.split(":")[1] in names]
    monkeypatch.setattr(prepare, "present", lambda found: [(c.variant, None) for c in here])
    monkeypatch.setattr(prepare, "from_entry", lambda entry, headers, losses: tuple(here))
    monkeypatch.setattr(prepare.probe, "machine", lambda: simulated((24 * GIB,), 64 * GIB))
    ranked = [str(name).split(":")[1] for name in prepare.ranked_here("gemma-4-31b")]
    assert ranked == ["Q4_K_M@unsloth", "UD-Q3_K_XL@unsloth", "UD-IQ3_XXS@unsloth"]
    assert prepare.ranked_here("gemma-4-31b:Q8_0") == ("gemma-4-31b:Q8_0",)
    assert prepare.ranked_here(Path("some.gguf")) == (Path("some.gguf"),)
    assert prepare.ranked_here("nobody knows it") == ("nobody knows it",)
