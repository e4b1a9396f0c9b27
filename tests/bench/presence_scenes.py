"""The sources of presence, each on its stage: the real sensor under the mind, a person who acts, and a bare listener.

A stage is an asynchronous context. It yields who makes one sign (and says when), what is undone before the next, and how
the source is broken. The bare listener calls `seen` for the same sign, in the same process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dbus_fast import BusType, Message
from dbus_fast.aio import MessageBus
from inotify_simple import INotify, flags
from support import sysbox
from support.displays import NOBODY, Display, IdleServer, Mutter, Sway, Xvfb, missing
from support.login1 import MANAGER, FakeLogin1, PrivateBus, eventually, session, variants
from support.nvml_standin import StandIn, build

from states.lifecycle import Lifecycle, blocked_by
from states.limits import Limits
from states.memory import Memory, State
from states.observation import NO_TASK, Automation, Cpu, Gpu, Host, Reading
from supervisor.agents.idle_wayland import WaylandIdle
from supervisor.agents.idle_x11 import _Server as BareX
from supervisor.clock import SystemClock
from supervisor.control import ControlServer
from supervisor.daemon import BUSY_S
from supervisor.dbus import LOGIN1, LOGIN1_MANAGER, LOGIN1_PATH, PROPERTIES, SystemBus
from supervisor.observer import Observer
from supervisor.sensors import input as input_sensor
from supervisor.sensors import terminals
from supervisor.sensors.base import Presence, PresenceSensor
from supervisor.sensors.desktop import Desktop
from supervisor.sensors.gpu_watch import Setup
from supervisor.sensors.idle_detect import TIMES, IdleDetect
from supervisor.sensors.input import InputDevices
from supervisor.sensors.input_device import EV_ABS, EV_KEY, EV_REL, EVENT
from supervisor.sensors.nvml import NvmlSensor
from supervisor.sensors.sessions import Sessions
from supervisor.sensors.terminals import Terminals
from supervisor.settings import GpuSettings, PresenceSettings

ROOT = Path(__file__).resolve().parents[2]
CLOCK = SystemClock()
AWAY_S = 0.03  # so soon after a sign the mind is at ease again, here
QUIET_S = 0.2  # and so soon a desktop calls its person idle
REST_S = 0.1  # people rest for longer than the pause that an agent makes after a report
TYPED_S = 0.6  # what is typed on a person's terminal is told anew no sooner
STEP_S = 8.2  # the kernel moves a terminal's access time in steps of 8 s
GPU_MS = 20.0  # a foreign process on the GPU is seen so soon, and a driver's call later (performance.md)
SETTINGS = PresenceSettings()

Deed = Callable[[], Awaitable[None]]


class Seen:
    """When the bare listener knew, by time.perf_counter."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self) -> None:
        if self.at is None:
            self.at = time.perf_counter()


class Decider:
    """The mind in READY over real sensors; `decided_at` is set when a look after a wake leaves READY."""

    def __init__(
        self,
        presence: Sequence[PresenceSensor],
        gpu: Callable[[float], Reading[Gpu]] | None = None,
        away_s: float = AWAY_S,
    ) -> None:
        def ok(value: Any) -> Callable[[float], Reading[Any]]:
            return lambda now_s: Reading(value, "", "bench", now_s)

        self.observer = Observer(presence, gpu or ok(Gpu(4, 1)), ok(Cpu(5)), ok(Host()))
        self.limits = Limits(idle_required_s=away_s)
        self.mind = Lifecycle(self.limits, memory=Memory(state=State.READY))
        self.decided_at: float | None = None
        self.reason = ""

    def wake(self) -> None:
        """As the loop does: the look follows in the loop's next turn."""
        asyncio.get_running_loop().call_soon(self.look)

    def look(self) -> bool:
        """One whole look; True while it is safe."""
        observation = self.observer.look(CLOCK.now_s(), self.limits, Automation(True), NO_TASK)
        row = self.mind.propose(observation).row
        if row is None:
            self.reason = ""
            return True
        if self.decided_at is None:
            self.decided_at = time.perf_counter()
        person = observation.person.value
        guard = blocked_by(observation, self.mind.memory, self.limits)[0]
        self.reason = person.sign if guard.name == "user_away" and guard.ok is False and person else guard.reason
        return False


