"""What quantising a weight does to a model's predictions, measured in the loaded model: no file is written.

A weight is quantised and decoded again in place, the data is evaluated, and the weight is put back. The source is BF16, F16 or
F32; what rounding to its type adds is a few hundredths of what Q8_0 loses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localgemma.engine import CancelToken
from localgemma.errors import BackendError
from localgemma.llamacpp import devices, tensors
from localgemma.llamacpp.imatrix import Observed
from localgemma.llamacpp.sequence import Run
from localgemma.options import LoadOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

_BLOCK = 16  # rows of logits compared at a time
_PART = 1 << 25  # values of a weight worked on at a time: 128 MiB as float32
_LARGEST = 700.0  # exponents beyond it would overflow float64


class Probe:
    """A loaded model whose weights can be changed for a while. A context manager."""

    def __init__(
        self, text: Path, options: LoadOptions, names: Iterable[str], progress: Callable[[float], bool] | None = None
    ) -> None:
        """Load; `names` are the weights that may be changed. Raises what loading a model raises."""
        self._names = frozenset(names)
        self._places: dict[str, set[int]] = {}
        self._operations = {tensors.operation(name) for name in ("MUL_MAT", "GET_ROWS")}
        self._looking = True
        self.observed = Observed(text, None, options, wanted=self._note, progress=progress, readable=True)
        # So few tokens that ggml computes where the weights are: for more it would copy them to a GPU first (op_offload).
        try:
            self.observed.evaluate([[self.observed.model.vocab.control("<bos>")] * 8], CancelToken())
        except BaseException:
            self.close()
            raise
        self._looking = False

    def _note(self, tensor: tensors.Tensor) -> bool:
        """Remember where a weight is; it may be in several places, on the host and on a device."""
        if self._looking and tensor.op in self._operations and tensor.src[0]:
            name = tensors.name_of(tensors.at(tensor.src[0]))
            if name in self._names:
                self._places.setdefault(name, set()).add(tensor.src[0])
        return False

    def divergence(
        self,
        prompts: Sequence[Sequence[Run]],
        references: Sequence[np.ndarray],
        cancel: CancelToken,
        step: Callable[[], None] = lambda: None,
    ) -> float:
        """Mean Kullback-Leibler divergence, in nats a token, of the model as it is now from the reference logits.

        `step` is called after each prompt.
        """
        total, count = 0.0, 0
        for runs, reference in zip(prompts, references, strict=True):
            total += float(kl(reference, self.observed.logits(runs, cancel)).sum())
            count += len(reference)
            step()
        return total / max(count, 1)

    def sample(self, name: str, count: int) -> np.ndarray:
        """float32 [rows, columns] of at most `count` rows, evenly spaced, of a weight. BackendError where it is not used."""
        import numpy as np

        place = min(self._found(name))
        tensor, total = tensors.at(place), tensors.row_count(place)
        rows = range(0, total, max(1, -(-total // count)))
        data = np.concatenate([tensors.load(place, row, 1) for row in rows])
        return tensors.decoded(data, tensor.type, tensor.ne[0])

    @contextmanager
    def changed(self, weights: Mapping[str, tuple[int, np.ndarray | None]]) -> Iterator[None]:
        """Have some weights as (ggml type, importance of the columns) would leave them, until the end of the block."""
        kept: list[tuple[int, np.ndarray]] = []
        try:
            for name, (number, importance) in weights.items():
                for place in self._found(name):
                    kept.append((place, tensors.load(place)))
                    _pass_through(place, number, importance)
            yield
        finally:
            for place, data in kept:
                tensors.store(place, data)

    def _found(self, name: str) -> set[int]:
        if name not in self._places:
            raise BackendError(f"The model did not use {name}.", "Measure with other data.")
        return self._places[name]

    def close(self) -> None:
        """Free the model."""
        self.observed.close()

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pass_through(place: int, number: int, importance: np.ndarray | None) -> None:
    """Quantise and decode a weight where it is, a part at a time."""
    tensor, total = tensors.at(place), tensors.row_count(place)
    step = max(1, _PART // tensor.ne[0])
    for start in range(0, total, step):
        values = tensors.decoded(tensors.load(place, start, min(step, total - start)), tensor.type, tensor.ne[0])
        tensors.store(place, tensors.encoded(quantised(values, number, importance), tensor.type), start)


def quantised(values: np.ndarray, number: int, importance: np.ndarray | None) -> np.ndarray:
    """The values, float32 [rows, columns], after a way through ggml type `number`."""
    return tensors.decoded(tensors.encoded(values, number, importance), number, values.shape[1])


def kl(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence, in nats, of each row of logits; float64 [rows].

    Written so that nothing cancels: with d the difference of logits less its mean under the reference's p, it is
    log(1 + sum p (e^d - 1)).
    """
    import numpy as np

    def block(start: int) -> Any:
        base = reference[start : start + _BLOCK].astype(np.float64)  # float32 would leave about 1e-8 of rounding
        base -= base.max(axis=1, keepdims=True)
        p = np.exp(base)
        p /= p.sum(axis=1, keepdims=True)
        d = other[start : start + _BLOCK] - base
        d -= np.einsum("ij,ij->i", p, d)[:, None]
        rest = np.expm1(np.minimum(d, _LARGEST))
        return np.log1p(np.maximum(np.einsum("ij,ij->i", p, rest), 0))

    with ThreadPoolExecutor(devices.default_threads()) as pool:
        return np.concatenate(list(pool.map(block, range(0, len(reference), _BLOCK))))
