"""Decides who owns each GPU process, what others use of the lent GPUs, and what a finished task has left there. Pure.

A process on a lent GPU is one of four:
- own: a process of the node's task, or one that `gpu.own_processes` or `gpu.own_units` lists. Its memory is not counted.
- display: a display server in `gpu.display_servers`. It is harmless while all of them together hold at most
  DISPLAY_CAP_GB (a compositor can hold 6 GB). Its memory counts as used by others.
- remnant: it was the task's a moment ago and has ended. It is no sign of a person. What it still holds counts as used, and is
  reported as `held` after VRAM_RELEASE_S. The same holds for what an own model server keeps for a finished task, and
  for memory that no listed process explains any more (a driver that leaks).
- foreign: every other process, compute or graphics. Games appear in the graphics list only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from msgspec import Struct

from states.formatting import number
from states.observation import Gpu
from supervisor.config.schema import GpuSettings
from supervisor.linux.proc import Name, in_units, listed

GIB: Final = 2**30
DISPLAY_CAP_GB: Final = 2.0  # GiB up to which display servers only draw a desktop
VRAM_RELEASE_S: Final = 5.0  # what a driver may take to free the VRAM of a task that is gone
UNEXPLAINED_GB: Final = 0.5  # less than this is the driver's own bookkeeping
LEAKED_GB: Final = 0.25  # memory without a process that exceeds the amount beside the task by this much is the task's
UNTOLD_PERCENT: Final = 30  # a GPU that is so much busier than the sum of its processes: the driver does not report theirs


class Whose(StrEnum):
    OWN = "own"
    DISPLAY = "display"
    REMNANT = "remnant"
    FOREIGN = "foreign"


class Process(Struct, frozen=True):
    """A process that has a GPU open, as a helper reports it.

    kind: c compute, g graphics, cg both; empty: unknown.
    used: bytes of the GPU's own memory; None: unknown.
    percent: how busy it kept the GPU lately; None: unknown.
    busy: it holds something or has done something.
    """

    pid: int
    kind: str = ""
    used: int | None = None
    percent: int | None = None
    busy: bool = True


@dataclass(frozen=True, slots=True)
class LentGpu:
    """A lent GPU: its UUID or PCI address, load, bytes in use, processes, and the GiB that no listed process holds (None: its
    driver reports no total)."""

    id: str
    percent: float
    used: int
    processes: Sequence[Process]
    unlisted_gb: float | None


@dataclass(frozen=True, slots=True)
class TaskUse:
    """What the node's own task does on the lent GPUs.

    processes: processes with a context.
    vram_gb, percent: on the GPU where it is most; percent None: unknown.
    left: as text, what a finished task still holds, for however short a time.
    left_by: the processes among `left`.
    unlisted: GiB by GPU that no listed process holds beside the task.
    """

    processes: int = 0
    vram_gb: float = 0.0
    percent: float | None = None
    left: str = ""
    left_by: tuple[int, ...] = ()
    unlisted: Mapping[str, float] = field(default_factory=dict)


NO_TASK_USE: Final = TaskUse()


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What one look has shown: a value or an error, a note as text, and one row per GPU for people and `--json`."""

    gpu: Gpu | None
    error: str = ""
    note: str = ""
    rows: tuple[dict[str, Any], ...] = ()
    own: TaskUse = NO_TASK_USE


@dataclass(frozen=True, slots=True)
class Known:
    """What the judgement of a look needs besides the look.

    settings: `gpu` of node.yaml.
    name_of: a process's names; empty names mean that it is gone.
    own: pids of the node's task now.
    lately: pids that were the task's within the last half minute, or have left something; seconds since then.
    unlisted: GiB by GPU that no listed process held beside the last task.
    """

    settings: GpuSettings
    name_of: Callable[[int], Name]
    own: Collection[int] = frozenset()
    lately: Mapping[int, float] = field(default_factory=dict)
    unlisted: Mapping[str, float] = field(default_factory=dict)

    def whose(self, pid: int, name: Name) -> Whose:
        """Who owns a process, before the display servers' cap."""
        if pid in self.own or listed(name, self.settings.own_processes) or in_units(name, self.settings.own_units):
            return Whose.OWN
        if pid in self.lately and name.gone:
            return Whose.REMNANT
        return Whose.DISPLAY if listed(name, self.settings.display_servers) else Whose.FOREIGN


class Left(NamedTuple):
    """What a finished task still holds: as text, the process (0: none is known), and the seconds since the task."""

    text: str
    pid: int
    ago_s: float


