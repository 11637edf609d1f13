"""Recipes for a size: sensitivities measured in the loaded model, the best choice within a budget, and their files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from localgemma.chat import data
from localgemma.cli.main import cli
from localgemma.cli.quantize_size import SAMPLE
from localgemma.engine import CancelToken, Prompt
from localgemma.errors import BadModelFile, Cancelled, DiskError, NotFound, UsageError
from localgemma.files.header import read_header
from localgemma.llamacpp.imatrix import Observed
from localgemma.llamacpp.probe import Probe, kl
from localgemma.make import quantize, recipe, sensitivity, types
from localgemma.make.quantize import Planned, Wish, padded
from localgemma.make.sensitivity import Choice, Table
from localgemma.messages import Progress
from localgemma.options import LoadOptions

pytest.importorskip("llama_cpp")
DEMO = Path(__file__).resolve().parent.parent / "localgemma" / "assets" / "demo"
LOAD = LoadOptions(image_tokens=0, ctx=512, threads=1, gpu_layers=0)
FEW = ("q8_0", "q6_K", "q4_K", "q4_0", "iq4_nl", "q3_K", "q2_K")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as F16: from its Q4_K_M, which is all that ships, moved a little off the values that q4_K can have."""
    path = tmp_path_factory.mktemp("recipe") / "demo-F16.gguf"
    quantize.run_plan(quantize.make_plan(DEMO / "text.gguf", Wish("F16", requantize=True)), path)
    header, random_ = read_header(path), np.random.default_rng(0)
    data = np.memmap(path, np.uint8, "r+", header.data_offset)
    for tensor in header.tensors:
        if tensor.type_id == 1:
            values = data[tensor.offset : tensor.offset + tensor.nbytes].view(np.float16)
            values[:] = values * (1 + random_.normal(0, 0.02, len(values)).astype(np.float32))
    data.flush()
    return path


@pytest.fixture(scope="module")
def table(source: Path) -> Table:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "CANDIDATES", FEW)
        patch.setattr(sensitivity, "_SAMPLE", 32)
        chosen = sensitivity.Settings(tokens=160, bands=2, load=LOAD)
        return sensitivity.measure(source, data.read_pieces(SAMPLE), None, chosen)


def test_the_sample_is_chats_of_all_kinds() -> None:
    pieces = data.read_pieces(SAMPLE)
    assert len(pieces) >= 12 and all(isinstance(piece, Prompt) for piece in pieces)
    text = "".join(map(str, pieces))
    assert all(mark in text for mark in ("<|think|>", "<|channel>", "<|tool_call>", "```python", "长江"))


def test_divergence_is_the_definition() -> None:
    random_ = np.random.default_rng(0)
    a, b = (random_.normal(0, 4, (70, 300)).astype(np.float32) for _ in range(2))
    log = [x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum(1, keepdims=True)) for x in (a, b)]
    assert np.allclose(kl(a, b), (np.exp(log[0]) * (log[0] - log[1])).sum(1), rtol=1e-5)
    assert (kl(a, a + 3) < 1e-12).all()
    near = a + random_.normal(0, 1e-3, a.shape).astype(np.float32)
    exact = [x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum(1, keepdims=True)) for x in (a, near)]
    assert np.allclose(kl(a, near), (np.exp(exact[0]) * (exact[0] - exact[1])).sum(1), rtol=1e-2, atol=1e-12)
    far = a.copy()
    far[:, 0] += 1000
    assert np.isfinite(kl(a, far)).all()


def test_a_weight_is_changed_for_a_while(source: Path, tmp_path: Path) -> None:
    """Quantised in memory, the model predicts what its quantised file predicts; afterwards it is as before."""
    names = [weight.name for weight in sensitivity.quantisable(source)]
    prompt = [list(range(300, 364))]
    with Probe(source, LoadOptions(image_tokens=0, ctx=512, threads=1, gpu_layers=0, mmap=False), names) as probe:
        before = probe.observed.logits(prompt)
        number = types.tensor_type("q8_0")
        with probe.changed(dict.fromkeys(names, (number, None))):
            inside = probe.observed.logits(prompt)
            loss = probe.divergence([prompt], [before], CancelToken())
        assert np.array_equal(probe.observed.logits(prompt), before)
        assert probe.divergence([prompt], [before], CancelToken()) < 1e-12 < 1e-6 < loss
    quantize.run_plan(quantize.make_plan(source, Wish("Q8_0")), tmp_path / "q8.gguf")
    with Observed(tmp_path / "q8.gguf", None, LOAD) as observed:
        real = observed.logits(prompt)
    assert np.corrcoef((inside - before).ravel(), (real - before).ravel())[0, 1] > 0.3
    assert kl(before, inside).mean() < 2 * kl(before, real).mean()


