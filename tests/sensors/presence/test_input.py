"""The sensor of input devices, on made-up ones: the times come out, and nothing else (R9)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from inotify_simple import INotify
from support.clock import ManualClock
from support.input_world import KEY, SYN, World, event, world
from support.waiting import eventually, play

from states.observation import NEVER
from supervisor.config.load import load
from supervisor.linux.clock import SystemClock
from supervisor.sensors.presence import evdev
from supervisor.sensors.presence import input as input_module
from supervisor.sensors.presence.evdev import EV_ABS, EV_KEY, EV_REL, EV_SW
from supervisor.sensors.presence.input import InputDevices, only_wanted
from supervisor.sensors.sensor_set import SensorSet

__all__ = ["world"]
EV_MSC, EV_LED = 0x04, 0x11
SENTINEL = 0x2A7  # a code that nothing else here has
SECRET = 1_193_046_471  # a value that nothing else here has


def numbers_in(thing: Any, seen: set[int]) -> Iterator[float]:
    """Every number that an object of ours contains, however deep."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, int | float):
        yield thing
    parts: list[Any] = []
    if isinstance(thing, dict):
        parts = [*thing, *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset | bytearray | bytes):
        parts = list(thing)
    elif type(thing).__module__.startswith("supervisor."):
        names = [*getattr(thing, "__dict__", ()), *getattr(thing, "__slots__", ())]
        parts = [getattr(thing, name) for name in names]
    for part in parts:
        yield from numbers_in(part, seen)


@pytest.mark.parametrize(
    ("plug", "node", "data", "called"),
    [
        (World.keyboard, "event0", KEY, "keyboard 'Board' (event0)"),
        (World.mouse, "event1", event(EV_REL, 0, 1) + SYN, "pointer 'Mouse' (event1)"),
        (World.pad, "event7", event(EV_KEY, 0x130, 1) + SYN, "gamepad 'Pad' (event7)"),
        (World.lid, "event3", event(EV_SW, 0, 0) + SYN, "lid 'Lid Switch' (event3)"),
    ],
)
def test_use_wakes_at_once_and_is_named(
    plug: Callable[[World], None], node: str, data: bytes, called: str, world: World
) -> None:
    async def scene() -> None:
        plug(world)
        async with world.sensor() as sensor:
            assert sensor.latest(world.clock.now_s()).last_sign_at_s == NEVER
            world.send(node, data)
            began_s = world.clock.now_s()
            await eventually(lambda: world.wakes)
            seen = sensor.latest(world.clock.now_s())
            assert (seen.sign, seen.error, seen.present) == (f"user active on {called}", "", "")
            assert began_s - 0.1 <= seen.last_sign_at_s <= seen.read_at_s

    play(scene())


@pytest.mark.parametrize("data", [event(EV_LED, 1, 1) + SYN, event(EV_MSC, 4, 458756) + SYN], ids=["light", "scan code"])
def test_a_light_that_blinks_and_a_lone_scan_code_are_nobody(data: bytes, world: World) -> None:
    """Also where the kernel leaves nothing out, which is told."""

    async def scene() -> None:
        world.keyboard()
        async with world.sensor(mask=only_wanted) as sensor:  # the kernel refuses: this is no input device
            world.send("event0", data)
            assert sensor.latest(world.clock.now_s()).last_sign_at_s == NEVER
            (line,) = sensor.details()["input devices"]
            assert "the kernel refuses a filter for it (Inappropriate ioctl for device)" in line
            world.send("event0", data + KEY)
            assert sensor.latest(world.clock.now_s()).last_sign_at_s > NEVER

    play(scene())


