"""The page's answers side by side: equal ones in one card, and in the others the first token that differs marked."""

from __future__ import annotations

import re

from localgemma.compare.records import Answered, Asked, Comparison
from localgemma.compare.report_grids import every
from localgemma.compare.svg import tag, text_of

_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s]|\s+)")  # about a token: a word or a mark, with the space before it


def answers(comparison: Comparison, chosen: str) -> str:
    """The whole section; nothing where nothing was asked."""
    if not comparison.answers:
        return ""
    order = [result.subject.label for result in every(comparison)]
    told = f"The same prompts, answered by each file. Marked is the first word where an answer leaves {order[0]}'s."
    blocks = [_asked(asked, order, chosen) for asked in comparison.answers]
    return tag("section", tag("h2", "Side by side"), tag("p", text_of(told)), *blocks)


def _asked(asked: Asked, order: list[str], chosen: str) -> str:
    known = [label for label in order if label in asked.answers] + [label for label in asked.answers if label not in order]
    groups: dict[Answered, list[str]] = {}
    for label in known:
        groups.setdefault(asked.answers[label], []).append(label)
    base = asked.answers.get(order[0])
    cards = [_card(answered, labels, base, order[0], chosen) for answered, labels in _joined(groups, order[0]).items()]
    prompt = tag("p", text_of(asked.prompt), dir="auto")
    return tag("div", prompt, tag("div", *cards, class_="cards"), class_="asked")


def _joined(groups: dict[Answered, list[str]], reference: str) -> dict[Answered, list[str]]:
    """Groups by text, the reference's first."""
    by_text: dict[str, tuple[Answered, list[str]]] = {}
    for answered, labels in groups.items():
        by_text.setdefault(answered.text, (answered, []))[1].extend(labels)
    return dict(sorted(by_text.values(), key=lambda item: reference not in item[1]))


def _card(answered: Answered, labels: list[str], base: Answered | None, reference: str, chosen: str) -> str:
    names = tag("h4", text_of(", ".join(labels)))
    text, at = answered.text, answered.differs_at
    if reference in labels:
        where = "the reference" + (f", and {len(labels) - 1} with the same answer" if len(labels) > 1 else "")
        body = text_of(text)
    elif at is None:
        where, body = "the reference's answer", text_of(text)
    else:
        at = min(max(0, at), len(text))
        token = _token(text, at)
        where = f"differs after {at:,} characters" + (
            f": “{_shown(token)}” for “{_shown(_token(base.text, at))}”" if base else ""
        )
        marked = tag("mark", text_of(token)) if token else tag("mark", "∎", title="ends here")
        body = (
            f"{tag('span', text_of(text[:at]), class_='same')}{marked}{text_of(text[at + len(token) :])}"
            if at or token
            else marked
        )
    inner = tag("div", body, class_="said", dir="auto", tabindex="0")
    return tag(
        "div", names, tag("p", text_of(where), class_="where"), inner, class_="card chosen" if chosen in labels else "card"
    )


def _token(text: str, at: int) -> str:
    found = _TOKEN.match(text, at)
    return found[0] if found else ""


def _shown(token: str) -> str:
    return token.strip()[:40] or ("(space)" if token else "(end)")
