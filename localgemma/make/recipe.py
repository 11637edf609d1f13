"""A type for every weight, such that the file has a given size and loses least; recipes as files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from localgemma.errors import BackendError, DiskError, NotFound, UsageError
from localgemma.make import imatrix as matrices
from localgemma.make import quantize, types, whole
from localgemma.make.quantize import Plan, Planned, Wish
from localgemma.make.sensitivity import Choice, Table, choices
from localgemma.units import format_size

Pairs = tuple[tuple[str, int], ...]  # (regular expression on the name, ggml type); the first match counts
_STEPS = 1 << 15  # the budget is divided into this many units
_LABELS = {  # the whole-file type that a file mostly of this tensor type is called
    "q8_0": "Q8_0", "q6_K": "Q6_K", "q5_K": "Q5_K_M", "q5_1": "Q5_1", "q5_0": "Q5_0", "q4_K": "Q4_K_M", "q4_1": "Q4_1",
    "q4_0": "Q4_0", "iq4_nl": "IQ4_NL", "iq4_xs": "IQ4_XS", "q3_K": "Q3_K_M", "iq3_s": "IQ3_S", "iq3_xxs": "IQ3_XXS",
    "q2_K": "Q2_K", "iq2_s": "IQ2_M", "iq2_xs": "IQ2_XS", "iq2_xxs": "IQ2_XXS",
}  # fmt: skip


def plan_for_size(source: Path, table: Table, budget: int, wish: Wish) -> Plan:
    """The plan of a file of at most `budget` bytes with the least expected loss.

    `wish` gives the imatrix and the threads. UsageError where no recipe is that small.
    """
    sizes = {name: min(one.nbytes for one in row) for name, row in table.items()}
    fixed = _check_least(source, sizes, budget, wish)
    plan = quantize.make_plan(source, with_recipe(wish, exact(choose(table, budget - fixed)), source))
    if plan.size > budget:
        raise BackendError(f"The recipe gives {plan.size:,} bytes, and {budget:,} were allowed.")
    return plan


def check_budget(source: Path, weights: Sequence[Planned], budget: int, wish: Wish) -> None:
    """UsageError, before anything is measured, where no recipe is that small."""
    known = matrices.read(wish.imatrix).entries if wish.imatrix else {}
    sizes = {}
    for weight in weights:
        numbers = [*choices(weight, known), weight.before]
        sizes[weight.name] = min(types.nbytes(weight.shape, number) for number in numbers)
    _check_least(source, sizes, budget, wish)


def _check_least(source: Path, sizes: Mapping[str, int], budget: int, wish: Wish) -> int:
    """Bytes of the file besides these weights; UsageError where they are too large at their smallest."""
    fixed = quantize.bytes_beside(source, wish, sizes.keys())
    least = fixed + sum(map(quantize.padded, sizes.values()))
    if least > budget:
        hint = "Give a larger size" + ("." if wish.imatrix else ", or an imatrix with --imatrix, which allows smaller types.")
        raise UsageError(f"No recipe of {source.name} is below {format_size(least)} ({least:,} bytes).", hint)
    return fixed


def choose(table: Table, budget: int) -> dict[str, int]:
    """The types, by weight, of least total loss within `budget` bytes (each padded); the budget must allow the smallest.

    A knapsack by dynamic programming in units of the budget's 32,768th part, sizes rounded up; what rounding leaves is spent
    on the steps that gain most.
    """
    import numpy as np

    rows = {name: _useful(row) for name, row in table.items()}
    spent = {name: row[0].nbytes for name, row in rows.items()}
    spare = budget - sum(quantize.padded(size) for size in spent.values())
    unit = max(1, spare // _STEPS)
    loss = np.zeros(spare // unit + 1)
    picked: dict[str, np.ndarray] = {}
    for name, row in rows.items():
        best = loss + row[0].loss
        pick = np.zeros(len(loss), np.uint8)
        for index, one in enumerate(row[1:], 1):
            cost = -(-(quantize.padded(one.nbytes) - quantize.padded(row[0].nbytes)) // unit)
            if cost < len(loss):
                other = loss[: len(loss) - cost] + one.loss
                better = other < best[cost:]
                best[cost:][better] = other[better]
                pick[cost:][better] = index
        loss, picked[name] = best, pick
    at = int(loss.argmin())
    chosen: dict[str, int] = {}
    for name in reversed(rows):
        row, index = rows[name], int(picked[name][at])
        chosen[name] = index
        at -= -(-(quantize.padded(row[index].nbytes) - quantize.padded(row[0].nbytes)) // unit)
    return _filled(rows, chosen, budget)


def _filled(rows: Mapping[str, Sequence[Choice]], chosen: dict[str, int], budget: int) -> dict[str, int]:
    """Spend what is left on single steps, the one that gains most first."""
    left = budget - sum(quantize.padded(rows[name][index].nbytes) for name, index in chosen.items())
    while True:
        steps = []
        for name, index in chosen.items():
            now = rows[name][index]
            for other in range(index + 1, len(rows[name])):
                cost = quantize.padded(rows[name][other].nbytes) - quantize.padded(now.nbytes)
                if cost <= left:
                    steps.append((now.loss - rows[name][other].loss, name, other, cost))
        if not steps:
            return {name: rows[name][index].type_id for name, index in chosen.items()}
        _, name, other, cost = max(steps)
        chosen[name] = other
        left -= cost


def _useful(row: Sequence[Choice]) -> list[Choice]:
    """By size, only those that lose less than every smaller one."""
    kept: list[Choice] = []
    for one in sorted(row, key=lambda one: (one.nbytes, one.loss)):
        if not kept or one.loss < kept[-1].loss:
            kept.append(one)
    return kept


def exact(recipe: Mapping[str, int]) -> Pairs:
    """The pairs that give each weight its type and match nothing else."""
    return tuple((f"^{re.escape(name)}$", number) for name, number in recipe.items())


def with_recipe(wish: Wish, pairs: Pairs, source: Path) -> Wish:
    """The wish for these types, called by the standard type that most of their bytes have.

    Raises UsageError where a pattern is no regular expression.
    """
    sizes: dict[int, int] = {}
    tensors = quantize.readable(source).tensors
    for pattern, number in pairs:
        try:
            found = [tensor for tensor in tensors if re.search(pattern, tensor.name)]
        except re.error as error:
            raise UsageError(f"{pattern[:60]!r} is not a regular expression: {error}.", "Correct it and try again.") from None
        sizes[number] = sizes.get(number, 0) + sum(types.nbytes(tensor.shape, number) for tensor in found)
    most = sorted(sizes, key=lambda number: -sizes[number])
    label = next((_LABELS[name] for number in most if (name := types.type_name(number)) in _LABELS), "Q8_0")
    return replace(wish, file_type=label, overrides=pairs)


def write_recipe(path: Path, plan: Plan) -> None:
    """The plan's types in the form of llama-quantize's --tensor-type-file: a line `regular expression=type` each."""
    lines = [f"{pattern}={types.type_name(number)}\n" for pattern, number in plan.wish.overrides]
    with whole.draft(path) as draft:
        draft.path.write_text("".join(lines), encoding="utf-8")
        draft.keep()


def read_recipe(path: Path) -> Pairs:
    """The (regular expression, type) pairs of a recipe; NotFound, DiskError, UsageError naming the wrong word."""
    try:
        words = path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.", "Check its name.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path.name} is no recipe.", "Give a file of lines like: attn_v=q8_0") from None
    except OSError as error:
        raise DiskError(f"{path} could not be read: {error.strerror}.", "Check its permissions.") from error
    if not words:
        raise UsageError(f"{path.name} is empty.", "Give a file of lines like: attn_v=q8_0")
    return tuple(parse_pair(word, path.name) for word in words)


def parse_pair(text: str, where: str) -> tuple[str, int]:
    """(regular expression, ggml type) of `attn_v=q8_0`; UsageError."""
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"{text[:60]!r} in {where} is not REGEX=TYPE.", "Write it like: attn_v=q8_0")
    return pattern, types.tensor_type(name)
