"""A drafter is tried once on a machine; the plan takes it only where a gain was measured, or to find that out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeEngine

import localgemma
from localgemma import measured
from localgemma.engine import CancelToken, Finished, Output, Request
from localgemma.errors import Cancelled
from localgemma.fit import drafts, prepare, probe, rates
from localgemma.fit.explain import Decision
from localgemma.fit.hardware import Machine
from localgemma.fit.planner import Wishes
from localgemma.messages import Progress, Timings, Usage
from localgemma.options import LoadOptions

DEMO = Path(__file__).resolve().parent.parent / "localgemma/assets/demo"


class Drafting(FakeEngine):
    """Writes twenty tokens an answer, with its drafter `gain` times as fast."""

    gain = 2.0
    drafting = True
    dropped = False

    def generate(self, request: Request, cancel: CancelToken | None = None) -> Iterator[Output]:
        self.requests.append(request)
        yield Finished("stop", Usage(answer=20), Timings(decode=1 / self.gain if self.drafting else 1.0))

    def drop_drafter(self) -> None:
        self.dropped = True


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
    monkeypatch.setattr(rates, "busy", lambda: False)


def planned(**wishes: object) -> Decision:
    files = DEMO / "text.gguf", DEMO / "mmproj.gguf", "demo", "it is the demo"
    return prepare.load_plan(*files, Wishes(**wishes), DEMO / "drafter.gguf")  # type: ignore[arg-type]


def words(decision: Decision) -> str:
    return "; ".join(f"{choice.chosen}: {choice.reason}" for choice in decision.choices if choice.what == "drafter")


@pytest.mark.parametrize("gain, kept", [(2.0, True), (1.1, True), (1.0, False), (0.6, False)])
def test_the_plan_goes_by_what_was_measured(gain: float, kept: bool) -> None:
    first = planned()
    assert first.way.setup.drafter and "the first load tries" in words(first)
    engine = Drafting()
    engine.gain = gain
    found = drafts.settle(first, engine)
    assert found is not None and found.chosen.startswith("yes" if kept else "no") and engine.dropped is not kept
    later = planned()
    assert bool(later.way.setup.drafter) is kept and f"{gain:.2f} times as fast" in words(later)
    assert any(item.what == "drafter" for item in later.way.need.host) is kept
    asked = len(engine.requests)
    assert drafts.settle(later, engine) is None and len(engine.requests) == asked
    assert not planned(draft=False).way.setup.drafter
    given = planned(base=LoadOptions(drafter=DEMO / "drafter.gguf"))
    assert given.way.setup.drafter and "you gave it" in words(given)


def test_another_machine_or_placement_is_tried_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    drafts.settle(planned(), slow := Drafting())
    assert slow.requests
    machine = probe.machine()
    other = replace(machine, threads=machine.threads + 1)

    def elsewhere() -> Machine:
        return other

    monkeypatch.setattr(probe, "machine", elsewhere)
    assert "the first load tries" in words(planned())


def test_a_busy_machine_leaves_the_trial_to_a_later_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "busy", lambda: True)
    decision, engine = planned(), Drafting()
    found = drafts.settle(decision, engine)
    assert found is not None and "later load" in found.reason and engine.dropped and not engine.requests
    assert not measured.load(decision.machine.key).drafts


def test_a_trial_can_be_cancelled_and_then_nothing_is_kept() -> None:
    decision, engine = planned(), Drafting()
    with pytest.raises(Cancelled):
        drafts.settle(decision, engine, lambda done: False)
    assert engine.drafting and not measured.load(decision.machine.key).drafts


@pytest.mark.live
def test_the_first_load_tries_and_the_second_knows() -> None:
    stages: list[str] = []

    def told(progress: Progress) -> None:
        stages.append(progress.stage)

    with localgemma.open("demo", progress=told) as model:
        first = str(model.plan)
        kept = model.plan.options.drafter is not None
        assert model.engine.drafting is kept  # type: ignore[attr-defined]
        assert "Paris" in model.chat(temperature=0).ask("What is the capital of France?").content
    assert "measure" in stages and "times as fast with it" in first
    stages.clear()
    with localgemma.open("demo", progress=told) as model:
        assert "measure" not in stages and (model.plan.options.drafter is not None) is kept
