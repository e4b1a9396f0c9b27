"""What one service on the system bus says of the machine: asked when it appears and after each change, never in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection
from typing import Final, Generic, TypeVar

from supervisor.linux.bounded import wait_for_event
from supervisor.linux.dbus import PROPERTIES, Signal, SystemBus
from supervisor.sensors.base import Wake

T = TypeVar("T")
FIRST_S: Final = 2.0


class BusValue(Generic[T]):
    """The value; made before the shared bus is started, which its owner stops.

    cause: whether a change of these properties of an object (its path) is one to ask.
    read: asks, and never raises a BusError.
    first: the value until the service has answered. absent: without the service.
    """

    def __init__(
        self,
        bus: SystemBus,
        service: str,
        cause: Callable[[str, Collection[str]], bool],
        read: Callable[[], Awaitable[T]],
        first: T,
        absent: T,
    ) -> None:
        self._bus, self._cause, self._read, self._absent = bus, cause, read, absent
        self.value = first
        self._wake: Wake = lambda: None
        self._asking: asyncio.Task[None] | None = None
        self._answered = asyncio.Event()
        bus.watch(service, self._owner_changed)
        bus.subscribe(service, PROPERTIES, "PropertiesChanged", self._changed)

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

    def _owner_changed(self, owner: str) -> None:
        if owner:
            self._ask()
        else:
            self._set(self._absent)

    def _changed(self, signal: Signal) -> None:
        changed = [*signal.body[1], *signal.body[2]] if len(signal.body) == 3 else []
        if self._cause(signal.path, changed):
            self._ask()

    def _ask(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        self._asking = asyncio.get_running_loop().create_task(self._take())

    async def _take(self) -> None:
        self._set(await self._read())

    def _set(self, value: T) -> None:
        before, self.value = self.value, value
        self._answered.set()
        if before != value:
            self._wake()
