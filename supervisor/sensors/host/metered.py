"""Whether the network is paid by volume, by NetworkManager's word (host.allow_metered: false).

Its answer is asked for when it appears on the bus and after each of its changes; nothing is asked at rest. What it does
not know, and nobody to ask, is unknown, which blocks: whoever set this pays for each byte.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from supervisor.linux.bounded import wait_for_event
from supervisor.linux.dbus import PROPERTIES, BusError, Signal, SystemBus
from supervisor.sensors.base import Wake

NM: Final = "org.freedesktop.NetworkManager"
NM_PATH: Final = "/org/freedesktop/NetworkManager"
SETTING: Final = "host.allow_metered: false"
FIRST_S: Final = 2.0
YES, GUESS_YES = 1, 3
NO, GUESS_NO = 2, 4


class Metered:
    """The sensor. It shares `bus` with others, and is made before the bus is started."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus
        self._wake: Wake = lambda: None
        self._asking: asyncio.Task[None] | None = None
        self._known = asyncio.Event()
        self._unfit, self._error = "", "NetworkManager has not answered yet"
        bus.watch(NM, self._owner_changed)
        bus.subscribe(NM, PROPERTIES, "PropertiesChanged", self._changed)

    async def start(self, wake: Wake) -> None:
        """Ask for the first time; returns with the answer, or after two seconds."""
        self._wake = wake
        await self._bus.start()
        await wait_for_event(self._known, FIRST_S)

    async def stop(self) -> None:
        """Nothing is asked any more; the bus is its owner's to stop."""
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking

    def verdict(self) -> tuple[str, str]:
        """(unfit, unknown) in words; both empty: the network is not metered."""
        return self._unfit, (self._bus.error or self._error) and f"{self._bus.error or self._error} ({SETTING})"

    def _owner_changed(self, owner: str) -> None:
        if owner:
            self._ask()
        else:
            self._know("", "NetworkManager is not running, so the network may be metered")

    def _changed(self, signal: Signal) -> None:
        if signal.path == NM_PATH and len(signal.body) > 1 and "Metered" in signal.body[1]:
            self._ask()

    def _ask(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        self._asking = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            (answer,) = await self._bus.call(NM, NM_PATH, PROPERTIES, "Get", NM, "Metered", signature="ss", expect="v")
        except BusError as error:
            self._know("", str(error))
            return
        value = answer.value
        if value in (NO, GUESS_NO):
            self._know("", "")
        elif value in (YES, GUESS_YES):
            self._know(f"the network is metered ({SETTING})", "")
        else:
            self._know("", "NetworkManager does not know whether the network is metered")

    def _know(self, unfit: str, error: str) -> None:
        before = self._unfit, self._error
        self._unfit, self._error = unfit, error
        self._known.set()
        if before != (unfit, error):
            self._wake()