@dataclass
class Stage:
    """A source that is ready. `sign` makes one sign and returns when; `breaks`: each way to break it, after the signs."""

    decider: Decider
    sign: Callable[[], Awaitable[float]]
    undo: Deed | None = None
    breaks: dict[str, Deed] = field(default_factory=dict)
    rest_s: float = 0.0
    within_ms: float = 0.0  # soon enough in any case: a driver is asked, which no listener does


@dataclass(frozen=True)
class Scene:
    """A source. `share` of the signs asked for are made: some need seconds each. `instead`: what happens without the
    source, where that is no blindness. `lacks`: why it cannot be played here."""

    name: str
    against: str
    stage: Callable[[Seen], AbstractAsyncContextManager[Stage]]
    share: float = 1.0
    instead: str = ""
    lacks: Callable[[], str] = lambda: ""


class Quiet:
    """A source by which nobody is there."""

    name = "quiet"

    async def start(self, wake: Callable[[], None]) -> None: ...

    async def stop(self) -> None: ...

    def latest(self, now_s: float) -> Presence:
        return Presence(self.name, now_s)


@contextlib.contextmanager
def rested(module: Any, **pauses: float) -> Iterator[None]:
    """Signs here are first ones after a rest; further ones wake the loop only now and then, which these constants say."""
    before = {name: getattr(module, name) for name in pauses}
    for name, value in pauses.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def now_and(act: Callable[[], Any]) -> Callable[[], Coroutine[Any, Any, float]]:
    """The sign that an act of a moment is."""

    async def sign() -> float:
        began = time.perf_counter()
        act()
        return began

    return sign


def deed(act: Callable[[], Any]) -> Deed:
    """An act of a moment, to be awaited."""

    async def do() -> None:
        act()

    return do


@contextlib.contextmanager
def inotify_on(path: str, mask: int, seen: Seen) -> Iterator[None]:
    """The ten lines: an inotify watch read by the loop."""
    inotify = INotify(nonblocking=True)
    inotify.add_watch(path, mask)
    loop = asyncio.get_running_loop()

    def read() -> None:
        inotify.read(timeout=0)
        seen()

    loop.add_reader(inotify.fileno(), read)
    try:
        yield
    finally:
        loop.remove_reader(inotify.fileno())
        inotify.close()


@contextlib.asynccontextmanager
async def ticking(decider: Decider) -> AsyncIterator[None]:
    """What is no event is seen at a look: the loop looks so often while a task runs."""

    async def look() -> None:
        while True:
            await asyncio.sleep(BUSY_S)
            decider.look()

    task = asyncio.ensure_future(look())
    try:
        yield
    finally:
        task.cancel()


# --- logind


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
    sensor = Sessions(system, CLOCK, SETTINGS, delay_locks=False, start_is_sign=False)
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


# --- terminals


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 64)
    except OSError:
        return b""


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, str]]:
    """A terminal whose shell reads what is typed: where to type, and its name."""
    master, slave = os.openpty()
    threading.Thread(target=lambda: [None for _ in iter(lambda: _read(slave), b"")], daemon=True).start()
    try:
        yield master, os.ttyname(slave)
    finally:
        os.close(master)


@contextlib.asynccontextmanager
async def watching_terminals(away_s: float = AWAY_S) -> AsyncIterator[tuple[Decider, dict[str, Deed]]]:
    """Our sensor on the real /dev/pts, by a /dev of its own; and how it is broken."""
    with tempfile.TemporaryDirectory() as folder, rested(terminals, QUIET_S=0.0):
        dev = Path(folder)
        dev.chmod(0o755)
        (dev / "pts").symlink_to("/dev/pts")
        (dev / "full").symlink_to("/dev/full")
        sensor = Terminals(CLOCK, dev)
        decider = Decider([sensor], away_s=away_s)
        await sensor.start(decider.wake)
        try:
            yield decider, {"/dev/pts cannot be listed": deed((dev / "pts").unlink)}
        finally:
            await sensor.stop()


