"""What a file becomes in a message: the pages of a PDF, a video, or none of these, left to the picture reader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from localgemma.chat.pdf import pdf_parts, wanted
from localgemma.chat.video import moving
from localgemma.engine import EngineInfo
from localgemma.messages import Part, TextPart
from localgemma.options import ChatOptions


def parts_of(source: Any, options: ChatOptions, info: EngineInfo) -> list[Part]:
    """The parts of a PDF or video, by its content; none for everything else. Raises as pdf_parts and video_part do."""
    document = wanted(source)
    if document is not None:
        return pdf_parts(document, info)
    video = moving(source, options, info)
    return [] if video is None else [video]


def joined(parts: Iterable[Part]) -> list[Part]:
    """The parts with texts that follow one another made one, a blank line between them."""
    out: list[Part] = []
    for part in parts:
        before = out[-1] if out else None
        if isinstance(before, TextPart) and isinstance(part, TextPart):
            out[-1] = TextPart(f"{before.text}\n\n{part.text}")
        else:
            out.append(part)
    return out
