"""Judges what the kernel tells of AMD and Intel GPUs: how much of the lent ones is in use, and by whom. Pure.

Whose a process is, is judged as with NVIDIA's (`gpu_use`). What is different: other users' processes cannot be looked
into (T16). One that may have the GPU open and is no display server makes the reading unknown. A display server that is
hidden is harmless while all memory that nobody else explains is under DISPLAY_CAP_GB; a GPU without memory of its
own has nothing to cap. How busy an Intel GPU is, is the share of time in which it was not idle, between two looks.

Whether a task that is over has given its VRAM back is told by amdgpu's own total (`mem_info_vram_used`) beside what all
processes have of it: what nobody has, and did not have beside the task either, is still the task's. What a process that
cannot be looked into has is among that, since nobody can tell it from a leak. Intel's drivers tell no total: of theirs
only what is listed is known (a model server that has not unloaded).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from states.observation import Gpu
from supervisor.config.schema import GpuSettings
from supervisor.linux.proc import Name
from supervisor.sensors.gpu.ownership import (
    DISPLAY_CAP_GB,
    GIB,
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

MIN_WINDOW_S: Final = 0.2  # idle times are told in milliseconds, and not all at the same moment


class Client(Struct, frozen=True):
    """A process that has the GPU open; `vram` bytes of the GPU's own memory."""

    pid: int
    vram: int = 0
    busy: bool = False


class Card(Struct, frozen=True):
    """One GPU as the kernel shows it, sizes in bytes, how long each part has been idle; with `error` it is not known."""

    pci: str
    driver: str
    asleep: bool = False
    error: str = ""
    percent: int | None = None
    idle_ms: dict[str, int] = {}
    total: int | None = None
    used: int | None = None
    clients: tuple[Client, ...] = ()
    hidden: tuple[int, ...] = ()


class Look(Struct, frozen=True):
    """One answer of the helper (supervisor/sensors/gpu/drm_helper.py)."""

    at_s: float
    devices: tuple[Card, ...]