def test_the_kernel_is_asked_in_whole_longs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses everything else (EINVAL)."""
    asked = []

    def ioctl(fd: int, request: int, argument: bytes) -> int:
        kind, size, address = struct.unpack("IIQ", argument)
        asked.append((fd, request, kind, ctypes.string_at(address, size)))
        return 0

    monkeypatch.setattr("fcntl.ioctl", ioctl)
    assert only_wanted(7) == ""
    ((fd, request, kind, bits),) = asked
    assert (fd, request, kind) == (7, 0x40104593, 0)
    assert len(bits) % struct.calcsize("l") == 0
    assert int.from_bytes(bits, sys.byteorder) == 1 << EV_KEY | 1 << EV_REL | 1 << EV_ABS | 1 << EV_SW


@pytest.mark.skipif(not os.access("/dev/uinput", os.W_OK), reason="no /dev/uinput, or it may not be written")
def test_the_kernel_leaves_out_what_is_no_sign() -> None:
    """On a real device: a keyboard with a light, made by uinput."""
    set_bit, create, destroy, setup = (0x40045564, 0x40045565, 0x40045569), 0x5501, 0x5502, 0x405C5503
    with open("/dev/uinput", "wb", buffering=0) as made:
        for request, number in ((set_bit[0], EV_KEY), (set_bit[1], 30), (set_bit[0], EV_LED), (set_bit[2], 1)):
            fcntl.ioctl(made, request, number)
        fcntl.ioctl(made, setup, struct.pack("4H80sI", 3, 1, 1, 1, b"a light that blinks", 0))
        fcntl.ioctl(made, create)
        try:
            name = bytearray(64)
            fcntl.ioctl(made, 0x8040552C, name)  # UI_GET_SYSNAME(64)
            (node,) = (Path("/sys/devices/virtual/input") / name.rstrip(b"\0").decode()).glob("event*")
            device = Path("/dev/input", node.name)
            end_s = time.monotonic() + 10
            while not device.exists() and time.monotonic() < end_s:
                time.sleep(0.01)
            fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
            try:
                assert only_wanted(fd) == ""
                made.write(event(EV_LED, 1, 1) + SYN)
                with pytest.raises(BlockingIOError):
                    os.read(fd, 4096)
                made.write(event(EV_KEY, 30, 1) + SYN)
                assert evdev.used(memoryview(os.read(fd, 4096)))
            finally:
                os.close(fd)
        finally:
            fcntl.ioctl(made, destroy)


def test_a_lid_is_told_at_once_and_proves_no_absence(world: World) -> None:
    async def scene() -> None:
        told: list[float] = []
        world.lid()
        async with world.sensor(required=True, on_lid=lambda: told.append(world.clock.now_s())) as sensor:
            assert sensor.latest(world.clock.now_s()).error, "a lid alone does not see a person at work"
            world.send("event3", event(EV_SW, 2, 1) + SYN)  # a jack
            assert not told
            for _ in range(2):
                world.send("event3", event(EV_SW, 0, 1) + SYN)
                sensor.latest(world.clock.now_s())
            assert len(told) == 2

    play(scene())


def test_somebody_at_work_wakes_once_and_is_followed_all_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand events: one wake; the time of the last one is known at each look."""
    monkeypatch.setattr(input_module, "QUIET_S", 60.0)  # no pause of this machine's is a rest

    async def scene() -> None:
        world.mouse()
        world.keyboard()
        async with world.sensor() as sensor:
            for n in range(100):
                sent_s = world.clock.now_s()
                for _ in range(100):
                    with contextlib.suppress(BlockingIOError):
                        world.send("event1", event(EV_REL, 0, 1))
                world.send("event0", KEY)
                await asyncio.sleep(0.01)
                if n % 10 == 0:
                    assert sensor.latest(world.clock.now_s()).last_sign_at_s >= sent_s
            assert world.wakes == 1

    play(scene())


def test_after_a_quiet_second_the_next_key_wakes_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_module, "QUIET_S", 0.05)

    async def scene() -> None:
        world.keyboard()
        async with world.sensor() as sensor:
            for wakes in (1, 2, 3):
                world.send("event0", KEY)
                await eventually(lambda wakes=wakes: world.wakes == wakes)
                await eventually(lambda: sensor._listening, "it listens again")

    play(scene())


