"""What is found of one subject beside its divergence: right answers, the user's prompts answered, speed and memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from localgemma.compare import tasks
from localgemma.compare.corpus import Ask, Corpus, item_of
from localgemma.compare.keep import Store
from localgemma.compare.records import Answered, Asked, Item, Speed, TaskScore
from localgemma.compare.tasks import Verdict
from localgemma.engine import CancelToken, Control, Engine, Finished, Prompt, Request, Text
from localgemma.gemma4.tokens import BOS, IDS, STOPS
from localgemma.messages import Message, Progress, TextPart
from localgemma.options import Sampling

_SENTENCE = "Later the rain fell on the round house and the farm. "
READ, WRITTEN, RUNS = 256, 32, 2  # tokens of the prompt and of the answer that speed is measured with; the faster run counts
_EVERY = 8  # verdicts that are kept together
_NEVER = {IDS[name]: -10_000.0 for name in STOPS}  # the answer must not end before its length


@dataclass(slots=True)
class Extras:
    """`verdicts` by question, `answers` by ask; `speed` where it was measured."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    speed: Speed | None = None

    def as_json(self) -> dict[str, object]:
        """In a form that JSON holds."""
        return {
            "verdicts": {name: asdict(verdict) for name, verdict in self.verdicts.items()}, "answers": self.answers,
            "speed": asdict(self.speed) if self.speed else None,
        }  # fmt: skip

    @classmethod
    def from_json(cls, record: object) -> Extras:
        """The reverse; nothing where the record is none."""
        if not isinstance(record, Mapping):
            return cls()
        try:
            return cls(
                {str(name): Verdict(**kept) for name, kept in record["verdicts"].items()},
                {str(name): str(text) for name, text in record["answers"].items()},
                Speed(**record["speed"]) if record["speed"] else None,
            )
        except (KeyError, TypeError, AttributeError):
            return cls()


class Asking:
    """The questions and prompts of a corpus, put to one subject after the other; what was said is kept."""

    def __init__(self, corpus: Corpus, store: Store, told: Callable[[Progress], None], cancel: CancelToken) -> None:
        self._corpus, self._store, self._told, self._cancel = corpus, store, told, cancel

    def known(self, key: str) -> Extras:
        """What is kept of a subject."""
        data = self._store.get(key, "extras.json")
        return Extras.from_json(json.loads(data)) if data else Extras()

    def keep(self, key: str, found: Extras) -> None:
        """Write it down. Raises DiskError."""
        self._store.put(key, "extras.json", json.dumps(found.as_json(), ensure_ascii=False).encode())

    def lacks(self, key: str) -> bool:
        """Whether anything is still to be asked."""
        found = self.known(key)
        open_questions = any(question.id not in found.verdicts for question in self._corpus.questions)
        return open_questions or any(ask.id not in found.answers for ask in self._corpus.asks)

    def answer(self, key: str, engine: Engine) -> Extras:
        """The user's prompts answered. Raises Cancelled."""
        found = self.known(key)
        for number, ask in enumerate(self._corpus.asks):
            if ask.id not in found.answers:
                self._told(Progress("ask", number, len(self._corpus.asks)))
                found.answers[ask.id] = tasks.answered(engine, ask, self._cancel).content
                self.keep(key, found)
        return found

    def ask(self, key: str, engine: Engine) -> Extras:
        """Everything that is still to be asked. Raises Cancelled."""
        found = self.answer(key, engine)
        new: list[Verdict] = []

        def keep(verdict: Verdict) -> None:
            new.append(verdict)
            found.verdicts[verdict.id] = verdict
            if len(new) % _EVERY == 0:
                self.keep(key, found)

        def told(done: int, total: int) -> None:
            self._told(Progress("ask", done, total))

        try:
            tasks.run(engine, self._corpus.questions, done=dict(found.verdicts), keep=keep, told=told, cancel=self._cancel)
        finally:
            if new:
                self.keep(key, found)
        return found

    def items(self, answers: Mapping[str, str]) -> list[Item]:
        """What a reference answered to prompts that came without an answer, as texts to walk."""
        have = {item.id for item in self._corpus.items}
        return [_item(ask, answers[ask.id]) for ask in self._corpus.asks if ask.id not in have and answers.get(ask.id)]

    def scores(self, found: Extras) -> dict[str, TaskScore]:
        """Right answers by task."""
        return tasks.scores(self._corpus.questions, found.verdicts)

    def side_by_side(self, found: Mapping[str, Extras], reference: str) -> tuple[Asked, ...]:
        """The answers of all subjects by label to each prompt, and where each leaves the reference's."""
        rows = []
        for ask in self._corpus.asks:
            said = {label: each.answers[ask.id] for label, each in found.items() if ask.id in each.answers}
            base = said.get(reference)
            rows.append(Asked(shown(ask), {name: Answered(text, _parts_at(base, text)) for name, text in said.items()}))
        return tuple(rows)


def _item(ask: Ask, answer: str) -> Item:
    said = Message("assistant", (TextPart(answer),))
    return item_of(ask.id, ask.category, [*ask.messages, said], tools=ask.tools, thinking=False)


def shown(ask: Ask) -> str:
    """What was asked last, as a person would read it."""
    last = next((message for message in reversed(ask.messages) if message.role == "user"), ask.messages[-1])
    sources = [Path(source).name for part in last.content if (source := getattr(part, "source", ""))]
    return " ".join([*(f"[{source}]" for source in sources), last.text]).strip()


def _parts_at(base: str | None, text: str) -> int | None:
    """The first character where two answers differ; None where they do not."""
    if base is None or base == text:
        return None
    return next((at for at, (a, b) in enumerate(zip(base, text, strict=False)) if a != b), min(len(base), len(text)))


def speed_of(engine: Engine) -> Speed:
    """Tokens a second of reading and writing as the engine is loaded, with nothing else under way."""
    runs = [run for index in range(RUNS) if (run := _run(engine, index)) is not None]
    if not runs:
        return Speed(load=engine.info.load_seconds)
    return Speed(
        prefill=max(run.timings.prefill_speed for run in runs),
        decode=max(run.timings.decode_speed for run in runs),
        first_token=min(run.timings.first_token for run in runs),
        load=engine.info.load_seconds,
    )


def _run(engine: Engine, index: int) -> Finished | None:
    """One generation after a prompt that no earlier run began with."""
    text = f"{'ABCDEFGHIJ'[index]} {_SENTENCE * READ}"
    share = len(text) * READ // max(1, len(engine.tokenize(Prompt((Text(text),)))))
    parts: Sequence[Control | Text] = (Text(text[:share]),)
    if engine.info.architecture == "gemma4":
        parts = (Control(BOS), *parts)
    sampling = Sampling(seed=index + 1, max_tokens=WRITTEN, logit_bias=_NEVER)
    outputs = engine.generate(Request(Prompt(tuple(parts)), sampling))
    return next((output for output in outputs if isinstance(output, Finished)), None)
