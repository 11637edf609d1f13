"""Comparisons for tests: a usual one, one full of hostile text, and one with nothing in it. Figures are made up."""

from __future__ import annotations

import math
from dataclasses import replace

from localgemma.compare.records import (
    Answered,
    Asked,
    Comparison,
    Conditions,
    Divergence,
    Interval,
    Result,
    Speed,
    Subject,
    TaskScore,
    Test,
)

GIB = 1 << 30
BITS = {"Q8_0": 8.51, "Q6_K": 6.57, "Q5_K_M": 5.68, "Q4_K_M": 4.87, "Q4_0": 4.95, "Q3_K_M": 3.89, "Q2_K": 3.02}
KL = {"Q8_0": 0.00091, "Q6_K": 0.0042, "Q5_K_M": 0.0121, "Q4_K_M": 0.0314, "Q4_0": 0.0587, "Q3_K_M": 0.104, "Q2_K": 0.411}
WEIGHT = {"chat": 0.8, "long": 1.9, "code": 0.55, "science": 0.75, "non-latin": 2.4, "tools": 0.4, "thinking": 0.9,
          "pictures": 1.3, "video": 1.1}  # fmt: skip
TASKS = {"arithmetic": 40, "capitals": 32, "extraction": 32, "json": 40, "needle": 30, "tool-call": 36, "image-number": 32,
         "image-count": 32}  # fmt: skip
PARAMETERS = 30_697_345_596
SKY = (
    "Sunlight is scattered by the air's molecules, and blue light much more than red. So from every direction away from the "
    "sun blue reaches our eyes."
)
HAIKU = "The cursor blinks twice,\na fan sighs into the dusk.\nSnow loads, flake by flake."
HOSTILE = "<script>alert(1)</script>\"'><img src=https://evil.example/x onerror=alert(2)>|`*_ \x1b[31m\x00\u202egnp"


def divergence(kl: float, positions: int = 9000, items: int = 150) -> Divergence:
    """A divergence with everything else in proportion to its mean."""
    spread = 0.09 + 0.3 / math.sqrt(items)
    names = {"50": 0.12, "90": 2.1, "95": 4.3, "99": 14.0, "99.9": 41.0, "100": 120.0}
    top = 1 - 0.32 * kl**0.62
    dp = {"1": -2.2, "5": -1.0, "25": -0.1, "50": -0.005, "75": 0.08, "95": 0.8, "99": 1.9}
    return Divergence(
        positions=positions,
        items=items,
        kl=Interval(kl, kl * (1 - spread), kl * (1 + spread), items),
        kl_error=kl * 0.03,
        quantiles={name: kl * value for name, value in names.items()},
        same_top=Interval(top, top - 0.006, min(1.0, top + 0.005), items),
        dp_rms=0.22 * math.sqrt(kl),
        dp={name: value * 0.1 * math.sqrt(kl) for name, value in dp.items()},
        perplexity=3.1 * (1 + kl),
        reference_perplexity=3.1,
        ratio=Interval(1 + kl, 1 + kl * 0.8, 1 + kl * 1.2, items),
        sampled_error=kl * 0.004,
    )


def subject(quant: str, kv: str = "f16", bits: float = 0.0) -> Subject:
    """A file of the 31B in that quantisation."""
    bits = bits or BITS.get(quant, 16.0)
    label = quant if kv == "f16" else f"{quant}, KV {kv}"
    return Subject(
        label=label,
        name=f"gemma-4-31b:{quant}@unsloth",
        quant=quant,
        bytes=int(bits * PARAMETERS / 8),
        sha256=f"{sum(quant.encode()):04x}" * 16,
        bits_per_weight=bits,
        kv=kv,
        publisher="unsloth",
        vocabulary="v" * 64,
        template="t" * 64,
    )


def tasks(loss: float) -> dict[str, TaskScore]:
    """Right answers, with `loss` of them lost against a reference that is right in nine of ten."""
    found = {}
    for at, (name, n) in enumerate(TASKS.items()):
        share = 0.97 - 0.035 * (at % 4)
        was = {f"{name}-{i}": i < n * share for i in range(n)}
        now = {item: right and not (i < n * loss * (0.4 + at / 4)) for i, (item, right) in enumerate(was.items())}
        right, lost = sum(now.values()), sum(was[i] and not now[i] for i in was)
        p = min(1.0, 2 * 0.5**lost) if lost else 1.0
        half = 1.4 / math.sqrt(n) * 0.5
        interval = Interval(right / n, max(0.0, right / n - half), min(1.0, right / n + half), n)
        found[name] = TaskScore(name, right, n, interval, now, Test(0, lost, p))
    return found


