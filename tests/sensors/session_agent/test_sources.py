"""Sources of a desktop's idle time beside real displays: Xvfb, sway, Mutter, and a compositor with ext-idle-notify-v1."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.displays import Display, IdleServer, Sway, Xvfb, missing
from support.waiting import eventually, watched_loop

from supervisor.sensors.session_agent.source import NAMELESS, Absent, Gone, Idle, IdleSource, Lacking, boot_s
from supervisor.sensors.session_agent.wayland import WaylandIdle, sockets
from supervisor.sensors.session_agent.x11 import X11Idle

QUIET_S = 0.3


class Watched:
    """A source that runs, and its readings."""

    def __init__(self, source: IdleSource) -> None:
        self.source = source
        self.readings: list[Idle | None] = []
        self.task = asyncio.ensure_future(source.run(lambda: self.readings.append(source.reading)))

    @property
    def idle(self) -> bool:
        return self.source.reading is not None and self.source.reading.idle_since_s is not None

    @property
    def active(self) -> bool:
        return self.source.reading is not None and self.source.reading.idle_since_s is None

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        await eventually(lambda: condition() or self.task.done(), lambda: f"{what}; readings: {self.readings}")
        if self.task.done():
            await self.task

    async def gone(self, within_s: float = 30.0) -> Gone:
        with pytest.raises(Gone) as caught:
            await asyncio.wait_for(self.task, within_s)
        assert self.source.reading is None
        return caught.value


@contextlib.asynccontextmanager
async def watching(source: IdleSource) -> AsyncIterator[Watched]:
    watched = Watched(source)
    try:
        yield watched
    finally:
        watched.task.cancel()
        await asyncio.gather(watched.task, return_exceptions=True)


def in_loop(story: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    def run(**given: Any) -> None:
        asyncio.run(asyncio.wait_for(story(**given), 40))

    run.__signature__ = inspect.signature(story)  # type: ignore[attr-defined]
    run.__doc__ = story.__doc__
    return run


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: sockets go in."""
    path = Path(tempfile.mkdtemp(prefix="idle-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["x11", "sway", "ext-idle-notify 1", "ext-idle-notify 2"])
def desk(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Display, IdleSource]]:
    """A display of each kind, and the source that fits it."""
    kind: str = request.param
    needs = {"x11": ("Xvfb", "xdotool"), "sway": ("sway", "swaymsg", "wtype")}.get(kind, ())
    if reason := missing(*needs):
        pytest.skip(reason)
    if kind == "x11":
        with Xvfb() as x:
            yield x, X11Idle(x.name, list, QUIET_S)
    elif kind == "sway":
        with Sway() as sway:
            yield sway, WaylandIdle(sway.socket, QUIET_S)
    else:
        with IdleServer(folder / "wayland-0", int(kind[-1])) as server:
            yield server, WaylandIdle(server.socket, QUIET_S)


@in_loop
async def test_idle_after_a_while_and_active_with_the_first_touch(desk: tuple[Display, IdleSource]) -> None:
    display, source = desk
    begun_s = boot_s()
    async with watching(source) as seen:
        await seen.until(lambda: seen.active, "the probe")
        for _ in range(3):
            await seen.until(lambda: seen.idle, "idle")
            since_s = source.reading and source.reading.idle_since_s
            assert since_s is not None
            assert begun_s - 0.3 <= since_s <= boot_s() - QUIET_S + 0.05
            begun_s = boot_s()
            before = len(seen.readings)
            await asyncio.to_thread(display.touch)
            await seen.until(lambda count=before: any(r and r.idle_since_s is None for r in seen.readings[count:]), "the touch")
        await seen.until(lambda: seen.idle, "idle")
        await source.prove()
        assert seen.idle


@in_loop
async def test_it_is_silent_while_nothing_changes(desk: tuple[Display, IdleSource]) -> None:
    _, source = desk
    async with watching(source) as seen:
        await seen.until(lambda: seen.idle, "idle")
        before = len(seen.readings)
        await asyncio.sleep(1.2)  # no event is what is waited for
        assert len(seen.readings) == before


@in_loop
async def test_a_display_that_dies_is_gone_at_once(desk: tuple[Display, IdleSource]) -> None:
    display, source = desk
    async with watching(source) as seen:
        await seen.until(lambda: seen.idle, "idle")
        begun_s = time.monotonic()
        display.stop()
        await seen.gone()
        assert time.monotonic() - begun_s < 1
    async with watching(source) as seen:
        await seen.gone()


@in_loop
async def test_a_display_that_hangs_holds_nothing_up(desk: tuple[Display, IdleSource]) -> None:
    """While it is watched, and when it is asked for the first time; and it is seen again when it goes on."""
    display, source = desk
    async with watched_loop() as held:
        async with watching(source) as seen:
            await seen.until(lambda: seen.idle, "idle")
            display.hang()
            with pytest.raises(Gone, match="does not answer"):
                await source.prove()
        for _ in range(2):
            async with watching(source) as seen:
                assert source.reading is None
                fault = await seen.gone()
                assert not isinstance(fault, Absent | Lacking)
                assert "does not answer" in str(fault) or str(fault).endswith("hangs")
        display.go_on()
        async with watching(source) as seen:
            await seen.until(lambda: seen.idle, "idle again")
    assert held.longest_s < 0.3


@in_loop
async def test_no_descriptor_is_left(desk: tuple[Display, IdleSource]) -> None:
    _, source = desk
    counts = set()
    for _ in range(4):
        async with watching(source) as seen:
            await seen.until(lambda: seen.active, "the probe")
        counts.add(len(os.listdir("/proc/self/fd")))
    assert len(counts) == 1


# --- Wayland


@in_loop
async def test_an_inhibitor_is_told_from_a_person_by_version_2(folder: Path) -> None:
    with IdleServer(folder / "wayland-0", 2) as server:
        source = WaylandIdle(server.socket, QUIET_S)
        async with watching(source) as seen:
            await seen.until(lambda: seen.idle, "idle")
            assert source.reading
            assert source.reading.inhibitors == ()
            server.say("i")
            await seen.until(lambda: source.reading and source.reading.inhibitors == (NAMELESS,), "the inhibitor")
            assert seen.idle
            server.touch()
            await seen.until(lambda: seen.active, "a touch in spite of it")
            await seen.until(lambda: seen.idle and source.reading and source.reading.inhibitors, "idle, and inhibited")
            server.say("u")
            await seen.until(lambda: source.reading and not source.reading.inhibitors, "its end")


@pytest.mark.parametrize("silent", [False, True], ids=["as wlroots", "silent"])
@in_loop
async def test_with_version_1_an_inhibitor_is_a_person(folder: Path, silent: bool) -> None:
    """T6: a compositor may say nothing at all while it is up, not even that somebody is back: the proof finds it."""
    with IdleServer(folder / "wayland-0", 1, inhibit_silently=silent) as server:
        source = WaylandIdle(server.socket, QUIET_S)
        async with watching(source) as seen:
            await seen.until(lambda: seen.idle, "idle")
            server.say("i")
            if silent:
                assert seen.idle
                await source.prove()
            await seen.until(lambda: seen.active, "not idle any more")
            server.touch()
            server.say("u")
            await seen.until(lambda: seen.idle, "idle when it has gone")


@in_loop
async def test_seats_come_and_go(folder: Path) -> None:
    with IdleServer(folder / "wayland-0", 2) as server:
        source = WaylandIdle(server.socket, QUIET_S)
        async with watching(source) as seen:
            await seen.until(lambda: seen.idle, "idle")
            server.say("n")
            await seen.until(lambda: seen.active, "a new seat, of which nothing is known")
            await seen.until(lambda: seen.idle, "idle at both")
            server.say("o")
            await source.prove()
            assert seen.idle
            server.say("o")
            assert "no seat" in str(await seen.gone())


@in_loop
async def test_what_is_no_wayland_is_left(folder: Path) -> None:
    with IdleServer(folder / "wayland-0", 1) as server:
        async with watching(WaylandIdle(server.socket, QUIET_S)) as seen:
            await seen.until(lambda: seen.idle, "idle")
            server.say("x")
            assert "wayland-0" in str(await seen.gone())


@pytest.mark.parametrize("raw", [b"", b"\0" * 7, b"\0" * 64, b"\xff" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=repr)
@in_loop
async def test_a_socket_that_speaks_something_else(folder: Path, raw: bytes) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "wayland-0")
    async with watching(WaylandIdle(folder / "wayland-0", QUIET_S)) as seen:
        await seen.gone()
    server.close()


def test_sockets_of_compositors(folder: Path) -> None:
    for name in ("wayland-0", "wayland-0.lock", "wayland-1", "bus", "pipewire-0"):
        (folder / name).touch()
    assert [path.name for path in sockets(folder)] == ["wayland-0", "wayland-1"]
    assert list(sockets(folder / "missing")) == []


# --- X11


@pytest.mark.skipif(bool(missing("Xvfb", "xdotool")), reason=missing("Xvfb", "xdotool"))
@in_loop
async def test_the_cookie_is_found_among_others(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "wrong").write_bytes(b"\1\0\0\1x\0\0\0\0")
    (folder / "empty").touch()
    with Xvfb(folder / "cookie") as x:
        async with watching(X11Idle(x.name, lambda: [folder / "missing"], QUIET_S)) as seen:
            assert f"display {x.name} refuses us: " in str(await seen.gone())
        cookies = [folder / name for name in ("missing", "wrong", "cookie")]
        async with watching(X11Idle(x.name, lambda: cookies, QUIET_S)) as seen:
            await seen.until(lambda: seen.idle, "idle")
            await asyncio.to_thread(x.xdotool, "key", "a")
            await seen.until(lambda: seen.readings[-1] and seen.readings[-1].idle_since_s is None, "a key")
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(bool(missing("Xvfb", "xdotool")), reason=missing("Xvfb", "xdotool"))
@in_loop
async def test_the_time_of_the_last_touch_is_known_from_the_start() -> None:
    with Xvfb() as x:
        await asyncio.to_thread(x.touch)
        touched_s = boot_s()
        await asyncio.sleep(2 * QUIET_S)
        source = X11Idle(x.name, list, QUIET_S)
        async with watching(source) as seen:
            await seen.until(lambda: seen.idle, "idle")
            assert source.reading
            assert source.reading.idle_since_s == pytest.approx(touched_s, abs=0.1)