def test_a_look_that_finds_quiet_listens_again_without_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the idle time required is: who was seen to be away is heard at the next key."""
    monkeypatch.setattr(input_module, "QUIET_S", 60.0)
    world.clock = ManualClock()

    async def scene() -> None:
        world.keyboard()
        async with world.sensor() as sensor:
            world.send("event0", KEY)
            await eventually(lambda: world.wakes == 1)
            world.clock.go(0.4)
            sensor.latest(world.clock.now_s())
            world.send("event0", KEY)
            await eventually(lambda: world.wakes == 2)

    play(scene())


def test_a_drifting_stick_is_nobody_and_costs_little(world: World) -> None:
    async def scene() -> None:
        world.pad()
        async with world.sensor() as sensor:
            reads = 0
            empty = sensor._empty

            def count(node: str, now_s: float) -> bool | None:
                nonlocal reads
                reads += 1
                return empty(node, now_s)

            sensor._empty = count  # type: ignore[method-assign]
            began_s = world.clock.now_s()
            for n in range(100):
                world.send("event7", event(EV_ABS, 0, n % 7) + SYN)
                await asyncio.sleep(0.005)
            rests = (world.clock.now_s() - began_s) / input_module.DRIFT_S
            assert reads <= 2 + 2 * rests  # at the end of each, and at what comes after it
            assert (world.wakes, sensor.latest(world.clock.now_s()).last_sign_at_s) == (0, NEVER)
            world.send("event7", event(EV_ABS, 0, 30000) + SYN)
            await eventually(lambda: world.wakes == 1)

    play(scene())


def test_a_bump_must_come_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_module, "BUMP_SAME_S", 3600.0)  # a rest ends when the test says so
    world.clock = ManualClock()
    nudge = event(EV_REL, 0, 3) + SYN

    async def scene() -> None:
        world.mouse()
        async with world.sensor(ignore_bumps=True) as sensor:

            def rested() -> None:
                sensor._resting["event1"].cancel()
                sensor._rested("event1")
                assert not sensor._resting

            world.send("event1", nudge)
            await eventually(lambda: sensor._resting)
            world.send("event1", nudge)  # of the same bump
            rested()
            assert world.wakes == 0
            world.clock.go(5.0)
            world.send("event1", nudge)
            await eventually(lambda: sensor._resting)
            rested()
            assert world.wakes == 0
            world.clock.go(0.6)
            world.send("event1", nudge)
            await eventually(lambda: world.wakes == 1)

    play(scene())


def test_a_far_motion_is_no_bump(world: World) -> None:
    async def scene() -> None:
        world.mouse()
        async with world.sensor(ignore_bumps=True):
            world.send("event1", event(EV_REL, 0, 40) + SYN)
            await eventually(lambda: world.wakes == 1)

    play(scene())


def test_devices_come_and_go(world: World) -> None:
    """Neither is a sign; what is plugged in is listened to, what is unplugged is let go of."""

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert sensor.latest(1.0).sign == "no source: no input device can be read"
            assert sensor.details() == {"input devices": ["no input device: this source sees nobody"]}
            world.keyboard()
            await eventually(lambda: sensor._devices)
            assert world.wakes == 0
            world.send("event0", KEY)
            await eventually(lambda: world.wakes == 1)
            (world.dev / "input/event0").unlink()
            await eventually(lambda: not sensor._devices)

    play(scene())


def test_a_device_that_comes_again_before_anybody_looked_is_another_one(world: World) -> None:
    """A dock, or a keyboard after a suspend: its node goes and comes again at once, under the same name."""

    async def scene() -> None:
        world.keyboard()
        async with world.sensor() as sensor:
            old = world.writers.pop("event0")
            (world.dev / "input/event0").unlink()
            shutil.rmtree(world.sys / "class/input/event0")
            world.keyboard()
            world.send("event0", KEY)
            await eventually(lambda: sensor.latest(world.clock.now_s()).last_sign_at_s > NEVER, "its key")
            os.close(old)

    play(scene())


@pytest.mark.parametrize("lacking", ["instances", "watches"])
def test_without_inotify_a_device_is_found_at_the_next_look(
    lacking: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user has 128 instances, and the service's user may be the one whose desktop has used them up."""

    class Watchless(INotify):
        def add_watch(self, *_: object, **__: object) -> int:
            raise OSError(28, "No space left on device")

    def refuse(**_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("supervisor.linux.inotify.INotify", refuse if lacking == "instances" else Watchless)

    async def scene() -> None:
        async with world.sensor() as sensor:
            sensor.latest(1.0)
            world.keyboard()
            sensor.latest(2.0)
            world.send("event0", KEY)
            await eventually(lambda: world.wakes == 1, "its key")
            (world.dev / "input/event0").unlink()
            sensor.latest(3.0)
            assert not sensor._devices

    play(scene())


def test_the_folder_may_come_late(world: World) -> None:
    async def scene() -> None:
        (world.dev / "input").rmdir()
        async with world.sensor() as sensor:
            (world.dev / "input").mkdir()
            await eventually(lambda: f"{world.dev}/input" in sensor._watcher.watched)
            world.keyboard()
            await eventually(lambda: sensor._devices)

    play(scene())


def test_a_device_is_tried_again_when_its_rights_change(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As udev does a moment after the kernel made the node."""
    really = os.open
    locked = True

    def guarded(path: Any, *more: Any, **options: Any) -> int:
        if locked and str(path).endswith("event0"):
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, *more, **options)

    async def scene() -> None:
        nonlocal locked
        world.keyboard()
        monkeypatch.setattr(input_module.os, "open", guarded)
        async with world.sensor(required=True) as sensor:
            seen = sensor.latest(1.0)
            assert seen.error.startswith("no input device can be read: add the service's user to group input")
            assert "event0: not read (keyboard 'Board': Permission denied)" in sensor.details()["input devices"]
            locked = False
            os.chmod(world.dev / "input/event0", 0o600)
            await eventually(lambda: not sensor.latest(1.0).error)
            assert sensor.latest(1.0).sign == input_module.BLIND_SIGN  # who used it meanwhile is not known
            assert sensor.details() == {"input devices": ["keyboard 'Board' (event0): read, only the time of use is kept"]}

    play(scene())


@pytest.mark.parametrize(("required", "error"), [(False, ""), (True, "no input device can be read: there is none")])
def test_no_device_is_no_source(required: bool, error: str, world: World) -> None:
    async def scene() -> None:
        world.plug("event2", "Power Button", keys=(116,))
        async with world.sensor(required=required) as sensor:
            seen = sensor.latest(5.0)
            assert (seen.error.startswith(error), bool(seen.error)) == (True, required)
            assert (seen.last_sign_at_s, seen.present) == (NEVER, "")

    play(scene())


def test_no_key_and_no_value_is_kept_or_told(world: World) -> None:
    """A sentinel goes through every kind of device; afterwards it is nowhere in the sensor, nor in what it says."""

    async def scene() -> None:
        world.keyboard()
        world.mouse()
        world.pad()
        async with world.sensor() as sensor:
            for node in world.writers:
                world.send(node, event(EV_KEY, SENTINEL, SECRET) + event(EV_ABS, SENTINEL, SECRET) + SYN)
            await eventually(lambda: world.wakes)
            shown = repr([sensor.latest(world.clock.now_s()), sensor.details()])
            assert {word for word in (str(SECRET), f"{SECRET:x}", str(SENTINEL)) if word in shown} == set()
            assert bytes(sensor._buffer).strip(b"\0") == b""
            assert {SECRET, SENTINEL} & set(numbers_in(sensor, {id(world.clock)})) == set()

    play(scene())


@pytest.mark.parametrize(
    ("presence", "required"),
    [
        ("{}", False),
        ("{input: required}", True),
        ("{sessions: false, terminals: false}", True),
        ("{input: off}", None),
    ],
)
def test_alone_it_must_see_something(presence: str, required: bool | None, tmp_path: Path) -> None:
    """Without sessions and terminals, "no device" would else be taken for "nobody"."""
    shipped = Path(__file__).parents[3] / "config"
    (tmp_path / "runtime.yaml").write_text((shipped / "runtime.yaml").read_text())
    (tmp_path / "node.yaml").write_text(f"presence: {presence}\n".replace("off", '"off"'))
    sensors = SensorSet(load(tmp_path), SystemClock())
    found = [sensor.required for sensor in sensors.observer.presence if isinstance(sensor, InputDevices)]
    assert found == ([] if required is None else [required])
