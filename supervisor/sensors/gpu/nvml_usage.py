"""Judges what NVML reports: how much of the lent NVIDIA GPUs is in use, and by whom. Pure.

Memory that no listed process holds counts as used by others, and the note mentions it; too much of it makes the GPU unknown.
A GPU without memory of its own uses the system's, which the host's guard judges; of it, only what processes hold is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from msgspec import Struct

from states.formatting import number
from supervisor.linux.proc import Name
from supervisor.sensors.gpu import ownership
from supervisor.sensors.gpu.ownership import (
    GIB,
    UNEXPLAINED_GB,
    GpuUse,
    Known,
    LentGpu,
    Process,
    Whose,
    gib,
    process_rows,
)

RESERVED_GB: Final = 0.6  # what a driver reserves that does not report it (the first form of the memory call)

# Faults of the GPU itself, after which none of its numbers can be trusted; other Xid errors are a program's (NVIDIA's list).
FATAL: Final[dict[int, str]] = {
    48: "memory error that cannot be corrected",
    64: "memory that cannot be remapped",
    74: "NVLink error",
    79: "it has fallen off the bus",
    95: "memory error that was not contained",
    119: "its firmware does not answer",
    120: "its firmware has failed",
}


class Device(Struct, frozen=True):
    """One GPU as NVML shows it, sizes in bytes; with `error` the other fields prove nothing. `total` None: it has no memory of
    its own. `minor`: of its node /dev/nvidiaN, and `pci`: its address in sysfs; None and empty: unknown."""

    uuid: str = ""
    error: str = ""
    name: str = "NVIDIA GPU"
    mig: bool = False
    temperature_c: int | None = None
    throttled: tuple[str, ...] = ()
    xids: tuple[int, ...] = ()
    total: int | None = 0
    used: int = 0
    reserved: int | None = None
    processes: tuple[Process, ...] = ()
    percent: int | None = None
    minor: int | None = None
    pci: str = ""


class Answer(Struct, frozen=True):
    """One answer of nvml_helper."""

    library: bool
    driver: str
    error: str
    devices: tuple[Device, ...]


def judge(devices: Sequence[Device], known: Known) -> GpuUse:
    """The lent GPUs without the node's own task; `devices` are all that NVML shows."""
    lent, error = _lent(devices, known.settings.lend)
    if error:
        return GpuUse(None, error, rows=tuple(_row(d, d in lent, {}, {}) for d in devices))
    names = {p.pid: known.name_of(p.pid) for d in devices for p in d.processes}
    gpus = [LentGpu(d.uuid, float(d.percent or 0), _used(d), d.processes, _unlisted_gb(d)) for d in lent]
    owners = known.owners(gpus, names)
    notes = [
        f"{number(gpu.unlisted_gb)} GiB of VRAM held by no listed process"
        for gpu in gpus
        if gpu.unlisted_gb is not None and gpu.unlisted_gb > UNEXPLAINED_GB
    ]
    notes += ["no VRAM of its own: the system's memory counts" for d in lent if not d.total][:1]
    use = ownership.judge(gpus, known, names, owners, _stray([d for d in devices if d not in lent], known))
    rows = tuple(_row(d, d in lent, names, owners) for d in devices)
    return replace(use, note="; ".join(notes), rows=rows)


def _stray(others: Sequence[Device], known: Known) -> str:
    """A GPU that is not lent and that the task is on."""
    on = (d for d in others if any(p.pid in known.own for p in d.processes))
    return next((f"GPU {d.uuid or d.name}, which is not lent (gpu.lend)" for d in on), "")


def _used(device: Device) -> int:
    return device.used if device.total else sum(p.used or 0 for p in device.processes)


def _unlisted_gb(device: Device) -> float | None:
    if not device.total:
        return None
    listed_gb = sum(p.used or 0 for p in device.processes) / GIB
    return device.used / GIB - listed_gb - (RESERVED_GB if device.reserved is None else 0.0)


def _lent(devices: Sequence[Device], lend: Sequence[str]) -> tuple[list[Device], str]:
    """The lent devices, and what is wrong with them: all, or those named by UUID, each of which must be there."""
    chosen = [d for d in devices if not lend or d.uuid in lend]
    missing = [uuid for uuid in lend if uuid not in {d.uuid for d in chosen}]
    for device in devices:
        # A device whose UUID cannot be read may be the missing one, and its error says more.
        if missing and device.error and not device.uuid:
            return chosen, f"GPU {missing[0]} (gpu.lend) is not there; one {device.error}"
    if missing:
        return chosen, f"GPU {missing[0]} (gpu.lend in node.yaml) is not there; `nvidia-smi -L` lists what is"
    for device in chosen:
        if wrong := _implausible(device):
            return chosen, f"{device.uuid or 'GPU'}: {wrong}"
    return chosen, "" if chosen else "the NVIDIA driver shows no GPU"


def _implausible(device: Device) -> str:
    """Why the device's numbers cannot be believed; empty: they can."""
    if device.error:
        return device.error
    for xid in device.xids:  # after a fault of the GPU come those of the programs that it ends
        if xid in FATAL:
            return f"the driver reported Xid {xid} ({FATAL[xid]}): reboot if it does not recover"
    if device.percent is None or not 0 <= device.percent <= 100:
        return f"impossible utilisation ({device.percent} %)"
    most = math.inf if device.total is None else device.total
    if most <= 0 or not 0 <= device.used <= most:
        return f"impossible memory ({device.used} of {device.total} bytes used)"
    if any(p.used is not None and not 0 <= p.used <= most for p in device.processes):
        return "impossible memory of a process"
    return ""


def _row(device: Device, lent: bool, names: Mapping[int, Name], owners: Mapping[int, Whose]) -> dict[str, Any]:
    """A device for doctor and check-gpu; sizes in GiB."""
    return {
        "uuid": device.uuid,
        "name": device.name,
        "lent": lent,
        "error": device.error,
        "percent": device.percent,
        "used_gb": gib(_used(device)),
        "total_gb": gib(device.total),
        "reserved_gb": gib(device.reserved),
        "temperature_c": device.temperature_c,
        "throttled": list(device.throttled),
        "xid": device.xids[-1] if device.xids else 0,
        "mig": device.mig,
        "processes": process_rows(device.processes, names, owners, Whose.FOREIGN),
    }
