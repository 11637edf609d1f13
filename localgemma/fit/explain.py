"""A plan in words: every decision with its reason, and the nearest plans that were not chosen with theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from localgemma.fit import drafts
from localgemma.fit.buffers import Table
from localgemma.fit.choices import Choice
from localgemma.fit.hardware import Machine
from localgemma.fit.memory import Item
from localgemma.fit.planner import WANTED_CONTEXT, Candidate, Planner, Way, Wishes
from localgemma.fit.quality import kv_loss
from localgemma.fit.speed import pace_key
from localgemma.units import format_size

Kind = Literal["better", "faster", "more context"]
A_STEP = 0.02  # places apart at which one file counts as better than another
FASTER = 1.25
SAME = "the same in all else, with more memory taken"


@dataclass(frozen=True, slots=True)
class Alternative:
    """A neighbour that was not chosen: one step better, faster, or with more context; `why` says what it costs."""

    kind: Kind
    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} ({self.why})"


@dataclass(frozen=True, slots=True)
class Decision:
    """The best way, the machine it was made for, and all the words about it."""

    way: Way
    machine: Machine
    choices: tuple[Choice, ...]
    alternatives: tuple[Alternative, ...]
    largest_context: int

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs: sizes in bytes, speeds in tokens a second."""
        way, need = self.way, self.way.need
        load = way.load
        gpus = {gpu.name: _items(need.gpus[i]) for i, gpu in enumerate(self.machine.gpus[: len(need.gpus)])}
        return {
            "model": way.candidate.name,
            "file_bytes": way.candidate.size,
            "quality": _quality(way.candidate),
            "options": {
                "ctx": load.ctx, "kv": load.kv, "gpu_layers": load.gpu_layers, "tensor_split": load.tensor_split,
                "layers": {gpu.name: n for gpu, n in zip(self.machine.gpus, way.setup.placement, strict=False)},
                "ubatch": load.physical_batch, "image_tokens": load.image_tokens, "projector_on_gpu": load.projector_on_gpu,
                "threads": load.threads, "mmap": load.mmap,
            },
            "memory": {**gpus, "RAM": _items(need.host)},
            "memory_total": {
                **{gpu.name: need.gpu(i) for i, gpu in enumerate(self.machine.gpus[: len(need.gpus)])}, "RAM": need.host_total,
            },
            "tokens_per_second": round(way.speed, 2),
            "speed_measured": self.machine.measured,
            "largest_context": self.largest_context,
            "machine": {
                "gpus": [
                    {"name": gpu.name, "description": gpu.description, "free": gpu.free, "total": gpu.total}
                    for gpu in self.machine.gpus
                ],
                "ram_free": self.machine.ram_free, "ram_total": self.machine.ram_total, "unified": self.machine.unified,
                "described": self.machine.simulated,
            },
            "choices": [{"what": c.what, "chosen": c.chosen, "reason": c.reason} for c in self.choices],
            "alternatives": [{"kind": a.kind, "what": a.what, "why": a.why} for a in self.alternatives],
        }  # fmt: skip


def _items(items: Sequence[Item]) -> list[dict[str, object]]:
    return [{"what": item.what, "bytes": item.size, "source": item.source} for item in items]


def _quality(candidate: Candidate) -> dict[str, object] | None:
    figure = candidate.standing.figure
    return {"value": figure.value, "measure": figure.measure.title, "metric": figure.measure.metric} if figure else None


def explain(planner: Planner, way: Way, candidates: Sequence[Candidate]) -> Decision:
    """The words about the best way of `planner` among the candidates."""
    largest = planner.largest_context(way)
    choices = (
        _model(way, candidates), *_layers(planner, way), _context(planner, way, largest), _kv(planner, way),
        _pictures(planner, way), *drafts.choice(planner, way), *_checkpoints(way),
        Choice("ubatch", f"{way.setup.options.physical_batch:,} tokens", _batch_reason(way)),
        Choice("threads", str(way.setup.options.threads or planner.machine.threads), "the physical cores"),
        _speed(planner, way), *_asked(planner, way, candidates),
    )  # fmt: skip
    return Decision(way, planner.machine, choices, tuple(_alternatives(planner, way, candidates)), largest)


_FLAGS: dict[str, tuple[str, Any]] = {  # field of Wishes: the flag, and its value where nothing was asked
    "ctx": ("--ctx", None), "kv": ("--kv", None), "gpu_layers": ("--gpu-layers", None), "devices": ("--device", None),
    "reserve": ("--reserve", 0), "min_speed": ("--min-speed", None), "pictures": ("--no-pictures", True),
    "draft": ("--no-draft", True),
}  # fmt: skip


