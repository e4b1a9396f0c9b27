"""What terminals tell: a key on one that the daemon may watch, a new one, a key on another's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from inotify_simple import flags
from scenes.stage import AWAY_S, CLOCK, Decider, Deed, Seen, Stage, deed, inotify_on, now_and, rested, ticking
from support.displays import NOBODY

from supervisor.daemon.loop import BUSY_S
from supervisor.sensors.presence import terminals
from supervisor.sensors.presence.terminals import Terminals

STEP_S = 8.2  # the kernel moves a terminal's access time in steps of 8 s


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
