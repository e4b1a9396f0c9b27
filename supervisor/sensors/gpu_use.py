"""Judges what NVML said: how much of the lent GPUs is in use, and by whom. Pure: names come from a function handed in.

A process on a lent GPU is one of four (R9):
- own: of the node's task (`own_pids`, all of its control group), or listed in `gpu.own_processes` or `gpu.own_units`; its
  memory is not counted;
- display: a display server listed in `gpu.display_servers`; harmless while all of them together hold no more than
  `gpu.display_cap_gb` (a compositor can hold 6 GB); its memory counts as used by others, as all memory but our own;
- remnant: was the task's a moment ago and is gone; no sign of a person, but what it still holds counts as used, and is
  told as `held` when that lasts longer than `gpu.vram_release_sec`; so is what a model server of RAE's keeps for a task
  that is over, and what vanished from the list of processes but not from the total (a driver that leaks);
- foreign: everything else, compute or graphics (games are in the graphics list only), known by name or not.

Memory that no listed process holds is used by others too: it is in total used minus our own, and is told in words.
NVML cannot split utilisation between processes reliably, so while a process of the task holds a context on a GPU and
nobody foreign is there, what that GPU does is the task's doing and is not held against itself; else all of it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from msgspec import Struct

from states.observation import Gpu
from states.words import number
from supervisor.sensors.process import Name, in_units, listed, printable
from supervisor.settings import GpuSettings

GIB: Final = 2**30
UNEXPLAINED_GB: Final = 0.5  # less than this is the driver's own bookkeeping
UNTOLD_PERCENT: Final = 30  # so much busier than all its processes together, and the driver does not really tell theirs
LEAKED_GB: Final = 0.25  # as much more that no listed process holds than beside the task, and it is the task's
RESERVED_GB: Final = 0.6  # what a driver reserves, where it cannot say (memory call of the first form)

# Faults of the GPU itself, after which nothing that it says is to be trusted; the others are a program's (NVIDIA's list
# of Xid errors).
FATAL: Final[dict[int, str]] = {
    48: "memory error that cannot be corrected",
    64: "memory that cannot be remapped",
    74: "NVLink error",
    79: "it has fallen off the bus",
    95: "memory error that was not contained",
    119: "its firmware does not answer",
    120: "its firmware has failed",
}


class Process(Struct, frozen=True):
    """A process with a context; `kind` c compute, g graphics, cg both; `used` bytes of VRAM, `percent` of the time that it
    kept the GPU busy of late; None: not told."""

    pid: int
    kind: str
    used: int | None = None
    percent: int | None = None


class Device(Struct, frozen=True):
    """One GPU as NVML shows it, sizes in bytes; with `error` the rest proves nothing."""

    uuid: str = ""
    error: str = ""
    name: str = "NVIDIA GPU"
    mig: bool = False
    temperature_c: int | None = None
    throttled: tuple[str, ...] = ()
    xid: int = 0
    total: int = 0
    used: int = 0
    reserved: int | None = None
    processes: tuple[Process, ...] = ()
    percent: int | None = None


class Answer(Struct, frozen=True):
    """One answer of the helper (supervisor/agents/gpu.py)."""

    library: bool
    driver: str
    error: str
    devices: tuple[Device, ...]


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
    are the processes among that, `unlisted` the GiB by UUID that no listed process holds beside the task."""

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


def _impossible(device: Device) -> str:
    """Why the device's numbers cannot be believed; empty: they can."""
    if device.error:
        return device.error
    if device.xid in FATAL:
        return f"the driver reported Xid {device.xid} ({FATAL[device.xid]}): reboot if it does not recover"
    if device.percent is None or not 0 <= device.percent <= 100:
        return f"impossible utilisation ({device.percent} %)"
    if device.total <= 0 or not 0 <= device.used <= device.total:
        return f"impossible memory ({device.used} of {device.total} bytes used)"
    if any(p.used is not None and not 0 <= p.used <= device.total for p in device.processes):
        return "impossible memory of a process"
    return ""


def _lent(devices: Sequence[Device], lend: Sequence[str]) -> tuple[list[Device], str]:
    """The lent devices, and what is wrong with them: all, or those named by UUID, each of which must be there."""
    chosen = [d for d in devices if not lend or d.uuid in lend]
    missing = [uuid for uuid in lend if uuid not in {d.uuid for d in chosen}]
    for device in devices:
        # One that cannot even say its UUID may be the missing one: its error says more than that one is missing.
        if missing and device.error and not device.uuid:
            return chosen, f"GPU {missing[0]} (gpu.lend) is not there; one {device.error}"
    if missing:
        return chosen, f"GPU {missing[0]} (gpu.lend in node.yaml) is not there; `nvidia-smi -L` lists what is"
    for device in chosen:
        if wrong := _impossible(device):
            return chosen, f"{device.uuid or 'GPU'}: {wrong}"
    return chosen, "" if chosen else "the NVIDIA driver shows no GPU"