def _asked(planner: Planner, way: Way, candidates: Sequence[Candidate]) -> Iterator[Choice]:
    """Each wish of the user, with what the plan would be without it."""
    for name, (flag, unasked) in _FLAGS.items():
        value = getattr(planner.wishes, name)
        if value == unasked:
            continue
        table = Table(tuple("CUDA" if planner.whole.simulated else gpu.backend for gpu in planner.whole.gpus))
        wishes = replace(planner.wishes, **{name: unasked})
        other = Planner(planner.whole, table, wishes, planner.rates, planner.entry).best(candidates)
        shown = flag if value is False else f"{flag} {_shown(name, value)}"
        costs = _differences(way, other, named=True) if other else ""
        without = f"without it: {costs}" if costs and costs != SAME else "nothing else would change"
        loss, told = kv_loss(planner.entry, value) if name == "kv" else (0.0, "")
        yield Choice("asked", shown, f"it {told}; {without}" if loss else without)


def _shown(name: str, value: Any) -> str:
    if name == "reserve":
        return format_size(value).replace(" ", "")
    return " ".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _model(way: Way, candidates: Sequence[Candidate]) -> Choice:
    shown = f"{way.candidate.name}, {format_size(way.candidate.size)}"
    reason = way.candidate.standing.reason
    return Choice(
        "model", shown, reason if len(candidates) == 1 else f"{reason}; the best of {len(candidates)} known files here"
    )


def _layers(planner: Planner, way: Way) -> list[Choice]:
    machine, setup = planner.machine, way.setup
    every = len(setup.weights.layers) + 1
    asked = planner.wishes.gpu_layers is not None
    if not setup.on_gpu:
        reason = (
            "you asked for none on the GPU"
            if asked
            else "no GPU that llama.cpp can use"
            if not machine.gpus
            else "its GPU is too small"
        )
        return [Choice("layers", f"all {every} on the CPU", reason)]
    placed = [f"{count} on {gpu.name}" for gpu, count in zip(machine.gpus, setup.placement, strict=False) if count]
    if setup.on_gpu == every and len(placed) == 1:
        return [Choice("layers", f"all {every} on {placed[0].split(' on ')[1]}", "everything fits")]
    rest = every - setup.on_gpu
    if rest:
        placed.append(f"{rest} in RAM")
    return [
        Choice(
            "layers", ", ".join(placed), "you asked" if asked else "what fits each" if not rest else "no more fit on the GPU"
        )
    ]


def _context(planner: Planner, way: Way, largest: int) -> Choice:
    tokens = way.setup.tokens
    more = f"; up to {largest:,} would fit" if largest > tokens else ""
    if planner.wishes.ctx:
        reason = "you asked for it"
    elif tokens >= min(WANTED_CONTEXT, way.setup.weights.shape.trained_context):
        reason = "room for a long talk"
    else:
        reason = "more would cost more than it gives here"
    return Choice("context", f"{tokens:,} tokens", reason + more)


def _kv(planner: Planner, way: Way) -> Choice:
    kv = way.setup.options.kv
    loss, told = kv_loss(planner.entry, kv)
    if not loss:
        return Choice("KV cache", kv, "nothing lost")
    why = "you asked for it" if planner.wishes.kv else "f16 does not fit with the rest as it is"
    return Choice("KV cache", kv, f"{why}; it {told}")


def _pictures(planner: Planner, way: Way) -> Choice:
    options = way.setup.options
    if not options.image_tokens:
        why = "you asked for none" if not planner.wishes.pictures else "no projector beside the model"
        return Choice(
            "pictures", "none", why if way.candidate.projector == 0 or not planner.wishes.pictures else "no room for them"
        )
    where = planner.machine.gpus[0].name if options.projector_on_gpu and planner.machine.gpus else "the CPU"
    reason = "the largest there is" if options.image_tokens == 1120 else "a smaller limit leaves room for the rest"
    if where == "the CPU" and planner.machine.gpus:
        reason += "; slower, but the GPU is better used for layers"
    return Choice("pictures", f"up to {options.image_tokens:,} tokens each, on {where}", reason)


def _checkpoints(way: Way) -> list[Choice]:
    size = way.setup.options.checkpoint_bytes
    if size is None:
        return []
    why = "copies of the sliding window, so that a turn reads only what is new" if size else "no RAM is left for them"
    return [Choice("checkpoints", f"up to {format_size(size)} of RAM" if size else "none", why)]


