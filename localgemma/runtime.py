"""Assembly: from a name to a file, its header, a plan, an engine and conversations. The one place that wires."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from localgemma import net, settings
from localgemma.chat.conversation import Conversation
from localgemma.chat.functions import Source
from localgemma.chat.mcp import mcp as mcp
from localgemma.chat.tool_loop import Approve, Toolbox
from localgemma.engine import CancelToken, Engine, EngineInfo
from localgemma.errors import DoesNotFit, NotDownloaded, NotFound, UsageError
from localgemma.fit import reading
from localgemma.fit.choices import Choice
from localgemma.messages import Progress
from localgemma.options import ChatOptions, LoadOptions, Sampling, ToolLimits, updated

if TYPE_CHECKING:
    from localgemma.files.catalog import Found, Variant
    from localgemma.files.download import Transferred
    from localgemma.files.locate import Local
    from localgemma.fit.explain import Decision
    from localgemma.fit.planner import Wishes


@dataclass(frozen=True, slots=True)
class Plan:
    """What was chosen for this load, and why; `str()` prints a line a choice.

    `notes` are what turned out otherwise when it was loaded; `decision` has the memory, device by device, and neighbours.
    """

    text: Path
    projector: Path | None
    options: LoadOptions
    choices: tuple[Choice, ...]
    quant: str = ""
    decision: Decision | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self.choices))

    def tried(self, found: Choice | None) -> Plan:
        """The plan after its drafter was tried: `found` takes the place of what was chosen before."""
        if found is None:
            return self
        choices = tuple(found if choice.what == found.what else choice for choice in self.choices)
        kept = self.options.drafter if found.chosen != "no" else None
        return replace(self, choices=choices, options=replace(self.options, drafter=kept))


class Model:
    """A loaded model. A context manager; `close` frees it."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self.engine = engine
        self.plan = plan

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self.engine.info

    def chat(
        self,
        system: str | None = None,
        *,
        thinking: bool = False,
        tools: Iterable[Source] = (),
        approve: Approve = "always",
        **options: Any,
    ) -> Conversation:
        """A new conversation; any field of ChatOptions, ToolLimits and Sampling may be given by name.

        `tools` are Python functions and the servers of `mcp`, run when the model calls them and `approve` allows it ("always",
        names, or a function asked with each ToolCall), or OpenAI declarations, answered with `add_result` and `reply`.
        """
        chat, limits, rest = dict[str, Any](), dict[str, Any](), dict[str, Any]()
        homes = {**{f.name: chat for f in fields(ChatOptions)}, **{f.name: limits for f in fields(ToolLimits)}}
        for name, value in options.items():
            homes.get(name, rest)[name] = value
        return Conversation(
            self.engine,
            system,
            updated(ChatOptions(thinking=thinking), chat),
            updated(Sampling(), rest),
            tools=Toolbox.of(tools, approve, updated(ToolLimits(), limits)),
            fetch=net.fetch_picture,
            speeds=reading.speeds(self.plan.decision),
        )

    def own_template(self) -> str:
        """The Jinja chat template inside the model's file, for `ChatOptions.template`; NotFound without one."""
        from localgemma.files.header import read_header

        template = read_header(self.plan.text).text("tokenizer.chat_template")
        if not template:
            raise NotFound(f"{self.plan.text.name} holds no chat template.", "Leave it out: Google's own is the default.")
        return template

    def close(self) -> None:
        """Free the model; conversations of it end. How fast it read and wrote is kept for the next forecast."""
        info = self.engine.info
        self.engine.close()
        reading.keep(self.plan.decision, info, self.plan.options)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open(
    name: str | Path = "demo",
    *,
    projector: str | Path | None = None,
    options: LoadOptions | None = None,
    wishes: Wishes | None = None,
    progress: Callable[[Progress], bool | None] | None = None,
) -> Model:
    """Load a model by name or path as the plan says; it never downloads.

    `wishes` (or the `options` that are not at their defaults) win over the plan. Where memory does not suffice after all,
    less is loaded, and `plan.notes` say so. `progress` sees how far the load is; if it returns False, the load is cancelled.
    Raises NotFound, NotDownloaded, BadModelFile, LibraryError, DoesNotFit and Cancelled.
    """
    from localgemma.fit import prepare
    from localgemma.fit.planner import Wishes

    wishes = wishes or Wishes.of(options or LoadOptions())
    names = prepare.ranked_here(name)
    for index, each in enumerate(names):
        try:
            return _open(each, Path(projector) if projector else None, wishes, progress)
        except DoesNotFit:
            if index == len(names) - 1:
                raise
    raise AssertionError("there is at least one name")