def test_sensitivities_are_plausible(table: Table, source: Path) -> None:
    assert table.keys() == {weight.name for weight in sensitivity.quantisable(source)}
    for row in table.values():
        by_type = {types.type_name(one.type_id): one for one in row}
        assert by_type["f16"].loss == 0
        assert by_type["q8_0"].loss < by_type["q4_K"].loss < by_type["q2_K"].loss
    assert max(table, key=lambda name: max(one.loss for one in table[name])) == "token_embd.weight"


@pytest.mark.parametrize("share", [0.30, 0.42, 0.55, 0.8])
def test_a_file_of_a_size(share: float, table: Table, source: Path, tmp_path: Path, full: bool) -> None:
    if not full and share not in (0.30, 0.55):
        pytest.skip("every share with --full")
    budget = int(source.stat().st_size * share)
    plan = recipe.plan_for_size(source, table, budget, Wish(""))
    quantize.run_plan(plan, tmp_path / "out.gguf")
    assert 0.98 * budget <= (tmp_path / "out.gguf").stat().st_size == plan.size <= budget


def test_a_recipe_beats_the_standard_one(table: Table, source: Path, tmp_path: Path, full: bool) -> None:
    """Of Q4_K_S's size, on text that was not measured with."""
    prompt = [[2, *range(700, 900)]]
    losses = {}
    with Observed(source, None, LOAD) as observed:
        before = observed.logits(prompt)
    for name in ("Q4_K_S", "Q3_K_M") if full else ("Q3_K_M",):
        standard = quantize.make_plan(source, Wish(name))
        for kind, plan in {"standard": standard, "ours": recipe.plan_for_size(source, table, standard.size, Wish(""))}.items():
            quantize.run_plan(plan, tmp_path / "out.gguf", replace=True)
            with Observed(tmp_path / "out.gguf", None, LOAD) as observed:
                losses[kind] = kl(before, observed.logits(prompt)).mean()
        assert losses["ours"] < losses["standard"], name


def test_too_small_a_size_is_said(table: Table, source: Path) -> None:
    with pytest.raises(UsageError, match="No recipe of demo-F16") as caught:
        recipe.plan_for_size(source, table, 1 << 20, Wish(""))
    assert "imatrix" in caught.value.hint
    with pytest.raises(UsageError) as before:
        recipe.check_budget(source, sensitivity.quantisable(source), 1 << 20, Wish(""))
    assert str(before.value) == str(caught.value)
    recipe.check_budget(source, sensitivity.quantisable(source), int(source.stat().st_size * 0.3), Wish(""))


sizes = st.integers(1, 40).map(lambda n: 32 * n)
rows = st.lists(st.tuples(sizes, st.floats(0, 1)), min_size=1, max_size=4, unique_by=lambda pair: pair[0])


def as_table(data: list[list[tuple[int, float]]]) -> Table:
    return {
        f"w{index}": tuple(Choice(number, size, loss) for number, (size, loss) in enumerate(row))
        for index, row in enumerate(data)
    }


def cost(table: Table, chosen: dict[str, int]) -> tuple[int, float]:
    picked = [next(one for one in table[name] if one.type_id == number) for name, number in chosen.items()]
    return sum(padded(one.nbytes) for one in picked), sum(one.loss for one in picked)


@settings(deadline=None)
@given(st.lists(rows, min_size=1, max_size=5), st.floats(0, 1))
def test_the_choice_is_the_best_there_is(data: list[list[tuple[int, float]]], place: float) -> None:
    table = as_table(data)
    least = sum(min(one.nbytes for one in row) for row in table.values())
    most = sum(max(one.nbytes for one in row) for row in table.values())
    budget = int(least + place * (most - least))
    size, loss = cost(table, recipe.choose(table, budget))
    every = (
        dict(zip(table, pick, strict=True))
        for pick in itertools.product(*([c.type_id for c in row] for row in table.values()))
    )
    best = min(other for count, other in (cost(table, one) for one in every) if count <= budget)
    assert size <= budget and loss <= best + 1e-9


