"""How one attempt at a task ended: one value, which source, journal, metrics and timeline read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class EndingKind(StrEnum):
    """What became of the attempt."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    HANDED_BACK = "handed_back"


class Vram(StrEnum):
    """What the GPU says about the task's memory after the end."""

    UNUSED = "unused"  # the task was not on the GPU
    FREE = "free"
    HELD = "held"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Ending:
    """The ending of one attempt.

    `error` is None exactly when the task succeeded; otherwise one line for the submitter, or the reason for a hand-back.
    `result` and `saved_state` hold task data: they go to the control node only, never into a log.
    """

    kind: EndingKind
    error: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict, repr=False)
    saved_state: Any = field(default=None, repr=False)


def succeeded(result: Mapping[str, Any]) -> Ending:
    """The task ended well, with this result."""
    return Ending(EndingKind.SUCCEEDED, None, result)


def failed(error: str, result: Mapping[str, Any] | None = None, *, kind: EndingKind = EndingKind.FAILED) -> Ending:
    """The task failed: by itself, by its own limits, or (`TIMED_OUT`) because it took too long."""
    return Ending(kind, error, result or {})


def handed_back(reason: str, saved_state: Any = None) -> Ending:
    """The task goes back to the control node, so that it can run elsewhere, with the place that it has saved."""
    return Ending(EndingKind.HANDED_BACK, reason, {}, saved_state)
