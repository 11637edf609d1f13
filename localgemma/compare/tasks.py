"""Tasks with right answers: asking a model, judging what it says, and what changed against a reference.

Answers are greedy, so that an engine gives the same ones again; each verdict stands alone, so a run that was cut off goes on.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from localgemma.chat.conversation import Conversation
from localgemma.chat.turn import collect
from localgemma.compare import stats
from localgemma.compare.corpus import Ask
from localgemma.compare.records import Question, TaskScore
from localgemma.engine import CancelToken, Engine, Prompt, Text
from localgemma.errors import Cancelled
from localgemma.gemma4.prompt import render
from localgemma.messages import Answer, ToolCall
from localgemma.options import ChatOptions, Sampling

ANSWER, THOUGHT = 512, 1024  # tokens that an answer and its thoughts may take; every built-in question needs less than half
_FENCE = re.compile(r"\A\s*```[\w-]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)
_THOUSANDS = re.compile(r"(?<=\d)[,  '](?=\d{3}(?!\d))")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One answer and whether it is right; `text` is what was said, calls as JSON. `cut` answers ran into their limit."""

    id: str
    right: bool
    text: str
    cut: bool = False


def run(
    engine: Engine,
    questions: Sequence[Question],
    *,
    done: Mapping[str, Verdict] | None = None,
    keep: Callable[[Verdict], object] | None = None,
    told: Callable[[int, int], object] | None = None,
    cancel: CancelToken | None = None,
) -> dict[str, Verdict]:
    """The verdicts of all questions by id; those `done` already are not asked again.

    `keep` sees each new verdict at once (to write it down), `told` how many of how many there are. Raises Cancelled, and what
    the engine raises.
    """
    verdicts = {question.id: done[question.id] for question in questions if done and question.id in done}
    for question in questions:
        if question.id in verdicts:
            continue
        verdict = ask(engine, question, cancel)
        verdicts[question.id] = verdict
        if keep is not None:
            keep(verdict)
        if told is not None:
            told(len(verdicts), len(questions))
    return verdicts


def ask(engine: Engine, question: Question, cancel: CancelToken | None = None) -> Verdict:
    """Ask one question. Raises Cancelled, ContextOverflow and what else the engine raises."""
    if question.kind == "choice":
        chosen = _likeliest(engine, question, cancel)
        return Verdict(question.id, chosen == question.expected, chosen)
    answer = answered(engine, question, cancel)
    return Verdict(question.id, judge(question, answer), _said(answer), answer.finish_reason in ("length", "repetition"))


def answered(engine: Engine, asked: Question | Ask, cancel: CancelToken | None = None) -> Answer:
    """What a model says, greedily; tools are declared and not run. Raises Cancelled."""
    messages = list(asked.messages)
    system = messages.pop(0).text if messages[0].role == "system" else None
    options = ChatOptions(thinking=asked.thinking, think_budget=THOUGHT)
    sampling = Sampling(temperature=0, seed=0, max_tokens=ANSWER)
    chat = Conversation(engine, system, options, sampling, tools=asked.tools, history=messages)
    answer = collect(chat.reply(cancel=cancel))
    if answer.finish_reason == "cancelled":
        raise Cancelled("The comparison was stopped.", "Start it again; it goes on where it was.")
    return answer


def judge(question: Question, answer: Answer) -> bool:
    """Whether an answer is right; one that was cut off, or that calls tools where words were wanted, is not."""
    if question.kind == "tool_calls":
        return not any(call.error for call in answer.tool_calls) and _same_calls(question.expected, answer.tool_calls)
    if answer.tool_calls:
        return False
    text = answer.content.strip()
    if question.kind == "exact":
        return text == str(question.expected).strip()
    if question.kind == "json":
        return _is_json(text, question.expected)
    wanted = question.expected if isinstance(question.expected, list | tuple) else [question.expected]
    return all(_contains(text, str(word)) for word in wanted)


def _said(answer: Answer) -> str:
    if not answer.tool_calls:
        return answer.content
    return json.dumps([{"name": c.name, "arguments": c.arguments} for c in answer.tool_calls], ensure_ascii=False, default=str)


def _same_calls(expected: Iterable[Mapping[str, Any]], calls: Sequence[ToolCall]) -> bool:
    """The same calls in any order, since parallel calls have none."""
    left = [(call.name, _typed(call.arguments)) for call in calls]
    for call in expected:
        wanted = (call["name"], _typed(call.get("arguments") or {}))
        if wanted not in left:
            return False
        left.remove(wanted)
    return not left


