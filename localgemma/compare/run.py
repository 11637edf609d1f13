"""A whole comparison: the reference and its candidates opened, walked, asked and measured, and what was found put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from localgemma.compare import lgref, metrics, remote, results, walks
from localgemma.compare.corpus import Corpus
from localgemma.compare.extras import Asking, Extras, speed_of
from localgemma.compare.keep import Store, key_of
from localgemma.compare.lgref import Origin, Reference
from localgemma.compare.records import Comparison, Conditions, Divergence, Result, Subject
from localgemma.compare.samples import Sample, prepared
from localgemma.compare.tasks import against
from localgemma.compare.walks import Walking, identity
from localgemma.engine import CancelToken, Engine
from localgemma.errors import UsageError
from localgemma.messages import Progress
from localgemma.options import LoadOptions


@dataclass(frozen=True, slots=True)
class Hands:
    """What the caller does for a comparison: opens a subject, says whether some fit into memory at once, and how many bytes
    this process holds by device.
    """

    open: Callable[[Subject, LoadOptions], Engine]
    together: Callable[[Sequence[Subject], LoadOptions], bool]
    memory: Callable[[], Mapping[str, int]] = dict
    told: Callable[[Progress], None] = lambda _: None
    cancel: CancelToken = field(default_factory=CancelToken)


@dataclass(frozen=True, slots=True)
class Job:
    """What is compared, and with what: the texts, the reference (a subject, or an opened file), the candidates.

    `load` is how all are opened, with all threads that may be used; its ctx must hold the longest text. `around` has what the
    caller knows of the conditions.
    Without `ask` nothing is generated: no tasks, answers or speed.
    """

    corpus: Corpus
    reference: Subject | Reference
    candidates: tuple[Subject, ...]
    load: LoadOptions
    store: Path
    around: Conditions
    save_reference: Path | None = None
    ask: bool = True
    notes: tuple[str, ...] = ()


def compare(job: Job, hands: Hands) -> Comparison:
    """Carry out a comparison. Raises what opening and walking do, DiskError, and Cancelled with what is done kept."""
    check(job)
    run = _Run(job, hands)
    try:
        return run.whole()
    finally:
        run.close()


def check(job: Job) -> None:
    """UsageError for subjects that no divergence can be taken of."""
    base = job.reference.origin if isinstance(job.reference, Reference) else job.reference
    for each in job.candidates:
        if each.vocabulary != base.vocabulary:
            raise UsageError(
                f"{each.label} has another tokenizer than the reference {base.label}, so their tokens cannot be compared.",
                "Compare models of one tokenizer.",
            )


class _Run:
    """A comparison under way, and the engines that are open."""

    def __init__(self, job: Job, hands: Hands) -> None:
        self._job, self._hands = job, hands
        self._engines: dict[str, Engine] = {}
        reference = job.reference
        self._file = reference if isinstance(reference, Reference) else None
        self._base = results.subject_of(reference) if isinstance(reference, Reference) else reference
        self._walking: Walking
        self._store = Store(job.store)
        self._asking = Asking(job.corpus, self._store, hands.told, hands.cancel)

    def close(self) -> None:
        """Free every model."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def _open(self, subject: Subject, load: LoadOptions | None = None) -> Engine:
        if subject.label not in self._engines:
            before = self._hands.memory()
            engine = self._engines[subject.label] = self._hands.open(subject, load or self._job.load)
            if self._job.ask:
                self._measure(subject, engine, before)
        return self._engines[subject.label]

    def _measure(self, subject: Subject, engine: Engine, before: Mapping[str, int]) -> None:
        """Speed and memory of a subject that was just opened, unless they are known."""
        key = self._asked_key(subject)
        found = self._asking.known(key)
        if found.speed is None:
            speed = speed_of(engine)
            taken = {name: max(0, size - before.get(name, 0)) for name, size in self._hands.memory().items()}
            found.speed = replace(speed, memory={name: size for name, size in taken.items() if size})
            self._asking.keep(key, found)

    def _asked_key(self, subject: Subject) -> str:
        """What is asked, and of whom, under which library."""
        load, around = self._job.load, self._job.around
        return key_of(
            "asked", self._job.corpus.sha256, self._job.corpus.name, around.build, load.gpu_layers, identity(subject)
        )

    def _only(self, subjects: Sequence[Subject]) -> None:
        """Close all engines but these subjects'."""
        for label in [label for label in self._engines if label not in {each.label for each in subjects}]:
            self._engines.pop(label).close()

    def whole(self) -> Comparison:
        """Everything in its order."""
        job = self._job
        samples = list(self._file.samples) if self._file else self._prepared()
        self._walking = Walking(samples, job.load, self._store, job.around.build, self._hands.cancel, self._hands.told)
        same_family = [each for each in job.candidates if each.family == self._base.family]
        exact = self._file is None and all(self._pair(each) for each in same_family)
        self._expect(len(same_family), exact=exact)
        if exact:
            self._side_by_side(same_family)
        else:
            self._one_by_one(same_family)
        noise = self._noise()
        if job.save_reference is not None:
            self._save(job.save_reference, noise)
        found = [self._result(each, exact=exact) for each in job.candidates]
        conditions = replace(
            job.around,
            set=self._file.origin.set if self._file else job.corpus.name,
            positions=sum(len(sample.targets) for sample in samples),
            items=len(samples),
            ubatch=job.load.ubatch or 0,
            noise=noise,
            noise_ubatch=walks.other_ubatch(job.load).ubatch or 0,
            exact=exact,
            likeliest=remote.likeliest(self._file.origin.extra) if self._file else 0,
        )
        walked = {each.label: walks.gathered(self._walking, self._key(each, exact=exact)) for each in same_family}
        alike = results.alike(walked)
        base = self._found(self._base)
        everybody = {self._base.label: base} | {each.label: self._found(each) for each in job.candidates}
        return Comparison(
            Result(self._base, tasks=self._asking.scores(base), speed=base.speed), tuple(found), conditions,
            self._asking.side_by_side(everybody, self._base.label), notes=(*job.notes, *alike, *remote.notes(self._file)),
        )  # fmt: skip

    def _prepared(self) -> list[Sample]:
        """The texts in the reference's tokens, with its own answers to prompts that came without one."""
        engine = self._open(self._base)
        answers = self._asking.answer(self._asked_key(self._base), engine).answers if self._job.ask else {}
        samples = prepared([*self._job.corpus.items, *self._asking.items(answers)], engine)
        longest = max(len(sample.passage) for sample in samples)
        if longest > engine.info.context:  # it was a guess, made without a tokenizer
            self.close()
            self._job = replace(self._job, load=replace(self._job.load, ctx=longest))
        return samples

    def _ask(self, subject: Subject) -> None:
        key = self._asked_key(subject)
        if self._job.ask and (self._asking.lacks(key) or self._asking.known(key).speed is None):
            self._asking.ask(key, self._alone(subject))

    def _found(self, subject: Subject) -> Extras:
        if self._file is not None and subject is self._base:
            return Extras.from_json(self._file.origin.extra.get("asked"))
        return self._asking.known(self._asked_key(subject)) if self._job.ask else Extras()

    def _pair(self, each: Subject) -> bool:
        return self._hands.together([self._base, each], self._job.load)

    def _expect(self, candidates: int, *, exact: bool) -> None:
        rounds = len(list(self._rounds(self._job.candidates))) if exact else 1
        saves = 1 if exact and self._job.save_reference else 0
        self._walking.expect(candidates + rounds + saves - (1 if self._file else 0))

    def _rounds(self, subjects: Sequence[Subject]) -> Iterator[list[Subject]]:
        """The candidates in groups that fit into memory beside the reference."""
        group: list[Subject] = []
        for each in subjects:
            if group and not self._hands.together([self._base, *group, each], self._job.load):
                yield group
                group = []
            group.append(each)
        if group:
            yield group

    def _side_by_side(self, subjects: Sequence[Subject]) -> None:
        for group in self._rounds(subjects):
            self._together(group)
        for each in (self._base, *subjects):
            self._ask(each)

    def _together(self, group: Sequence[Subject]) -> None:
        """Walk some candidates beside the reference, each model with its share of the threads: fewer wait for each other."""
        if not walks.lacking(self._walking, self._base, group):
            return
        self.close()
        everybody = (self._base, *group)
        threads = self._job.load.threads or 1
        share = replace(self._job.load, threads=max(1, threads // min(threads, len(everybody))))
        for each in everybody:
            self._engines[each.label] = self._hands.open(each, share)
        engines = {"": self._engines[self._base.label]} | {each.label: self._engines[each.label] for each in group}
        walks.exactly(self._walking, self._base, engines, group)
        self.close()

    def _one_by_one(self, subjects: Sequence[Subject]) -> None:
        if self._file is None:
            for walking in (self._walking, self._walking.sparse()):  # the noise floor's too, while the reference is open
                walks.record(walking, self._base, partial(self._open, self._base))
            self._ask(self._base)
            kept = walks.from_store(self._walking, self._base)
        else:
            kept = walks.from_file(self._walking, self._file)
        for each in subjects:
            self._only([each])
            walks.sampled(self._walking, kept, self._key(each, exact=False), partial(self._open, each))
            self._ask(each)

    def _key(self, each: Subject, *, exact: bool) -> str:
        who = (identity(self._base), identity(each))
        return self._walking.key(*who) if exact else self._walking.key(*who, "sampled")

    def _noise(self) -> Divergence | None:
        """The reference's own file at another ubatch: what the arithmetic alone makes of it."""
        if self._file is not None:
            return results.divergence_from(self._file.origin.extra.get("noise"))
        walking = self._walking.sparse()
        walks.record(walking, self._base, lambda: self._alone(self._base))
        again = walks.other_ubatch(self._job.load)
        key = walking.key(identity(self._base), "noise", str(again.ubatch))
        with self._extra(self._base, again) as engine:
            walks.sampled(walking, walks.from_store(walking, self._base), key, engine)
        tokens, items = walks.gathered(walking, key)
        return metrics.divergence(tokens, items)

    def _alone(self, subject: Subject) -> Engine:
        self._only([subject])
        return self._open(subject)

    @contextmanager
    def _extra(self, subject: Subject, load: LoadOptions) -> Iterator[Callable[[], Engine]]:
        """A way to open the subject once more, loaded in another way, with no other model in memory."""
        opened: list[Engine] = []

        def engine() -> Engine:
            if not opened:
                self.close()
                opened.append(self._hands.open(subject, load))
            return opened[0]

        try:
            yield engine
        finally:
            for each in opened:
                each.close()

    def _save(self, target: Path, noise: Divergence | None) -> None:
        walks.record(self._walking, self._base, lambda: self._alone(self._base))
        base, load, around = self._base, self._job.load, self._job.around
        origin = Origin(
            set=self._job.corpus.name, model=base.name, label=base.label, sha256=base.sha256, vocabulary=base.vocabulary,
            template=base.template, family=base.family, build=around.build, backend=around.backend, ubatch=load.ubatch or 0,
            outputs=load.outputs, sequences=load.sequences, vocabulary_size=base.vocabulary_size,
            image_tokens=load.image_tokens, bytes=base.bytes, bits_per_weight=base.bits_per_weight, quant=base.quant,
            kv=base.kv, date=around.date, 
            extra={"noise": asdict(noise) if noise else None, "asked": self._found(base).as_json()},
        )  # fmt: skip
        lgref.write(target, origin, self._walking.samples, walks.records(self._walking, base))

    def _result(self, each: Subject, *, exact: bool) -> Result:
        found, base = self._found(each), self._found(self._base)
        scores = against(self._asking.scores(found), self._asking.scores(base))
        if each.family != self._base.family:
            why = f"its weights are {each.family or 'not QAT'}, the reference's {self._base.family or 'not QAT'}"
            return Result(each, tasks=scores, speed=found.speed, why_not=f"No divergence: {why}. Tasks compare them.")
        tokens, items = walks.gathered(self._walking, self._key(each, exact=exact))
        notes = () if each.template == self._base.template else ("Its chat template is another than the reference's.",)
        bare = Result(each, tasks=scores, speed=found.speed, notes=notes)
        return results.measured(bare, tokens, items, self._walking.samples)
