"""Services of ours on a session bus of a test's own, in the place of a desktop's, and the agent's source beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dbus_fast import BusType, Message, MessageFlag, MessageType
from dbus_fast.aio import MessageBus
from support.login1 import PrivateBus

from supervisor.sensors.session_agent.session_bus import BusIdle

QUIET_S = 0.3


class Service:
    """A service of ours: answers by member, (signature, body), a callable that gives it, an error's name, or None: it hangs."""

    def __init__(self, address: str, name: str) -> None:
        self.address, self.name = address, name
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.bus: MessageBus | None = None
        self.may_be_started = False  # by a call, as a service of messages may

    async def start(self) -> Service:
        self.bus = await MessageBus(bus_address=self.address, bus_type=BusType.SYSTEM).connect()
        self.bus.add_message_handler(self._answer)
        await self.bus.request_name(self.name)
        return self

    def _answer(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL or message.member not in self.answers:
            return None
        self.asked.append(message.member)
        assert self.may_be_started or message.flags & MessageFlag.NO_AUTOSTART, "no question may start a service (T31)"
        answer = self.answers[message.member]
        if answer is None:
            return True
        if isinstance(answer, str):
            return Message.new_error(message, answer, "as planned")
        return Message.new_method_return(message, *(answer(message) if callable(answer) else answer))

    async def emit(self, path: str, member: str, signature: str, *body: Any) -> None:
        await self.signal(path, self.name, member, signature, *body)

    async def signal(self, path: str, interface: str, member: str, signature: str, *body: Any) -> None:
        assert self.bus
        await self.bus.send(Message.new_signal(path, interface, member, signature, list(body)))

    async def stop(self) -> None:
        assert self.bus
        self.bus.disconnect()
        await asyncio.gather(self.bus.wait_for_disconnect(), return_exceptions=True)


def beside(folder: Path, story: Callable[[str, BusIdle], Any], quiet_s: float = QUIET_S, **more: Any) -> None:
    """Run a story beside the source on a bus of its own."""

    async def run() -> None:
        with PrivateBus(folder) as bus:
            source = BusIdle(bus.address, quiet_s, **more)
            running = asyncio.ensure_future(source.run(lambda: None))
            try:
                await asyncio.wait_for(story(bus.address, source), 150)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())
