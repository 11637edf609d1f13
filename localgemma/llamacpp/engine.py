"""The engine on llama.cpp: one driver thread owns the context, and requests queue for it."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localgemma.engine import CancelToken, EngineInfo, Finished, Output, Prompt, Request
from localgemma.errors import BackendError, ContextOverflow, LocalgemmaError
from localgemma.llamacpp import devices
from localgemma.llamacpp.context import Context
from localgemma.llamacpp.generation import Generation
from localgemma.llamacpp.model import Model
from localgemma.llamacpp.sequence import Sequence, plan
from localgemma.llamacpp.vision import Projector
from localgemma.messages import Pixels
from localgemma.options import LoadOptions

if TYPE_CHECKING:
    import numpy as np

DEFAULT_CONTEXT = 8192
_END = object()
_Job = Callable[[], None]


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
    except BaseException:
        for item in reversed(opened):
            item.close()
        raise
    gpus = [device.name for device in devices.list_devices() if device.kind in ("gpu", "igpu")]
    backend = gpus[0] if gpus and options.gpu_layers else "CPU"
    info = EngineInfo(
        model=name or text.stem,
        architecture="gemma4",
        context=context.size,
        image_tokens=options.image_tokens if vision else 0,
        quant=quant,
        backend=backend,
        load_seconds=model.load_seconds,
        notes=notes,
    )
    return LlamaEngine(model, vision, context, info)


class LlamaEngine:
    """A loaded model; see engine.Engine."""

    def __init__(self, model: Model, projector: Projector | None, context: Context, info: EngineInfo) -> None:
        self._model, self._projector, self._context, self._info = model, projector, context, info
        self._sequence = Sequence(context, projector)
        self._on_device = info.backend != "CPU"
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=_drive, args=(self._jobs,), name="localgemma-driver", daemon=True)
        self._thread.start()
        self._stop = weakref.finalize(self, self._jobs.put, None)

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

    def _planned(self, prompt: Prompt) -> Any:
        if self._closed:
            raise BackendError("The model is closed.", "Open it again.")
        return plan(prompt, self._model.vocab, self._info.image_tokens)

    def generate(self, request: Request, cancel: CancelToken | None = None) -> Iterator[Output]:
        """Progress and Pieces, and Finished as the last; see engine.Engine."""
        wanted = self._planned(request.prompt)
        if len(wanted.keys) >= self._context.size:
            raise ContextOverflow(len(wanted.keys) + 1, self._context.size)
        token = cancel or CancelToken()

        def work(emit: Callable[[Output], None]) -> None:
            Generation(request, wanted, self._sequence, token).run(emit, on_device=self._on_device)

        return self._stream(work, token)

    def score(self, prompt: Prompt) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of logits for every token position; see engine.Engine."""
        wanted = self._planned(prompt)
        if len(wanted.keys) > self._context.size:
            raise ContextOverflow(len(wanted.keys), self._context.size)
        cancel = CancelToken()

        def work(emit: Callable[[tuple[int, np.ndarray]], None]) -> None:
            self._score(wanted.runs, cancel, emit)

        return self._stream(work, cancel)

    def _score(self, runs: list[Any], cancel: CancelToken, emit: Callable[[tuple[int, np.ndarray]], None]) -> None:
        import numpy as np

        context, position = self._context, 0
        self._sequence.clear()
        step = min(context.outputs, context.ubatch)
        for run in runs:
            if isinstance(run, Pixels):
                assert self._projector is not None
                context.decode_picture(self._projector.encode(run), position)
                position += run.tokens
                continue
            for start in range(0, len(run), step):
                if cancel.cancelled:
                    return
                part = run[start : start + step]
                context.decode(part, position, len(part))
                emit((position, np.stack([context.logits(row) for row in range(len(part))])))
                position += len(part)

    def _stream(self, work: Callable[[Callable[[Any], None]], None], cancel: CancelToken) -> Iterator[Any]:
        outputs: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def job() -> None:
            try:
                cancel.watch(lambda: self._context.interrupt(True))
                work(outputs.put)
            except BaseException as error:
                self._sequence.clear()
                outputs.put(error)
            finally:
                cancel.watch(None)
                self._context.interrupt(False)
                outputs.put(_END)

        self._jobs.put(job)
        return self._read(outputs, cancel)

    def _read(self, outputs: queue.SimpleQueue[Any], cancel: CancelToken) -> Iterator[Any]:
        ended = False
        try:
            while (item := outputs.get()) is not _END:
                if isinstance(item, BaseException):
                    if isinstance(item, LocalgemmaError):
                        raise item
                    raise BackendError(f"The engine failed: {item!r}.") from item
                if isinstance(item, Finished) and item.timings.prefill_speed:
                    self._info = replace(self._info, prefill_speed=item.timings.prefill_speed)
                yield item
            ended = True
        finally:
            if not ended:
                cancel.cancel()
                while outputs.get() is not _END:
                    pass

    def close(self) -> None:
        """Free the model; further calls raise."""
        if self._closed:
            return
        self._closed = True
        self._stop()
        self._thread.join()
        self._context.close()
        if self._projector:
            self._projector.close()
        self._model.close()


def _drive(jobs: queue.SimpleQueue[_Job | None]) -> None:
    """The driver thread: jobs in the order they came, until None."""
    while (job := jobs.get()) is not None:
        job()
