"""What a person's session agent sees: a key in X, in Wayland, in GNOME, on a terminal of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from dbus_fast import Message
from inotify_simple import flags
from scenes.logind import listening
from scenes.stage import CLOCK, REST_S, SETTINGS, Decider, Deed, Seen, Stage, deed, inotify_on, now_and
from scenes.terminals import terminal
from support.displays import Display, IdleServer, Mutter, Sway, Xvfb
from support.login1 import FakeLogin1, PrivateBus, session
from support.waiting import eventually

from supervisor.linux.control_socket import ControlServer
from supervisor.linux.dbus import SystemBus
from supervisor.sensors.presence.agent_reports import AgentReports, SessionOwners
from supervisor.sensors.presence.logind import Sessions
from supervisor.sensors.session_agent.wayland import WaylandIdle
from supervisor.sensors.session_agent.x11 import X11Idle

ROOT = Path(__file__).resolve().parents[3]
QUIET_S = 0.2  # so soon a desktop calls its person idle
TYPED_S = 0.6  # what is typed on a person's terminal is told anew no sooner


@contextlib.asynccontextmanager
async def with_agent(
    folder: Path, runtime: Path, bus_address: str = "", **changes: Any
) -> AsyncIterator[tuple[Decider, AgentReports, Deed]]:
    """logind (of ours, on a real bus), the daemon's sensors and socket, and the agent as a process of its own; and
    what kills that."""
    with PrivateBus(folder) as bus:
        login1 = await FakeLogin1(bus.address).start()
        login1.sessions["/s"] = session(User=(os.getuid(), "/u"), **changes)
        system = SystemBus(bus.address)
        reports = AgentReports(CLOCK, SETTINGS, owners := SessionOwners(), 80.0)
        sessions = Sessions(
            system, CLOCK, SETTINGS, owners, max_age_s=80.0, delay_locks=False, start_is_sign=False, proof=reports.proof
        )
        decider = Decider([sessions, reports])
        server = ControlServer(folder / "control.sock", {}, frozenset(), {"presence": reports.connect})
        await server.start()
        await sessions.start(decider.wake)
        await reports.start(decider.wake)
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-c",
            "import asyncio, sys; from pathlib import Path; from supervisor.sensors.session_agent import agent as session;"
            f"session.TYPED_GAP_S = 0; asyncio.run(session.Agent(Path(sys.argv[1]), quiet_s={QUIET_S}).run())",
            str(folder / "control.sock"), cwd=ROOT,
            env={
                "PATH": os.environ["PATH"], "HOME": str(folder), "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
                "XDG_RUNTIME_DIR": str(runtime), "DBUS_SESSION_BUS_ADDRESS": bus_address or f"unix:path={folder}/none",
            },
        )  # fmt: skip

        async def kill() -> None:
            agent.kill()
            await agent.wait()

        try:
            await eventually(lambda: reports._reports, "the agent's first report", 20)
            yield decider, reports, kill
        finally:
            if agent.returncode is None:
                await kill()
            await reports.stop()
            await server.stop()
            await sessions.stop()
            await system.stop()
            await login1.stop()


@contextlib.asynccontextmanager
async def on_display(display: Display, agent: AbstractAsyncContextManager[Any], act: Any = None) -> AsyncIterator[Stage]:
    """A touch of a display that is up; `act`: by this, not by its quick hand."""
    touch = act or await display.hand()
    async with agent as (decider, reports, kill):
        await eventually(lambda: reports.proof("3", os.getuid(), CLOCK.now_s()).source, "the agent has a source", 20)

        async def sign() -> float:
            began = time.perf_counter()
            await touch()
            return began

        breaks = {"the display dies": deed(display.stop), "the agent is killed": kill}
        yield Stage(decider, sign, None, breaks, REST_S)


@contextlib.asynccontextmanager
async def notified(client: WaylandIdle | X11Idle, seen: Seen) -> AsyncIterator[None]:
    """A client of the display in this process, and nothing behind it."""

    def changed() -> None:
        if client.reading is not None and client.reading.idle_since_s is None:
            seen()

    task = asyncio.ensure_future(client.run(changed))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def in_x11(seen: Seen) -> AsyncIterator[Stage]:
    """A key in an X session."""
    with tempfile.TemporaryDirectory() as name, Xvfb() as display:
        agent = with_agent(Path(name), Path(name) / "none", Type="x11", Display=display.name)
        async with notified(X11Idle(display.name, list, QUIET_S), seen), on_display(display, agent) as stage:
            yield stage


def in_sway(key: bool) -> Callable[[Seen], AbstractAsyncContextManager[Stage]]:
    @contextlib.asynccontextmanager
    async def stage(seen: Seen) -> AsyncIterator[Stage]:
        with tempfile.TemporaryDirectory() as name, Sway() as display:
            async with notified(WaylandIdle(display.socket, QUIET_S), seen):
                agent = with_agent(Path(name), display.runtime)
                act = (lambda: asyncio.to_thread(display.key)) if key else None
                async with on_display(display, agent, act) as made:
                    yield made

    return stage


def in_ext_idle(version: int) -> Callable[[Seen], AbstractAsyncContextManager[Stage]]:
    @contextlib.asynccontextmanager
    async def stage(seen: Seen) -> AsyncIterator[Stage]:
        with tempfile.TemporaryDirectory() as name, IdleServer(Path(name) / "wayland-0", version) as display:
            client, agent = WaylandIdle(display.socket, QUIET_S), with_agent(Path(name), Path(name))
            async with notified(client, seen), on_display(display, agent) as made:
                yield made

    return stage


@contextlib.asynccontextmanager
async def in_mutter(seen: Seen) -> AsyncIterator[Stage]:
    """A key in GNOME's compositor."""
    with contextlib.ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        bus = stack.enter_context(PrivateBus(folders[0]))
        display = stack.enter_context(Mutter(bus.address, folders[0]))
        async with listening(bus.address, "WatchFired", seen) as listener:
            monitor, path = "org.gnome.Mutter.IdleMonitor", "/org/gnome/Mutter/IdleMonitor/Core"

            async def again() -> None:
                """A watch for a touch fires once."""
                await listener.call(Message(monitor, path, monitor, "AddUserActiveWatch"))

            await again()
            async with on_display(display, with_agent(folders[1], folders[0], bus.address)) as made:
                made.undo = again
                yield made


@contextlib.asynccontextmanager
async def typing_by_agent(seen: Seen) -> AsyncIterator[Stage]:
    """A key on a person's own terminal, where the daemon may not look."""
    with tempfile.TemporaryDirectory() as name, terminal() as (master, tty), inotify_on(tty, flags.ACCESS, seen):
        agent = with_agent(Path(name), Path(name), Type="tty", TTY=tty.removeprefix("/dev/"))
        async with agent as (decider, _, _):
            yield Stage(decider, now_and(lambda: os.write(master, b"x\n")), rest_s=TYPED_S)