def _typed(value: Any) -> Any:
    """The value with truth values told apart from numbers, which Python takes to be equal; 2 and 2.0 are one number."""
    if isinstance(value, Mapping):
        return {str(key): _typed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_typed(item) for item in value]
    return ("truth", value) if isinstance(value, bool) else value


def _is_json(text: str, expected: Any) -> bool:
    """Whether the text, or the one code block that it consists of, is JSON (equal to `expected` where that is given)."""
    fenced = _FENCE.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return False
    return expected is None or bool(_typed(value) == _typed(expected))


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _contains(text: str, word: str) -> bool:
    """Whether the word is in the text, whatever its case and its thousands' signs, and is not a part of a longer one."""
    text, word = _plain(text), _plain(word)
    for found in re.finditer(re.escape(word), text):
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        decimal = re.match(r"[.,]\d", text[found.end() :]) if word[-1:].isdigit() else None
        if not (_joins(before, word[0]) or _joins(word[-1], after) or decimal):
            return True
    return False


def _plain(text: str) -> str:
    """In one case and one kind of digits, without thousands' signs."""
    text = "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in text)
    return _THOUSANDS.sub("", unicodedata.normalize("NFKC", text)).casefold()


def _joins(left: str, right: str) -> bool:
    """Whether two neighbours are letters or digits of one word; scripts that put no space between words never join."""
    signs = (left or " ", right or " ")
    return all(sign.isalnum() and ord(sign) < 0x2E80 and not 0x0E00 <= ord(sign) < 0x0E80 for sign in signs)


def _likeliest(engine: Engine, question: Question, cancel: CancelToken | None) -> str:
    """The choice with the largest mean log-probability of its tokens, right after the question and without thoughts.

    Choices of one token each are read off one row; the others are scored one by one.
    """
    prompt = render(question.messages, tools=question.tools, enable_thinking=False)
    asked = engine.tokenize(prompt)
    found: dict[str, float] = {}
    row: Any = None
    for choice in question.choices:
        if cancel is not None and cancel.cancelled:
            raise Cancelled("The comparison was stopped.", "Start it again; it goes on where it was.")
        whole = Prompt((*prompt.parts, Text(choice)))
        ids = engine.tokenize(whole)[len(asked) :]
        if row is None or len(ids) > 1:
            rows = _rows(engine, whole if len(ids) > 1 else prompt, len(asked) - 1)
            row = rows[0]
        else:
            rows = [row]
        found[choice] = math.fsum(_log_probability(rows[at], token) for at, token in enumerate(ids)) / len(ids)
    return max(found, key=lambda choice: found[choice])


def _rows(engine: Engine, prompt: Prompt, first: int) -> list[Any]:
    """Logits of the positions from `first` on."""
    kept = []
    for start, block in engine.score(prompt):
        kept += [row for at, row in enumerate(block, start) if at >= first]
    return kept


def _log_probability(logits: Any, token: int) -> float:
    import numpy as np

    values = logits.astype(np.float64)
    top = values.max()
    return float(values[token] - top - np.log(np.exp(values - top).sum()))


def scores(questions: Sequence[Question], verdicts: Mapping[str, Verdict]) -> dict[str, TaskScore]:
    """Right answers by task, in the order of the questions."""
    by_task: dict[str, dict[str, bool]] = {}
    for question in questions:
        if question.id in verdicts:
            by_task.setdefault(question.task, {})[question.id] = verdicts[question.id].right
    return {task: _score(task, items) for task, items in by_task.items()}


def _score(task: str, items: Mapping[str, bool]) -> TaskScore:
    right = sum(items.values())
    return TaskScore(task, right, len(items), stats.wilson(right, len(items)), items)


def against(found: Mapping[str, TaskScore], reference: Mapping[str, TaskScore]) -> dict[str, TaskScore]:
    """The scores with their tests against the reference's."""
    return {
        task: replace(score, against=stats.mcnemar(reference[task].items, score.items)) if task in reference else score
        for task, score in found.items()
    }


def total(found: Mapping[str, TaskScore]) -> TaskScore:
    """All tasks as one."""
    return _score("all", {name: right for score in found.values() for name, right in score.items.items()})
