"""What stands at the front of every prompt (system message, tools, switches), and what a change of it costs.

A cache serves equal tokens from the start, so after such a change the whole conversation is read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from localgemma.messages import Notice
from localgemma.units import format_duration

if TYPE_CHECKING:
    from localgemma.chat.conversation import Conversation
    from localgemma.engine import Engine, Prompt


class Front:
    """The front of a conversation's last prompt; a change is told once, with tokens and seconds."""

    def __init__(self) -> None:
        self._last: tuple[Any, ...] | None = None

    def saw(self, chat: Conversation) -> None:
        """The front as it stands is known."""
        options = chat.options
        thinking = options.thinking and options.think_budget > 0
        tools = [tool.declaration for tool in chat.toolbox.tools]
        self._last = (chat.system or None, tools, thinking, options.preserve_thinking, options.template)

    def told(self, chat: Conversation, prompt: Prompt, turns: int) -> Iterator[Notice]:
        """What the prompt costs after `turns` earlier turns if its front has changed."""
        before = self._last
        self.saw(chat)
        if before is not None and before != self._last and turns:
            yield Notice(f"The system message, the tools or a switch changed: {reread(chat.engine, prompt)}")


def reread(engine: Engine, prompt: Prompt) -> str:
    """How much is read again, and how long it takes where that is known."""
    count, speed = engine.count(prompt), engine.info.prefill_speed
    time = f", about {format_duration(count / speed)}" if speed else ""
    return f"{count:,} tokens will be read again{time}."
