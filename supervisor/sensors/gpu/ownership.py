"""Decides who owns each GPU process, what others use of the lent GPUs, and what a finished task has left there. Pure.

A process on a lent GPU is one of four:
- own: a process of the node's task, or one that `gpu.own_processes` or `gpu.own_units` lists. Its memory is not counted.
- desktop: it draws, holds little, and does nothing else. It is known by what it is, never by its name: its unit is the
  desktop's own part of a session, a login screen, or what starts those; or it has run for SETTLED_S, holds at most SMALL_GB,
  and takes at most DRAWN_PERCENT, like a browser that a person has left open. All of them together hold at most DESKTOP_GB,
  or else they are foreign. Their memory counts as used by others.
- remnant: it was the task's a moment ago and has ended. It is no sign of a person. What it still holds counts as used, and is
  reported as `held` after VRAM_RELEASE_S. The same holds for what an own model server keeps for a finished task, and
  for memory that no listed process explains any more (a driver that leaks).
- foreign: every other process, compute or graphics. A new program is foreign at once, whatever it does.

A lent GPU whose load or memory belongs to nobody who is listed is unknown: a driver's list leaves out processes of other
containers, for example. So is one whose only foreign processes have no entry in /proc.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from msgspec import Struct

from states.formatting import number
from states.observation import Gpu
from supervisor.config.schema import GpuSettings
from supervisor.linux.proc import Name, draws_desktop, in_units, listed

GIB: Final = 2**30
DESKTOP_GB: Final = 2.0  # GiB up to which all that draws a desktop only draws a desktop
SMALL_GB: Final = 0.5  # of one program that is known only by its age
SETTLED_S: Final = 300.0
DRAWN_PERCENT: Final = 30  # the load of what only draws a desktop: at its lowest clock a GPU is soon that busy
NOBODYS_GB: Final = 1.0  # more than a driver keeps for itself
NOBODYS_PERCENT: Final = 20
NOBODYS_LAG_S: Final = 3.0  # so long a driver reports the load of a process that has ended
VRAM_RELEASE_S: Final = 5.0  # what a driver may take to free the VRAM of a task that is gone
UNEXPLAINED_GB: Final = 0.5  # less than this is the driver's own bookkeeping
LEAKED_GB: Final = 0.25  # memory without a process that exceeds the amount beside the task by this much is the task's
UNTOLD_PERCENT: Final = 30  # a GPU that is so much busier than the sum of its processes: the driver does not report theirs


class Whose(StrEnum):
    OWN = "own"
    DESKTOP = "desktop"
    REMNANT = "remnant"
    FOREIGN = "foreign"


class Process(Struct, frozen=True):
    """A process that has a GPU open, as a helper reports it.

    kind: c compute, g graphics, cg both; empty: unknown.
    used: bytes of the GPU's own memory; None: unknown.
    percent: how busy it kept the GPU lately; None: unknown.
    busy: it holds something or has done something.
    engine_ns: how long it has kept the GPU busy so far; None: unknown.
    """

    pid: int
    kind: str = ""
    used: int | None = None
    percent: int | None = None
    busy: bool = True
    engine_ns: int | None = None


@dataclass(frozen=True, slots=True)
class LentGpu:
    """A lent GPU: its UUID or PCI address, load, bytes in use, processes, and the GiB that no listed process holds (None: its
    driver reports no total, or it has no memory of its own). `hidden`: processes may use it that cannot be looked into."""

    id: str
    percent: float
    used: int
    processes: Sequence[Process]
    unlisted_gb: float | None
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class TaskUse:
    """What the node's own task does on the lent GPUs.

    processes: processes with a context.
    vram_gb, percent: on the GPU where it is most; percent None: unknown.
    left: as text, what a finished task still holds, for however short a time.
    left_by: the processes among `left`.
    unlisted: GiB by GPU that no listed process holds beside the task.
    stray: as text, a GPU that is not lent and that the task uses all the same.
    """

    processes: int = 0
    vram_gb: float = 0.0
    percent: float | None = None
    left: str = ""
    left_by: tuple[int, ...] = ()
    unlisted: Mapping[str, float] = field(default_factory=dict)
    stray: str = ""


NO_TASK_USE: Final = TaskUse()


@dataclass(frozen=True, slots=True)
class GpuUse:
    """What one look has shown: a value or an error, a note as text, one row per GPU for people and `--json`, what the task does
    there, and the GiB by GPU that no listed process holds."""

    gpu: Gpu | None
    error: str = ""
    note: str = ""
    rows: tuple[dict[str, Any], ...] = ()
    own: TaskUse = NO_TASK_USE
    unlisted: Mapping[str, float] = field(default_factory=dict)


def _old(_pid: int) -> float:
    return math.inf


@dataclass(frozen=True, slots=True)
class Known:
    """What the judgement of a look needs besides the look.

    settings: `gpu` of node.yaml.
    name_of: a process's names; empty names mean that it is gone.
    own: pids of the node's task now.
    lately: pids that were the task's within the last half minute, or have left something; seconds since then.
    unlisted: GiB by GPU that no listed process held beside the last task.
    age_s: how long ago a process was started, in seconds.
    on_gpu_s: how long ago the task was last seen on a lent GPU, in seconds.
    before: GiB by GPU that no listed process held when there was no task.
    display_manager: the unit of X servers and login screens.
    """

    settings: GpuSettings
    name_of: Callable[[int], Name]
    own: Collection[int] = frozenset()
    lately: Mapping[int, float] = field(default_factory=dict)
    unlisted: Mapping[str, float] = field(default_factory=dict)
    age_s: Callable[[int], float] = _old
    on_gpu_s: float = math.inf
    before: Mapping[str, float] = field(default_factory=dict)
    display_manager: str = ""

    def owners(self, gpus: Sequence[LentGpu], names: Mapping[int, Name]) -> dict[int, Whose]:
        """Who owns each process on these GPUs."""
        owners: dict[int, Whose] = {}
        for gpu in gpus:
            for process in gpu.processes:
                whose = self._whose(process, names[process.pid], gpu)
                if owners.get(process.pid) is not Whose.FOREIGN:  # on one of several GPUs it may be more than a desktop
                    owners[process.pid] = whose
        drawn = {pid for pid, whose in owners.items() if whose is Whose.DESKTOP}
        for gpu in gpus:
            if sum(p.used or 0 for p in gpu.processes if p.pid in drawn) > DESKTOP_GB * GIB:
                owners |= dict.fromkeys(drawn & {p.pid for p in gpu.processes}, Whose.FOREIGN)
        return owners

    def _whose(self, process: Process, name: Name, gpu: LentGpu) -> Whose:
        pid = process.pid
        if pid in self.own or listed(name, self.settings.own_processes) or in_units(name, self.settings.own_units):
            return Whose.OWN
        if pid in self.lately and name.gone:
            return Whose.REMNANT
        if name.gone or process.kind == "c" or process.used is None:
            return Whose.FOREIGN
        if draws_desktop(name.cgroup, self.display_manager):
            return Whose.DESKTOP
        if process.percent is None:  # then the load is of all of them, and of the task if it is there
            ours = self.on_gpu_s <= NOBODYS_LAG_S or any(p.pid in self.own for p in gpu.processes)
            quiet = ours or gpu.percent <= DRAWN_PERCENT
        else:
            quiet = process.percent <= DRAWN_PERCENT
        settled = process.used <= SMALL_GB * GIB and self.age_s(pid) >= SETTLED_S
        return Whose.DESKTOP if quiet and settled else Whose.FOREIGN


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
    stray: str = "",
) -> GpuUse:
    """What others use of the lent GPUs, and what the task does there; without the rows.

    While a process of the task has a context on a GPU and no foreign process is on any, the GPU's load is the task's and does
    not count. Otherwise all of it counts, because drivers do not divide it reliably.

    Args:
        names, owners: of the processes on these GPUs.
        stray: a GPU that is not lent and that the task uses, as text.
    """
    foreign = sorted(pid for pid, whose in owners.items() if whose is Whose.FOREIGN)
    percents, sizes = [], []
    for gpu in gpus:
        ours = [p for p in gpu.processes if owners[p.pid] is Whose.OWN]
        late = not gpu.processes and known.on_gpu_s <= NOBODYS_LAG_S
        percents.append(0.0 if known.own and (ours or late) and not foreign else gpu.percent)
        sizes.append(max(0, gpu.used - sum(p.used or 0 for p in ours)) / GIB)
    unlisted = {gpu.id: gpu.unlisted_gb for gpu in gpus if gpu.unlisted_gb is not None}
    left = [*_left_by_processes(gpus, known, names, owners)]
    if not known.own:
        left += _leaked(unlisted, known, {gpu.id: _nobody(gpu) for gpu in gpus})
    task = {gpu.id: [p for p in gpu.processes if p.pid in known.own] for gpu in gpus}
    task_percents = [percent for gpu in gpus if (percent := _task_percent(gpu, task[gpu.id], bool(foreign))) is not None]
    others = Gpu(
        percent=max(percents),
        vram_gb=max(sizes),
        foreign=len(foreign),
        foreign_names=tuple(called(pid, names[pid]) + _where(pid, gpus) for pid in foreign),
        held=", ".join(it.text for it in left if it.ago_s >= VRAM_RELEASE_S),
        busiest=gpus[percents.index(max(percents))].id if len(gpus) > 1 and max(percents) > 0 else "",
        fullest=gpus[sizes.index(max(sizes))].id if len(gpus) > 1 and max(sizes) > 0 else "",
    )
    own = TaskUse(
        processes=len({p.pid for processes in task.values() for p in processes}),
        vram_gb=max(sum(p.used or 0 for p in processes) for processes in task.values()) / GIB,
        percent=max(task_percents, default=None),
        left=", ".join(it.text for it in left),
        left_by=tuple(it.pid for it in left if it.pid),
        unlisted=unlisted if any(task.values()) else {},
        stray=stray,
    )
    unknown = ""
    if foreign and all(names[pid].gone for pid in foreign):
        who = f"pid {', '.join(map(str, foreign[:3]))}{', …' if len(foreign) > 3 else ''}"
        unknown = f"{who} has the GPU open and cannot be looked into: it is in another container, or hidden by /proc's hidepid"
    elif not foreign:
        unknown = "; ".join(filter(None, (_nobodys(gpu, known, owners) for gpu in gpus)))
    if unknown:
        return GpuUse(None, unknown, own=own, unlisted=unlisted)
    return GpuUse(others, own=own, unlisted=unlisted)


def _where(pid: int, gpus: Sequence[LentGpu]) -> str:
    """On which of several GPUs a process is."""
    on = [gpu.id for gpu in gpus if any(p.pid == pid for p in gpu.processes)]
    return f" on {on[0]}" if len(gpus) > 1 else ""


def _nobody(gpu: LentGpu) -> str:
    return "no process that can be looked into" if gpu.hidden else "no listed process"


def _nobodys(gpu: LentGpu, known: Known, owners: Mapping[int, Whose]) -> str:
    """What of a GPU is in use by nobody who is known, and what would help; empty: nothing.

    Beside a process of the task, more memory is the task's: a driver does not list all that it keeps for one. What a finished
    task has left is reported as that. Load with any process beside it is that process's.
    """
    found, nobody = [], _nobody(gpu)
    explained = any(p.pid in known.own or owners[p.pid] is Whose.REMNANT or p.used is None for p in gpu.processes)
    desktop_gb = sum(p.used or 0 for p in gpu.processes if owners[p.pid] is Whose.DESKTOP) / GIB
    most_gb = max(NOBODYS_GB, DESKTOP_GB - desktop_gb) if gpu.hidden else NOBODYS_GB
    nobodys_gb = min(gpu.unlisted_gb or 0.0, known.unlisted.get(gpu.id, math.inf))
    if nobodys_gb > most_gb and not explained:
        found.append(f"{number(round(nobodys_gb))} GiB of VRAM")
    most_percent = DRAWN_PERCENT if gpu.hidden else NOBODYS_PERCENT
    if gpu.percent > most_percent and not gpu.processes and known.on_gpu_s > NOBODYS_LAG_S:
        found.append(f"{number(round(gpu.percent))} % load")
    if not found:
        return ""
    opened = "`sudo fuser -v /dev/dri/*` shows who has it open"
    if not gpu.hidden:
        opened = "another container or a hung program; `sudo fuser -v /dev/nvidia* /dev/dri/*` shows it, and a reboot ends it"
    return f"{' and '.join(found)} on {gpu.id}, by {nobody}: {opened}"


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


def _leaked(unlisted: Mapping[str, float], known: Known, by: Mapping[str, str]) -> Iterator[Left]:
    """What a driver has kept of a finished task: memory without a process that was not there beside the task."""
    ago_s = min(known.lately.values(), default=float("inf"))
    for gpu, before_gb in known.unlisted.items():
        if (more_gb := unlisted.get(gpu, 0.0) - before_gb) > LEAKED_GB:
            yield Left(f"{number(more_gb)} GiB by {by.get(gpu, 'no listed process')}", 0, ago_s)


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
