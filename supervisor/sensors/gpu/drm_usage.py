"""Judges what the kernel reports about AMD and Intel GPUs: how much of the lent ones is in use, and by whom. Pure.

Processes of other users may be hidden. That one could have the GPU open proves nothing: what the kernel counts does. Load and
memory that no listed process explains are those of hidden processes. Up to what a desktop needs they are taken for one;
more makes the GPU unknown. If the node's own task is among the hidden ones, as in a unit with a user of its own, it is the
task's: of memory, what is there beyond the last look without a task.

An Intel GPU's load is the share of time between two looks in which it was not idle.

For memory that a finished task has left, amdgpu's total (`mem_info_vram_used`) is compared with the sum of all processes. The
rest that was not there beside the task is still the task's. Memory of hidden processes is part of the rest, because nothing
distinguishes it from a leak. Intel's drivers report no total: only listed memory is known.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from msgspec import Struct, structs

from supervisor.linux.proc import Name
from supervisor.sensors.gpu import ownership
from supervisor.sensors.gpu.ownership import (
    GIB,
    GpuUse,
    Known,
    LentGpu,
    Process,
    Whose,
    gib,
    process_rows,
)

MIN_WINDOW_S: Final = 0.2  # idle times are in milliseconds, and not all read at the same moment


class Card(Struct, frozen=True):
    """One GPU as the kernel shows it: sizes in bytes, the idle time of each part; with `error` it is unknown."""

    pci: str
    driver: str
    asleep: bool = False
    error: str = ""
    percent: int | None = None
    idle_ms: dict[str, int] = {}
    total: int | None = None
    used: int | None = None
    clients: tuple[Process, ...] = ()
    hidden: tuple[int, ...] = ()

    @property
    def listed(self) -> int:
        """Bytes that listed processes hold."""
        return sum(p.used or 0 for p in self.clients)


class Look(Struct, frozen=True):
    """One answer of drm_helper."""

    at_s: float
    devices: tuple[Card, ...]


def busy_percent(before: Look | None, now: Look, card: Card) -> float | None:
    """A card's load, as its driver reports it or from its idle times in both looks. None: another look is needed.

    Raises:
        ValueError: it cannot be known; the text says why.
    """
    if card.asleep:
        return 0.0
    if card.error:
        raise ValueError(card.error)
    if card.used is not None and not 0 <= card.used <= (math.inf if card.total is None else card.total):
        raise ValueError(f"impossible memory ({card.used} of {card.total} bytes used)")
    if card.percent is not None:
        if not 0 <= card.percent <= 100:
            raise ValueError(f"impossible utilisation ({card.percent} %)")
        return float(card.percent)
    if not card.idle_ms:
        raise ValueError(f"its driver ({card.driver}) does not report its load")
    earlier = {c.pci: c for c in before.devices}.get(card.pci) if before is not None else None
    if before is None or earlier is None or now.at_s - before.at_s < MIN_WINDOW_S:
        return None
    idle_s = min(ms - earlier.idle_ms.get(part, math.inf) for part, ms in card.idle_ms.items()) / 1000
    if idle_s < 0:  # the driver was loaded again
        return None
    return min(100.0, max(0.0, 100.0 * (1.0 - idle_s / (now.at_s - before.at_s))))


def judge(cards: Sequence[Card], lent: Collection[str], percents: Mapping[str, float], known: Known) -> GpuUse:
    """The lent cards without the node's own task.

    Args:
        cards: all that the kernel shows.
        lent: PCI addresses of the lent ones, which are all among `cards`.
        percents: the load of each lent card.
    """
    chosen = [card for card in cards if card.pci in lent]
    others = [card for card in cards if card.pci not in lent]
    names = {p.pid: known.name_of(p.pid) for card in cards for p in card.clients if p.busy}
    gpus = [_lent(card, percents.get(card.pci, 0.0), known) for card in chosen]
    names |= {p.pid: known.name_of(p.pid) for gpu in gpus for p in gpu.processes}
    owners = known.owners(gpus, names)
    on = (card for card in others if any(p.busy and p.pid in known.own for p in card.clients))
    stray = next((f"GPU {card.pci}, which is not lent (gpu.lend)" for card in on), "")
    use = ownership.judge(gpus, known, names, owners, stray)
    return replace(use, rows=tuple(_row(card, card.pci in lent, percents, names, owners) for card in cards))


def _lent(card: Card, percent: float, known: Known) -> LentGpu:
    processes = [p for p in card.clients if p.busy]
    unlisted = 0 if card.used is None else card.used - card.listed
    task = sorted(set(card.hidden) & set(known.own))
    if task:
        before_gb = known.before.get(card.pci, min(unlisted / GIB, ownership.NOBODYS_GB))
        more = max(0, unlisted - int(before_gb * GIB))
        if more > ownership.LEAKED_GB * GIB or percent > ownership.DRAWN_PERCENT:
            processes.append(Process(task[0], used=more))
            unlisted -= more
    unlisted_gb = None if card.used is None else unlisted / GIB
    used = card.listed if card.used is None else card.used
    return LentGpu(card.pci, percent, used, processes, unlisted_gb, bool(set(card.hidden) - set(known.own)))


def measured(before: Look | None, now: Look) -> tuple[Card, ...]:
    """The cards with the load of each client, where its driver counts its time and both looks show it."""
    if before is None or now.at_s - before.at_s < MIN_WINDOW_S:
        return now.devices
    window_ns = (now.at_s - before.at_s) * 1e9
    earlier = {(card.pci, p.pid): p.engine_ns for card in before.devices for p in card.clients}

    def load(card: Card, process: Process) -> Process:
        then = earlier.get((card.pci, process.pid))
        if process.engine_ns is None or then is None or process.engine_ns < then:
            return process
        return structs.replace(process, percent=min(100, round(100 * (process.engine_ns - then) / window_ns)))

    return tuple(structs.replace(card, clients=tuple(load(card, p) for p in card.clients)) for card in now.devices)


def _row(
    card: Card, lent: bool, percents: Mapping[str, float], names: Mapping[int, Name], owners: Mapping[int, Whose]
) -> dict[str, Any]:
    """A card for doctor and check-gpu; sizes in GiB."""
    return {
        "pci": card.pci,
        "driver": card.driver,
        "lent": lent,
        "error": card.error,
        "power": "suspended" if card.asleep else "active",
        "percent": percents.get(card.pci, card.percent),
        "used_gb": gib(card.used),
        "total_gb": gib(card.total),
        "processes": process_rows(card.clients, names, owners, "unused"),
        "hidden": len(card.hidden),
    }
