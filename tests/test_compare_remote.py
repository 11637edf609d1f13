"""A reference behind an address: its coarse divergence, what is kept and said, and everything that an endpoint does wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from standin_endpoint import Standin
from test_compare_run import CORPUS, LOAD, Opener, chat, divergences, subject
from walkers import WIDTH, Walker

from localgemma.cli.compare_remote import answered, endpoint_of
from localgemma.compare import endpoint as endpoints
from localgemma.compare import recommend, run
from localgemma.compare import report as reports
from localgemma.compare.corpus import Corpus
from localgemma.compare.endpoint import LIKELIEST, Endpoint
from localgemma.compare.records import Comparison, Conditions
from localgemma.compare.report_html import html
from localgemma.compare.report_json import from_json
from localgemma.compare.run import Hands, Job
from localgemma.engine import CancelToken, Engine, Prompt
from localgemma.errors import (
    AccessError,
    Cancelled,
    Interrupted,
    LocalgemmaError,
    NotFound,
    OfflineError,
    TransferError,
    UsageError,
)

TALK = Corpus("talk", (chat("a", "one two three four"), chat("b", "x y z"), chat("c", "w " * 30)), sha256="s")
PIECES = [f"t{n} ".encode() for n in range(WIDTH)]


class Speller(Walker):
    """A walker whose tokens have bytes."""

    def pieces(self) -> list[bytes]:
        """All of them."""
        return PIECES


class Spelling(Opener):
    """Opens such walkers."""

    def open(self, which: object, load: object) -> Engine:
        """As Opener does."""
        plain = super().open(which, load)  # type: ignore[arg-type]
        assert isinstance(plain, Walker)
        engine = Speller(noise=plain.noise, stop_after=plain.stop_after, error=plain.error)
        self.engines[-1] = engine
        return engine


def row(ids: Sequence[int]) -> np.ndarray:
    """The logits of the walker without noise after these tokens."""
    return Walker()._row(ids[-1], len(ids) - 1)


def job(tmp_path: Path, *names: str, corpus: Corpus = TALK) -> Job:
    around = Conditions("", 0, 0, "build 1", "CPU", 64, "t", date="2025-01-01")
    some = tuple(subject(name) for name in names)
    return Job(corpus, some[0], some, LOAD, tmp_path / "kept", around, ask=False)


def compared(
    server: Standin, wanted: Job, positions: int | None = None, hands: Hands | None = None, **how: object
) -> Comparison:
    hands = hands or Spelling().hands()
    where = replace(Endpoint(f"{server.url}", "model", pause=0.01), **how)  # type: ignore[arg-type]
    return run.compare(answered(wanted, where, positions, hands), hands)


def coarse(asked: Sequence[Sequence[int]], noise: float, without: Sequence[int] = ()) -> tuple[float, float]:
    """The mean divergence over {20 likeliest, rest} of the reference, and that of the whole vocabulary; by hand."""
    found, whole = [], []
    for ids in asked:
        p, q = (np.exp(r.astype(np.float64)) for r in (row(ids), Walker(noise=noise)._row(ids[-1], len(ids) - 1)))
        p, q = p / p.sum(), q / q.sum()
        top = [token for token in np.argsort(-p)[:LIKELIEST] if token not in without]
        ps, qs = ([*each[top], 1 - each[top].sum()] for each in (p, q))
        found.append(sum(a * np.log(a / b) for a, b in zip(ps, qs, strict=True)))
        whole.append(float((p * np.log(p / q)).sum()))
    return float(np.mean(found)), float(np.mean(whole))


@pytest.mark.parametrize("form", ["content", "bytes", "text"])
def test_the_divergence_is_that_of_the_coarse_distributions_and_below_the_whole(tmp_path: Path, form: str) -> None:
    with Standin(row, PIECES, form) as server:
        found = compared(server, job(tmp_path, "q8", "q4", "q2"))
    asked = [question["prompt"] for question in server.asked]
    assert len(asked) == found.conditions.positions == 4 + 3 + 30
    assert all(q["max_tokens"] == 1 and q["model"] == "model" for q in server.asked)
    for value, noise in zip(divergences(found), (0.01, 0.1, 0.5), strict=True):
        bound, whole = coarse(asked, noise)
        assert value == pytest.approx(bound, rel=2e-3, abs=2e-6) and bound < whole
    assert all(each.overall and each.overall.sampled_error == 0 for each in found.results)
    assert not found.conditions.exact and found.conditions.likeliest == LIKELIEST


def test_tokens_that_do_not_align_go_into_the_rest(tmp_path: Path) -> None:
    lost = list(range(0, WIDTH, 3))
    theirs = [b"\xf0\x9f" if token in lost else piece for token, piece in enumerate(PIECES)]
    with Standin(row, theirs, "text") as server:
        found = compared(server, job(tmp_path, "q2"))
    bound, _ = coarse([q["prompt"] for q in server.asked], 0.5, lost)
    assert divergences(found)[0] == pytest.approx(bound, rel=2e-3)


def test_every_table_says_that_it_is_a_lower_bound(tmp_path: Path) -> None:
    with Standin(row, PIECES) as server:
        found = compared(server, job(tmp_path, "q4", "q2"))
    said = "lower bound: 20 likeliest tokens"
    for text in (reports.table(found), reports.markdown(found), html(found), reports.csv(found)):
        assert said in text and "sampling adds" not in text
    assert "Divergence from model (lower bound)" in reports.table(found)
    assert "at least" in " ".join(recommend.sentences(found, 0)) and recommend.losses(found) == ()
    # the right token is not always among the likeliest, so nothing is said of the reference's perplexity
    overall = found.results[0].overall
    assert overall is not None and np.isnan(overall.ratio.value) and np.isnan(overall.dp_rms)
    assert repr(from_json(reports.to_json(found))) == repr(found)


def test_positions_are_bounded_and_pictures_left_out(tmp_path: Path) -> None:
    with Standin(row, PIECES) as server:
        found = compared(server, job(tmp_path, "q4"), positions=12)
        assert len(server.asked) == found.conditions.positions <= 12
        assert "37 positions" in " ".join(found.notes)
        raw = compared(server, job(tmp_path, "q4", corpus=CORPUS), positions=40)
    assert raw.conditions.positions <= 40 and set(raw.results[0].categories) == {"text", "chat"}


def test_what_was_answered_is_kept_and_a_file_stands_for_it(tmp_path: Path) -> None:
    file = tmp_path / "x.lgref"
    with Standin(row, PIECES) as server:
        first = compared(server, replace(job(tmp_path, "q4"), save_reference=file))
        count = len(server.asked)
        assert divergences(compared(server, job(tmp_path, "q4", "q2")))[0] == divergences(first)[0]
        assert len(server.asked) == count
    from localgemma.compare import lgref

    again = run.compare(replace(job(tmp_path / "b", "q4"), reference=lgref.read(file)), Spelling().hands())
    assert divergences(again) == divergences(first) and again.conditions.likeliest == LIKELIEST
    assert again.notes == first.notes


def test_a_busy_endpoint_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [(429, {"Retry-After": "0"}, b"{}"), (500, {}, b"oops"), (503, {}, b"")]
    with Standin(row, PIECES, faults=faults) as server:
        found = compared(server, job(tmp_path, "q4"))
        assert len(server.asked) == found.conditions.positions + 3
    waits: list[float] = []
    monkeypatch.setattr(endpoints, "_pause", lambda seconds, _: waits.append(seconds))
    for header, first in ({"Retry-After": "17"}, 17.0), ({}, 0.01):
        waits.clear()
        faults = [(429, header, b"{}")] * 20
        with Standin(row, PIECES, faults=faults) as server, pytest.raises(Interrupted, match="too often"):
            compared(server, job(tmp_path / "b", "q4"), tries=3)
        assert first in waits and (0.02 in waits) == (not header)


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ({"key": "secret"}, AccessError, "LOCALGEMMA_API_KEY"),
        ({"form": "none"}, UsageError, "no log-probabilities"),
        ({"faults": [(404, {}, b"{}")] * 9}, NotFound, "no model 'model'"),
        ({"faults": [(400, {}, b'{"error": {"message": "prompt must be\\u0007 text"}}')] * 9}, UsageError, "must be  text"),
        ({"faults": [(200, {}, b"<html>")] * 9}, TransferError, "no completion"),
        ({"faults": [(200, {}, b'{"choices": []}')] * 9}, TransferError, "no completion"),
        ({"faults": [(200, {}, b" " * (1 << 21))] * 9}, TransferError, "more than"),
        ({"faults": [(302, {"Location": "http://127.0.0.1:1/"}, b"")] * 9}, TransferError, "another address"),
        ({"extra_tokens": 1}, UsageError, "changes what it is asked"),
        ({"pieces": [b"?"] * WIDTH}, UsageError, "another kind"),
        ({"hang": 1.0}, Interrupted, "in time"),
    ],
    ids=[
        "401",
        "no log-probabilities",
        "404",
        "400",
        "a page",
        "no choice",
        "too long",
        "elsewhere",
        "a bos",
        "tokens",
        "hangs",
    ],
)
def test_what_an_endpoint_does_wrong_is_said(
    tmp_path: Path, how: dict[str, object], error: type[LocalgemmaError], text: str
) -> None:
    with Standin(**{"row": row, "pieces": PIECES, **how}) as server, pytest.raises(error, match=text) as raised:  # type: ignore[arg-type]
        compared(server, job(tmp_path, "q4"), silence=0.3, tries=2)
    assert raised.value.hint
    if "key" in how:
        with Standin(row, PIECES, key="secret") as server:
            compared(server, job(tmp_path, "q4"), key="secret")


def test_a_stop_is_noticed_while_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancel = CancelToken()
    monkeypatch.setattr(endpoints.time, "sleep", lambda _: cancel.cancel())
    with Standin(row, PIECES, faults=[(429, {"Retry-After": "50"}, b"{}")] * 4) as server, pytest.raises(Cancelled):
        compared(server, job(tmp_path, "q4"), hands=replace(Spelling().hands(), cancel=cancel))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("http://example.org/v1#m", "https"),
        ("https://example.org/v1", "lacks the model"),
        ("https://u:p@example.org/v1#m", "password"),
        ("https:///v1#m", "no address"),
        ("https://example.org:99999/v1#m", "no address"),
        ("https://example.org/v1?a=b#m", "lacks|model"),
    ],
)
def test_an_address_is_checked_first(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        endpoints.parse(text)


def test_an_address_names_a_model_and_the_environment_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCALGEMMA_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCALGEMMA_API_KEY", "k")
    assert endpoint_of("https://h:8/v1/#a/b", None) == Endpoint("https://h:8/v1", "a/b", "k")
    assert endpoint_of("http://[::1]:8/v1#a", 5) is not None
    assert endpoint_of("x.lgref", None) is None
    with pytest.raises(UsageError, match="--positions"):
        endpoint_of("x.lgref", 5)
    monkeypatch.setenv("LOCALGEMMA_OFFLINE", "1")
    with pytest.raises(OfflineError):
        endpoint_of("http://127.0.0.1:8/v1#a", None)


def test_bytes_of_two_tokens_are_those_that_text_gives() -> None:
    from localgemma.compare.endpoint import Likely
    from localgemma.compare.remote import Cells

    class Twice(Speller):
        def pieces(self) -> list[bytes]:
            """Three alike."""
            return [b"A", b"x", b"A", b"B", b"B"]

        def tokenize(self, prompt: Prompt) -> list[int]:
            """The second A."""
            return [2]

    cells = Cells(Twice())
    assert [cells.token(Likely(0.0, data)) for data in (b"A", b"x", b"B", b"?", None)] == [2, 1, None, None, None]
    assert cells.token(Likely(0.0, b"A", 0)) == 0 and cells.token(Likely(0.0, b"x", 0)) is None
    assert cells.token(Likely(0.0, b"x", 99)) is None
