"""What one look at the world holds. Every reading is a value or an error, with its source and the time of the reading.

Times are seconds of CLOCK_BOOTTIME: they count suspend, and wall-clock jumps do not change them. A claim is id and type,
never its payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

NEVER: Final = float("-inf")


class TaskPhase(StrEnum):
    """Where the one task is: nothing, a poll in flight, handed over, a process, or over."""

    NONE = "none"
    ASKED = "asked"
    CLAIMED = "claimed"
    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"


class Link(StrEnum):
    """The way to the control node. `down` keeps READY from polling; `lost` was given up and is automation off."""

    UP = "up"
    DOWN = "down"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """A value or an error, where it comes from, and when it was read (seconds of CLOCK_BOOTTIME)."""

    value: T | None = None
    error: str = "not read yet"
    source: str = ""
    read_at_s: float = NEVER


@dataclass(frozen=True, slots=True)
class Person:
    """The last sign of the person: when (seconds of CLOCK_BOOTTIME), and its text. `lasts`: it has not ended, so no time that
    passes ends it."""

    last_sign_at_s: float
    sign: str = "user active"
    lasts: bool = False


@dataclass(frozen=True, slots=True)
class Gpu:
    """The lent GPU without the node's own task: percent, GiB of VRAM, number of GPU processes that are not RAE's."""

    percent: float = 0.0
    vram_gb: float = 0.0
    foreign: int = 0
    present: bool = True
    foreign_names: tuple[str, ...] = ()
    held: str = ""  # text: the memory that an ended task has not given back in time
    pinned: bool = False  # the own task uses GPU memory, and would keep it while it is frozen
    busiest: str = ""  # of several lent GPUs, the one that `percent` is of
    fullest: str = ""  # … and the one that `vram_gb` is of


@dataclass(frozen=True, slots=True)
class Cpu:
    """Percent of the whole machine's CPU that others use, without the node's own task."""

    percent: float


@dataclass(frozen=True, slots=True)
class Host:
    """Whether the machine is fit to work, and whether it is about to sleep or shut down; `reason` as text."""

    fit: bool = True
    going_down: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Automation:
    """Whether the node may work: runtime.yaml, a pause, a broken configuration. `reason` says what switched it off."""

    on: bool
    reason: str = ""
    source: str = "runtime.yaml"
    until_s: float | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """The one task: its phase, id and type."""

    phase: TaskPhase = TaskPhase.NONE
    id: str = ""
    type: str = ""


NO_TASK: Final = Task()
UNSEEN: Final[Reading[Any]] = Reading()
AUTOMATION_OFF: Final = Automation(on=False, reason="automation is not switched on")


@dataclass(frozen=True, slots=True)
class Observation:
    """One look: everything that guards may read, at `now_s` (seconds of CLOCK_BOOTTIME)."""

    now_s: float
    automation: Automation = AUTOMATION_OFF
    person: Reading[Person] = UNSEEN
    gpu: Reading[Gpu] = UNSEEN
    cpu: Reading[Cpu] = UNSEEN
    host: Reading[Host] = UNSEEN
    task: Task = NO_TASK
    link: Link = Link.UP
    link_reason: str = ""