@contextlib.asynccontextmanager
async def typing(seen: Seen) -> AsyncIterator[Stage]:
    """A key on a terminal that the daemon may watch."""
    with terminal() as (master, name), inotify_on(name, flags.ACCESS, seen):
        async with watching_terminals() as (decider, breaks):
            yield Stage(decider, now_and(lambda: os.write(master, b"x\n")), None, breaks)


@contextlib.asynccontextmanager
async def opening(seen: Seen) -> AsyncIterator[Stage]:
    """A new terminal: SSH, a terminal window, tmux."""
    with inotify_on("/dev/pts", flags.CREATE, seen):
        async with watching_terminals() as (decider, breaks):
            pairs: list[tuple[int, int]] = []

            async def close() -> None:
                for fd in pairs.pop():
                    os.close(fd)

            yield Stage(decider, now_and(lambda: pairs.append(os.openpty())), close, breaks)


@contextlib.asynccontextmanager
async def typing_elsewhere(seen: Seen) -> AsyncIterator[Stage]:
    """A key on a terminal of another user who has no agent: its access time alone tells, to whoever looks."""
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(terminal()) for _ in range(64)]
        os.seteuid(NOBODY)  # as the service does: it may not watch them
        stack.callback(os.seteuid, 0)
        # An access time has whole seconds, and is looked at each second: so old is what it tells.
        async with watching_terminals(away_s=3.0) as (decider, breaks):
            await asyncio.sleep(STEP_S)
            left = iter(others)
            watched = [""]

            async def press() -> float:
                master, watched[0] = next(left)
                await asyncio.sleep(random.random() * BUSY_S)  # at no fixed time in the interval
                began = time.perf_counter()
                os.write(master, b"x\n")
                return began

            async def stat() -> None:
                """The ten lines: a look each second."""
                before = {name: os.stat(name).st_atime_ns for _, name in others}
                while True:
                    await asyncio.sleep(BUSY_S)
                    now = {name: os.stat(name).st_atime_ns for _, name in others}
                    if now != before:
                        seen()
                    before = now

            bare = asyncio.ensure_future(stat())
            async with ticking(decider):
                yield Stage(decider, press, None, breaks)
            bare.cancel()


# --- what the session agent sees


@contextlib.asynccontextmanager
async def with_agent(
    folder: Path, runtime: Path, bus_address: str = "", **changes: Any
) -> AsyncIterator[tuple[Decider, Desktop, Deed]]:
    """logind (of ours, on a real bus), the daemon's sensors and socket, and the agent as a process of its own; and
    what kills that."""
    with PrivateBus(folder) as bus:
        login1 = await FakeLogin1(bus.address).start()
        login1.sessions["/s"] = session(User=(os.getuid(), "/u"), **changes)
        system = SystemBus(bus.address)
        desktop = Desktop(CLOCK, SETTINGS, lambda s: sessions.owner(s), lambda uid: sessions.name_of(uid))
        sessions = Sessions(system, CLOCK, SETTINGS, delay_locks=False, start_is_sign=False, proof=desktop.proof)
        decider = Decider([sessions, desktop])
        server = ControlServer(folder / "control.sock", {}, frozenset(), {"presence": desktop.hearing})
        await server.start()
        await sessions.start(decider.wake)
        await desktop.start(decider.wake)
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-c",
            "import asyncio, sys; from pathlib import Path; from supervisor.agents import session;"
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
            await eventually(lambda: desktop._reports, "the agent's first report", 20)
            yield decider, desktop, kill
        finally:
            if agent.returncode is None:
                await kill()
            await desktop.stop()
            await server.stop()
            await sessions.stop()
            await system.stop()
            await login1.stop()