def judge(
    devices: Sequence[Device],
    own: Collection[int],
    lately: Mapping[int, float],
    name_of: NameOf,
    settings: GpuSettings,
    unlisted: Mapping[str, float] | None = None,
) -> Use:
    """The lent GPUs without the node's own task (R9, R10): the busiest one's percent and GiB, the foreign processes.

    Args:
        devices: all that NVML shows.
        own: pids of the node's task now.
        lately: pids that were the task's within the last half minute, or have left something, and how many seconds ago.
        name_of: a pid's name; an empty one says that it is gone.
        settings: `gpu` of node.yaml.
        unlisted: GiB by UUID that no listed process held beside the last task.
    """
    lent, error = _lent(devices, settings.lend)
    if error:
        return Use(None, error, rows=tuple(_row(d, d in lent, {}, {}) for d in devices))
    names = {p.pid: name_of(p.pid) for d in devices for p in d.processes}
    side = {pid: whose(pid, name, own, lately, settings) for pid, name in names.items()}

    displays = [p for d in lent for p in d.processes if side[p.pid] is Whose.DISPLAY]
    told = [p.used for p in displays if p.used is not None]
    if len(told) < len(displays) or sum(told) > settings.display_cap_gb * GIB:
        side |= {p.pid: Whose.FOREIGN for p in displays}
    foreign = sorted({p.pid for d in lent for p in d.processes if side[p.pid] is Whose.FOREIGN})

    percents, sizes, notes, nobodys = [], [], [], {}
    for device in lent:
        ours = [p for p in device.processes if side[p.pid] is Whose.OWN]
        ours_busy = bool(own) and bool(ours)
        percents.append(0 if ours_busy and not foreign else device.percent or 0)
        sizes.append(max(0, device.used - sum(p.used or 0 for p in ours)) / GIB)
        reserved_gb = RESERVED_GB if device.reserved is None else 0.0
        unexplained_gb = nobodys[device.uuid] = (device.used - sum(p.used or 0 for p in device.processes)) / GIB - reserved_gb
        if unexplained_gb > UNEXPLAINED_GB:
            notes.append(f"{number(unexplained_gb)} GiB of VRAM held by no listed process")
    left = _left(lent, own, lately, names, side)
    seconds_ago = min(lately.values(), default=float("inf"))
    if not own:
        for uuid, before_gb in (unlisted or {}).items():
            more_gb = nobodys.get(uuid, 0.0) - before_gb
            if more_gb > LEAKED_GB:
                left.append((f"{number(more_gb)} GiB by no listed process", 0, seconds_ago))
    gpu = Gpu(
        percent=float(max(percents)),
        vram_gb=max(sizes),
        foreign=len(foreign),
        foreign_names=tuple(called(pid, names[pid]) for pid in foreign),
        held=", ".join(words for words, _, ago_s in left if ago_s >= settings.vram_release_sec),
    )
    mine = [p for d in lent for p in d.processes if p.pid in own]
    task = Own(
        len({p.pid for p in mine}),
        max(sum(p.used or 0 for p in d.processes if p.pid in own) for d in lent) / GIB,
        max((percent for d in lent if (percent := _own_percent(d, own, bool(foreign))) is not None), default=None),
        ", ".join(words for words, _, _ in left),
        tuple(pid for _, pid, _ in left if pid),
        nobodys if mine else {},
    )
    return Use(gpu, note="; ".join(notes), rows=tuple(_row(d, d in lent, names, side) for d in devices), own=task)


def _left(
    lent: Sequence[Device],
    own: Collection[int],
    lately: Mapping[int, float],
    names: Mapping[int, Name],
    side: Mapping[int, Whose],
) -> list[tuple[str, int, float]]:
    """(words, pid, seconds since the task) of each process that holds VRAM for a task that is over: one that is gone, or
    a model server that has not unloaded."""
    held: dict[int, int | None] = {}
    for process in (p for d in lent for p in d.processes if p.pid in lately and p.pid not in own):
        least = 1 if side[process.pid] is Whose.REMNANT else UNEXPLAINED_GB * GIB
        if side[process.pid] in (Whose.REMNANT, Whose.OWN) and (process.used is None or process.used >= least):
            before = held.get(process.pid, 0)
            held[process.pid] = None if process.used is None or before is None else before + process.used
    return [
        (
            f"{'VRAM' if used is None else number(used / GIB) + ' GiB'} by "
            + (f"pid {pid}, which is gone" if names[pid].gone else called(pid, names[pid])),
            pid,
            lately[pid],
        )
        for pid, used in held.items()
    ]


def _own_percent(device: Device, own: Collection[int], foreign: bool) -> float | None:
    """How busy the task keeps one GPU: by process where the driver tells that and it is possible, else all that the GPU
    does while nobody foreign is there; None: not told, or the task is not on it."""
    ours = [p for p in device.processes if p.pid in own]
    if not ours:
        return None
    told = [p.percent for p in ours if p.percent is not None]
    everybodys = sum(p.percent or 0 for p in device.processes)
    if told and all(0 <= percent <= 100 for percent in told) and everybodys >= (device.percent or 0) - UNTOLD_PERCENT:
        return float(min(100, sum(told)))
    return None if foreign else float(device.percent or 0)


def called(pid: int, name: Name) -> str:
    """A process in words."""
    return f"{name} (pid {pid})" if not name.gone else f"pid {pid}"


def _row(device: Device, lent: bool, names: dict[int, Name], side: dict[int, Whose]) -> dict[str, Any]:
    """A device for doctor and check-gpu; sizes in GiB."""
    return {
        "uuid": device.uuid,
        "name": device.name,
        "lent": lent,
        "error": device.error,
        "percent": device.percent,
        "used_gb": round(device.used / GIB, 2),
        "total_gb": round(device.total / GIB, 2),
        "reserved_gb": None if device.reserved is None else round(device.reserved / GIB, 2),
        "temperature_c": device.temperature_c,
        "throttled": list(device.throttled),
        "xid": device.xid,
        "mig": device.mig,
        "processes": [
            {
                "pid": p.pid,
                "name": printable(names.get(p.pid, Name()).comm),
                "kind": p.kind,
                "used_gb": None if p.used is None else round(p.used / GIB, 2),
                "whose": str(side.get(p.pid, Whose.FOREIGN)),
            }
            for p in device.processes
        ],
    }