def busy_percent(before: Look | None, now: Look, card: Card) -> float | None:
    """How busy a card is: its own word, else from its idle times at both looks. None: it takes a second look.

    Raises:
        ValueError: it cannot be told.
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
        raise ValueError(f"its driver ({card.driver}) does not tell how busy it is")
    earlier = {c.pci: c for c in before.devices}.get(card.pci) if before is not None else None
    if before is None or earlier is None or now.at_s - before.at_s < MIN_WINDOW_S:
        return None
    idle_s = min(ms - earlier.idle_ms.get(part, math.inf) for part, ms in card.idle_ms.items()) / 1000
    if idle_s < 0:  # the driver was loaded anew
        return None
    return min(100.0, max(0.0, 100.0 * (1.0 - idle_s / (now.at_s - before.at_s))))


def judge(
    cards: Sequence[Card],
    lent: Collection[str],
    percents: Mapping[str, float],
    own: Collection[int],
    lately: Mapping[int, float],
    name_of: NameOf,
    settings: GpuSettings,
    unlisted: Mapping[str, float] | None = None,
) -> Use:
    """The lent cards without the node's own task (R9, R10), as `nvml_usage.judge`.

    Args:
        cards: all that the kernel shows.
        lent: PCI addresses of the lent ones, which are all among `cards`.
        percents: how busy each lent card is.
    """
    chosen = [card for card in cards if card.pci in lent]
    pids = {client.pid for card in chosen for client in card.clients if client.busy}
    hidden = {pid for card in chosen for pid in card.hidden}
    names = {pid: name_of(pid) for pid in pids | hidden}
    side = {pid: whose(pid, names[pid], own, lately, settings) for pid in pids}
    behind = {pid: whose(pid, names[pid], own, lately, settings) for pid in hidden if not names[pid].gone}
    rows = tuple(_row(card, card.pci in lent, percents, names, side) for card in cards)
    if dark := sorted(pid for pid, it in behind.items() if it is Whose.FOREIGN):
        who = ", ".join(called(pid, names[pid]) for pid in dark[:3]) + (", …" if len(dark) > 3 else "")
        mend = "run the node as root, or name what only draws the desktop in gpu.display_servers"
        return Use(None, f"{who} may use the GPU and cannot be looked into: {mend}", rows=rows)

    side |= _over_cap(chosen, side, behind)
    foreign = sorted(pid for pid, it in side.items() if it is Whose.FOREIGN)
    percent, vram_gb = 0.0, 0.0
    task = [(c, card.pci) for card in chosen for c in card.clients if c.pid in own and c.busy]
    for card in chosen:
        ours = [c for c in card.clients if side.get(c.pid) is Whose.OWN]
        ours_busy = bool(own) and any(c.busy for c in ours)
        percent = max(percent, 0.0 if ours_busy and not foreign else percents.get(card.pci, 0.0))
        total = card.used if card.used is not None else sum(c.vram for c in card.clients)
        vram_gb = max(vram_gb, max(0, total - sum(c.vram for c in ours)) / GIB)
    nobodys = {
        card.pci: (card.used - sum(c.vram for c in card.clients)) / GIB for card in chosen if card.used is not None
    }
    left = left_behind(((c.pid, c.vram) for card in chosen for c in card.clients if c.busy), own, lately, names, side)
    if not own:
        by = "no process that can be looked into" if any(card.hidden for card in chosen) else "no listed process"
        left += leaked(nobodys, unlisted or {}, lately, by)
    gpu = Gpu(
        percent,
        vram_gb,
        len(foreign),
        foreign_names=tuple(called(pid, names.get(pid, Name())) for pid in foreign),
        held=still_held(left),
    )
    told = [percents.get(pci, 0.0) for _, pci in task] if not foreign else []
    used_gb = max((sum(c.vram for c, at in task if at == card.pci) for card in chosen), default=0) / GIB
    mine = Own(
        len({c.pid for c, _ in task}),
        used_gb,
        max(told, default=None),
        ", ".join(it.words for it in left),
        tuple(it.pid for it in left if it.pid),
        nobodys if task else {},
    )
    return Use(gpu, rows=rows, own=mine)


def _over_cap(
    chosen: Sequence[Card], side: Mapping[int, Whose], behind: Mapping[int, Whose]
) -> dict[int, Whose]:
    """The display servers, as foreign, where they hold more than a desktop needs."""
    displays = {pid for pid, it in (*side.items(), *behind.items()) if it is Whose.DISPLAY}
    held = 0
    for card in chosen:
        theirs = sum(c.vram for c in card.clients if c.pid in displays)
        unseen = 0
        if displays & set(card.hidden) and card.used is not None:
            unseen = max(0, card.used - sum(c.vram for c in card.clients))
        held += theirs + unseen
    return dict.fromkeys(displays, Whose.FOREIGN) if held > DISPLAY_CAP_GB * GIB else {}


def _row(
    card: Card, lent: bool, percents: Mapping[str, float], names: Mapping[int, Name], side: Mapping[int, Whose]
) -> dict[str, Any]:
    """A card for doctor and check-gpu; sizes in GiB."""
    return {
        "pci": card.pci,
        "driver": card.driver,
        "lent": lent,
        "error": card.error,
        "power": "suspended" if card.asleep else "active",
        "percent": percents.get(card.pci, card.percent),
        "used_gb": None if card.used is None else round(card.used / GIB, 2),
        "total_gb": None if card.total is None else round(card.total / GIB, 2),
        "processes": [
            {
                "pid": c.pid,
                "name": str(names.get(c.pid, Name())),
                "used_gb": round(c.vram / GIB, 2),
                "whose": str(side.get(c.pid, "unused")),
            }
            for c in card.clients
        ],
        "hidden": len(card.hidden),
    }
