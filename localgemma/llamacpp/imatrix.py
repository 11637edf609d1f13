"""Watching an evaluation: squared inputs of every weight, as llama-imatrix collects them, and where the weights are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localgemma.engine import CancelToken, Prompt
from localgemma.errors import BackendError, Cancelled, LocalgemmaError
from localgemma.llamacpp import devices, library, tensors
from localgemma.llamacpp.context import ABORTED, Context
from localgemma.llamacpp.model import Model
from localgemma.llamacpp.sequence import Run, plan
from localgemma.llamacpp.vision import Projector
from localgemma.messages import Pixels
from localgemma.options import LoadOptions

if TYPE_CHECKING:
    import numpy as np

Watch = Callable[[tensors.Tensor, int], None]


class Observed:
    """A model and one sequence, for evaluation with all outputs; `watch(operation, address)` sees each that it asked for.

    `wanted` says of each operation, before it runs, whether to watch it. A context manager.
    """

    def __init__(
        self,
        text: Path,
        projector: Path | None,
        options: LoadOptions,
        *,
        wanted: Callable[[tensors.Tensor], bool] | None = None,
        watch: Watch | None = None,
        progress: Callable[[float], bool] | None = None,
        readable: bool = False,
    ) -> None:
        """Load; `readable` as in Model. Raises what Model, Context and Projector raise."""
        if options.gpu_layers is None:
            options = replace(options, gpu_layers=-1 if devices.has_gpu() else 0)
        options = replace(options, threads=options.threads or devices.default_threads())
        options = replace(options, image_tokens=options.image_tokens if projector else 0)
        self.options = replace(options, outputs=options.physical_batch, sequences=1)
        self._wanted, self._watch = wanted, watch
        self._error: BaseException | None = None
        self._checked = False
        callback = library.load().ggml_backend_sched_eval_callback(self._see) if wanted else None
        self._callback = callback
        self._opened: list[Any] = []
        try:
            self.model = self._keep(Model(text, self.options, progress, readable=readable))
            self._projector = self._keep(Projector(projector, self.model, self.options)) if projector else None
            self.context = self._keep(Context(self.model, self.options, options.ctx or 4096, callback))
        except BaseException:
            self.close()
            raise

    def _keep(self, item: Any) -> Any:
        self._opened.append(item)
        return item

    def _see(self, address: int, ask: bool, _: object) -> bool:
        try:  # an exception must not cross into C
            if not self._checked:
                tensors.check_layout(address)
                self._checked = True
            tensor = tensors.at(address)
            if ask:
                return self._error is None and self._wanted is not None and self._wanted(tensor)
            if self._watch is not None:
                self._watch(tensor, address)
            return True
        except BaseException as error:
            self._error = error
            return False

    def chunks(self, text: str, size: int) -> list[list[int]]:
        """A text as runs of `size` tokens, each beginning with <bos> in the place of its first: llama-imatrix's way.

        What is left at the end is dropped, unless it is all there is.
        """
        start = self.model.vocab.control("<bos>")
        ids = [start, *self.model.vocab.text(text)]
        whole = [ids[at : at + size] for at in range(0, len(ids) - size + 1, size)] or [ids]
        return [[start, *chunk[1:]] for chunk in whole]

    def runs(self, prompt: Prompt) -> list[Run]:
        """A prompt as token runs and pictures, cut where the context ends."""
        kept: list[Run] = []
        left = self.context.size
        for run in plan(prompt, self.model.vocab, self.options.image_tokens).runs:
            size = run.tokens if isinstance(run, Pixels) else len(run)
            if size > left:
                if not isinstance(run, Pixels) and left:
                    kept.append(run[:left])
                break
            kept.append(run)
            left -= size
        return kept

    def evaluate(self, runs: Sequence[Run], cancel: CancelToken, rows: Callable[[int, int], None] | None = None) -> int:
        """Evaluate from an empty cache, every row with logits; tokens evaluated.

        `rows(first position, count)` is called after each batch of tokens, when `context.logits` has them. Raises Cancelled,
        DecodeError, or what `watch` raised.
        """
        context, position = self.context, 0
        context.cut(0)
        cancel.watch(lambda: context.interrupt(True))
        try:
            for run in runs:
                size = run.tokens if isinstance(run, Pixels) else len(run)
                for start in range(0, size, size if isinstance(run, Pixels) else context.ubatch):
                    if isinstance(run, Pixels):
                        count, status = size, context.decode_picture(self._encode(run), position)
                    else:
                        part = run[start : start + context.ubatch]
                        count, status = len(part), context.decode(part, position, len(part))
                    if self._error is not None:
                        raise self._error
                    if status == ABORTED or cancel.cancelled:
                        raise Cancelled("The evaluation was cancelled.")
                    if rows is not None and not isinstance(run, Pixels):
                        rows(position, count)
                    position += count
        except LocalgemmaError:
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            cancel.watch(None)
            context.interrupt(False)
        return position

    def logits(self, runs: Sequence[Run], cancel: CancelToken | None = None) -> np.ndarray:
        """float32 [token positions, vocabulary] of one prompt; raises what `evaluate` does."""
        import numpy as np

        kept: list[np.ndarray] = []

        def keep(_: int, count: int) -> None:
            kept.extend(self.context.logits(row) for row in range(count))

        self.evaluate(runs, cancel or CancelToken(), keep)
        return np.stack(kept)

    def _encode(self, picture: Pixels) -> Any:
        if self._projector is None:
            raise BackendError("There is no projector for the pictures in the data.", "Give it with --mmproj FILE.")
        return self._projector.encode(picture)

    def close(self) -> None:
        """Free everything."""
        while self._opened:
            self._opened.pop().close()

    def __enter__(self) -> Observed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Collector:
    """Sums of squared inputs and rows seen, by weight: what goes into an imatrix."""

    def __init__(self) -> None:
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = {}
        self._last: tuple[int, Any] = (0, None)

    def wanted(self, tensor: tensors.Tensor) -> bool:
        """Products of a layer's weight with float32 inputs."""
        if tensor.op != tensors.operation("MUL_MAT"):
            return False
        weight, inputs = tensors.at(tensor.src[0]), tensors.at(tensor.src[1])
        return tensors.name_of(weight).startswith("blk.") and inputs.type == tensors.F32

    def watch(self, tensor: tensors.Tensor, _: int) -> None:
        """Add the inputs of one product; BackendError where they are not finite."""
        import numpy as np

        name = tensors.name_of(tensors.at(tensor.src[0]))
        if tensor.src[1] == self._last[0]:  # q, k and v read the same rows, and so do gate and up
            total = self._last[1]
        else:
            values = tensors.rows(tensor.src[1])
            total = np.einsum("ij,ij->j", values, values).astype(np.float64)
            if not np.isfinite(total).all():
                raise BackendError(f"The inputs of {name} are not finite.", "Check the model with --check-tensors.")
            self._last = tensor.src[1], total
        shape = tensors.at(tensor.src[1]).ne
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts[name] = self.counts.get(name, 0) + shape[1] * shape[2] * shape[3]

    def forget_inputs(self) -> None:
        """Between evaluations: the same address may hold other rows."""
        self._last = (0, None)
