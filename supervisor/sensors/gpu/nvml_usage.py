"""Judges what NVML said: how much of the lent NVIDIA GPUs is in use, and by whom (`gpu_use`). Pure.

Memory that no listed process holds is used by others too: it is in total used minus our own, and is told in words.
NVML cannot split utilisation between processes reliably, so while a process of the task holds a context on a GPU and
nobody foreign is there, what that GPU does is the task's doing and is not held against itself; else all of it counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from states.formatting import number
from states.observation import Gpu
from supervisor.config.schema import GpuSettings
from supervisor.linux.proc import Name
from supervisor.sensors.gpu.ownership import (
    DISPLAY_CAP_GB,
    GIB,
    UNEXPLAINED_GB,
    NameOf,
    Own,
    Use,
    Whose,
    called,
    leaked,
    left_behind,
    still_held,
    whose,
)

UNTOLD_PERCENT: Final = 30  # so much busier than all its processes together, and the driver does not really tell theirs
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
    xids: tuple[int, ...] = ()
    total: int = 0
    used: int = 0
    reserved: int | None = None
    processes: tuple[Process, ...] = ()
    percent: int | None = None


class Answer(Struct, frozen=True):
    """One answer of the helper (supervisor/sensors/gpu/nvml_helper.py)."""

    library: bool
    driver: str
    error: str
    devices: tuple[Device, ...]


def _impossible(device: Device) -> str:
    """Why the device's numbers cannot be believed; empty: they can."""
    if device.error:
        return device.error
    for xid in device.xids:  # a fault of the GPU is followed by those of the programs that it ends
        if xid in FATAL:
            return f"the driver reported Xid {xid} ({FATAL[xid]}): reboot if it does not recover"
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
    if len(told) < len(displays) or sum(told) > DISPLAY_CAP_GB * GIB:
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
    left = left_behind(((p.pid, p.used) for d in lent for p in d.processes), own, lately, names, side)
    if not own:
        left += leaked(nobodys, unlisted or {}, lately, "no listed process")
    gpu = Gpu(
        percent=float(max(percents)),
        vram_gb=max(sizes),
        foreign=len(foreign),
        foreign_names=tuple(called(pid, names[pid]) for pid in foreign),
        held=still_held(left),
    )
    mine = [p for d in lent for p in d.processes if p.pid in own]
    task = Own(
        len({p.pid for p in mine}),
        max(sum(p.used or 0 for p in d.processes if p.pid in own) for d in lent) / GIB,
        max((percent for d in lent if (percent := _own_percent(d, own, bool(foreign))) is not None), default=None),
        ", ".join(it.words for it in left),
        tuple(it.pid for it in left if it.pid),
        nobodys if mine else {},
    )
    return Use(gpu, note="; ".join(notes), rows=tuple(_row(d, d in lent, names, side) for d in devices), own=task)


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
        "xid": device.xids[-1] if device.xids else 0,
        "mig": device.mig,
        "processes": [
            {
                "pid": p.pid,
                "name": str(names.get(p.pid, Name())),
                "kind": p.kind,
                "used_gb": None if p.used is None else round(p.used / GIB, 2),
                "whose": str(side.get(p.pid, Whose.FOREIGN)),
            }
            for p in device.processes
        ],
    }
