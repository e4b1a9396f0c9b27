"""Keeps the machine awake while a task runs: logind's block locks on `sleep` and `idle`.

One lock for each kind, taken on entry to RUNNING and released on leaving it. No power setting is changed. A lock is a file
descriptor, so a crash of the node releases it too. When logind or the bus goes away while locks are held, they are `lost`
until logind lists them again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from enum import StrEnum

from supervisor.linux.dbus import LOGIN1, REFUSED, BusError, Inhibition, Lock, SystemBus, inhibit, inhibitions
from supervisor.linux.text import one_line
from supervisor.sensors.base import OWN_LOCK

KINDS = ("sleep", "idle")
RELEASE_TIMEOUT_S = 1.0
LOOKS = 50


class LockReport(StrEnum):
    """What became of the locks; the values are the journal's text."""

    TAKEN = "locks on sleep and idle taken"
    HELD = "locks on sleep and idle are held already"
    RELEASED = "locks released"
    UNCONFIRMED = "locks released; logind does not confirm it"
    NONE_HELD = "no lock to release"
    NONE_USED = "no lock is used: host.inhibitor is none"


class InhibitRefused(Exception):
    """A lock was refused; none is held. The text says why and what to do."""


class ReleaseFailed(Exception):
    """logind still lists a lock whose descriptor this process has closed. The text names it."""


class Inhibitor:
    """The node's block locks. Made before the bus is started.

    Args:
        mode: host.inhibitor, "required" or "none" (then nothing is done).
        on_change: called in the loop's thread when held locks are lost, or found again.
    """

    def __init__(
        self, bus: SystemBus, mode: str, who: str = OWN_LOCK, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self._bus, self._mode, self._who, self._on_change = bus, mode, who, on_change
        self._locks: list[Lock] = []
        self._why = ""
        self._check: asyncio.Task[None] | None = None
        self.lost = ""
        self.refused = ""  # the D-Bus error's name of the last refusal
        bus.watch(LOGIN1, self._owner_changed)

    @property
    def held(self) -> bool:
        """Every lock is held, as far as is known."""
        return bool(self._locks) and not self.lost

    @property
    def needed(self) -> bool:
        """host.inhibitor: required."""
        return self._mode != "none"

    async def take(self, why: str) -> LockReport:
        """Take the locks. `why` is what `systemd-inhibit --list` shows: never a payload.

        Raises:
            InhibitRefused: one was refused; the others are released again.
        """
        if self._mode == "none":
            return LockReport.NONE_USED
        if self.held:
            return LockReport.HELD
        self._close()
        self._why = f"{one_line(why, 200)} (pid {os.getpid()})"  # ours alone, also beside a second node
        try:
            for kind in KINDS:
                self._locks.append(await inhibit(self._bus, kind, self._who, self._why, "block"))
        except BusError as error:
            self._close()
            self.refused = error.name
            raise InhibitRefused(_advice(error, kind)) from error
        except BaseException:
            self._close()
            raise
        return LockReport.TAKEN

    async def release(self) -> LockReport:
        """Release the locks, and wait until logind no longer lists them. May be called again.

        Raises:
            ReleaseFailed: logind still lists one (a process holds a copy of its descriptor).
        """
        if self._mode == "none":
            return LockReport.NONE_USED
        self._close()
        if not self._why:
            return LockReport.NONE_HELD
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                for _ in range(LOOKS):
                    left = await self._listed()
                    if not left:
                        self._why = ""
                        return LockReport.RELEASED
                    await asyncio.sleep(RELEASE_TIMEOUT_S / 2 / LOOKS)
        except (BusError, TimeoutError):
            return LockReport.UNCONFIRMED
        kinds = " and ".join(lock.what for lock in left)
        raise ReleaseFailed(f"logind still lists the lock on {kinds}: a process holds a copy of its descriptor")

    def _close(self) -> None:
        for lock in self._locks:
            lock.close()
        self._locks.clear()
        self.lost = ""

    async def _listed(self) -> list[Inhibition]:
        return [
            lock
            for lock in await inhibitions(self._bus)
            if lock.what in KINDS and lock.blocks(lock.what) and (lock.who, lock.why) == (self._who, self._why)
        ]

    def _owner_changed(self, owner: str) -> None:
        if not self._locks:
            return
        self.lost = "the sleep lock is lost: " + (self._bus.error or "logind was restarted")
        self._on_change()
        if owner:
            self._check = asyncio.get_running_loop().create_task(self._find())

    async def _find(self) -> None:
        """logind is back: the locks still hold if it lists them (it keeps them over its own restart)."""
        try:
            kinds = {lock.what for lock in await self._listed()}
        except BusError:
            return  # still lost; the next owner is asked again
        if self._locks and kinds.issuperset(KINDS):
            self.lost = ""
            self._on_change()


def _advice(error: BusError, kind: str) -> str:
    if error.name in REFUSED:
        user = os.environ.get("USER") or f"uid {os.geteuid()}"
        return (
            f"polkit refuses the lock org.freedesktop.login1.inhibit-block-{kind} to {user}: run the installer, which"
            " puts the polkit rule in place, or set host.inhibitor to none in node.yaml"
        )
    return f"no lock on {kind}: {error}"