@contextlib.asynccontextmanager
async def on_display(display: Display, agent: AbstractAsyncContextManager[Any], act: Any = None) -> AsyncIterator[Stage]:
    """A touch of a display that is up; `act`: by this, not by its quick hand."""
    touch = act or await display.hand()
    async with agent as (decider, desktop, kill):
        await eventually(lambda: desktop.proof("3", os.getuid(), CLOCK.now_s()).source, "the agent has a source", 20)

        async def sign() -> float:
            began = time.perf_counter()
            await touch()
            return began

        breaks = {"the display dies": deed(display.stop), "the agent is killed": kill}
        yield Stage(decider, sign, None, breaks, REST_S)


@contextlib.contextmanager
def sync_alarms(display: str, seen: Seen) -> Iterator[None]:
    """The ten lines: alarms on the X server's IDLETIME, in a thread."""
    server, over = BareX(display, None), threading.Event()
    server.arm(QUIET_S)

    def watch() -> None:
        with contextlib.suppress(Exception):  # the display dies at the end
            while not over.is_set():
                if select.select([server.fileno()], [], [], 0.5)[0]:
                    while server.pending():
                        if (idle_s := server.alarm()) is not None and idle_s < QUIET_S:
                            seen()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.asynccontextmanager
async def in_x11(seen: Seen) -> AsyncIterator[Stage]:
    """A key in an X session."""
    with tempfile.TemporaryDirectory() as name, Xvfb() as display, sync_alarms(display.name, seen):
        agent = with_agent(Path(name), Path(name) / "none", Type="x11", Display=display.name)
        async with on_display(display, agent) as stage:
            yield stage


@contextlib.asynccontextmanager
async def notified(path: Path, seen: Seen) -> AsyncIterator[None]:
    """A client of the compositor in this process, and nothing behind it."""
    client = WaylandIdle(path, QUIET_S)

    def changed() -> None:
        if client.reading is not None and client.reading.idle_since_s is None:
            seen()

    task = asyncio.ensure_future(client.run(changed))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def in_sway(key: bool) -> Callable[[Seen], AbstractAsyncContextManager[Stage]]:
    @contextlib.asynccontextmanager
    async def stage(seen: Seen) -> AsyncIterator[Stage]:
        with tempfile.TemporaryDirectory() as name, Sway() as display:
            async with notified(display.socket, seen):
                agent = with_agent(Path(name), display.runtime)
                act = (lambda: asyncio.to_thread(display.key)) if key else None
                async with on_display(display, agent, act) as made:
                    yield made

    return stage


def in_ext_idle(version: int) -> Callable[[Seen], AbstractAsyncContextManager[Stage]]:
    @contextlib.asynccontextmanager
    async def stage(seen: Seen) -> AsyncIterator[Stage]:
        with tempfile.TemporaryDirectory() as name, IdleServer(Path(name) / "wayland-0", version) as display:
            async with notified(display.socket, seen), on_display(display, with_agent(Path(name), Path(name))) as made:
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


# --- signs that need no session


KINDS: dict[str, tuple[Iterable[int], Iterable[int], Iterable[int], tuple[int, int, int]]] = {
    "keyboard": (range(1, 120), (), (), (EV_KEY, 30, 1)),
    "mouse": ((0x110, 0x111), (0, 1, 8), (), (EV_REL, 0, 3)),
    "touch": ((0x14A,), (), (0, 1, 0x35), (EV_ABS, 0x35, 100)),
    "tablet": ((0x140, 0x14A), (), (0, 1), (EV_ABS, 0, 100)),
    "gamepad": ((0x130, 0x131), (), (0, 1), (EV_KEY, 0x130, 1)),
}


def bitmap(numbers: Iterable[int]) -> str:
    """As sysfs writes it, a word of 64 bits at a time."""
    value = sum(1 << number for number in numbers)
    words = [f"{value >> shift & 2**64 - 1:x}" for shift in range(0, max(1, value.bit_length()), 64)]
    return " ".join(reversed(words))


