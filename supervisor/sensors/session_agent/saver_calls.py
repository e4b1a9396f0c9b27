"""Who keeps the screen on by a program that lists nobody, or has no signal of a change: seen by the calls that are made to it.

The session bus shows its own user each call (BecomeMonitor). Only the program's name is kept, never its reason. What was held
before this began is not seen.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import Final

from supervisor.linux.dbus import BusError, Call, SystemBus, monitor_calls

AGAIN_S: Final = 60.0
MAX_HOLDERS: Final = 64


class SaverCalls:
    """Watches from `run` on.

    bus: the same bus; it tells when a holder leaves.
    interfaces: of those that list nobody; their holders are `held`. `changed`: called when that changes.
    listing: of those that list their holders; what is called then.
    """

    def __init__(
        self,
        bus: SystemBus,
        address: str,
        interfaces: Collection[str],
        changed: Callable[[], None],
        listing: Mapping[str, Callable[[], None]],
    ) -> None:
        self._bus, self._address, self._changed, self._listing = bus, address, changed, listing
        self._following: set[asyncio.Task[None]] = set()
        calls = [(name, member) for name in (*interfaces, *listing) for member in ("Inhibit", "UnInhibit")]
        self._rules = [f"type='method_call',interface='{name}',member='{member}'" for name, member in calls]
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
        if (changed := self._listing.get(call.interface)) is not None:
            changed()
            self._follow(call.sender)
            return
        names = self._held.get(call.sender, [])
        if call.member == "Inhibit" and len(call.body) == 2 and len(self.held) < MAX_HOLDERS:
            self._held[call.sender] = [*names, str(call.body[0])]
            self._follow(call.sender)
        elif call.member == "UnInhibit" and names:
            self._held[call.sender] = names[1:]
            if not names[1:]:
                del self._held[call.sender]
        else:
            return
        self._changed()

    def _follow(self, sender: str) -> None:
        task = asyncio.ensure_future(self._watch_end(sender))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _watch_end(self, sender: str) -> None:
        with contextlib.suppress(BusError):
            await self._bus.watch_end(sender, lambda: self._left(sender))

    def _left(self, sender: str) -> None:
        if self._held.pop(sender, None) is not None:
            self._changed()
        for changed in self._listing.values():
            changed()