def _open(
    name: str | Path, projector: Path | None, wishes: Wishes, progress: Callable[[Progress], bool | None] | None
) -> Model:
    from localgemma.fit import calibrate, drafts
    from localgemma.llamacpp.engine import open_engine

    found = _locate(name)
    beside = (found.projector, found.projector_why) if found.projector else None
    plan, notes = _plan(found, (projector, "you gave it") if projector else beside, wishes)
    decision = plan.decision
    assert decision is not None
    before = calibrate.Before.now(decision.machine)

    def told(done: float, stage: str = "load") -> bool:
        return progress is None or progress(Progress(stage, done, 1.0)) is not False

    def attempt(reduced: LoadOptions) -> Engine:
        return open_engine(found.text, plan.projector, reduced, name=found.name, quant=plan.quant, notes=notes, progress=told)

    def slow(engine: Engine, reduced: LoadOptions, last: bool) -> str:
        if before.machine.system != "win32":  # only there a driver takes more than the GPU has
            return ""
        said = calibrate.spilled(before, decision, reduced)
        if not said and engine.info.image_tokens and reduced.projector_on_gpu:
            calibrate.show_a_picture(engine)
            said = calibrate.spilled(before, decision, reduced, pictures=True)
        if said and not last:
            engine.close()
        return said

    engine, loaded, given_up = calibrate.load(decision, plan.options, wishes, attempt, slow)
    if not given_up:
        calibrate.after(before, decision)
    plan = replace(plan, options=loaded, notes=given_up)
    if loaded.drafter is not None and wishes.base.drafter is None:
        try:
            plan = plan.tried(drafts.settle(decision, engine, lambda done: told(done, "measure")))
        except BaseException:
            engine.close()
            raise
    return Model(engine, plan)


def open_for_reading(text: Path, projector: Path | None, options: LoadOptions, *, any_architecture: bool = False) -> Engine:
    """Load a file whose predictions are to be read, with the machine's plan where it is a Gemma 4.

    Where the options say where the layers go, there is no plan, nor for `any_architecture`. Raises what `open` does.
    """
    from localgemma.files.facts import quant_of
    from localgemma.files.header import check_text_model, read_header
    from localgemma.llamacpp.engine import open_engine

    header = read_header(text)
    if not any_architecture:
        check_text_model(header)
    if projector is not None:
        from localgemma.files.projector import corrected

        projector = corrected(projector, settings.load().cache_dir / "projectors")[0]
    if options.gpu_layers is None and not any_architecture:
        from localgemma.fit import prepare
        from localgemma.fit.planner import Wishes

        rows = 8 * header.array_length("tokenizer.ggml.tokens") * options.outputs
        wishes = Wishes(options.ctx, options.kv, reserve=rows, pictures=projector is not None, draft=False)
        way = prepare.load_plan(text, projector, text.stem, "you gave it", wishes).way.load
        options = replace(
            options, gpu_layers=way.gpu_layers, devices=way.devices, tensor_split=way.tensor_split, mmap=way.mmap
        )
    return open_engine(text, projector, options, name=text.stem, quant=quant_of(header))


def build() -> str:
    """The versions of llama.cpp's bindings and library, and its commit."""
    from localgemma.llamacpp import library

    return library.build()


def pull(name: str, *, progress: Callable[[Transferred], None] | None = None, cancel: CancelToken | None = None) -> Path:
    """Download what is missing of a model, its projector and its drafter, without asking; the text model's path.

    What is here already opens no connection. Raises UsageError, NotFound, DiskError, ChecksumError, OfflineError,
    TransferError and Cancelled.
    """
    from localgemma.files import catalog
    from localgemma.files import pull as pulling

    variant, _ = choose(catalog.load().find(name))
    return pulling.run(pulling.plan(variant), progress=progress, cancel=cancel).text


def choose(found: Found) -> tuple[Variant, str]:
    """The variant to take where a name leaves it open, and why: the one that this machine's plan takes."""
    from localgemma.fit.pick import pick

    return pick(found)


def _locate(name: str | Path) -> Local:
    """The files of a name or a path, and why each of them.

    A text with a slash or the ending .gguf is a path, except for a repository of the catalogue.
    """
    from localgemma.files import catalog
    from localgemma.files.locate import locate, of_path

    shown = str(name)
    if "\0" in shown:
        raise NotFound(f"{shown[:80]!r} is no file name.", "Give a model's name, or the path of a .gguf file.")
    if isinstance(name, Path) or shown.endswith(".gguf"):
        return of_path(Path(name).expanduser())
    try:
        return locate(shown, catalog.load(), choose)
    except (NotFound, UsageError) as error:
        if isinstance(error, NotDownloaded):
            raise
        try:
            is_file = Path(shown).expanduser().is_file()
        except (OSError, ValueError):  # a name too long for the file system, or with a NUL byte
            is_file = False
        if is_file:
            return of_path(Path(shown).expanduser())
        raise


def _plan(found: Local, projector: tuple[Path, str] | None, wishes: Wishes) -> tuple[Plan, tuple[str, ...]]:
    """Check the files and decide how they are loaded; notes are what the user should see once."""
    from localgemma.files.facts import quant_of
    from localgemma.files.header import check_projector, check_text_model, read_header
    from localgemma.fit import prepare

    header = read_header(found.text)
    check_text_model(header)
    drafter = wishes.base.drafter or found.drafter
    notes: list[str] = []
    extra: list[Choice] = []
    file: Path | None = None
    if projector and wishes.pictures:
        from localgemma.files.projector import corrected

        check_projector(read_header(projector[0]), header.number("gemma4.embedding_length") or 0)
        file, note = corrected(projector[0], settings.load().cache_dir / "projectors")
        extra.append(Choice("projector", projector[0].name, projector[1]))
        if note:
            notes.append(note)
            extra.append(Choice("projector", "a corrected copy", note))
    decision = prepare.load_plan(found.text, file, found.name, found.why, wishes, drafter)
    options = replace(decision.way.load, drafter=drafter if decision.way.setup.drafter else None)
    choices = (*decision.choices, *extra)
    return Plan(found.text, file if options.image_tokens else None, options, choices, quant_of(header), decision), tuple(notes)
