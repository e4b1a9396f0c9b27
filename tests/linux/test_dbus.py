"""The bus connection beside what test_logind_bus.py shows with a logind."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dbus_fast import BusType, Message, MessageType
from dbus_fast.aio import MessageBus
from support.login1 import PrivateBus

from supervisor.linux.dbus import BUS, BUS_PATH, SystemBus


def test_a_stranger_who_asks_us_gets_an_answer_and_ends_nothing(tmp_path: Path) -> None:
    """dbus-fast answers for us: every program may call our unique name."""

    async def story(address: str) -> None:
        bus = SystemBus(address)
        await bus.start()
        stranger = await MessageBus(bus_address=address, bus_type=BusType.SYSTEM).connect()
        for interface, member in (("org.freedesktop.DBus.Peer", "Ping"), ("org.example.None", "Nothing")):
            assert bus._bus is not None
            message = Message(destination=bus._bus.unique_name, path="/", interface=interface, member=member)
            async with asyncio.timeout(10):
                reply = await stranger.call(message)
            assert reply is not None
            assert (reply.message_type is MessageType.METHOD_RETURN) is (member == "Ping")
        assert await bus.call(BUS, BUS_PATH, BUS, "GetId", expect="s")
        stranger.disconnect()
        await bus.stop()

    with PrivateBus(tmp_path) as private:
        asyncio.run(story(private.address))
