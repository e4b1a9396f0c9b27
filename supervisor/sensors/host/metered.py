"""Whether the network is metered, as NetworkManager reports it (host.allow_metered: false).

It is asked when it appears on the bus and after each change, never in between. No answer and no NetworkManager are unknown,
which blocks, because the person pays for each byte.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from supervisor.linux.bounded import wait_for_event
from supervisor.linux.dbus import PROPERTIES, BusError, Signal, SystemBus
from supervisor.sensors.base import Wake
from supervisor.sensors.host.findings import FIT, Findings

NM: Final = "org.freedesktop.NetworkManager"
NM_PATH: Final = "/org/freedesktop/NetworkManager"
SETTING: Final = "host.allow_metered: false"
FIRST_S: Final = 2.0
YES, GUESS_YES = 1, 3
NO, GUESS_NO = 2, 4


class Metered:
    """The sensor; made before the shared bus is started, which its owner stops."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus
        self._wake: Wake = lambda: None
        self._asking: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()
        self._found = _unknown("NetworkManager has not answered yet")
        bus.watch(NM, self._owner_changed)
        bus.subscribe(NM, PROPERTIES, "PropertiesChanged", self._changed)

    async def start(self, wake: Wake) -> None:
        """Ask for the first time; returns with the answer, or after two seconds."""
        self._wake = wake
        await self._bus.start()
        await wait_for_event(self._answered, FIRST_S)

    async def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._asking

    def findings(self) -> Findings:
        return _unknown(self._bus.error) if self._bus.error else self._found

    def _owner_changed(self, owner: str) -> None:
        if owner:
            self._ask()
        else:
            self._set(_unknown("NetworkManager is not running, so the network may be metered"))

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
            return self._set(_unknown(str(error)))
        if answer.value in (NO, GUESS_NO):
            return self._set(FIT)
        if answer.value in (YES, GUESS_YES):
            return self._set(Findings(unfit=(f"the network is metered ({SETTING})",)))
        return self._set(_unknown("NetworkManager does not know whether the network is metered"))

    def _set(self, found: Findings) -> None:
        before, self._found = self._found, found
        self._answered.set()
        if before != found:
            self._wake()


def _unknown(reason: str) -> Findings:
    return Findings(unknown=(f"{reason} ({SETTING})",))