def test_a_large_choice_fills_the_budget() -> None:
    random_ = np.random.default_rng(3)
    bits = (2.06, 2.6, 3.4, 4.25, 4.5, 5.5, 6.6, 8.5, 16)
    table: Table = {}
    for index in range(421):
        values = int(random_.choice([22_020_096, 44_040_192, 115_605_504]))
        losses = [random_.random() * 4.0**-b for b in bits]
        table[f"w{index}"] = tuple(Choice(n, int(values * b / 8) // 32 * 32, losses[n]) for n, b in enumerate(bits))
    for budget in (9 << 30, 15 << 30, 24 << 30):
        size, _ = cost(table, recipe.choose(table, budget))
        assert 0.999 * budget < size <= budget


def weight(name: str) -> Planned:
    return Planned(name, (256, 4), 1, 2, 576)


@pytest.mark.parametrize(("bands", "count"), [(1, 3), (2, 5), (4, 9), (100, 9)])
def test_groups_are_of_one_kind_in_neighbouring_layers(bands: int, count: int) -> None:
    names = [f"blk.{layer}.{kind}.weight" for layer in range(4) for kind in ("attn_k", "ffn_up")]
    groups = sensitivity.grouped([weight(name) for name in [*names, "token_embd.weight"]], bands)
    assert len(groups) == count and sorted(w.name for group in groups for w in group) == sorted([*names, "token_embd.weight"])
    for group in groups:
        layers = [int(w.name.split(".")[1]) for w in group if w.name.startswith("blk")]
        assert layers == list(range(min(layers, default=0), max(layers, default=-1) + 1))
        assert len({w.name.split(".")[-2] for w in group}) == 1


def test_types_fit_the_weight() -> None:
    narrow = Planned("blk.0.attn_k.weight", (96, 4), 1, 2, 1)
    blocks = {types.type_name(number) for number in sensitivity.choices(narrow, {})}
    assert blocks == {"q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"}
    wide = weight("blk.0.attn_k.weight")
    bare, known = sensitivity.choices(wide, {}), sensitivity.choices(wide, {wide.name: np.ones(256, np.float32)})
    assert set(known) - set(bare) == types.NEED_IMATRIX & set(known) and len(known) == len(sensitivity.CANDIDATES)


def test_the_table_is_read_as_it_was_written(table: Table, source: Path, tmp_path: Path) -> None:
    weights = sensitivity.quantisable(source)
    sensitivity.write_table(tmp_path / "t.csv", table)
    again = sensitivity.read_table(tmp_path / "t.csv", weights)
    assert {name: [(one.type_id, one.nbytes) for one in row] for name, row in again.items()} == {
        name: [(one.type_id, one.nbytes) for one in row] for name, row in table.items()
    }
    assert all(a.loss == pytest.approx(b.loss, rel=1e-4) for n in table for a, b in zip(table[n], again[n], strict=True))
    for spoilt, says in (
        (lambda text: text.replace("blk.3.", "blk.77."), "another model"),
        (lambda text: text.replace(",34816,", ",34817,"), "another model"),
        (lambda text: text.replace("q4_K", "q9_K"), "no table"),
        (lambda text: text.replace("kl", "k"), "no table"),
        (lambda text: "", "another model"),
    ):
        text = (tmp_path / "t.csv").read_text()
        assert spoilt(text) != text
        (tmp_path / "bad.csv").write_text(spoilt(text))
        with pytest.raises(BadModelFile, match=says):
            sensitivity.read_table(tmp_path / "bad.csv", weights)
    with pytest.raises(NotFound):
        sensitivity.read_table(tmp_path / "none.csv", weights)


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (b"", UsageError, "is empty"),
        (b"\xff\xff", UsageError, "is no recipe"),
        (b"attn_v", UsageError, "is not REGEX=TYPE"),
        (b"attn_v=q9", UsageError, "no tensor type 'q9'"),
        (None, NotFound, "There is no file"),
    ],
)
def test_recipes_that_are_none(content: bytes | None, error: type[Exception], says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "r.txt").write_bytes(content)
    with pytest.raises(error, match=says):
        recipe.read_recipe(tmp_path / "r.txt")
    with pytest.raises(DiskError):
        recipe.read_recipe(tmp_path)


def test_cancelling_a_measurement(source: Path) -> None:
    cancel = CancelToken()
    with pytest.raises(Cancelled):
        sensitivity.measure(
            source,
            ["Capital of Ruta?"],
            None,
            sensitivity.Settings(load=LOAD),
            progress=lambda _: cancel.cancel(),
            cancel=cancel,
        )