def result(quant: str, kv: str = "f16", kl: float = 0.0) -> Result:
    """All that would be found about one file."""
    kl = kl or KL[quant]
    file = subject(quant, kv)
    bins = ((0, 0), (1, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, 127), (128, 255), (256, 511))
    return Result(
        subject=file,
        overall=divergence(kl),
        categories={name: divergence(kl * factor, 1000, 18) for name, factor in WEIGHT.items()},
        positions=tuple((*ends, kl * (2.2 / (1 + at * 0.6) + 0.35 + 0.05 * (at % 3))) for at, ends in enumerate(bins)),
        tasks=tasks(min(0.3, kl * 0.9)),
        speed=Speed(1.9e12 / file.bytes, 5.6e11 / file.bytes, 0.41, file.bytes / 2.2e9,
                    {"GPU0": int(file.bytes * 0.93), "RAM": int(file.bytes * 0.07) + GIB}),
    )  # fmt: skip


def usual() -> Comparison:
    """Seven quantisations of the 31B, one of them with a quantised KV cache too, and Google's QAT file from other weights."""
    reference = subject("BF16")
    plain = [result(quant) for quant in BITS]
    kv = result("Q4_K_M", "q8_0", KL["Q4_K_M"] * 1.19)
    qat_file = replace(subject("Q4_0", bits=4.6), label="QAT Q4_0", name="gemma-4-31b:Q4_0@google", publisher="google",
                       family="qat", sha256="17" * 32)  # fmt: skip
    qat = replace(result("Q4_0"), subject=qat_file, overall=None, categories={}, positions=(), tasks=tasks(0.01),
                  why_not="its weights were trained anew, so they are measured against their own BF16")  # fmt: skip
    answers = (
        asked("Why is the sky blue? Two sentences.", SKY, [*BITS, "Q4_K_M, KV q8_0", "QAT Q4_0"]),
        asked("Write a haiku about a slow computer.", HAIKU, ["Q8_0", "Q4_K_M", "Q2_K"]),
    )  # fmt: skip
    conditions = Conditions(
        set="small 1", positions=9000, items=150, build="b9011 (1a2b3c4)", backend="CUDA (NVIDIA RTX 4090)", ubatch=512,
        template="google 2026-07-09", machine="Ryzen 9 7950X, 64 GiB; RTX 4090, 24 GiB", noise=divergence(0.00021),
        noise_ubatch=128, memory_limit=int(23.1 * GIB), exact=False, date="2026-11-28",
    )  # fmt: skip
    whole = Result(reference, tasks={n: replace(s, against=None) for n, s in tasks(0.0).items()}, speed=result("Q8_0").speed)
    return Comparison(whole, (*plain, kv, qat), conditions, answers,
                      notes=("Video was walked at 8 frames a clip.",))  # fmt: skip


def asked(prompt: str, text: str, labels: list[str]) -> Asked:
    """A prompt whose answers leave the reference's one after the other, ever earlier."""
    answers = {"BF16": Answered(text)}
    for at, label in enumerate(labels):
        if at == 0:
            answers[label] = Answered(text)
            continue
        where = text.rfind(" ", 0, len(text) - 12 * at) + 1
        answers[label] = Answered(f"{text[:where]}otherwise it goes on from here, and ends.", where)
    return Asked(prompt, answers)


def hostile() -> Comparison:
    """The usual one with text from files, prompts and answers that tries to be markup, a formula, or a terminal command."""
    base = usual()
    bad = Result(
        replace(base.results[3].subject, label=f"={HOSTILE}", name=HOSTILE, publisher=HOSTILE, quant=HOSTILE, sha256=HOSTILE),
        base.results[3].overall, {HOSTILE: divergence(0.1), **base.results[3].categories}, base.results[3].positions,
        {HOSTILE: TaskScore(HOSTILE, 1, 2, Interval(0.5, 0.1, 0.9, 2), {"a": True, "b": False}, Test(0, 1, 1.0))},
        Speed(10.0, 5.0, 0.5, 3.0, {HOSTILE: 5 * GIB}), (HOSTILE,), HOSTILE,
    )  # fmt: skip
    conditions = replace(base.conditions, set=HOSTILE, build=HOSTILE, backend=HOSTILE, template=HOSTILE, machine=HOSTILE,
                         date=HOSTILE)  # fmt: skip
    answers = (Asked(HOSTILE, {"BF16": Answered(HOSTILE), f"={HOSTILE}": Answered(HOSTILE + "x", 7)}),)
    return Comparison(base.reference, (bad, *base.results), conditions, answers, (HOSTILE,), (HOSTILE,))


def bare() -> Comparison:
    """The least that a comparison can be: a reference with no size, one candidate of two items, nothing else known."""
    nan = math.nan
    d = replace(divergence(0.02), items=2, kl=Interval(0.02, nan, nan, 2), same_top=Interval(0.9, nan, nan, 2),
                ratio=Interval(math.inf, nan, nan, 2), quantiles={"50": 0.0, "100": math.inf}, dp={},
                sampled_error=0.0)  # fmt: skip
    remote = Subject("remote", "http endpoint", "", 0)
    conditions = Conditions("own data", 40, 2, "unknown", "CPU", 512, "")
    refused = Result(subject("Q8_0"), why_not="another tokenizer")
    return Comparison(Result(remote), (Result(subject("Q4_K_M"), d), refused), conditions)
