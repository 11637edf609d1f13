"""Text to read a model with: plain files, and chats rendered as the model sees them, with thoughts, tools and pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from localgemma.engine import CancelToken, Prompt
from localgemma.errors import DiskError, LocalgemmaError, NotFound, UsageError
from localgemma.gemma4.prompt import MediaReader, render
from localgemma.llamacpp.imatrix import Collector, Observed
from localgemma.llamacpp.sequence import Run
from localgemma.make.imatrix import CHUNK, Entry, Imatrix
from localgemma.make.quantize import Told
from localgemma.messages import Message, Pixels, Progress
from localgemma.options import LoadOptions

Piece: TypeAlias = str | Prompt
_FORM = 'Write a line like {"messages": [{"role": "user", "content": "…"}, …]} or {"text": "…"}.'


def read_data(path: Path, media: MediaReader | None = None) -> list[Piece]:
    """The pieces of a file: every line of a .jsonl is a chat or a text of its own, any other file is one text.

    A chat has `messages`, and may have `tools` and `enable_thinking`; `media` reads its pictures. Raises NotFound, DiskError,
    and UsageError naming the line that is neither.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"There is no file {path}.", "Check its name.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path.name} is not text in UTF-8.", "Give text, or chats as .jsonl.") from None
    except (OSError, ValueError) as error:
        raise DiskError(f"{str(path)!r} could not be read: {error}.", "Check its name and permissions.") from error
    if path.suffix.lower() != ".jsonl":
        if not text.strip():
            raise UsageError(f"{path.name} has no text.", "Give a file with some pages of it.")
        return [text]
    pieces = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                pieces.append(_piece(json.loads(line), media))
            except (ValueError, RecursionError):
                raise UsageError(f"Line {number} of {path.name} is not JSON.", _FORM) from None
            except LocalgemmaError as error:
                error.message = f"Line {number} of {path.name}: {error.message}"
                raise
    if not pieces:
        raise UsageError(f"{path.name} has no lines.", _FORM)
    return pieces


def _piece(record: Any, media: MediaReader | None) -> Piece:
    if isinstance(record, Mapping):
        messages, tools = record.get("messages"), record.get("tools") or ()
        if isinstance(messages, list) and messages and isinstance(tools, list | tuple):
            return chat(messages, tools=tools, thinking=bool(record.get("enable_thinking")), media=media)
        if isinstance(record.get("text"), str) and record["text"].strip():
            return str(record["text"])
    raise UsageError("It has neither messages nor a text.", _FORM)


def chat(
    messages: Sequence[Message | Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    thinking: bool = False,
    media: MediaReader | None = None,
) -> Prompt:
    """A finished chat as the model read and wrote it. Raises BadConversation."""
    return render(
        messages, tools=tools, enable_thinking=thinking, preserve_thinking=True, add_generation_prompt=False, media=media
    )


def has_pictures(pieces: Sequence[Piece]) -> bool:
    """Whether a projector is needed."""
    return any(isinstance(item, Pixels) for piece in pieces if isinstance(piece, Prompt) for item in piece.flat())


def collect(
    model: Path,
    projector: Path | None,
    pieces: Sequence[Piece],
    options: LoadOptions,
    *,
    datasets: Sequence[str] = (),
    progress: Told | None = None,
    cancel: CancelToken | None = None,
) -> Imatrix:
    """The importance matrix of a model over `pieces`; texts are read in chunks of 512 tokens as llama-imatrix does.

    Raises what loading a model raises, PictureTooLarge, Cancelled and BackendError.
    """
    import numpy as np

    collector, cancel = Collector(), cancel or CancelToken()

    def loading(done: float) -> bool:
        _tell(progress, "load", done, 1.0)
        return not cancel.cancelled

    with Observed(model, projector, options, wanted=collector.wanted, watch=collector.watch, progress=loading) as observed:
        runs: list[list[Run]] = []
        for piece in pieces:
            if isinstance(piece, str):
                runs += [[chunk] for chunk in observed.chunks(piece, CHUNK)]
            else:
                runs.append(observed.runs(piece))
        for done, run in enumerate(runs):
            _tell(progress, "imatrix", done, len(runs))
            collector.forget_inputs()
            observed.evaluate(run, cancel)
    entries = {
        name: Entry(sums[None], np.array([collector.counts[name]], np.int64)) for name, sums in sorted(collector.sums.items())
    }
    made = Imatrix(entries, tuple(datasets))
    return Imatrix(entries, made.datasets, CHUNK, max(1, made.tokens // CHUNK))


def _tell(progress: Told | None, stage: str, done: float, total: float) -> None:
    if progress is not None:
        progress(Progress(stage, done, total))
