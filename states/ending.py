"""How one attempt at a task ended, and how its stop went: types that source, journal, metrics and timeline read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Protocol


class EndingKind(StrEnum):
    """What became of the attempt."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    HANDED_BACK = "handed_back"


class Step(Protocol):
    """One step of freezing or stopping a task: `frozen`, `term`, `kill`, `gone`, …"""

    @property
    def name(self) -> str:
        """Which step."""
        ...

    @property
    def seconds(self) -> float | None:
        """How long it took; None: a step without a time."""
        ...


class VramState(StrEnum):
    """What the GPU says about the task's memory after its end."""

    UNUSED = "unused"  # the task was not on the GPU
    FREE = "free"
    HELD = "held"
    UNREADABLE = "unreadable"
    NOT_REQUIRED = "not_required"  # unreadable, and gpu.presence does not require a GPU


@dataclass(frozen=True, slots=True)
class Vram:
    """`after_s`: seconds from the order to this reading. `detail`: who holds the memory, or why it cannot be read."""

    state: VramState = VramState.UNUSED
    after_s: float = 0.0
    detail: str = ""


VRAM_UNUSED: Final = Vram()


@dataclass(frozen=True, slots=True)
class StopReport:
    """How a task was frozen, thawed or stopped. `note`: what the operator should know besides."""

    rungs: tuple[Step, ...] = ()
    vram: Vram = VRAM_UNUSED
    note: str = ""


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
    stop: StopReport | None = None


def succeeded(result: Mapping[str, Any], stop: StopReport | None = None) -> Ending:
    """The task ended well, with this result."""
    return Ending(EndingKind.SUCCEEDED, None, result, stop=stop)


def failed(
    error: str,
    result: Mapping[str, Any] | None = None,
    stop: StopReport | None = None,
    *,
    kind: EndingKind = EndingKind.FAILED,
) -> Ending:
    """The task failed: by itself, by its own limits, or (`TIMED_OUT`) because it took too long."""
    return Ending(kind, error, result or {}, stop=stop)


def handed_back(reason: str, saved_state: Any = None, stop: StopReport | None = None) -> Ending:
    """The task goes back to the control node, so that it can run elsewhere, with the place that it has saved."""
    return Ending(EndingKind.HANDED_BACK, reason, {}, saved_state, stop)
