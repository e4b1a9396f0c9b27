"""Touch of a display → report in the daemon's process: what the session agent adds to a display's own event.

    python tests/bench/agent_latency.py [--touches 30]

Beside it, in the same run, the bare limit: the time until the source itself, in this process, has the event. Both start
when the touch is made, so the time that xdotool and swaymsg take to start is in both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from support.displays import Display, IdleServer, Sway, Xvfb, missing
from support.login1 import FakeLogin1, PrivateBus, session

from supervisor.agents.idle import Source
from supervisor.agents.idle_wayland import WaylandIdle
from supervisor.agents.idle_x11 import X11Idle
from supervisor.clock import SystemClock
from supervisor.control import ControlServer
from supervisor.sensors.desktop import Desktop
from supervisor.settings import PresenceSettings

CLOCK = SystemClock()
QUIET_S = 0.3


def percentile(values: list[float], part: float) -> float:
    """The value below which `part` of them lie."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


async def until(event: asyncio.Event, true: Callable[[], bool], what: str) -> None:
    """Wait for events until it is true."""
    try:
        async with asyncio.timeout(10):
            while not true():
                event.clear()
                await event.wait()
    except TimeoutError as error:
        raise SystemExit(f"not within 10 s: {what}") from error


async def touches(display: Display, count: int, event: asyncio.Event, active: Callable[[], bool]) -> list[float]:
    """Milliseconds from each touch to the first word of it."""
    taken = []
    for _ in range(count):
        await until(event, lambda: not active(), "idle")
        await asyncio.sleep(0.1)  # past the pause that the agent makes after a report: people rest for longer
        begun_s = time.monotonic()
        touching = asyncio.ensure_future(asyncio.to_thread(display.touch))
        await until(event, active, "a touch seen")
        taken.append((time.monotonic() - begun_s) * 1000)
        await touching
    return taken


async def bare(display: Display, source: Source, count: int) -> list[float]:
    """The source alone, in this process."""
    event = asyncio.Event()
    running = asyncio.ensure_future(source.run(event.set))
    try:
        await until(event, lambda: source.reading is not None, "the probe")
        return await touches(display, count, event, lambda: source.reading is not None and source.reading.idle_since_s is None)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def told(display: Display, runtime: Path, count: int, **changes: object) -> list[float]:
    """The agent as its own process, over the control socket, into the daemon's sensor."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, PrivateBus(Path(name)) as bus:
        login1 = await FakeLogin1(bus.address).start()
        login1.sessions["/s"] = session(User=(os.getuid(), "/u"), **changes)
        desktop = Desktop(CLOCK, PresenceSettings(), lambda _: (os.getuid(), "anna"), lambda _: "anna")
        event = asyncio.Event()
        server = ControlServer(Path(name) / "control.sock", {}, frozenset(), {"presence": desktop.hearing})
        await server.start()
        await desktop.start(event.set)
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-c",
            "import asyncio, sys; from pathlib import Path; from supervisor.agents.session import Agent;"
            f"asyncio.run(Agent(Path(sys.argv[1]), quiet_s={QUIET_S}).run())",
            str(Path(name) / "control.sock"), cwd=ROOT,
            env={
                "PATH": os.environ["PATH"], "HOME": name, "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
                "XDG_RUNTIME_DIR": str(runtime),
            },
        )  # fmt: skip
        try:
            await until(event, lambda: bool(desktop.proof("3", os.getuid(), CLOCK.now_s()).source), "the agent")
            return await touches(display, count, event, lambda: desktop.proof("3", os.getuid(), CLOCK.now_s()).active)
        finally:
            agent.kill()
            await agent.wait()
            await server.stop()
            await login1.stop()


async def measure(count: int) -> None:
    """One line a display."""
    print(f"{'touch → report, ms':<28} {'p50':>8} {'p99':>8} {'limit p50':>10} {'limit p99':>10}")

    async def line(name: str, limit: Awaitable[list[float]], ours: Awaitable[list[float]]) -> None:
        bare_ms, ours_ms = await limit, await ours
        figures = [percentile(ours_ms, 0.5), percentile(ours_ms, 0.99), percentile(bare_ms, 0.5), percentile(bare_ms, 0.99)]
        print(f"{name:<28} " + " ".join(f"{figure:>{width}.2f}" for figure, width in zip(figures, (8, 8, 10, 10), strict=True)))

    if reason := missing("Xvfb", "xdotool"):
        print(f"X11 {reason}")
    else:
        with Xvfb() as x:
            nowhere = Path(tempfile.gettempdir()) / "nothing-here"
            await line("XSync IDLETIME (xdotool)", bare(x, X11Idle(x.name, list, QUIET_S), count),
                       told(x, nowhere, count, Type="x11", Display=x.name))  # fmt: skip
    if reason := missing("sway", "swaymsg"):
        print(f"sway {reason}")
    else:
        with Sway() as sway:
            await line("kwin_idle (swaymsg)", bare(sway, WaylandIdle(sway.socket, QUIET_S), count),
                       told(sway, sway.runtime, count))  # fmt: skip
    for version in (1, 2):
        with tempfile.TemporaryDirectory(prefix="bench-") as name, IdleServer(Path(name) / "wayland-0", version) as server:
            await line(f"ext-idle-notify version {version}", bare(server, WaylandIdle(server.socket, QUIET_S), count),
                       told(server, Path(name), count))  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--touches", type=int, default=30)
    asyncio.run(measure(parser.parse_args().touches))
    return 0


if __name__ == "__main__":
    sys.exit(main())
