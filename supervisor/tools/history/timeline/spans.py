"""What a timeline is made of: stays in states, tasks, the person, readings, marks. Times are seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

GAP: Final = "GAP"
HERE, LEFT, AWAY, UNSEEN = "here", "just left", "away", "unknown"


@dataclass(slots=True)
class Span:
    """A stay in a state, or a gap (`state` GAP): what led here, what ended it, and what was said meanwhile."""

    begin: float
    end: float
    state: str
    why: str = ""
    left: str = ""
    words: tuple[str, ...] = ()


@dataclass(slots=True)
class TaskSpan:
    """A task from its start to its end. `outcome`: done, failed, handed back, lost, or running; `why` in words."""

    begin: float
    end: float
    id: str
    type: str
    outcome: str = "running"
    why: str = ""
    row: str = ""
    reaction_s: float | None = None  # from the person's sign to no process left


@dataclass(slots=True)
class PersonSpan:
    """The person as the node saw them: here, just left (not away for long enough), away, unknown."""

    begin: float
    end: float
    kind: str
    words: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """Readings at a moment: percent, percent, GiB; None: unknown, absent, or the end of a stretch."""

    at: float
    cpu: float | None = None
    gpu: float | None = None
    vram: float | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a moment: start, stop, operator, link, config, clock."""

    at: float
    kind: str
    words: str