@contextlib.asynccontextmanager
async def touching_devices(seen: Seen) -> AsyncIterator[Stage]:
    """Keyboard, mouse, touch screen, tablet and gamepad in turn."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        stack.enter_context(rested(input_sensor, QUIET_S=0.02, SETTLED_S=0.02))
        root = Path(name)
        (root / "dev/input").mkdir(parents=True)
        ends: list[tuple[int, int, bytes]] = []
        loop = asyncio.get_running_loop()
        for number, (kind, (keys, rels, axes, sent)) in enumerate(KINDS.items()):
            device = root / f"sys/class/input/event{number}/device"
            (device / "capabilities").mkdir(parents=True)
            for what, bits in (("key", keys), ("rel", rels), ("abs", axes)):
                (device / "capabilities" / what).write_text(f"{bitmap(bits)}\n")
            (device / "properties").write_text("0\n")
            (device / "name").write_text(f"{kind}\n")
            node = root / f"dev/input/event{number}"
            os.mkfifo(node)
            ours = os.open(node, os.O_RDWR | os.O_NONBLOCK)
            stack.callback(os.close, ours)
            reading, bare = os.pipe2(os.O_NONBLOCK)
            stack.callback(os.close, reading)
            stack.callback(os.close, bare)
            loop.add_reader(reading, lambda fd=reading: (os.read(fd, 4096), seen()))
            stack.callback(loop.remove_reader, reading)
            ends.append((bare, ours, EVENT.pack(0, 0, *sent) + EVENT.pack(0, 0, 0, 0, 0)))
        sensor = InputDevices(CLOCK, required=True, dev_root=root / "dev", sys_root=root / "sys")
        decider = Decider([sensor])
        await sensor.start(decider.wake)
        turn = [0]

        def touch() -> None:
            bare, ours, data = ends[turn[0] % len(ends)]
            turn[0] += 1
            os.write(bare, data)
            os.write(ours, data)

        yield Stage(decider, now_and(touch), None, {"the last is unplugged": deed(lambda: shutil.rmtree(root / "dev/input"))},
                    0.05)  # fmt: skip
        await sensor.stop()


@contextlib.asynccontextmanager
async def idle_detect(seen: Seen) -> AsyncIterator[Stage]:
    """BOINC's helper says that somebody was there."""
    with tempfile.TemporaryDirectory() as name:
        segment = Path(name) / "shm"

        def write(input_s: float) -> None:
            draft = segment.with_suffix(".new")
            draft.write_bytes(TIMES.pack(int(CLOCK.wall_s()), int(input_s)))
            draft.replace(segment)

        write(CLOCK.wall_s() - 3600)
        decider = Decider([IdleDetect(CLOCK, segment), Quiet()], away_s=2.5)  # its times have whole seconds

        async def look() -> None:
            """The ten lines: a look each second."""
            before = segment.read_bytes()
            while True:
                await asyncio.sleep(BUSY_S)
                if (now := segment.read_bytes()) != before:
                    seen()
                before = now

        async def forget() -> None:
            write(CLOCK.wall_s() - 3600)
            await asyncio.sleep(BUSY_S + 0.1)

        bare = asyncio.ensure_future(look())
        async with ticking(decider):
            yield Stage(decider, now_and(lambda: write(CLOCK.wall_s())), forget, rest_s=REST_S)
        bare.cancel()


# --- the GPU


