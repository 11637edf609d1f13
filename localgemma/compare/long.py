"""Long documents of the built-in sets, composed from recipes: chronicles, minutes, logs and ledgers with needles in them.

A recipe is {"kind": …, "words": how many, "seed": …, "needles": [[depth from 0 to 1, sentence], …]}. The same recipe gives the
same text everywhere: of Python's random only `random()` is used, which stays the same in every version.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any


def _list(text: str) -> list[str]:
    return [entry.strip() for entry in text.replace("\n", " ").split("|")]


_PEOPLE = _list("""Ada Brandt|Tomas Reuter|Ilse Kowal|Jonah Petrie|Marta Olsen|Viktor Hahn|Leila Amrani|Samuel Oduya|
Greta Lindqvist|Paulo Mendes|Yuki Tanabe|Nadia Farouk|Henrik Voss|Clara Whitfield|Dmitri Solov|Rosa Calder|Emil Strand|
Hanna Beck|Owen Tull|Mei Sato|Karim Haddad|Lotte Janssen|Arjun Rao|Fiona Marsh""")
_PLACES = _list("""the old mill|the harbour|the school|the upper bridge|the market square|the fire station|the library|
the boat yard|the railway cutting|the orchard|the town hall|the salt works|the lighthouse|the bakery|the ferry landing|
the quarry""")
_GOODS = _list("""oak planks|copper pipe|roof slates|lamp oil|wool blankets|printing paper|seed potatoes|window glass|bricks|
fishing net|coffee beans|linen|iron nails|olive oil|dried beans|rope|paint|candles|wheat flour|bicycle tyres""")
_MONTHS = _list("January|February|March|April|May|June|July|August|September|October|November|December")
_TOPICS = _list("""the drainage of the lower meadow|the timetable of the ferry|repairs to the roof of the school|
the new street lamps|the price of firewood|a loan for the pump house|the summer fair|the width of the cycle path|
the lease of the boat yard|the archive of old maps|snow clearing on the pass road|the choir's request for a room|
two benches by the river""")
_SERVICES = _list("gateway|billing|search|mailer|ledger|thumbnails|scheduler|auth")
_WEATHER = _list("""It rained from dawn until the lamps were lit.|A dry wind came down from the pass.|
Fog lay on the river until noon.|The frost held all day, and the pump had to be thawed with hot water.|
The day was clear, and the far shore could be seen.|Clouds stood over the quarry, but no rain fell.""")


class _Dice:
    """Choices that are the same in every version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def number(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        return low + int(self._random.random() * (high - low + 1))

    def one(self, options: Sequence[str]) -> str:
        """One of them."""
        return options[self.number(0, len(options) - 1)]

    def other(self, options: Sequence[str], *but: str) -> str:
        """One of them that is none of `but`."""
        return self.one([option for option in options if option not in but])


def document(recipe: Mapping[str, Any]) -> str:
    """The text of a recipe: paragraphs up to its number of words, with its needles after the paragraphs at their depths."""
    return _document(json.dumps(recipe))


@lru_cache(maxsize=16)  # several questions ask about one document
def _document(text: str) -> str:
    recipe = json.loads(text)
    dice, write = _Dice(int(recipe["seed"])), _KINDS[recipe["kind"]]
    paragraphs, words = list[str](), 0
    while words < int(recipe["words"]):
        paragraphs.append(write(dice, len(paragraphs)))
        words += len(paragraphs[-1].split())
    seam = "\n" if recipe["kind"] == "log" else " "
    for depth, sentence in recipe.get("needles", ()):
        at = min(len(paragraphs) - 1, int(float(depth) * len(paragraphs)))
        paragraphs[at] += seam + str(sentence)
    return "\n\n".join(paragraphs)


def _chronicle(dice: _Dice, index: int) -> str:
    """An entry of a village's chronicle."""
    person, place, goods = dice.one(_PEOPLE), dice.one(_PLACES), dice.one(_GOODS)
    second = dice.other(_PEOPLE, person)
    few, many = dice.number(3, 19), dice.number(20, 240)
    event = dice.one(
        (
            f"{person} brought {few} sacks of {goods} to {place} and was paid in the evening.",
            f"At {place}, {person} and {second} measured the wall again and found it {few} centimetres out of true.",
            f"{person} came to {place} an hour late, because the key had been left with {second}.",
            f"{second} asked {person} to keep the cart at {place} until the axle is mended.",
            f"At {place} a pane was broken; {person} says that {second} heard it but saw nobody.",
            f"{person} counted {many} visitors at {place}, more than on any day since {dice.one(_MONTHS)}.",
        )
    )
    closing = dice.one(
        (
            f"The lamp at {dice.other(_PLACES, place)} burnt until midnight.",
            f"{dice.other(_PEOPLE, person, second)} wrote it all down and hung the page beside the door.",
            "Nothing else is worth telling.",
            "The ferry made its four crossings without delay.",
            f"A loaf cost {dice.number(2, 4)} crowns and {dice.number(5, 95)} pence.",
            f"Of the {dice.number(4, 9)} dogs that were missing, all but one came home.",
        )
    )
    return f"{dice.number(1, 28)} {_MONTHS[index % 12]}. {dice.one(_WEATHER)} {event} {closing}"


def _minutes(dice: _Dice, index: int) -> str:
    """An item of a council's minutes."""
    chair, topic = dice.one(_PEOPLE), dice.one(_TOPICS)
    speaker = dice.other(_PEOPLE, chair)
    against = dice.other(_PEOPLE, chair, speaker)
    yes, no, away = dice.number(6, 14), dice.number(0, 9), dice.number(0, 3)
    argument = dice.one(
        (
            f"reported that the work would cost about {dice.number(12, 98) * 100:,} crowns and take {dice.number(2, 9)} weeks",
            f"presented two offers, the second {dice.number(3, 30)} per cent dearer but with a guarantee",
            f"recalled that the same had been promised {dice.number(2, 7)} years ago",
            f"showed photographs of {dice.one(_PLACES)} and asked for a decision before {dice.one(_MONTHS)}",
        )
    )
    reply = dice.one(
        (
            "objected that nobody had asked the neighbours",
            "wanted to see last year's figures first",
            "proposed to do it in two steps",
            f"agreed, provided that {dice.one(_PLACES)} stays open",
        )
    )
    vote = f"{yes} for, {no} against, {away} abstaining; {'carried' if yes > no else 'rejected'}"
    return f"Item {index + 1}: {topic}. In the chair: {chair}. {speaker} {argument}. {against} {reply}. The vote was {vote}."


def _log(dice: _Dice, index: int) -> str:
    """Some lines of a server's log."""
    lines = []
    for step in range(4):
        clock = f"{index // 12 % 24:02d}:{index % 12 * 5 + step:02d}:{dice.number(0, 59):02d}"
        service = dice.one(_SERVICES)
        said = dice.one(
            (
                f"INFO {service}: request {dice.number(10_000, 99_999)} answered in {dice.number(3, 900)} ms",
                f"INFO {service}: {dice.number(2, 64)} connections open, queue length {dice.number(0, 40)}",
                f"WARN {service}: retry {dice.number(1, 4)} of 5 after timeout of {dice.other(_SERVICES, service)}",
                f"INFO {service}: cache hit rate {dice.number(61, 99)} %, {dice.number(100, 4000)} entries evicted",
                f"DEBUG {service}: heartbeat from node-{dice.number(1, 12):02d}, load {dice.number(1, 99) / 100:.2f}",
                f"ERROR {service}: job {dice.number(100, 999)} failed with code {dice.number(2, 77)}, scheduled again",
            )
        )
        lines.append(f"{clock} {said}")
    return "\n".join(lines)


def _ledger(dice: _Dice, index: int) -> str:
    """An entry of a warehouse's ledger."""
    goods, person = dice.one(_GOODS), dice.one(_PEOPLE)
    count, price = dice.number(2, 90), dice.number(3, 120)
    way = dice.one(("by cart", "by barge", "by rail", "by hand"))
    note = dice.one(
        (
            "Two were damaged and sent back.",
            "Paid on receipt.",
            "To be paid within 30 days.",
            "The seal was intact.",
            f"Stored at {dice.one(_PLACES)}.",
            f"Counted twice by {dice.other(_PEOPLE, person)}.",
            "Weighed and found correct.",
        )
    )
    worth = f"{count} units of {goods} at {price} crowns each, {count * price:,} crowns in all"
    return f"No. {1001 + index}: received from {person} {way} {worth}. {note}"


_KINDS: Mapping[str, Callable[[_Dice, int], str]] = {
    "chronicle": _chronicle,
    "minutes": _minutes,
    "log": _log,
    "ledger": _ledger,
}
