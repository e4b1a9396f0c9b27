"""What logind tells: a session unlocked, a new one, a film."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from dbus_fast import BusType, Message
from dbus_fast.aio import MessageBus
from scenes.stage import CLOCK, REST_S, SETTINGS, Decider, Seen, Stage, deed
from support import sysbox
from support.login1 import MANAGER, FakeLogin1, PrivateBus, variants
from support.waiting import eventually

from supervisor.linux.dbus import LOGIN1, LOGIN1_MANAGER, LOGIN1_PATH, PROPERTIES, SystemBus
from supervisor.sensors.presence.logind import Sessions


@contextlib.asynccontextmanager
async def listening(address: str, member: str, seen: Seen, ask: str = "") -> AsyncIterator[MessageBus]:
    """The ten lines: a match on the bus; `ask`: what logind must be asked, as the signal does not say enough."""
    listener = await MessageBus(bus_address=address, bus_type=BusType.SYSTEM).connect()
    bus_name, bus_path = "org.freedesktop.DBus", "/org/freedesktop/DBus"
    rule = f"type='signal',member='{member}'"
    await listener.call(Message(bus_name, bus_path, bus_name, "AddMatch", signature="s", body=[rule]))
    asked: set[asyncio.Task[Any]] = set()

    def heard(message: Message) -> None:
        if message.member != member:
            return
        if not ask:
            seen()
            return
        task = asyncio.ensure_future(listener.call(Message(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, ask)))
        asked.add(task)
        task.add_done_callback(lambda _: (asked.clear(), seen()))

    listener.add_message_handler(heard)
    try:
        yield listener
    finally:
        listener.disconnect()
        with contextlib.suppress(Exception):  # the bus may have been stopped
            await listener.wait_for_disconnect()


@contextlib.asynccontextmanager
async def watching_logind(address: str) -> AsyncIterator[Decider]:
    """Our sensor on that bus."""
    system = SystemBus(address)
    sensor = Sessions(system, CLOCK, SETTINGS, max_age_s=80.0, delay_locks=False, start_is_sign=False)
    decider = Decider([sensor])
    await sensor.start(decider.wake)
    try:
        yield decider
    finally:
        await sensor.stop()
        await system.stop()


@contextlib.asynccontextmanager
async def booted() -> AsyncIterator[sysbox.SysBox]:
    """A real systemd with a real logind, beside this process."""
    with tempfile.TemporaryDirectory() as folder:
        box = sysbox.SysBox(Path(folder), logind_conf="IdleAction=ignore")
        box.start()  # by the main thread, with which it dies
        try:
            yield box
        finally:
            box.stop()


@contextlib.asynccontextmanager
async def unlocking(seen: Seen) -> AsyncIterator[Stage]:
    """An idle, locked session is unlocked."""
    async with booted() as box:
        _, number = box.open_session("anna")
        box.session_call(number, "SetIdleHint", "b", "true")
        box.session_call(number, "SetLockedHint", "b", "true")
        async with listening(box.bus_address, "PropertiesChanged", seen) as bus, watching_logind(box.bus_address) as decider:
            found = await bus.call(Message(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "GetSession", signature="s", body=[number]))
            assert found is not None

            async def lock(locked: bool) -> None:
                of = "org.freedesktop.login1.Session"
                await bus.send(Message(LOGIN1, found.body[0], of, "SetLockedHint", signature="b", body=[locked]))

            async def unlock() -> float:
                began = time.perf_counter()
                await lock(False)
                return began

            async def again() -> None:
                await lock(True)
                await eventually(decider.look, "locked again")

            def stop() -> None:
                box.run("systemctl", "stop", "systemd-logind")

            def stop_bus() -> None:
                box.run("systemctl", "stop", "dbus.socket", "dbus.service")

            yield Stage(decider, unlock, again, {"logind stops": deed(stop), "the bus stops": deed(stop_bus)}, REST_S)


@contextlib.asynccontextmanager
async def logging_in(seen: Seen) -> AsyncIterator[Stage]:
    """A graphical session comes."""
    async with booted() as box:
        box.add_user("anna")
        opened: list[tuple[str, str]] = []
        async with listening(box.bus_address, "SessionNew", seen), watching_logind(box.bus_address) as decider:

            async def log_in() -> float:
                began = time.perf_counter()
                opened.append(await asyncio.to_thread(box.open_session, "anna"))
                return began

            async def log_out() -> None:
                await asyncio.to_thread(box.close_session, *opened.pop())

            def kill() -> None:
                box.run("systemctl", "mask", "--runtime", "systemd-logind")
                box.run("systemctl", "kill", "-sKILL", "systemd-logind")

            yield Stage(decider, log_in, log_out, {"logind is killed": deed(kill)}, REST_S)


@contextlib.asynccontextmanager
async def filming(seen: Seen) -> AsyncIterator[Stage]:
    """A player takes a block lock on idle."""
    with tempfile.TemporaryDirectory() as folder, PrivateBus(Path(folder)) as bus:
        server = await FakeLogin1(bus.address).start()

        async def say(blocked: str) -> None:
            changed = variants({"BlockInhibited": blocked})
            await server.emit(LOGIN1_PATH, PROPERTIES, "PropertiesChanged", "sa{sv}as", LOGIN1_MANAGER, changed, [])

        async with listening(bus.address, "PropertiesChanged", seen, "ListInhibitors"), watching_logind(bus.address) as decider:

            async def play() -> float:
                began = time.perf_counter()
                server.lock("idle", "mpv")
                await say("idle")
                return began

            async def end() -> None:
                server.others.clear()
                server.manager["BlockInhibited"] = MANAGER["BlockInhibited"]
                await say("")

            async def refuse() -> None:
                server.replies["ListInhibitors"] = "org.freedesktop.DBus.Error.AccessDenied"
                server.lock("idle", "mpv")
                await say("idle")

            yield Stage(decider, play, end, {"logind refuses the list": refuse})
        await server.stop()