@contextlib.asynccontextmanager
async def gaming(seen: Seen) -> AsyncIterator[Stage]:
    """A game opens the GPU's node and makes a context."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "gpu").mkdir()
        standin = StandIn(build(folder / "nvml"), folder / "gpu")
        before = dict(os.environ)
        os.environ.update(standin.env)
        dev, sysfs = folder / "dev", folder / "sys"
        dev.mkdir()
        (sysfs / "bus/pci/devices").mkdir(parents=True)
        node = dev / "nvidia0"
        node.touch()
        sensor = NvmlSensor(Setup(CLOCK, GpuSettings(), frozenset, dev_root=dev, sys_root=sysfs, settle_s=0.02))
        decider = Decider([Quiet()], sensor.latest)
        await sensor.start(decider.wake)
        await eventually(lambda: sensor.latest(CLOCK.now_s()).value is not None, "the first reading", 10)
        began = time.perf_counter()
        for _ in range(20):
            await sensor.refresh(3)
        call_s = (time.perf_counter() - began) / 20

        async def play() -> float:
            standin.shows(f"0.proc={os.getpid()}:1073741824:g")
            began = time.perf_counter()
            node.open().close()
            return began

        async def end() -> None:
            standin.shows()
            while not decider.look() or sensor._follow_up:  # the looks that follow an open are over
                await sensor.refresh(3)
                await asyncio.sleep(0.02)

        def look_at(*lines: str) -> Deed:
            async def change() -> None:
                standin.shows(*lines)
                node.open().close()

            return change

        hang = [f"delay.{call}=60000" for call in ("nvmlDeviceGetCount", "nvmlDeviceGetUtilizationRates")]
        breaks = {"the GPU is lost": look_at("0.err=15"), "a call hangs": look_at(*hang)}
        with inotify_on(str(node), flags.OPEN, seen):
            yield Stage(decider, play, end, breaks, 0.0, GPU_MS + call_s * 1e3)
        await sensor.stop()
        os.environ.clear()
        os.environ.update(before)


def needs(*programs: str) -> Callable[[], str]:
    """What this machine lacks, asked when it is played."""
    return lambda: missing(*programs)


def needs_root() -> str:
    """Only root may take another user's part."""
    return "" if os.geteuid() == 0 else "needs root"


BOX = "systemd-logind in a box"
AGENT = "session agent"
SCENES = (
    Scene("session unlocked", f"{BOX}, SetLockedHint", unlocking, lacks=sysbox.unavailable),
    Scene("new graphical session", f"{BOX}; the login by PAM is in both figures", logging_in, 0.1, lacks=sysbox.unavailable),
    Scene("film: idle is blocked", "a logind of ours on a real bus", filming),
    Scene("key in X", f"Xvfb, a real key by xdotool, {AGENT}", in_x11, 0.5, lacks=needs("Xvfb", "xdotool")),
    Scene("key in Wayland, sway", f"sway, wtype (its start is in both figures), {AGENT}", in_sway(True), 0.25,
          lacks=needs("sway", "swaymsg", "wtype")),
    Scene("pointer in Wayland, sway", f"sway (org_kde_kwin_idle), its own virtual pointer, {AGENT}", in_sway(False), 0.5,
          lacks=needs("sway", "swaymsg")),
    Scene("ext-idle-notify v1", f"a compositor of ours on the real wire, {AGENT}", in_ext_idle(1), 0.5),
    Scene("ext-idle-notify v2", f"the same, with input notifications, {AGENT}", in_ext_idle(2), 0.5),
    Scene("key in GNOME", f"mutter, the virtual keyboard of its remote desktop, {AGENT}", in_mutter, 0.5,
          lacks=needs("mutter")),
    Scene("key on own terminal", f"a real pty, {AGENT}", typing_by_agent, 0.1,
          "without the agent its access time tells, in 8-s steps (see below)"),
    Scene("key on a terminal", "a real pty that the daemon may watch", typing),
    Scene("key on another's terminal", f"a real pty; access times, a look each {BUSY_S:g} s", typing_elsewhere, 0.04,
          lacks=needs_root),
    Scene("new terminal", "a real /dev/pts", opening),
    Scene("input devices", "pipes of struct input_event: keyboard, mouse, touch, tablet, gamepad in turn", touching_devices),
    Scene("idle_detect", f"its shared memory; a look each {BUSY_S:g} s", idle_detect, 0.025,
          "it only adds signs: stale or gone, it says nothing, and the others count"),
    Scene("foreign GPU process", "NVML stand-in under the real pynvml", gaming, 0.1),
)  # fmt: skip
