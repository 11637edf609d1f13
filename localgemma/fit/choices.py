"""One decision of a plan, in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision of the plan: what it is about, what was chosen, and why. "asked" is a flag of the user's, with its cost."""

    what: str
    chosen: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.chosen} ({self.reason})"
