"""Assembly: from a name to a file, its header, a plan, an engine and conversations. The one place that wires."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from localgemma import settings
from localgemma.chat.conversation import Conversation
from localgemma.engine import CancelToken, Engine, EngineInfo
from localgemma.errors import NotDownloaded, NotFound, UsageError
from localgemma.messages import Progress
from localgemma.options import ChatOptions, LoadOptions, Sampling, updated
from localgemma.units import format_size

if TYPE_CHECKING:
    from localgemma.files.catalog import Found, Variant
    from localgemma.files.download import Transferred
    from localgemma.files.locate import Local


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision of the plan: what it is about, what was chosen, and why."""

    what: str
    chosen: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.chosen} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Plan:
    """What was chosen for this load, and why; `str()` prints a line a choice."""

    text: Path
    projector: Path | None
    options: LoadOptions
    choices: tuple[Choice, ...]
    quant: str = ""

    def __str__(self) -> str:
        return "\n".join(map(str, self.choices))


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
        tools: Sequence[Mapping[str, Any]] = (),
        **options: Any,
    ) -> Conversation:
        """A new conversation; any field of ChatOptions and Sampling may be given by name.

        `tools` are declarations in the OpenAI form; the calls come as events, and whoever reads them answers them with
        `Conversation.add_result` and `reply`.
        """
        for tool in tools:
            if not isinstance(tool, Mapping):
                raise UsageError(f"{tool!r} is no tool declaration.", 'Give a mapping: {"type": "function", "function": {…}}.')
        chat_names = {f.name for f in fields(ChatOptions)}
        chat = {name: value for name, value in options.items() if name in chat_names}
        rest = {name: value for name, value in options.items() if name not in chat_names}
        return Conversation(
            self.engine,
            system,
            updated(ChatOptions(thinking=thinking), chat),
            updated(Sampling(), rest),
            tools=tools,
            fetch=_fetch_picture,
        )

    def own_template(self) -> str:
        """The Jinja chat template inside the model's file, for `ChatOptions.template`; NotFound without one."""
        from localgemma.files.header import read_header

        template = read_header(self.plan.text).text("tokenizer.chat_template")
        if not template:
            raise NotFound(f"{self.plan.text.name} holds no chat template.", "Leave it out: Google's own is the default.")
        return template

    def close(self) -> None:
        """Free the model; conversations of it end."""
        self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open(
    name: str | Path = "demo",
    *,
    projector: str | Path | None = None,
    options: LoadOptions | None = None,
    progress: Callable[[Progress], bool | None] | None = None,
) -> Model:
    """Load a model by name or path; it never downloads.

    `progress` sees how far the load is; if it returns False, the load is cancelled. Raises NotFound, NotDownloaded,
    BadModelFile, LibraryError, DoesNotFit and Cancelled.
    """
    from localgemma.llamacpp.engine import open_engine

    options = options or LoadOptions()
    found = _locate(name)
    beside = (found.projector, found.projector_why) if found.projector else None
    plan, notes = _plan(found.text, (Path(projector), "you gave it") if projector else beside, found.why, options)

    def told(done: float) -> bool:
        return progress is None or progress(Progress("load", done, 1.0)) is not False

    engine = open_engine(
        found.text, plan.projector, plan.options, name=found.name, quant=plan.quant, notes=notes, progress=told
    )
    return Model(engine, plan)


def _fetch_picture(url: str) -> bytes:
    from localgemma import net

    return net.fetch_picture(url)


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


def _plan(text: Path, projector: tuple[Path, str] | None, why: str, options: LoadOptions) -> tuple[Plan, tuple[str, ...]]:
    """Check the files and say what will be loaded; notes are what the user should see once."""
    from localgemma.files.facts import quant_of
    from localgemma.files.header import check_projector, check_text_model, read_header

    header = read_header(text)
    check_text_model(header)
    choices = [Choice("model", f"{text.name}, {format_size(header.file_size)}", why)]
    notes: list[str] = []
    file: Path | None = None
    if projector and options.image_tokens:
        from localgemma.files.projector import corrected

        file, reason = projector
        check_projector(read_header(file), header.number("gemma4.embedding_length") or 0)
        file, note = corrected(file, settings.load().cache_dir / "projectors")
        choices.append(Choice("pictures", f"{projector[0].name}, at most {options.image_tokens:,} tokens each", reason))
        if note:
            notes.append(note)
            choices.append(Choice("projector", "a corrected copy", note))
    else:
        reason = "you asked for none" if not options.image_tokens else "there is no mmproj*.gguf beside the model"
        options = replace(options, image_tokens=0)
        choices.append(Choice("pictures", "none", reason))
    trained = header.number("gemma4.context_length")
    if options.ctx is None:
        options = replace(options, ctx=min(trained or 8192, 8192))
        choices.append(Choice("context", f"{options.ctx:,} tokens", "the default; --ctx N changes it"))
    else:
        choices.append(Choice("context", f"{options.ctx:,} tokens", f"you asked for it; trained for {trained or 0:,}"))
    choices.append(Choice("KV cache", options.kv, "the default" if options.kv == "f16" else "you asked for it"))
    layers = "all" if options.gpu_layers in (None, -1) else str(options.gpu_layers)
    choices.append(Choice("layers on the GPU", layers, "if there is one" if options.gpu_layers is None else "you asked"))
    return Plan(text, file, options, tuple(choices), quant_of(header)), tuple(notes)
