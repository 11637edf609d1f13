"""Does a drafter pay on this machine? Tried once, after the first load with it, and kept for every later plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from localgemma import measured
from localgemma.engine import CancelToken, DraftsTokens, Finished, Request
from localgemma.errors import Cancelled
from localgemma.fit import rates
from localgemma.fit.choices import Choice
from localgemma.gemma4.prompt import render
from localgemma.messages import Message, TextPart
from localgemma.options import Sampling
from localgemma.units import format_size

if TYPE_CHECKING:
    from localgemma.fit.explain import Decision
    from localgemma.fit.planner import Planner, Way

PAYS = 1.05  # times as fast: less is within what two runs differ by, and not worth the drafter's memory
_QUESTIONS = (  # the first teaches the engine how many drafts to try, and is not counted
    "Tell me about the city of Paris.",
    "What is the capital of France?",
    "Write a short story about a farm in the rain.",
    "Question: 380 minus 7 is what?",
    "Explain how a bicycle stays upright.",
)
_TOKENS = 32  # of each answer, and fewer where that takes longer than a second
_LEAST = 12
_SECONDS = 5.0  # after which no other pair of answers is begun


def key(way: Way) -> str:
    """What a measured gain is of: the files, by their sizes, and how many layers are on GPUs."""
    return f"{way.candidate.size}+{way.candidate.drafter}:{way.setup.on_gpu}"


def choice(planner: Planner, way: Way) -> list[Choice]:
    """The plan's words about the drafter, if there is one."""
    size, gain = way.candidate.drafter, planner.gains.get(key(way))
    if not size:
        return []
    if way.setup.drafter:
        why = f"measured here: {gain:.2f} times as fast with it" if gain else "the first load tries whether it pays here"
        why = "you gave it" if planner.wishes.base.drafter else why
        return [Choice("drafter", f"yes, {format_size(size)}", why)]
    if not planner.wishes.draft:
        return [Choice("drafter", "no", "you asked for none")]
    if gain is not None and gain < PAYS:
        return [Choice("drafter", "no", _not_paying(gain))]
    return [Choice("drafter", "no", "no room beside the rest")]


def _not_paying(gain: float) -> str:
    return f"measured here: {gain:.2f} times as fast with it, which does not pay"


def settle(decision: Decision, engine: object, progress: Callable[[float], bool] | None = None) -> Choice | None:
    """Try a loaded drafter whose gain is not known here, keep what was found, and drop the drafter where it does not pay.

    The plan's new words about it, or None where nothing was to be tried. A machine that is busy with other work would say
    little: the drafter rests then, and a later load tries it. `progress` gets 0 … 1 and returns False to cancel.
    """
    way, machine = decision.way, decision.machine
    if not isinstance(engine, DraftsTokens) or not engine.drafting or key(way) in measured.load(machine.key).drafts:
        return None
    if rates.busy():
        engine.drop_drafter()
        return Choice("drafter", "no", "this machine is too busy to try whether it pays; a later load does")
    gain = tried(engine, progress)
    kept = measured.load(machine.key)
    measured.save(machine.key, replace(kept, drafts={**kept.drafts, key(way): round(gain, 3)}))
    if gain < PAYS:
        engine.drop_drafter()
        return Choice("drafter", "no", _not_paying(gain))
    size = format_size(way.candidate.drafter)
    return Choice("drafter", f"yes, {size}", f"measured here: {gain:.2f} times as fast with it")


def tried(engine: DraftsTokens, progress: Callable[[float], bool] | None = None) -> float:
    """How many times faster the engine writes with its drafter: the same few answers with and without, in turns.

    Raises Cancelled.
    """
    length = _LEAST
    made, spent = {True: 0, False: 0}, {True: 0.0, False: 0.0}
    started = time.perf_counter()
    try:
        for number, question in enumerate(_QUESTIONS):
            for drafting in (True, False) if number % 2 else (False, True):
                if progress is not None and not progress(number / len(_QUESTIONS)):
                    raise Cancelled("Cancelled.")
                engine.drafting = drafting
                tokens, seconds = _answer(engine, question, length, number)
                if number:
                    made[drafting], spent[drafting] = made[drafting] + tokens, spent[drafting] + seconds
                elif seconds:
                    length = max(_LEAST, min(_TOKENS, int(tokens / seconds)))
            if number and time.perf_counter() - started > _SECONDS:
                break
    finally:
        engine.drafting = True
    if not all(made.values()) or not all(spent.values()):
        return 1.0
    return (spent[False] / made[False]) / (spent[True] / made[True])


def _answer(engine: DraftsTokens, question: str, length: int, seed: int) -> tuple[int, float]:
    """Tokens and seconds of decoding of one answer."""
    prompt = render([Message("user", (TextPart(question),))])
    *_, done = engine.generate(Request(prompt, Sampling(seed=seed, max_tokens=length)), CancelToken())
    assert isinstance(done, Finished)  # the engine's promise
    return done.usage.answer + done.usage.thinking, done.timings.decode
