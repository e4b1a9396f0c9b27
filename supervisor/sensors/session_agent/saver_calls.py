"""Who keeps the screen on by a screen saver that lists nobody: seen by the calls that are made to it.

The session bus shows its own user each call (BecomeMonitor). Only the program's name is kept, never its reason. What was held
before this began is not seen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Final

from supervisor.linux.dbus import BusError, Call, SystemBus, monitor_calls

AGAIN_S: Final = 60.0
MAX_HOLDERS: Final = 64


class SaverCalls:
    """Watches from `run` on. `bus`: the same bus; it tells when a holder leaves. `interfaces`: the screen savers'. `changed`:
    called when `held` changes."""

    def __init__(self, bus: SystemBus, address: str, interfaces: Collection[str], changed: Callable[[], None]) -> None:
        self._bus, self._address, self._changed = bus, address, changed
        self._following: set[asyncio.Task[None]] = set()
        members = ("Inhibit", "UnInhibit")
        self._rules = [f"type='method_call',interface='{name}',member='{member}'" for name in interfaces for member in members]
        self._held: dict[str, list[str]] = {}  # by connection: the names that it gave

    @property
    def held(self) -> list[str]:
        """The programs."""
        return [name for names in self._held.values() for name in names]

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

    def forget(self) -> None:
        """The screen saver is another one, and holds nothing."""
        self._held.clear()
        self._changed()

    def _called(self, call: Call) -> None:
        names = self._held.get(call.sender, [])
        if call.member == "Inhibit" and len(call.body) == 2 and len(self.held) < MAX_HOLDERS:
            self._held[call.sender] = [*names, str(call.body[0])]
            if not names:
                task = asyncio.ensure_future(self._follow(call.sender))
                self._following.add(task)
                task.add_done_callback(self._following.discard)
        elif call.member == "UnInhibit" and names:
            self._held[call.sender] = names[1:]
            if not names[1:]:
                del self._held[call.sender]
        else:
            return
        self._changed()

    async def _follow(self, sender: str) -> None:
        with contextlib.suppress(BusError):
            await self._bus.watch_end(sender, lambda: self._left(sender))

    def _left(self, sender: str) -> None:
        if self._held.pop(sender, None) is not None:
            self._changed()