def judge(
    gpus: Sequence[LentGpu],
    known: Known,
    names: Mapping[int, Name],
    owners: Mapping[int, Whose],
    foreign: Sequence[int],
    unlisted_by: str = "no listed process",
) -> tuple[Gpu, TaskUse]:
    """What others use of the lent GPUs, and what the task does there.

    While a process of the task has a context on a GPU and no foreign process is on any, the GPU's load is the task's and does
    not count. Otherwise all of it counts, because drivers do not divide it reliably.

    Args:
        names, owners: of the processes on these GPUs.
        foreign: the foreign processes, sorted.
        unlisted_by: who holds the memory that no listed process holds, as text.
    """
    percents, sizes = [], []
    for gpu in gpus:
        ours = [p for p in gpu.processes if owners[p.pid] is Whose.OWN]
        percents.append(0.0 if known.own and ours and not foreign else gpu.percent)
        sizes.append(max(0, gpu.used - sum(p.used or 0 for p in ours)) / GIB)
    unlisted = {gpu.id: gpu.unlisted_gb for gpu in gpus if gpu.unlisted_gb is not None}
    left = [*_left_by_processes(gpus, known, names, owners)]
    if not known.own:
        left += _leaked(unlisted, known, unlisted_by)
    task = {gpu.id: [p for p in gpu.processes if p.pid in known.own] for gpu in gpus}
    task_percents = [percent for gpu in gpus if (percent := _task_percent(gpu, task[gpu.id], bool(foreign))) is not None]
    others = Gpu(
        percent=max(percents),
        vram_gb=max(sizes),
        foreign=len(foreign),
        foreign_names=tuple(called(pid, names.get(pid, Name())) for pid in foreign),
        held=", ".join(it.text for it in left if it.ago_s >= VRAM_RELEASE_S),
    )
    own = TaskUse(
        processes=len({p.pid for processes in task.values() for p in processes}),
        vram_gb=max(sum(p.used or 0 for p in processes) for processes in task.values()) / GIB,
        percent=max(task_percents, default=None),
        left=", ".join(it.text for it in left),
        left_by=tuple(it.pid for it in left if it.pid),
        unlisted=unlisted if any(task.values()) else {},
    )
    return others, own


def _task_percent(gpu: LentGpu, task: Sequence[Process], foreign: bool) -> float | None:
    """How busy the task keeps one GPU: the sum of its processes if the driver reports them plausibly, else the GPU's load if no
    foreign process is there. None: unknown, or the task is not on it."""
    if not task:
        return None
    reported = [p.percent for p in task if p.percent is not None]
    total = sum(p.percent or 0 for p in gpu.processes)
    if reported and all(0 <= percent <= 100 for percent in reported) and total >= gpu.percent - UNTOLD_PERCENT:
        return float(min(100, sum(reported)))
    return None if foreign else gpu.percent


def _left_by_processes(
    gpus: Sequence[LentGpu], known: Known, names: Mapping[int, Name], owners: Mapping[int, Whose]
) -> Iterator[Left]:
    """What processes hold for a finished task: those that have ended, and a model server that has not unloaded."""
    held: dict[int, int | None] = {}
    for pid, used in ((p.pid, p.used) for gpu in gpus for p in gpu.processes):
        least = 1 if owners[pid] is Whose.REMNANT else UNEXPLAINED_GB * GIB
        late = pid in known.lately and pid not in known.own and owners[pid] in (Whose.REMNANT, Whose.OWN)
        if late and (used is None or used >= least):
            before = held.get(pid, 0)
            held[pid] = None if used is None or before is None else before + used
    for pid, used in held.items():
        holder = f"pid {pid}, which is gone" if names[pid].gone else called(pid, names[pid])
        yield Left(f"{'VRAM' if used is None else number(used / GIB) + ' GiB'} by {holder}", pid, known.lately[pid])


def _leaked(unlisted: Mapping[str, float], known: Known, by: str) -> Iterator[Left]:
    """What a driver has kept of a finished task: memory without a process that was not there beside the task."""
    ago_s = min(known.lately.values(), default=float("inf"))
    for gpu, before_gb in known.unlisted.items():
        if (more_gb := unlisted.get(gpu, 0.0) - before_gb) > LEAKED_GB:
            yield Left(f"{number(more_gb)} GiB by {by}", 0, ago_s)


def called(pid: int, name: Name) -> str:
    return f"{name} (pid {pid})" if not name.gone else f"pid {pid}"


def gib(size: int | None) -> float | None:
    """Bytes in GiB, for people."""
    return None if size is None else round(size / GIB, 2)


def process_rows(
    processes: Sequence[Process], names: Mapping[int, Name], owners: Mapping[int, Whose], default: str
) -> list[dict[str, Any]]:
    """Rows for doctor and check-gpu; `default` is the owner of a process that was not judged."""
    return [
        {"pid": p.pid, "name": str(names.get(p.pid, Name())), "used_gb": gib(p.used), "whose": str(owners.get(p.pid, default))}
        | ({"kind": p.kind} if p.kind else {})
        for p in processes
    ]
