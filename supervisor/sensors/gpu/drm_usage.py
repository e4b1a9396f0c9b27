"""Judges what the kernel reports about AMD and Intel GPUs: how much of the lent ones is in use, and by whom. Pure.

Processes of other users may be hidden. One that may have the GPU open and is no display server makes the reading unknown. A
hidden display server is harmless while all memory that no listed process explains is under DISPLAY_CAP_GB; a GPU without
its own memory has nothing to cap. An Intel GPU's load is the share of time between two looks in which it was not idle.

For memory that a finished task has left, amdgpu's total (`mem_info_vram_used`) is compared with the sum of all processes. The
rest that was not there beside the task is still the task's. Memory of hidden processes is part of the rest, because nothing
distinguishes it from a leak. Intel's drivers report no total: only listed memory is known.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from supervisor.linux.proc import Name
from supervisor.sensors.gpu import ownership
from supervisor.sensors.gpu.ownership import (
    DISPLAY_CAP_GB,
    GIB,
    GpuUse,
    Known,
    LentGpu,
    Process,
    Whose,
    called,
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
    pids = {p.pid for card in chosen for p in card.clients if p.busy}
    hidden = {pid for card in chosen for pid in card.hidden}
    names = {pid: known.name_of(pid) for pid in pids | hidden}
    owners = {pid: known.whose(pid, names[pid]) for pid in pids}
    hidden_owners = {pid: known.whose(pid, names[pid]) for pid in hidden if not names[pid].gone}
    rows = tuple(_row(card, card.pci in lent, percents, names, owners) for card in cards)
    if suspects := sorted(pid for pid, it in hidden_owners.items() if it is Whose.FOREIGN):
        who = ", ".join(called(pid, names[pid]) for pid in suspects[:3]) + (", …" if len(suspects) > 3 else "")
        hint = "run the node as root, or name what only draws the desktop in gpu.display_servers"
        return GpuUse(None, f"{who} may use the GPU and cannot be looked into: {hint}", rows=rows)
    displays = {pid for pid, it in (*owners.items(), *hidden_owners.items()) if it is Whose.DISPLAY}
    if sum(_held_by(displays, card) for card in chosen) > DISPLAY_CAP_GB * GIB:
        owners |= dict.fromkeys(displays, Whose.FOREIGN)
    foreign = sorted(pid for pid, it in owners.items() if it is Whose.FOREIGN)
    gpus = [
        LentGpu(
            card.pci,
            percents.get(card.pci, 0.0),
            card.listed if card.used is None else card.used,
            [p for p in card.clients if p.busy],
            None if card.used is None else (card.used - card.listed) / GIB,
        )
        for card in chosen
    ]
    unlisted_by = "no process that can be looked into" if hidden else "no listed process"
    others, own = ownership.judge(gpus, known, names, owners, foreign, unlisted_by)
    return GpuUse(others, rows=rows, own=own)


def _held_by(displays: set[int], card: Card) -> int:
    """Bytes that the display servers may hold of a card: if one is hidden, also all that no listed process holds."""
    unseen = max(0, card.used - card.listed) if card.used is not None and displays & set(card.hidden) else 0
    return unseen + sum(p.used or 0 for p in card.clients if p.pid in displays)


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