def _batch_reason(way: Way) -> str:
    return "the largest picture must fit into one" if way.setup.options.image_tokens > 512 else "llama.cpp's own"


def _speed(planner: Planner, way: Way) -> Choice:
    machine = planner.machine
    reason = "measured on this machine" if machine.measured else "by the bandwidth such a machine usually has"
    if pace_key(way.setup) in planner.paces:
        reason = "as loads of this kind were seen to have here"
    elif not machine.measured and not machine.simulated:
        reason += "; localgemma doctor measures it"
    if planner.wishes.min_speed:
        reason += f"; you asked for at least {planner.wishes.min_speed:g}"
    return Choice(
        "speed", f"about {way.speed:,.1f} tokens/s" if way.speed < 10 else f"about {way.speed:,.0f} tokens/s", reason
    )


def _alternatives(planner: Planner, way: Way, candidates: Sequence[Candidate]) -> list[Alternative]:
    found = [_better(planner, way, candidates), _faster(planner, way, candidates), _longer(planner, way, candidates)]
    return [alternative for alternative in found if alternative]


def _with(planner: Planner, wishes: Wishes) -> Planner:
    """The same machine (already reserved from) under other wishes."""
    other = Planner(planner.machine, planner.compute, replace(wishes, reserve=0, devices=None), planner.rates, planner.entry)
    other.devices, other.whole = planner.devices, planner.whole
    return other


def _better(planner: Planner, way: Way, candidates: Sequence[Candidate]) -> Alternative | None:
    place = way.candidate.standing.place
    quant = _short(way.candidate).split("@")[0]
    better = [c for c in candidates if c.standing.place < place - A_STEP and _short(c).split("@")[0] != quant]
    steps = sorted(better, key=lambda c: (-c.standing.place, c.size))
    if not steps:
        return None
    step = steps[0]
    other = _with(planner, planner.wishes).best([step])
    shown = f"{_short(step)}, {format_size(step.size)}"
    if other is None:
        return Alternative(
            "better", shown, "it does not fit in any way" + (" at this speed" if planner.wishes.min_speed else "")
        )
    return Alternative("better", shown, _differences(way, other))


def _short(candidate: Candidate) -> str:
    return candidate.name.split(":", 1)[-1]


def _faster(planner: Planner, way: Way, candidates: Sequence[Candidate]) -> Alternative | None:
    other = _with(planner, replace(planner.wishes, min_speed=way.speed * FASTER)).best(candidates)
    if other is None:
        return None
    return Alternative("faster", f"{_short(other.candidate)}, {format_size(other.candidate.size)}", _differences(way, other))


def _longer(planner: Planner, way: Way, candidates: Sequence[Candidate]) -> Alternative | None:
    trained = way.setup.weights.shape.trained_context
    if way.setup.tokens >= trained:
        return None
    tokens = min(trained, way.setup.tokens * 2)
    other = _with(planner, replace(planner.wishes, ctx=tokens)).best(candidates)
    if other is None:
        return Alternative("more context", f"{tokens:,} tokens", "no file leaves room for it")
    return Alternative("more context", f"{tokens:,} tokens", _differences(way, other, named=True, context=False))


def _differences(chosen: Way, other: Way, *, named: bool = False, context: bool = True) -> str:
    """What the other way has otherwise, in one line; `named`: with the file's name."""
    a, b = chosen.setup.options, other.setup.options
    told = []
    if other.candidate.name != chosen.candidate.name:
        name = f"{_short(other.candidate)}: " if named else ""
        told.append(f"{name}{other.candidate.standing.reason}")
    if not 0.95 < other.speed / chosen.speed < 1.05:
        told.append(f"{other.speed:,.1f} tokens/s instead of {chosen.speed:,.1f}")
    if context and other.setup.tokens != chosen.setup.tokens:
        told.append(f"{other.setup.tokens:,} tokens of context")
    if a.kv != b.kv:
        told.append(f"{b.kv} KV cache")
    if a.image_tokens != b.image_tokens:
        told.append(f"pictures up to {b.image_tokens:,} tokens" if b.image_tokens else "no pictures")
    elif a.projector_on_gpu and not b.projector_on_gpu:
        told.append("pictures read by the CPU")
    if other.setup.on_gpu != chosen.setup.on_gpu:
        count = abs(chosen.setup.on_gpu - other.setup.on_gpu)
        more = "fewer" if other.setup.on_gpu < chosen.setup.on_gpu else "more"
        told.append(f"{count} {'layer' if count == 1 else 'layers'} {more} on the GPU")
    return "; ".join(told) or SAME
