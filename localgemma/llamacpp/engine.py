"""The engine on llama.cpp: one driver thread owns the context, and requests queue for it."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from localgemma.engine import CancelToken, EngineInfo, Finished, Output, Prompt, Request, StateInfo
from localgemma.errors import BackendError, ContextOverflow, LocalgemmaError
from localgemma.llamacpp import devices, library, state
from localgemma.llamacpp.cache import Cache
from localgemma.llamacpp.context import Context
from localgemma.llamacpp.draft import Drafter, DraftLength, Speculation
from localgemma.llamacpp.generation import Generation
from localgemma.llamacpp.grammar import Guide
from localgemma.llamacpp.model import Model
from localgemma.llamacpp.prefixes import Prefixes
from localgemma.llamacpp.scheduler import Scheduler
from localgemma.llamacpp.scoring import Scoring
from localgemma.llamacpp.sequence import Plan, plan
from localgemma.llamacpp.task import END, Task
from localgemma.llamacpp.vision import Projector
from localgemma.llamacpp.walk import Walk
from localgemma.options import LoadOptions
from localgemma.passages import Block, Passage

if TYPE_CHECKING:
    import numpy as np

DEFAULT_CONTEXT = 8192
_TELLING = 128  # tokens from which the time of reading them says how fast long prompts are read
_WRITTEN, _SHALLOW = 48, 4096  # tokens from which an answer says how fast decoding is, after a prompt of at most so many
_Result = TypeVar("_Result")


def open_engine(
    text: Path,
    projector: Path | None,
    options: LoadOptions,
    *,
    name: str = "",
    quant: str = "",
    notes: tuple[str, ...] = (),
    progress: Callable[[float], bool] | None = None,
) -> LlamaEngine:
    """Load a model; `progress` gets 0 … 1 and returns False to cancel. Raises what Model, Context, Projector raise."""
    if options.gpu_layers is None:
        options = replace(options, gpu_layers=-1 if devices.has_gpu() else 0)
    if projector is None:
        options = replace(options, image_tokens=0)
    if options.threads is None:
        options = replace(options, threads=devices.default_threads())
    opened: list[Model | Projector | Context] = []
    try:
        model = Model(text, options, progress)
        opened.append(model)
        vision = Projector(projector, model, options) if projector is not None and options.image_tokens else None
        if vision:
            opened.append(vision)
        tokens = options.ctx or min(DEFAULT_CONTEXT, model.trained_context)
        context = Context(model, options, tokens)
        opened.append(context)
        drafter = Drafter(options.drafter, context) if options.drafter else None
    except BaseException:
        for item in reversed(opened):
            item.close()
        raise
    library.release_threads()  # from here on, the engine's own thread computes
    gpus = [device.name for device in devices.list_devices() if device.kind in ("gpu", "igpu")]
    backend = gpus[0] if gpus and options.gpu_layers else "CPU"
    info = EngineInfo(
        model=name or text.stem,
        architecture=model.architecture,
        context=context.size,
        image_tokens=options.image_tokens if vision else 0,
        quant=quant,
        backend=backend,
        load_seconds=model.load_seconds,
        notes=notes,
        sequences=options.sequences,
        bos=model.vocab.bos,
        checkpoint_bytes=options.checkpoint_limit(devices.free_memory()),
    )
    return LlamaEngine(model, vision, context, info, drafter)


class LlamaEngine:
    """A loaded model; see engine.Engine."""

    def __init__(
        self, model: Model, projector: Projector | None, context: Context, info: EngineInfo, drafter: Drafter | None = None
    ) -> None:
        self._drafter = drafter
        self._drafting = True
        self._lengths = DraftLength(context.options.draft_tokens)
        self._model, self._projector, self._context, self._info = model, projector, context, info
        self._cache = Cache(context, context.options.sequences, info.checkpoint_bytes)
        self._on_device = info.backend != "CPU"
        self._closed, self._lock = False, threading.Lock()
        self._prefixes: Prefixes | None = None
        self._scheduler = Scheduler(self._cache)
        self._thread = threading.Thread(target=self._scheduler.run, name="localgemma-driver", daemon=True)
        self._thread.start()
        self._stop = weakref.finalize(self, self._scheduler.stop)

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    def count(self, prompt: Prompt) -> int:
        """Context positions that the prompt takes."""
        return len(self.tokenize(prompt))

    def tokenize(self, prompt: Prompt) -> list[int]:
        """Token ids of the prompt; -1 at each picture position."""
        return [key if isinstance(key, int) else -1 for key in self._planned(prompt).keys]

    def _planned(self, prompt: Prompt) -> Plan:
        if self._closed:
            raise BackendError("The model is closed.", "Open it again.")
        return plan(prompt, self._model.vocab, self._info.image_tokens)

    def generate(self, request: Request, cancel: CancelToken | None = None) -> Iterator[Output]:
        """Progress and Pieces, and Finished as the last; see engine.Engine."""
        wanted = self._planned(request.prompt)
        if len(wanted.keys) >= self._context.size:
            raise ContextOverflow(len(wanted.keys) + 1, self._context.size)
        outputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        guess = Speculation(self._drafter, self._lengths) if self._drafter and self._drafting else None
        guide, on_device = self._guide(request), self._on_device
        work = Generation(
            request, wanted, self._cache, self._projector, outputs.put, on_device=on_device, speculation=guess, guide=guide
        )
        return self._started(Task(wanted.keys, work.steps, cancel or CancelToken(), outputs, request.conversation))

    def _guide(self, request: Request) -> Guide | None:
        """What holds the generation to the request's constraint."""
        if request.constraint is None:
            return None
        vocab = self._model.vocab
        with self._lock:
            self._prefixes = prefixes = self._prefixes or Prefixes(vocab)
        return Guide(vocab, request.constraint, request.span, request.prompt.open_span, prefixes)

    def score(self, prompt: Prompt) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of logits for every token position; see engine.Engine."""
        wanted = self._planned(prompt)
        if len(wanted.keys) > self._context.size:
            raise ContextOverflow(len(wanted.keys), self._context.size)
        outputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        work = Scoring(wanted, self._cache, self._projector, outputs.put)
        return self._started(Task(wanted.keys, work.steps, CancelToken(), outputs, patient=True))

    def pieces(self) -> list[bytes]:
        """The bytes of every token; see passages.Spells."""
        vocab = self._model.vocab
        return [vocab.spelled(token) for token in range(vocab.size)]

    def walk(self, passages: Sequence[Passage], cancel: CancelToken | None = None) -> Iterator[list[Block]]:
        """The logits of many passages, batch by batch; see engine.Walks."""
        if self._closed:
            raise BackendError("The model is closed.", "Open it again.")
        token = cancel or CancelToken()
        return self._walked(Walk(passages, self._cache, self._projector, token), token)

    def _walked(self, work: Walk, cancel: CancelToken) -> Iterator[list[Block]]:
        cancel.watch(lambda: self._context.interrupt(True))
        try:
            self._called(work.begin)
            while (blocks := self._called(work.step)) is not None:
                yield blocks
        finally:
            cancel.watch(None)

    @property
    def drafting(self) -> bool:
        """Whether a drafter proposes tokens; see engine.DraftsTokens."""
        return self._drafter is not None and self._drafting

    @drafting.setter
    def drafting(self, on: bool) -> None:
        self._drafting = on

    def drop_drafter(self) -> None:
        """Free the drafter; answers go on without it."""
        drafter, self._drafter = self._drafter, None
        if drafter is not None:
            self._called(drafter.close)

    def save_state(self, prompt: Prompt, path: Path, conversation: str = "") -> StateInfo | None:
        """Write the KV state that serves `prompt`; see engine.KeepsState."""
        wanted = self._planned(prompt)
        return self._called(lambda: state.save(self._cache, wanted.keys, conversation, path))

    def load_state(self, path: Path) -> StateInfo:
        """Bring a saved state back; see engine.KeepsState."""
        if self._closed:
            raise BackendError("The model is closed.", "Open it again.")
        return self._called(lambda: state.load(self._cache, path))

    def _called(self, job: Callable[[], _Result]) -> _Result:
        """Run a job on the driver's thread, between two batches, and wait for it."""
        outcome: Future[_Result] = Future()

        def run() -> None:
            try:
                outcome.set_result(job())
            except BaseException as error:
                outcome.set_exception(error)

        self._scheduler.call(run)
        return outcome.result()

    def _started(self, task: Task) -> Iterator[Any]:
        self._scheduler.submit(task)
        return self._read(task.outputs, task.cancel)

    def _read(self, outputs: queue.SimpleQueue[Any], cancel: CancelToken) -> Iterator[Any]:
        ended = False
        try:
            while (item := outputs.get()) is not END:
                if isinstance(item, BaseException):
                    if isinstance(item, LocalgemmaError):
                        raise item
                    raise BackendError(f"The engine failed: {item!r}.") from item
                if isinstance(item, Finished) and item.timings.prefill_speed:
                    self._learn(item)
                yield item
            ended = True
        finally:
            if not ended:
                cancel.cancel()
                while outputs.get() is not END:
                    pass

    def _learn(self, done: Finished) -> None:
        """Keep the speeds of reading; those of a few tokens, which are too low, only where no better ones are known."""
        usage, timings, info = done.usage, done.timings, self._info
        fresh, words = usage.prompt - usage.cached, timings.prefill - timings.encode
        if fresh >= _TELLING or timings.prefill_speed > info.prefill_speed:
            info = replace(info, prefill_speed=timings.prefill_speed)
        if words > 0 and (fresh >= _TELLING or fresh / words > info.text_speed):
            info = replace(info, text_speed=fresh / words)
        if timings.encode > 0 and 0 < usage.pictures <= fresh:  # else some of them were remembered
            info = replace(info, picture_speed=usage.pictures / timings.encode)
        written = usage.answer + usage.thinking
        if written >= _WRITTEN and not timings.drafted and usage.prompt <= _SHALLOW and info.sequences == 1:
            info = replace(info, decode_speed=timings.decode_speed)
        self._info = info

    def close(self) -> None:
        """Free the model; further calls raise."""
        if self._closed:
            return
        self._closed = True
        self._stop()
        self._thread.join()
        if self._prefixes:
            self._prefixes.close()
        if self._drafter:
            self._drafter.close()
        self._context.close()
        if self._projector:
            self._projector.close()
        self._model.close()
