"""Numbers as every table, chart and sentence of a report shows them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from localgemma.compare.records import Interval, TaskScore, Test

UNKNOWN = "–"


def nats(value: float) -> str:
    """A divergence with three significant digits, never in powers of ten: `0.0312`, `1.42`, `0.00004`."""
    if not math.isfinite(value):
        return "∞" if value > 0 else UNKNOWN
    if value == 0:
        return "0"
    if abs(value) < 5e-9:
        return "below 0.00000001"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 8)}f}"


def counted(n: int, one: str) -> str:
    """A number with its noun: `1 item`, `1,200 items`."""
    return f"{n:,} {one}{'' if n == 1 else 's'}"


def places(values: Iterable[float]) -> int:
    """Decimals that show two digits of the smallest value of a column, seven at most, so that its numbers line up."""
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    return min(7, max(2, 1 - math.floor(math.log10(min(sizes))))) if sizes else 2


def column(value: float, digits: int) -> str:
    """A divergence with a fixed number of decimals; `<0.0000001` where these show nothing of it."""
    if not math.isfinite(value):
        return "∞" if value > 0 else UNKNOWN
    shown = f"{value:.{digits}f}"
    return f"<{10**-digits:.{digits}f}" if value > 0 and not float(shown) else shown


def within(interval: Interval, digits: int | None = None) -> str:
    """The interval's ends as digits of one length: `0.0295–0.0331`."""
    if math.isnan(interval.low) or math.isnan(interval.high):
        return UNKNOWN
    if math.isinf(interval.low) or math.isinf(interval.high):
        return f"{nats(interval.low)}–{nats(interval.high)}"
    digits = _places(interval.value) if digits is None else digits
    return f"{interval.low:.{digits}f}–{interval.high:.{digits}f}"


def percent(share: float, digits: int = 1) -> str:
    """A share as per cent, without the sign: `95.1`; never 100 where it is less."""
    if not math.isfinite(share):
        return UNKNOWN
    shown = f"{100 * share:.{digits}f}"
    if share < 1 and float(shown) >= 100:
        return f"{100 - 10**-digits:.{digits}f}"
    return shown


def ratio(value: float) -> str:
    """A ratio of perplexities: `1.0043`."""
    return f"{value:.4f}" if math.isfinite(value) else "∞" if value > 0 else UNKNOWN


def times(value: float) -> str:
    """How many times as much, in words' precision: `1.4`, `12`."""
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def rate(value: float) -> str:
    """Tokens a second."""
    if not value:
        return UNKNOWN
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def probability(test: Test) -> str:
    """McNemar's p in a sentence: `p = 0.31`, `p < 0.001`."""
    return f"p < {p[1:]}" if (p := p_value(test.p)).startswith("<") else f"p = {p}"


def of(score: TaskScore) -> str:
    """Right answers of how many: `15/16`."""
    return f"{score.right}/{score.n}"


def p_value(p: float) -> str:
    """A p of two digits."""
    return "<0.001" if p < 0.001 else f"{p:.2g}" if p < 0.995 else "1"


def _places(value: float) -> int:
    return min(8, max(0, 2 - math.floor(math.log10(abs(value))))) if value and math.isfinite(value) else 4
