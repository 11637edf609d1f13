"""Reports of comparisons: every form holds every figure with its conditions, and nothing hostile gets through as code."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import comparisons
import pytest

from localgemma.compare import recommend, report
from localgemma.compare.records import Answered, Asked, Comparison, Conditions, Interval, Result, TaskScore
from localgemma.compare.records import Test as Paired
from localgemma.compare.report_numbers import column, nats, percent, places, within
from localgemma.compare.report_tests import told_apart
from localgemma.compare.svg import Box, Labels, plain, spread, width_of
from localgemma.errors import UsageError

KINDS: list[Callable[[], Comparison]] = [comparisons.usual, comparisons.hostile, comparisons.bare]
STATED = ("KL(reference ‖ file)", "small 1", "9,000 positions", "b9011", "CUDA", "ubatch 512", "ubatch 128", "0.000210",
          "google 2026-07-09")  # fmt: skip


def by_label(comparison: Comparison) -> dict[str, Result]:
    return {result.subject.label: result for result in (comparison.reference, *comparison.results)}


@pytest.mark.parametrize("make", KINDS)
def test_json_gives_back_the_records(make: Callable[[], Comparison]) -> None:
    comparison = make()
    text = report.to_json(comparison)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    back = report.from_json(text)
    assert repr(back) == repr(comparison)  # repr, since NaN differs from itself
    assert report.to_json(back) == text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: "{", "not JSON"),
        (lambda d: "[" * 100_000, "not JSON"),
        (lambda d: "[]", "no comparison"),
        (lambda d: json.dumps(d | {"format": "x"}), "no comparison"),
        (lambda d: json.dumps(d | {"version": 2}), "format 2"),
        (lambda d: json.dumps(d | {"extra": 1}), "extra"),
        (lambda d: json.dumps({k: v for k, v in d.items() if k != "conditions"}), "lacks"),
        (lambda d: json.dumps(d | {"results": {}}), "comparison.results"),
        (lambda d: json.dumps(d | {"conditions": d["conditions"] | {"ubatch": "512"}}), "comparison.conditions.ubatch"),
        (lambda d: json.dumps(d | {"conditions": d["conditions"] | {"ubatch": True}}), "comparison.conditions.ubatch"),
        (lambda d: json.dumps(d | {"notes": [1]}), "comparison.notes[0]"),
    ],
)
def test_other_json_is_refused_with_its_place(change: Callable[[dict[str, object]], str], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        report.from_json(change(json.loads(report.to_json(comparisons.usual()))))


def test_the_terminal_shows_every_file_and_how_it_was_measured() -> None:
    comparison = comparisons.usual()
    text = report.table(comparison)
    for label, result in by_label(comparison).items():
        assert label in text and result.subject.sha256 in text
    for stated in STATED:
        assert stated in text
    assert max(map(len, text.splitlines())) <= 120
    assert "0.03140" in text and "0.02780–0.03500" in text and "96.3" in text and "1.0314" in text and "33/40" in text
    assert max(map(len, report.table(comparison, 100).splitlines())) <= 100
    assert "KL" in report.table(comparisons.bare())


def test_markdown_repeats_the_conditions_under_every_table() -> None:
    comparison = comparisons.usual()
    text = report.markdown(comparison)
    *tables, _ = re.split(r"^## (?=Files)|^## ", text, flags=re.MULTILINE)[1:-1]
    assert len(tables) == 5
    for part in tables:
        for stated in STATED:
            assert stated in part
    lines = [line for line in text.splitlines() if line.startswith("|")]
    row = next(line for line in lines if line.startswith("| Q4\\_K\\_M |"))
    assert (
        row == "| Q4\\_K\\_M | 17.4 GiB | 4.87 | 0.03140 | 0.02780–0.03500 | 0.00377 | 0.440 | 3.77 | 96.3 | 3.90 | 1.0314 |"
    )
    for result in comparison.results:
        assert result.subject.sha256 in text


def test_csv_has_every_figure_in_full() -> None:
    comparison = comparisons.usual()
    rows = list(csv.DictReader(io.StringIO(report.csv(comparison))))
    found = {(row["file"], row["scope"]): row for row in rows}
    assert len(found) == len(rows)
    for label, result in by_label(comparison).items():
        row = found[label, "all"]
        assert row["sha256"] == result.subject.sha256
        assert (row["set"], row["ubatch"], row["noise_kl"], row["exact"]) == ("small 1", "512", "0.00021", "0")
        assert row["reference"] == "BF16" and row["direction"] == "KL(reference||file), nats"
        if d := result.overall:
            assert (float(row["kl"]), float(row["kl_high"])) == (d.kl.value, d.kl.high)
            assert (float(row["kl_q99.9"]), float(row["dp_q95"])) == (d.quantiles["99.9"], d.dp["95"])
        for name, divergence in result.categories.items():
            assert float(found[label, f"category:{name}"]["kl"]) == divergence.kl.value
        for name, score in result.tasks.items():
            assert int(found[label, f"task:{name}"]["right"]) == score.right
        for first, last, kl in result.positions:
            assert float(found[label, f"position:{first}-{last}"]["kl"]) == kl
    assert found["QAT Q4_0", "all"]["kl"] == "" and "anew" in found["QAT Q4_0", "all"]["why_not"]


def test_hostile_text_stays_text() -> None:
    comparison = comparisons.hostile()
    for text in (report.table(comparison), report.markdown(comparison), report.csv(comparison)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    for row in csv.reader(io.StringIO(report.csv(comparison))):
        assert not [cell for cell in row if cell[:1] in ("=", "+", "@") or (cell[:1] == "-" and not cell[1:2].isdigit())]
    text = report.markdown(comparison)
    assert "<script" not in text and "<img" not in text and "://" not in text
    heads = [line for line in text.splitlines() if line.startswith("| file |")]
    for line in text.splitlines():
        if line.startswith("| =&lt;script"):
            assert len(re.findall(r"(?<!\\)\|", line)) in {len(re.findall(r"(?<!\\)\|", head)) for head in heads}


def test_families_never_share_a_column() -> None:
    text = report.table(comparisons.usual())
    first, second = text.index("Divergence from BF16\n"), text.index("Divergence from the reference of their own family")
    assert "QAT Q4_0" not in text[first:second]
    assert "QAT Q4_0" in text[second:]


def test_a_difference_by_chance_gets_no_star() -> None:
    def scored(label: str, ps: list[float]) -> Result:
        tasks = {f"t{i}": TaskScore(f"t{i}", 1, 2, Interval(0.5, 0, 1, 2), {}, Paired(0, 5, p)) for i, p in enumerate(ps)}
        return Result(replace(comparisons.subject("Q8_0"), label=label), tasks=tasks)

    conditions = Conditions("x", 1, 1, "", "", 512, "")
    comparison = Comparison(scored("R", []), (scored("A", [0.03, 0.4]), scored("B", [0.001, 0.2])), conditions)
    assert told_apart(comparison) == {("B", "t0")}  # 0.03 is not below 0.05 / 3


def test_numbers_line_up_and_never_lie() -> None:
    assert [nats(value) for value in (0.0, 0.0312, 1.42, 0.00004, 12.34)] == ["0", "0.0312", "1.42", "0.0000400", "12.3"]
    assert (nats(1e-9), nats(2.57e-6)) == ("below 0.00000001", "0.00000257")
    assert [plain(value) for value in (20.0, 0.0005, 1e-6, 3e-6, 0.00002)] == ["20", "0.0005", "10⁻⁶", "3·10⁻⁶", "2·10⁻⁵"]
    assert (nats(float("inf")), nats(float("nan"))) == ("∞", "–")
    assert percent(0.99996) == "99.9" and percent(1.0) == "100.0"
    digits = places([0.00091, 0.4, 0.0])
    assert [column(value, digits) for value in (0.00091, 0.411, 0.0)] == ["0.00091", "0.41100", "0.00000"]
    assert column(1e-9, 5) == "<0.00001"
    assert within(Interval(0.03, float("nan"), 0.1, 2)) == "–"


def test_the_recommendation_follows_the_memory() -> None:
    comparison = comparisons.usual()
    chosen = recommend.choice(comparison, comparison.conditions.memory_limit)
    assert chosen is not None and chosen.subject.label == "Q5_K_M"
    told = " ".join(recommend.sentences(comparison, comparison.conditions.memory_limit))
    for part in ("take Q5_K_M (20.3 GiB)", "0.0121 nats", "Q4_K_M saves 2.89 GiB", "Q6_K is nearer", "non-Latin scripts",
                 "Not worth its size: Q4_0", "compare the tasks"):  # fmt: skip
        assert part in told
    small = recommend.choice(comparison, 14 * comparisons.GIB)
    assert small is not None and small.subject.label == "Q2_K"
    assert recommend.choice(comparison, comparisons.GIB) is None
    assert "None of these files fits" in recommend.sentences(comparison, comparisons.GIB)[0]
    best = recommend.choice(comparison, 0)
    assert best is not None and best.subject.label == "Q8_0"


def test_of_files_that_cannot_be_told_apart_the_smaller_is_taken() -> None:
    comparison = comparisons.usual()
    q8, q6, *others = comparison.results
    assert q6.overall and q8.overall
    near = replace(q6, overall=replace(q6.overall, kl=Interval(0.00095, 0.0008, 0.0011, 150)))
    chosen = recommend.choice(replace(comparison, results=(q8, near, *others)), 0)
    assert chosen is not None and chosen.subject.label == "Q6_K"
    told = recommend.sentences(replace(comparison, results=(q8, near, *others)), 0)
    assert any("Q8_0 is larger, and on this set the difference is within the uncertainty" in sentence for sentence in told)


@pytest.mark.parametrize(("items", "said"), [(2, "too few items"), (8, "With 8 texts"), (99, "With 99 texts"), (100, "")])
def test_what_an_interval_of_few_texts_is_worth_is_said(items: int, said: str) -> None:
    comparison = comparisons.usual()
    (first, *_), kl = comparison.results, Interval(0.001, 0.0008 if items > 2 else float("nan"), 0.0012, items)
    assert first.overall
    few = replace(first, overall=replace(first.overall, items=items, kl=kl))
    told = " ".join(recommend.sentences(replace(comparison, results=(few,)), 0))
    assert said in told and ("texts that it lacks" in told) == (said.startswith("With"))


def test_what_the_planner_remembers() -> None:
    comparison = comparisons.usual()
    losses = {(loss.name, loss.kv): loss for loss in recommend.losses(comparison)}
    assert len(losses) == 8  # not the QAT file, which has no divergence
    loss = losses["gemma-4-31b:Q4_K_M@unsloth", "f16"]
    assert (loss.kl, loss.set, loss.reference, loss.noise) == (0.0314, "small 1", "BF16", 0.00021)
    assert loss.scale == losses["gemma-4-31b:Q4_K_M@unsloth", "q8_0"].scale


_OUTER = {"html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section", "div", "figure"}
_TEXT = {
    "h1",
    "h2",
    "h3",
    "h4",
    "p",
    "ul",
    "li",
    "dl",
    "dt",
    "dd",
    "span",
    "small",
    "strong",
    "b",
    "code",
    "mark",
    "figcaption",
}
_TABLES = {"table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
ELEMENTS = _OUTER | _TEXT | _TABLES | {"svg", "text", "line", "path", "rect", "circle"}


def page(comparison: Comparison) -> tuple[str, ElementTree.Element]:
    text = report.html(comparison)
    return text, ElementTree.fromstring(text)


@pytest.mark.parametrize("make", KINDS)
def test_the_page_can_load_nothing(make: Callable[[], Comparison]) -> None:
    text, root = page(make())
    assert {element.tag for element in root.iter()} <= ELEMENTS  # no script, link, image, frame or object
    for element in root.iter():
        for name, value in element.attrib.items():
            assert not name.startswith("on") and name not in ("src", "href", "style", "srcset", "action", "xmlns"), name
            assert "://" not in value or name in ("title", "aria-label"), value
    style = "".join(element.text or "" for element in root.iter("style"))
    assert "url(" not in style and "@import" not in style and "//" not in style
    policy = next(element for element in root.iter("meta") if element.get("http-equiv"))
    assert policy.get("content") == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.search(
        r"<(?!/)[a-z0-9]+[^>]*/>", re.sub(r"<svg.*?</svg>|<meta[^>]*>", "", text, flags=re.DOTALL)
    )  # HTML has none


def test_the_page_shows_every_record() -> None:
    comparison = comparisons.usual()
    text, root = page(comparison)
    shown = " ".join(root.itertext())
    for label, result in by_label(comparison).items():
        assert label in shown and result.subject.sha256 in shown
        if result.overall:
            assert within(result.overall.kl, 5) in shown and f"{result.overall.ratio.value:.4f}" in shown
        for name, score in result.tasks.items():
            assert name in shown and f"{score.right}/{score.n}" in shown
        if result.speed:
            assert f"{result.speed.load:.1f} s" in shown or f"{result.speed.load:.0f} s" in shown
        assert not result.why_not or result.why_not in shown
    for asked in comparison.answers:
        assert asked.prompt in shown
    for category in comparison.results[0].categories:
        assert category in shown
    for note in (*comparison.notes, *recommend.sentences(comparison, comparison.conditions.memory_limit)):
        assert note in shown.replace("\u00a0", " ") or "Q5_K_M (20.3" in note  # whose name is an element of its own
    for stated in (*STATED[1:], "KL(BF16"):
        assert stated in shown
    assert "this machine holds 23.1 GiB" in shown and "noise floor 0.000210" in shown
    assert text.count("<svg") > 60


def test_the_page_draws_families_apart() -> None:
    _, root = page(comparisons.usual())
    drawings = [" ".join(svg.itertext()) for svg in root.iter("svg")]
    assert [d for d in drawings if "Mean KL divergence" in d]
    assert not [d for d in drawings if "Mean KL divergence" in d and "QAT" in d]
    assert [d for d in drawings if "decode" in d and "QAT" in d]
    usual = comparisons.usual()
    qat = replace(usual.results[-1], overall=comparisons.divergence(0.04), why_not="")
    _, root = page(replace(usual, results=(*usual.results[:-1], qat)))
    drawn = [" ".join(svg.itertext()) for svg in root.iter("svg")]
    assert [d for d in drawn if "the reference of their own family" in d and "QAT Q4_0" in d and "Q8_0" not in d]


def test_hostile_text_is_shown_as_text() -> None:
    text, root = page(comparisons.hostile())
    assert "<script>alert(1)</script>\"'><img src=https://evil.example/x onerror=alert(2)>" in "".join(root.itertext())
    assert "<script" not in text and "<img" not in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)


def test_the_first_word_that_differs_is_marked() -> None:
    _, root = page(comparisons.usual())
    marks = ["".join(mark.itertext()) for mark in root.iter("mark")]
    assert marks and set(marks) == {"otherwise"}
    cut = Asked(
        "p", {"BF16": Answered("one two"), "Q8_0": Answered("one", 3), "Q6_K": Answered("one two"), "Q2_K": Answered("", 0)}
    )
    _, root = page(replace(comparisons.usual(), answers=(cut,)))
    assert [mark.text for mark in root.iter("mark")] == ["∎", "∎"]
    cards = [
        " ".join(card.itertext())
        for card in root.iter("div")
        if card.get("class", "").startswith("card ") or card.get("class") == "card"
    ]
    assert len(cards) == 3 and "BF16, Q6_K" in cards[0] and "“(end)” for “two”" in cards[1]


@pytest.mark.parametrize(
    "limit", [0, 1, 9 * comparisons.GIB, 18 * comparisons.GIB, 40 * comparisons.GIB, 400 * comparisons.GIB]
)
def test_any_memory_limit_can_be_drawn(limit: int) -> None:
    usual = comparisons.usual()
    _, root = page(replace(usual, conditions=replace(usual.conditions, memory_limit=limit)))
    shown = " ".join(root.itertext())
    assert ("this machine holds" in shown) == (limit > 0)
    assert ("more than all of these" in shown) == (limit == 400 * comparisons.GIB)


def test_labels_keep_apart() -> None:
    labels = Labels(Box(0, 0, 400, 300))
    places = [labels.place(100.0 + 3 * at, 100.0 + 2 * at, f"label {at}") for at in range(6)]
    assert len(set(places)) == 6
    boxes = labels.taken
    assert not [1 for i, a in enumerate(boxes) for b in boxes[i + 1 :] if a.overlap(b) > 0.1 * width_of("label 0") * 13]
    assert spread([1.0, 1.0, 1.0, 9.0], 2, 0, 10) == [1.0, 3.0, 5.0, 9.0]
    assert spread([9.9, 10.0], 2, 0, 10) == [8.0, 10.0]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("make", [comparisons.usual, comparisons.hostile])
def test_a_browser_finds_nothing_to_load_and_no_overflow(make: Callable[[], Comparison], tmp_path: Path) -> None:
    # Without its policy, so that what is not text would really run and load; in frames, which may be as narrow as a telephone.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.html(make()))
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{escape(text)}"></iframe>' for width in (1400, 390))
    size = "d => d.scrollWidth - d.clientWidth"
    told = f"[...document.querySelectorAll('iframe')].map(f => f.contentDocument.documentElement).map({size})"
    script = f"<script>onload = () => {{ document.body.dataset.over = {told} }}</script>"
    file, log = tmp_path / "page.html", tmp_path / "net.json"
    file.write_text(f"<!DOCTYPE html><body>{frames}{script}</body>", encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--dump-dom",
               "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
               f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}", file.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert 'data-over="0,0"' in done.stdout
    assert "CONSOLE" not in done.stderr
    assert "evil.example" not in log.read_text(encoding="utf-8", errors="replace")
