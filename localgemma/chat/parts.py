"""The files of a message: told apart by their content, looked at and counted at once, read when the turn begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from localgemma.chat import documents, pdf, video
from localgemma.chat.room import Planned, Room
from localgemma.chat.turn import picture_sizes
from localgemma.engine import CancelToken, Engine, EngineInfo, Prompt, Text
from localgemma.errors import Cancelled
from localgemma.messages import Event, ImagePart, Notice, Part, Progress, TextPart, VideoPart
from localgemma.options import ChatOptions
from localgemma.units import format_duration

Kind: TypeAlias = Literal["picture", "pdf", "video", "text"]


class Files:
    """The files that go along with a message.

    `speeds` are the tokens of words and of pictures that were read a second earlier (0: not known), `used` gives those of the
    conversation before them. Raises UsageError, BadMedia, NotFound, PictureTooLarge and, with what fits, ContextOverflow.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        options: ChatOptions,
        engine: Engine,
        picture: Callable[[Any], ImagePart],
        speeds: tuple[float, float],
        used: Callable[[], int],
    ) -> None:
        self._items = list[Part | Planned]()
        self._speeds = (engine.info.text_speed or speeds[0], engine.info.picture_speed or speeds[1])
        room: Room | None = None
        for source in sources:
            if isinstance(source, (VideoPart, TextPart)):
                self._items.append(source)
                continue
            kind = kind_of(source, engine.info)
            if kind != "picture":
                room = room or Room(engine.info.context, lambda text: engine.count(Prompt((Text(text),))), used())
            planned = None if room is None or kind == "picture" else _planned(kind, source, options, engine.info, room)
            item = picture(source) if planned is None else planned
            if room is not None:
                room.used += item.tokens if isinstance(item, Planned) else item.pixels.tokens if item.pixels else 0
            self._items.append(item)

    def read(self, cancel: CancelToken | None, *, sized: bool) -> Generator[Event, None, list[Part]]:
        """Say what every file comes to (of pictures only where `sized`), then read them. Raises BadMedia, and Cancelled."""
        planned = [item for item in self._items if isinstance(item, Planned)]
        for each in planned:
            seconds = self._seconds(each)
            yield Notice(each.said + (f", about {format_duration(seconds)} to read" if seconds >= 1 else ""))
        yield from picture_sizes([item for item in self._items if isinstance(item, ImagePart)]) if sized else ()
        parts: list[Part] = []
        for item in self._items:
            if not isinstance(item, Planned):
                parts.append(item)
                continue
            begun = time.monotonic()
            for found in item.read():
                if cancel is not None and cancel.cancelled:
                    raise Cancelled("Cancelled.")
                if isinstance(found, Progress):
                    spent = time.monotonic() - begun
                    left = spent / found.done * (found.total - found.done) if found.done else None
                    yield Progress(found.stage, found.done, found.total, left)
                else:
                    parts.append(found)
        return parts

    def _seconds(self, planned: Planned) -> float:
        """Seconds to read it, about; 0 where that is not known."""
        words, pictures = self._speeds
        if not words or (planned.pictures and not pictures):
            return 0.0
        return planned.tokens / words + (planned.pictures / pictures if planned.pictures else 0.0)


def kind_of(source: Any, info: EngineInfo | None = None) -> Kind:
    """What a source is, by its content; what is none of the others is left to the picture reader, which says so."""
    if isinstance(source, documents.Document):
        return "text"
    if not isinstance(source, (str, Path)) or str(source).startswith(("data:", "http:", "https:")):
        return "picture"
    if pdf.wanted(source) is not None:
        return "pdf"
    if video.is_video(source):
        return "picture" if info is not None and not info.image_tokens else "video"
    return "text" if documents.is_text(source) else "picture"


def _planned(kind: Kind, source: Any, options: ChatOptions, info: EngineInfo, room: Room) -> Planned | None:
    if kind == "pdf":
        asked = pdf.wanted(source)
        return None if asked is None else pdf.plan(asked, info, room)
    if kind == "video":
        return video.plan(source, options, room)
    return documents.plan(source, room)
