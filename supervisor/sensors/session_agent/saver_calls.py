"""Who asks a service to keep the screen on, or the machine awake: seen by the calls that are made to it.

For services that list nobody, or have no signal of a change, or do not tell the screen from sleep. The session bus shows each
call to its own user (BecomeMonitor). What was held before this began is not seen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Final

from supervisor.linux.dbus import BusError, Call, SystemBus, monitor_calls

AGAIN_S: Final = 60.0
MAX_HOLDERS: Final = 64


class InhibitCalls:
    """Watches from `run` on.

    bus: the same bus; it tells when a holder leaves.
    interfaces: those whose calls are watched.
    changed: called with the interface, when somebody has called it, or a holder has left.
    """

    def __init__(
        self, bus: SystemBus, address: str, interfaces: Collection[str], changed: Callable[[str], None]
    ) -> None:
        self._bus, self._address, self._changed = bus, address, changed
        calls = [(name, member) for name in interfaces for member in ("Inhibit", "UnInhibit")]
        self._rules = [f"type='method_call',interface='{name}',member='{member}'" for name, member in calls]
        self._held: dict[str, list[tuple[str, str, str]]] = {}  # by connection: interface, program, reason
        self._following: set[asyncio.Task[None]] = set()

    def held(self, interface: str) -> list[tuple[str, str]]:
        """The holders of an interface: each program with its reason, which tells two apart and goes nowhere."""
        return [(name, why) for entries in self._held.values() for at, name, why in entries if at == interface]

    async def run(self) -> None:
        """Ends only when cancelled."""
        try:
            while True:
                with contextlib.suppress(BusError):
                    await monitor_calls(self._address, self._rules, self._called)
                self.forget()
                await asyncio.sleep(AGAIN_S)
        finally:
            self.forget()

    def forget(self, interface: str = "") -> None:
        """The service (all of them) is another one, and holds nothing."""
        for sender, entries in list(self._held.items()):
            self._keep(sender, [entry for entry in entries if interface and entry[0] != interface])

    def _called(self, call: Call) -> None:
        entries = self._held.get(call.sender, [])
        if call.member == "Inhibit" and len(call.body) == 2 and len(entries) < MAX_HOLDERS:
            entries = [*entries, (call.interface, str(call.body[0]), str(call.body[1]))]
            task = asyncio.ensure_future(self._follow(call.sender))
            self._following.add(task)
            task.add_done_callback(self._following.discard)
        elif call.member == "UnInhibit":
            ended = next((entry for entry in entries if entry[0] == call.interface), None)  # its cookie is not known
            entries = [entry for entry in entries if entry is not ended]
        self._held[call.sender] = entries
        if not entries:
            del self._held[call.sender]
        self._changed(call.interface)

    async def _follow(self, sender: str) -> None:
        with contextlib.suppress(BusError):
            await self._bus.watch_end(sender, lambda: self._keep(sender, []))

    def _keep(self, sender: str, left: list[tuple[str, str, str]]) -> None:
        before = self._held.pop(sender, [])
        if left:
            self._held[sender] = left
        for interface in {entry[0] for entry in before} - {entry[0] for entry in left}:
            self._changed(interface)
