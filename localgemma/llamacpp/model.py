"""A loaded model and its vocabulary."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localgemma.errors import BackendError, BadConversation, BadModelFile, Cancelled, DoesNotFit
from localgemma.llamacpp import devices, library, log
from localgemma.options import LoadOptions

_SPLIT = {"none": 0, "layer": 1, "row": 2}  # llama.h enum llama_split_mode
_USER_DEFINED = 1 << 4  # llama.h LLAMA_TOKEN_ATTR_USER_DEFINED
_CONTROL = 1 << 3
_BYTE = 1 << 5
OUT_OF_MEMORY = re.compile(r"allocat|out of memory|bad_alloc|mmap failed|cudaMalloc", re.IGNORECASE)
LONGEST_TEXT = 1 << 26  # bytes a text may have: far beyond 262,144 tokens
REMEMBERED = 1 << 21  # characters whose tokens are remembered: two full contexts of prose


class Model:
    """The weights; whoever opens it closes it, after its contexts."""

    def __init__(
        self, path: Path, options: LoadOptions, progress: Callable[[float], bool] | None = None, *, readable: bool = False
    ) -> None:
        """Load `path`; `progress` gets 0 … 1 and returns False to cancel.

        `readable` weights keep the file's layout, so that they can be read and changed: llama.cpp crashes where one is read
        that a CPU holds in a layout of its own. Raises Cancelled, BadModelFile for a file that llama.cpp refuses, DoesNotFit
        where memory does not suffice, UsageError for an unknown device.
        """
        self._c = library.load()
        self.path = path
        started = time.perf_counter()
        self.pointer = self._load(options, progress, readable)
        self.load_seconds = time.perf_counter() - started
        self.vocab = Vocabulary(self._c, self._c.llama_model_get_vocab(self.pointer))
        self.width = int(self._c.llama_model_n_embd_inp(self.pointer))
        self.window = int(self._c.llama_model_n_swa(self.pointer))
        self.architecture = self._named("general.architecture")
        self.trained_context = int(self._c.llama_model_n_ctx_train(self.pointer))

    def _named(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        self._c.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def _load(self, options: LoadOptions, progress: Callable[[float], bool] | None, readable: bool) -> Any:
        c, cancelled = self._c, False

        def on_progress(done: float, _: object) -> bool:
            nonlocal cancelled
            try:
                cancelled = progress is not None and not progress(done)
            except BaseException as error:
                log.LOGGER.debug("progress callback: %r", error)
                cancelled = True
            return not cancelled

        params = c.llama_model_default_params()
        params.load_mode = (c.LLAMA_LOAD_MODE_MMAP if options.mmap else 0) + (2 if options.mlock else 0)
        params.check_tensors = options.check_tensors
        params.use_extra_bufts = not readable
        callback = c.llama_progress_callback(on_progress)
        params.progress_callback = callback
        keep = split_arguments(c, params, options)
        log.clear()
        pointer = c.llama_model_load_from_file(os.fsencode(self.path), params)
        del keep
        if not pointer:
            if cancelled:
                raise Cancelled("Loading was cancelled.")
            reason = log.last_error() or "no reason given"
            if OUT_OF_MEMORY.search(reason):
                raise DoesNotFit(f"There is not enough memory to load {self.path.name}: {reason}.")
            raise BadModelFile(f"llama.cpp cannot load {self.path.name}: {reason}.")
        return pointer

    def close(self) -> None:
        """Free the weights."""
        if self.pointer:
            self._c.llama_model_free(self.pointer)
            self.pointer = None


def split_arguments(c: Any, params: Any, options: LoadOptions) -> list[Any]:
    """Write where the layers go into `params`; what is returned must live until the load is over."""
    keep: list[Any] = []
    params.n_gpu_layers = 0 if options.gpu_layers is None else options.gpu_layers
    params.split_mode, params.main_gpu = _SPLIT[options.split_mode], options.main_gpu
    if options.devices is not None:
        keep.append(devices.handles(options.devices))
        params.devices = ctypes.cast(keep[-1], ctypes.c_void_p)
    if options.tensor_split is not None:
        shares = (ctypes.c_float * max(16, c.llama_max_devices()))(*options.tensor_split)
        keep.append(shares)
        params.tensor_split = shares
    return keep


class Vocabulary:
    """Tokens of a model: names to ids, text to ids, ids to bytes."""

    def __init__(self, bindings: Any, pointer: Any) -> None:
        self._c, self.pointer = bindings, pointer
        self.size = int(bindings.llama_vocab_n_tokens(pointer))
        self.names: dict[int, str] = {}
        self.bytes = set[int]()  # tokens of a single byte, for characters that have none of their own
        for token in range(self.size):
            kind = bindings.llama_vocab_get_attr(pointer, token)
            if kind & _BYTE:
                self.bytes.add(token)
            if kind & (_USER_DEFINED | _CONTROL):
                name = (bindings.llama_vocab_get_text(pointer, token) or b"").decode("utf-8", "replace")
                if name.startswith("<") and name.endswith(">"):
                    self.names[token] = name
        markers = sorted((re.escape(name) for name in self.names.values()), key=len, reverse=True)
        self._marker = re.compile("|".join(markers) or r"(?!)")
        self._ids = {name: token for token, name in self.names.items()}
        begins = int(bindings.llama_vocab_bos(pointer)) if bindings.llama_vocab_get_add_bos(pointer) else -1
        self.bos = begins if begins >= 0 else None
        self.ends = frozenset(t for t in range(self.size) if bindings.llama_vocab_is_eog(pointer, t))
        self._known: OrderedDict[str, array[int]] = OrderedDict()
        self._kept = 0  # characters in it

    def control(self, name: str) -> int:
        """The id of a control token; BadConversation where this vocabulary lacks it."""
        try:
            return self._ids[name]
        except KeyError:
            raise BadConversation(f"This model has no token {name}.", "Use a Gemma 4 model.") from None

    def text(self, text: str) -> list[int]:
        """Ids of ordinary text; a spelled marker is cut after its first character, so that it stays text.

        llama.cpp matches USER_DEFINED tokens in any text, even with parse_special off. Texts of late are remembered: a
        conversation sends its whole history each turn, and 8k tokens take 12 ms.
        """
        if (known := self._known.get(text)) is not None:
            self._known.move_to_end(text)
            return known.tolist()
        ids = self._ids_of(text)
        if len(text) <= REMEMBERED:
            self._known[text] = array("i", ids)
            self._kept += len(text)
            while self._kept > REMEMBERED:
                self._kept -= len(self._known.popitem(last=False)[0])
        return ids

    def _ids_of(self, text: str) -> list[int]:
        ids: list[int] = []
        start = 0
        for found in self._marker.finditer(text):
            ids += self._raw(text[start : found.start() + 1])
            start = found.start() + 1
        return ids + self._raw(text[start:])

    def _raw(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace")
        if not data:
            return []
        if len(data) > LONGEST_TEXT:
            raise BadConversation(f"A text of {len(data):,} bytes is longer than any context.", "Send a part of it.")
        buffer = (self._c.llama_token * (len(data) + 8))()
        count = self._c.llama_tokenize(self.pointer, data, len(data), buffer, len(buffer), False, False)
        if count < 0:
            raise BackendError(f"llama_tokenize returned {count}.")
        return list(buffer[:count])

    @functools.lru_cache(maxsize=1 << 16)  # noqa: B019 (lives as long as the model)
    def piece(self, token: int) -> bytes:
        """The bytes of a token; ordinary tokens only, control tokens give none."""
        if not 0 <= token < self.size:
            raise BackendError(f"Token {token} is outside the vocabulary of {self.size:,}.")
        buffer = ctypes.create_string_buffer(512)
        count = self._c.llama_token_to_piece(self.pointer, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(count, 0)]

    def spelled(self, token: int) -> bytes:
        """The bytes of an ordinary token as the vocabulary spells them: as `piece`, but faster for going through all."""
        text: bytes = self._c.llama_vocab_get_text(self.pointer, token) or b""
        if len(text) == 6 and text.startswith(b"<0x"):
            return bytes([int(text[3:5], 16)])
        return text.replace(b"\xe2\x96\x81", b" ")
