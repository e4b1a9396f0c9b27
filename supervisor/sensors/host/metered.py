"""Whether the network is metered, as NetworkManager reports it (host.allow_metered: false).

No answer and no NetworkManager are unknown, which blocks, because the person pays for each byte.
"""

from __future__ import annotations

from typing import Final

from supervisor.linux.dbus import PROPERTIES, BusError, SystemBus
from supervisor.sensors.base import Wake
from supervisor.sensors.host.bus_value import BusValue
from supervisor.sensors.host.findings import FIT, Findings

NM: Final = "org.freedesktop.NetworkManager"
NM_PATH: Final = "/org/freedesktop/NetworkManager"
SETTING: Final = "host.allow_metered: false"
YES, GUESS_YES = 1, 3
NO, GUESS_NO = 2, 4


class Metered:
    """The sensor; made before the shared bus is started, which its owner stops."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus
        absent = _unknown("NetworkManager is not running, so the network may be metered")
        first = _unknown("NetworkManager has not answered yet")
        self._found = BusValue(bus, NM, lambda path, names: path == NM_PATH and "Metered" in names, self._read, first, absent)

    async def start(self, wake: Wake) -> None:
        """Ask for the first time; returns with the answer, or after two seconds."""
        await self._found.start(wake)

    async def stop(self) -> None:
        await self._found.stop()

    def findings(self) -> Findings:
        return _unknown(self._bus.error) if self._bus.error else self._found.value

    async def _read(self) -> Findings:
        try:
            (answer,) = await self._bus.call(NM, NM_PATH, PROPERTIES, "Get", NM, "Metered", signature="ss", expect="v")
        except BusError as error:
            return _unknown(str(error))
        if answer.value in (NO, GUESS_NO):
            return FIT
        if answer.value in (YES, GUESS_YES):
            return Findings(unfit=(f"the network is metered ({SETTING})",))
        return _unknown("NetworkManager does not know whether the network is metered")


def _unknown(reason: str) -> Findings:
    return Findings(unknown=(f"{reason} ({SETTING})",))
