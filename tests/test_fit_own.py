"""What was compared here goes before what was published, and the two scales are never mixed without a word."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path

import pytest
from click.testing import CliRunner

from localgemma import measured
from localgemma.cli import main as cli_main
from localgemma.files import catalog
from localgemma.files.catalog_records import Entry
from localgemma.fit.decide import decide, from_entry
from localgemma.fit.hardware import simulated
from localgemma.fit.own import counting
from localgemma.fit.planner import Wishes
from localgemma.fit.quality import kv_loss, standings, with_own_kv
from localgemma.measured import Loss

GIB = 1 << 30
QUANTS = ("Q4_K_M", "Q8_0", "Q6_K", "UD-Q4_K_XL", "UD-Q3_K_XL")
Q4, Q8, Q6, XL, Q3 = (f"gemma-4-31b:{quant}@unsloth" for quant in QUANTS)
LOSS = Loss("", "", "Q4_K_M", "unsloth", "f16", 0.031, 0.028, 0.034, "BF16", "f" * 64, "", "small 1", 9000, 0.0002)


@cache
def entry() -> Entry:
    return catalog.load().entry("gemma-4-31b")


def loss(name: str, kl: float, **more: object) -> Loss:
    variant = next(variant for variant in entry().variants if variant.name == name)
    return replace(LOSS, sha256=variant.text[0].sha256 or "", quant=variant.quant, publisher=variant.publisher, kl=kl, **more)  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    return tmp_path


def test_a_measured_file_says_so_and_that_the_published_figure_is_another_scale() -> None:
    places = standings(entry(), [loss(Q4, 0.031)])
    standing = places[Q4]
    assert standing.reason == "0.031 nats measured here, set small 1; another scale: 0.61 by localbench, April 2026"
    assert standing.figure and standing.figure.value == 0.031 and standing.figure.measure.title == "measured here, set small 1"
    assert "another scale than what was measured here" in places[Q8].reason
    assert "another scale" not in standings(entry())[Q8].reason


def test_one_measured_file_moves_nothing() -> None:
    before, after = standings(entry()), standings(entry(), [loss(Q4, 0.031)])
    assert {name: round(s.place, 9) for name, s in after.items()} == {name: round(s.place, 9) for name, s in before.items()}


def test_measured_files_stand_in_the_order_they_were_measured_in() -> None:
    names = (Q8, Q6, Q4, Q3)
    for order in permutations((0.002, 0.006, 0.03, 0.09)):
        places = standings(entry(), [loss(name, kl) for name, kl in zip(names, order, strict=True)])
        assert sorted(names, key=lambda name: places[name].place) == [
            name for _, name in sorted(zip(order, names, strict=True))
        ]
        assert all(places[name].place > 0 for name in names)


def test_scales_meet_in_one_factor() -> None:
    places = standings(entry(), [loss(Q4, 0.0305), loss(Q8, 0.008), loss(Q6, 0.01)])
    assert places[Q4].place == pytest.approx(0.61) and places[Q8].place == pytest.approx(0.16)
    assert places[Q6].place == pytest.approx(0.2)  # 0.01 nats at 20 a nat


def test_without_a_file_of_both_the_size_says_where() -> None:
    before, after = standings(entry())[Q6].place, standings(entry(), [loss(Q6, 0.006)])
    assert after[Q6].place == pytest.approx(before)
    assert after[Q6].reason == "0.006 nats measured here, set small 1"


def test_an_unmeasured_file_leans_on_a_measured_one_in_its_words() -> None:
    places = standings(entry(), [loss(XL, 0.02), loss(Q4, 0.031)])
    leaning = [standing.reason for standing in places.values() if "which has 0.02 nats measured here" in standing.reason]
    assert leaning and all(reason.startswith("not measured;") for reason in leaning)


def test_other_scales_files_and_families_do_not_count() -> None:
    good = [loss(Q4, 0.031), loss(Q8, 0.004)]
    other_set = replace(loss(Q6, 0.5), set="own data")
    kv = replace(loss(Q6, 0.5), kv="q8_0")
    qat = replace(loss(Q6, 0.5), family="qat")
    elsewhere = replace(loss(Q4, 9.0), sha256="0" * 64, set="small 1")
    assert set(counting(entry(), [*good, other_set, kv, qat, elsewhere])) == {Q4, Q8}
    assert counting(entry(), [elsewhere]) == {}
    newer = [replace(item, reference_sha256="e" * 64, kl=item.kl * 2) for item in good]
    assert counting(entry(), [*good, *newer])[Q4].kl == 0.062
    assert counting(entry(), [*newer[:1], *good])[Q4].kl == 0.031  # more files on it


def test_a_file_of_unknown_hash_is_known_by_publisher_and_quantisation() -> None:
    rounded = next(
        v for v in entry().variants if not v.qat and v.text[0].sha256 is None and v.bits_per_weight and len(v.text) == 1
    )
    mine = replace(LOSS, sha256="a" * 64, quant=rounded.quant, publisher=rounded.publisher)
    assert set(counting(entry(), [mine])) == {rounded.name}
    assert counting(entry(), [replace(mine, publisher="")]) == {}


def test_against_a_quantised_reference_its_own_loss_is_added() -> None:
    reference = next(v.text[0].sha256 or "" for v in entry().variants if v.name == Q8)
    pair = [loss(name, kl, reference="Q8_0", reference_sha256=reference) for name, kl in ((Q4, 0.02), (Q6, 0.001))]
    places = standings(entry(), pair)
    assert places[Q4].place == pytest.approx(0.61)
    assert places[Q8].place == 0.16 < places[Q6].place < places[Q4].place


def test_a_plan_says_what_was_measured_here() -> None:
    machine = simulated((24 * GIB,), 64 * GIB)
    losses = [loss(Q4, 0.031), loss(XL, 0.012), loss(Q3, 0.09)]
    decision = decide(from_entry(entry(), losses=losses), Wishes(), machine, None, entry())
    assert decision.way.candidate.name == XL
    assert "0.012 nats measured here, set small 1" in decision.choices[0].reason
    assert decision.as_json()["quality"]["measure"] == "measured here, set small 1"


def test_what_a_kv_cache_costs_here_goes_before_what_is_published() -> None:
    pair = [loss(Q4, 0.0305), loss(Q4, 0.0325, kv="q8_0"), replace(LOSS, sha256="0" * 64, kv="q4_0")]
    assert kv_loss(entry(), "q8_0") == (0.108, "costs 0.108 by localbench, April 2026")
    value, told = kv_loss(with_own_kv(entry(), pair), "q8_0")
    assert value == pytest.approx(0.04) and told == "costs 0.002 nats measured here, set small 1"  # 20 a nat
    assert with_own_kv(entry(), pair[:1]) == entry() and "q4_0" not in with_own_kv(entry(), pair).kv


def test_the_command_reads_what_was_kept(home: Path) -> None:
    measured.keep_losses([loss(Q4, 0.031), loss(XL, 0.012)])
    done = CliRunner().invoke(cli_main.cli, ["plan", "-m", Q4, "--vram", "24", "--ram", "64", "--json"])
    assert done.exit_code == 0, done.output
    assert "0.031 nats measured here, set small 1" in json.loads(done.stdout)["choices"][0]["reason"]


def test_losses_are_kept_once_and_survive_damage(home: Path) -> None:
    first, again = loss(Q4, 0.031), loss(Q4, 0.033)
    measured.keep_losses([first])
    measured.save("machine", measured.Measured(program=7))
    measured.keep_losses([again, replace(first, set="full 1")])
    assert [item.kl for item in measured.losses()] == [0.033, 0.031]
    assert measured.load("machine").program == 7
    raw = json.loads(measured.file().read_text())
    raw["losses"] += [{"kl": 1}, 5, {**raw["losses"][0], "kl": "x"}]
    measured.file().write_text(json.dumps(raw))
    assert len(measured.losses()) == 2
    measured.file().write_text("{")
    assert measured.losses() == ()
