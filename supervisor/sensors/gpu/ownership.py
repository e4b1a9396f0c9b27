"""Whose a GPU process is, what the node's own task does on the lent GPUs, and what one that is over has left there. Pure:
names come from a function handed in. What each kind of GPU tells is judged in `nvml_usage` and `drm_usage`.

A process on a lent GPU is one of four (R9):
- own: of the node's task (`own_pids`, all of its control group), or listed in `gpu.own_processes` or `gpu.own_units`; its
  memory is not counted;
- display: a display server listed in `gpu.display_servers`; harmless while all of them together hold no more than
  DISPLAY_CAP_GB (a compositor can hold 6 GB); its memory counts as used by others, as all memory but our own;
- remnant: was the task's a moment ago and is gone; no sign of a person, but what it still holds counts as used, and is
  told as `held` when that lasts longer than VRAM_RELEASE_S; so is what a model server of RAE's keeps for a task
  that is over, and what vanished from the list of processes but not from the total (a driver that leaks);
- foreign: everything else, compute or graphics (games are in the graphics list only), known by name or not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from states.formatting import number
from states.observation import Gpu
from supervisor.config.schema import GpuSettings
from supervisor.linux.proc import Name, in_units, listed

GIB: Final = 2**30
DISPLAY_CAP_GB: Final = 2.0  # GiB up to which display servers only draw a desktop
VRAM_RELEASE_S: Final = 5.0  # what a driver may take to free the VRAM of a task that is gone
UNEXPLAINED_GB: Final = 0.5  # less than this is the driver's own bookkeeping
LEAKED_GB: Final = 0.25  # as much more that no listed process holds than beside the task, and it is the task's


class Whose(StrEnum):
    """Whose process it is."""

    OWN = "own"
    DISPLAY = "display"
    REMNANT = "remnant"
    FOREIGN = "foreign"


NameOf = Callable[[int], Name]


@dataclass(frozen=True, slots=True)
class Own:
    """What the node's own task does on the lent GPUs: processes with a context; GiB, and percent (None: not told), on that
    GPU where it is most. `left` says in words what a task that is over still holds, since however short a time; `left_by`
    are the processes among that, `unlisted` the GiB by GPU that no listed process holds beside the task."""

    processes: int = 0
    vram_gb: float = 0.0
    percent: float | None = None
    left: str = ""
    left_by: tuple[int, ...] = ()
    unlisted: Mapping[str, float] = field(default_factory=dict)


NOTHING_OWN: Final = Own()


@dataclass(frozen=True, slots=True)
class Use:
    """The judgement: a value or an error, a note in words, and one row a device for people and `--json`."""

    gpu: Gpu | None
    error: str = ""
    note: str = ""
    rows: tuple[dict[str, Any], ...] = ()
    own: Own = NOTHING_OWN


def whose(pid: int, name: Name, own: Collection[int], lately: Collection[int], settings: GpuSettings) -> Whose:
    """Whose process it is, before the display servers' cap."""
    if pid in own or listed(name, settings.own_processes) or in_units(name, settings.own_units):
        return Whose.OWN
    if pid in lately and name.gone:
        return Whose.REMNANT
    return Whose.DISPLAY if listed(name, settings.display_servers) else Whose.FOREIGN


class Left(NamedTuple):
    """What a task that is over still holds: in words, by which process (0: by none that is known), how many seconds after
    the task."""

    words: str
    pid: int
    ago_s: float


def left_behind(
    sizes: Iterable[tuple[int, int | None]],
    own: Collection[int],
    lately: Mapping[int, float],
    names: Mapping[int, Name],
    side: Mapping[int, Whose],
) -> list[Left]:
    """What processes hold for a task that is over: those that are gone, and a model server that has not unloaded.

    Args:
        sizes: pid and bytes (None: not told) of each process on each lent GPU.
        own, lately: see the judgements.
        names, side: what is known of those processes.
    """
    held: dict[int, int | None] = {}
    for pid, used in sizes:
        least = 1 if side[pid] is Whose.REMNANT else UNEXPLAINED_GB * GIB
        late = pid in lately and pid not in own and side[pid] in (Whose.REMNANT, Whose.OWN)
        if late and (used is None or used >= least):
            before = held.get(pid, 0)
            held[pid] = None if used is None or before is None else before + used
    return [
        Left(
            f"{'VRAM' if used is None else number(used / GIB) + ' GiB'} by "
            + (f"pid {pid}, which is gone" if names[pid].gone else called(pid, names[pid])),
            pid,
            lately[pid],
        )
        for pid, used in held.items()
    ]


def leaked(now: Mapping[str, float], beside: Mapping[str, float], lately: Mapping[int, float], by: str) -> list[Left]:
    """What a driver has kept of a task that is over: memory that no process accounts for, and that was not there beside it.

    Args:
        now, beside: GiB by GPU that no listed process holds now, and held beside the task.
        lately: how many seconds ago its processes were there.
        by: who holds it, in words.
    """
    ago_s = min(lately.values(), default=float("inf"))
    more = [now.get(gpu, 0.0) - before_gb for gpu, before_gb in beside.items()]
    return [Left(f"{number(more_gb)} GiB by {by}", 0, ago_s) for more_gb in more if more_gb > LEAKED_GB]


def still_held(left: Sequence[Left]) -> str:
    """In words, what should have been given back by now."""
    return ", ".join(it.words for it in left if it.ago_s >= VRAM_RELEASE_S)


def called(pid: int, name: Name) -> str:
    """A process in words."""
    return f"{name} (pid {pid})" if not name.gone else f"pid {pid}"
