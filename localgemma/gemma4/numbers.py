"""Numbers within bounds, as automata over their decimal digits: no exponent where there is a bound, no leading zeros."""

from __future__ import annotations

from decimal import Decimal

from localgemma.gemma4.automaton import Automaton, Edge, both, trimmed
from localgemma.gemma4.regex import whole

_DIGITS = 40  # of a whole number without bounds: it must end some time
_PLACES = 20  # after the point
_MOST_MULTIPLE = 500
INTEGER = rf"-?(0|[1-9][0-9]{{0,{_DIGITS - 1}}})"
# An exponent of three digits could be infinity in a float; with one digit before the point and at most 299 it is none.
NUMBER = (
    rf"-?((0|[1-9][0-9]{{0,{_DIGITS - 1}}})(\.[0-9]{{1,{_PLACES}}})?|[0-9](\.[0-9]{{1,{_PLACES}}})?[eE][-+]?[12]?[0-9]{{1,2}})"
)
_PLAIN = rf"-?(0|[1-9][0-9]{{0,{_DIGITS - 1}}})(\.[0-9]{{1,{_PLACES}}})?"


def numbers(
    integer: bool, bounds: list[tuple[str, Decimal]], multiples: list[Decimal] | None = None
) -> tuple[Automaton, list[Decimal]]:
    """Numbers that fit all bounds ((">=", 3), …), and the multiples that could not be held. Raises TooLarge."""
    found = whole(INTEGER if integer else _PLAIN if bounds or multiples else NUMBER)
    for sign, bound in bounds:
        found = both(found, whole(_beyond(bound, sign)))
    left: list[Decimal] = []
    for step in multiples or ():
        if integer and step == step.to_integral_value() and 0 < step <= _MOST_MULTIPLE:
            found = both(found, _multiples(int(step)))
        else:
            left.append(step)
    return found, left


def _beyond(bound: Decimal, sign: str) -> str:
    """An expression for the numbers on one side of a bound; its digits may be more than INTEGER's, which cuts them."""
    above = sign[0] == ">"
    equal = sign[1:] == "="
    if bound == 0:
        zero = r"|-?0(\.0+)?" if equal else ""
        some = r"(0\.0*[1-9][0-9]*|[1-9][0-9]*(\.[0-9]+)?)"
        return ("" if above else "-") + some + zero
    low, high = _magnitudes(abs(bound), equal)
    negative = bound < 0
    if above:  # from the bound up: all below it in magnitude where it is negative, and what is positive
        return rf"-({low})|[0-9]+(\.[0-9]+)?" if negative else high
    return rf"-({high})" if negative else rf"-[0-9]+(\.[0-9]+)?|{low}"


def _magnitudes(bound: Decimal, equal: bool) -> tuple[str, str]:
    """Expressions for the numbers from 0 to a positive bound, and from it on."""
    text = format(bound, "f")
    whole_part, _, rest = text.partition(".")
    rest = rest.rstrip("0")
    low, high = [_shorter(whole_part)] if len(whole_part) > 1 else [], [rf"[1-9][0-9]{{{len(whole_part)},}}(\.[0-9]+)?"]
    for at, digit in enumerate(whole_part):
        first = 1 if at == 0 and len(whole_part) > 1 else 0
        tail = rf"[0-9]{{{len(whole_part) - at - 1}}}(\.[0-9]+)?"
        if int(digit) > first:
            low.append(f"{whole_part[:at]}[{first}-{int(digit) - 1}]{tail}")
        if digit != "9":
            high.append(f"{whole_part[:at]}[{int(digit) + 1}-9]{tail}")
    for at, digit in enumerate(rest):
        head = rf"{whole_part}\.{rest[:at]}"
        if digit != "0":
            low.append(rf"{head}[0-{int(digit) - 1}][0-9]*")
        if digit != "9":
            high.append(rf"{head}[{int(digit) + 1}-9][0-9]*")
        low.append(head if at else whole_part)
    same = rf"{whole_part}\.{rest}0*" if rest else rf"{whole_part}(\.0+)?"
    more = rf"{whole_part}\.{rest}0*[1-9][0-9]*" if rest else rf"{whole_part}\.0*[1-9][0-9]*"
    high.append(more)
    if equal:
        low.append(same)
        high.append(same)
    return "|".join(low), "|".join(high)


def _shorter(digits: str) -> str:
    """Numbers with fewer digits before the point."""
    return rf"(0|[1-9][0-9]{{0,{len(digits) - 2}}})(\.[0-9]+)?"


def _multiples(step: int) -> Automaton:
    """Whole numbers that `step` divides: a state is the remainder so far."""
    edges: list[list[Edge]] = [[(45, 45, 1)], []]
    for state in (0, 1):
        edges[state] += [(48 + digit, 48 + digit, 2 + digit % step) for digit in range(10)]
    for rest in range(step):
        edges.append([(48 + digit, 48 + digit, 2 + (rest * 10 + digit) % step) for digit in range(10)])
    return trimmed(edges, [2])