def test_a_measurement_says_how_far_it_is(source: Path) -> None:
    told: list[Progress] = []
    sensitivity.measure(source, ["Capital of Ruta?"], None, sensitivity.Settings(bands=1, load=LOAD), progress=told.append)
    steps = [one for one in told if one.stage == "measure"]
    assert [one.done for one in steps] == list(range(1, len(steps) + 1)) and steps[-1].done == steps[-1].total
    assert steps[-1].seconds_left == 0 and all(one.seconds_left is not None for one in steps)


def run(*words: str) -> Any:
    return CliRunner().invoke(cli, ["quantize", *words])


def test_the_command_makes_a_size_and_the_recipe_makes_it_again(table: Table, source: Path, tmp_path: Path) -> None:
    sensitivity.write_table(tmp_path / "t.csv", table)
    words = ("--target-size", "6MiB", "--sensitivities", str(tmp_path / "t.csv"))
    ran = run(str(source), str(tmp_path / "a.gguf"), *words)
    assert ran.exit_code == 0, ran.output
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", "a.gguf", "a.gguf.recipe.txt"}
    assert 0.98 * (6 << 20) < (tmp_path / "a.gguf").stat().st_size <= 6 << 20
    ran = run(str(source), str(tmp_path / "b.gguf"), "--recipe", str(tmp_path / "a.gguf.recipe.txt"))
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    dry = run(str(source), "--dry-run", *words)
    assert f"{(tmp_path / 'a.gguf').stat().st_size:,}" in dry.stdout
    for more, says in (
        (("--type", "Q4_0"), "What to make is not clear"),
        (("--tensor-type", "attn_v=q8_0"), "A recipe has a type for every tensor"),
        (("--imatrix", str(tmp_path / "none")), "There is no file"),
    ):
        ran = run(str(source), str(tmp_path / "c.gguf"), *words, *more)
        assert ran.exit_code in (2, 3) and says in ran.stderr
    assert run(str(source), str(tmp_path / "c.gguf"), "--target-size", "much").exit_code == 2
    assert run(str(DEMO / "text.gguf"), str(tmp_path / "c.gguf"), *words).exit_code == 2
    assert not (tmp_path / "c.gguf").exists()


def test_the_command_measures_where_there_is_no_table(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "CANDIDATES", ("q8_0", "q4_0"))
    (tmp_path / "data.txt").write_text("Capital of Ruta? Only one word.")
    target = tmp_path / "a.gguf"
    words = (
        str(source),
        str(target),
        "--target-size",
        "8M",
        "--bands",
        "1",
        "--threads",
        "1",
        "--data",
        str(tmp_path / "data.txt"),
    )
    ran = run(*words)
    assert ran.exit_code == 0, ran.output
    made = read_header(target)
    read = sensitivity.read_table(tmp_path / "a.gguf.sensitivities.csv", sensitivity.quantisable(source))
    assert made.file_size <= 8 << 20 and len(read["token_embd.weight"]) == 3
    assert run(*words).exit_code == 2  # all of it is there


@pytest.mark.parametrize("ram", [16, 32])
def test_more_memory_wants_no_smaller_file(ram: int) -> None:
    from localgemma.fit.decide import decide
    from localgemma.fit.hardware import simulated
    from localgemma.fit.planner import Wishes
    from localgemma.fit.size import candidates
    from localgemma.gemma4.shape import GEMMA_31B

    tried = candidates(GEMMA_31B, 0)
    places = [one.standing.place for one in tried]
    assert places == sorted(places, reverse=True) and tried[0].size < 9.5e9 < 30e9 < tried[-1].size
    found = []
    for cards in ((), (24,), (48,)):
        machine = simulated(tuple(card << 30 for card in cards), ram << 30)
        found.append(decide(tried, Wishes(), machine).way.candidate.size)
    assert found == sorted(found)


def test_fit_takes_the_plan_s_size(table: Table, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from localgemma.cli import quantize as command

    monkeypatch.setattr(command, "fitting_size", lambda *_: 7 << 20)
    sensitivity.write_table(tmp_path / "t.csv", table)
    ran = run(str(source), "--fit", "--sensitivities", str(tmp_path / "t.csv"), "--dry-run")
    assert ran.exit_code == 0 and "7 MiB" in ran.stdout, ran.output
