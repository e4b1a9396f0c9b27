"""Input devices: made-up nodes (FIFOs of struct input_event) and a made-up sysfs; the times come out, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import ManualClock

from states.observation import NEVER
from supervisor.clock import SystemClock
from supervisor.config import load
from supervisor.senses import Senses
from supervisor.sensors import input as input_module
from supervisor.sensors.input import InputDevices
from supervisor.sensors.input_device import (
    EV_ABS,
    EV_KEY,
    EV_REL,
    EV_SYN,
    EVENT,
    WORD_BITS,
    Axis,
    Kind,
    bits,
    bumped,
    describe,
    kind_of,
    pressed,
)

SENTINEL = 0x2A7  # a code that nothing else here has
SECRET = 1_193_046_471  # a value that nothing else here has
LETTERS = range(1, 120)
PAD_KEYS = (0x130, 0x131, 0x133)
MOUSE_KEYS = (0x110, 0x111)
STICK = Axis(-32768, 32767)


def event(kind: int, code: int, value: int) -> bytes:
    return EVENT.pack(1_700_000_000, 0, kind, code, value)


SYN = event(EV_SYN, 0, 0)
KEY = event(EV_KEY, 30, 1) + SYN


def bitmap(numbers: Iterable[int]) -> str:
    """As the kernel writes it."""
    value = sum(1 << n for n in set(numbers))
    words = []
    while value:
        words.append(f"{value & (1 << WORD_BITS) - 1:x}")
        value >>= WORD_BITS
    return " ".join(reversed(words)) or "0"


class World:
    """Roots of /dev and sysfs, with a writing end for each device."""

    def __init__(self, folder: Path) -> None:
        self.dev, self.sys = folder / "dev", folder / "sys"
        (self.dev / "input").mkdir(parents=True)
        self.writers: dict[str, int] = {}
        self.wakes = 0
        self.clock: Any = SystemClock()

    def plug(
        self, node: str, name: str = "Device", keys: Iterable[int] = (), rels: Iterable[int] = (),
        axes: Iterable[int] = (), properties: Iterable[int] = (),
    ) -> None:
        device = self.sys / "class/input" / node / "device"
        (device / "capabilities").mkdir(parents=True)
        (device / "name").write_text(f"{name}\n")
        (device / "properties").write_text(f"{bitmap(properties)}\n")
        for what, numbers in (("key", keys), ("rel", rels), ("abs", axes)):
            (device / "capabilities" / what).write_text(f"{bitmap(numbers)}\n")
        path = self.dev / "input" / node
        os.mkfifo(path)
        self.writers[node] = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def keyboard(self, node: str = "event0") -> None:
        self.plug(node, "Board", keys=LETTERS)

    def mouse(self, node: str = "event1") -> None:
        self.plug(node, "Mouse", keys=MOUSE_KEYS, rels=(0, 1, 8))

    def pad(self, node: str = "event7") -> None:
        self.plug(node, "Pad", keys=PAD_KEYS, axes=(0, 1, 2, 5, 16))

    def send(self, node: str, data: bytes) -> None:
        os.write(self.writers[node], data)

    @contextlib.asynccontextmanager
    async def sensor(self, **options: Any) -> AsyncIterator[InputDevices]:
        options.setdefault("axis_of", lambda _fd, _code: STICK)
        sensor = InputDevices(self.clock, dev_root=self.dev, sys_root=self.sys, **options)
        await sensor.start(self._wake)
        try:
            yield sensor
        finally:
            await sensor.stop()

    def _wake(self) -> None:
        self.wakes += 1


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        await asyncio.sleep(0.005)


def numbers_in(thing: Any, seen: set[int]) -> Iterator[float]:
    """Every number that a thing of ours holds, however deep."""
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


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 20))


# --- what a device is


@pytest.mark.parametrize(
    ("keys", "rels", "axes", "properties", "kind"),
    [
        pytest.param(LETTERS, (), (), (), Kind.KEYBOARD, id="keyboard"),
        pytest.param((113, 114, 115, 164), (), (), (), Kind.KEYBOARD, id="media keys"),
        pytest.param((0x161, 0x166), (), (), (), Kind.KEYBOARD, id="remote control"),
        pytest.param(MOUSE_KEYS, (0, 1, 8), (), (), Kind.POINTER, id="mouse"),
        pytest.param((*MOUSE_KEYS, 0x120), (0, 1), (), (), Kind.POINTER, id="mouse with odd buttons"),
        pytest.param(MOUSE_KEYS, (8,), (0, 1), (), Kind.POINTER, id="tablet of a virtual machine"),
        pytest.param((), (7,), (), (), Kind.POINTER, id="dial"),
        pytest.param((0x110, 0x145, 0x14A), (), (0, 1, 0x35, 0x36), (0, 2), Kind.TOUCH, id="touchpad"),
        pytest.param((0x14A,), (), (0, 1), (1,), Kind.TOUCH, id="touchscreen"),
        pytest.param((0x140, 0x14B, 0x14A), (), (0, 1, 24), (), Kind.TABLET, id="pen"),
        pytest.param(PAD_KEYS, (), (0, 1, 2), (), Kind.GAMEPAD, id="gamepad"),
        pytest.param((0x120, 0x121), (), (0, 1, 6), (), Kind.GAMEPAD, id="joystick"),
        pytest.param((), (), (0, 1, 2, 3, 4, 5), (6,), Kind.NONE, id="motion sensor of a gamepad"),
        pytest.param((), (), (0, 1, 2), (), Kind.NONE, id="accelerometer"),
        pytest.param((116,), (), (), (), Kind.NONE, id="power button"),
        pytest.param((142, 143), (), (), (), Kind.NONE, id="sleep button"),
        pytest.param((224, 225, 227, 241, 242, 243, 244, 245), (), (), (), Kind.NONE, id="video bus"),
        pytest.param((238, 247), (), (), (), Kind.NONE, id="radio switch"),
        pytest.param((), (), (), (), Kind.NONE, id="lid switch, jack, speaker"),
    ],
)
def test_the_kind_follows_from_the_capabilities(
    keys: Any, rels: Any, axes: Any, properties: Any, kind: Kind, world: World
) -> None:
    assert kind_of(frozenset(keys), frozenset(rels), frozenset(axes), frozenset(properties)) is kind
    world.plug("event3", "It's\x07 a thing", keys, rels, axes, properties)
    device = describe(world.sys / "class/input", "event3")
    assert device is not None
    assert (device.kind, device.name) == (kind, "It s  a thing")


@given(st.frozensets(st.integers(0, 0x2FF)))
def test_a_bitmap_is_read_as_the_kernel_writes_it(numbers: frozenset[int]) -> None:
    assert bits(bitmap(numbers)) == numbers


# --- what events say


@pytest.mark.parametrize(
    ("kind", "code", "value", "sign"),
    [
        pytest.param(EV_KEY, 0x130, 1, True, id="button"),
        pytest.param(EV_KEY, 0x130, 0, True, id="button let go"),
        pytest.param(EV_ABS, 0, 900, False, id="stick drifts"),
        pytest.param(EV_ABS, 0, -8100, False, id="stick drifts far"),
        pytest.param(EV_ABS, 0, -8400, True, id="stick moves"),
        pytest.param(EV_ABS, 1, 32767, True, id="stick at its end"),
        pytest.param(EV_ABS, 2, -32768, False, id="trigger rests"),
        pytest.param(EV_ABS, 2, 100, False, id="second stick on a trigger's axis rests"),
        pytest.param(EV_ABS, 2, -16000, True, id="trigger on its way"),
        pytest.param(EV_ABS, 16, 1, True, id="hat"),
        pytest.param(EV_ABS, 16, 0, False, id="hat let go"),
        pytest.param(EV_SYN, 3, 0, False, id="events were lost"),
        pytest.param(4, 4, 0x90001, False, id="scan code"),
    ],
)
def test_a_gamepad_shows_a_person_beyond_the_dead_zone(kind: int, code: int, value: int, sign: bool) -> None:
    assert pressed(memoryview(event(kind, code, value) + SYN), lambda _: STICK, 0.25) is sign


def test_an_axis_that_does_not_say_its_range_is_held() -> None:
    assert pressed(memoryview(event(EV_ABS, 0, 1)), lambda _: None, 0.25)


@pytest.mark.parametrize(
    ("data", "bump"),
    [
        (event(EV_REL, 0, 7) + event(EV_REL, 1, -8) + SYN, True),
        (event(EV_REL, 0, 8) + event(EV_REL, 1, -8) + SYN, False),
        (event(EV_REL, 0, 1) + event(EV_KEY, 0x110, 1) + SYN, False),
        (event(EV_REL, 8, 1) + SYN, False),
        (event(EV_SYN, 3, 0), False),
    ],
)
def test_a_bump_is_a_short_motion_alone(data: bytes, bump: bool) -> None:
    assert bumped(memoryview(data), 16) is bump


@given(st.binary(max_size=EVENT.size * 9), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1))
def test_no_bytes_break_the_parser(data: bytes, least: int, most: int) -> None:
    assert pressed(memoryview(data), lambda _: Axis(least, most), 0.25) in (True, False)
    assert bumped(memoryview(data), 16) in (True, False)


# --- the sensor


@pytest.mark.parametrize(
    ("plug", "node", "data", "called"),
    [
        (World.keyboard, "event0", KEY, "keyboard 'Board' (event0)"),
        (World.mouse, "event1", event(EV_REL, 0, 1) + SYN, "pointer 'Mouse' (event1)"),
        (World.pad, "event7", event(EV_KEY, 0x130, 1) + SYN, "gamepad 'Pad' (event7)"),
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
            await until(lambda: world.wakes)
            seen = sensor.latest(world.clock.now_s())
            assert (seen.sign, seen.error, seen.present) == (f"user active on {called}", "", "")
            assert began_s - 0.1 <= seen.last_sign_at_s <= seen.read_at_s

    play(scene())


def test_somebody_at_work_wakes_once_and_is_followed_all_the_same(world: World) -> None:
    """Ten thousand events: one wake; the time of the last one is known at each look."""

    async def scene() -> None:
        world.mouse()
        world.keyboard()
        async with world.sensor() as sensor:
            for n in range(100):
                for _ in range(100):
                    with contextlib.suppress(BlockingIOError):
                        world.send("event1", event(EV_REL, 0, 1))
                world.send("event0", KEY)
                await asyncio.sleep(0.01)
                now_s = world.clock.now_s()
                if n % 10 == 0:
                    assert now_s - sensor.latest(now_s).last_sign_at_s < 0.1
            assert world.wakes == 1

    play(scene())


def test_after_a_quiet_second_the_next_key_wakes_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_module, "QUIET_S", 0.05)

    async def scene() -> None:
        world.keyboard()
        async with world.sensor():
            for wakes in (1, 2, 3):
                world.send("event0", KEY)
                await until(lambda wakes=wakes: world.wakes == wakes)
                await asyncio.sleep(0.15)

    play(scene())


def test_a_look_that_finds_quiet_listens_again_without_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the idle time required is: who was seen to be away is heard at the next key."""
    monkeypatch.setattr(input_module, "QUIET_S", 60.0)
    world.clock = ManualClock()

    async def scene() -> None:
        world.keyboard()
        async with world.sensor() as sensor:
            world.send("event0", KEY)
            await until(lambda: world.wakes == 1)
            world.clock.go(0.4)
            sensor.latest(world.clock.now_s())
            world.send("event0", KEY)
            await until(lambda: world.wakes == 2)

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
            for n in range(100):
                world.send("event7", event(EV_ABS, 0, n % 7) + SYN)
                await asyncio.sleep(0.005)
            assert (world.wakes, sensor.latest(world.clock.now_s()).last_sign_at_s) == (0, NEVER)
            assert reads < 20
            world.send("event7", event(EV_ABS, 0, 30000) + SYN)
            await until(lambda: world.wakes == 1)

    play(scene())


def test_a_bump_must_come_again(world: World) -> None:
    world.clock = ManualClock()
    nudge = event(EV_REL, 0, 3) + SYN

    async def scene() -> None:
        world.mouse()
        async with world.sensor(ignore_bumps=True) as sensor:
            world.send("event1", nudge)
            await until(lambda: sensor._resting)
            world.send("event1", nudge)  # of the same bump
            await until(lambda: not sensor._resting)
            assert world.wakes == 0
            world.clock.go(5.0)
            world.send("event1", nudge)
            await until(lambda: sensor._resting)
            await until(lambda: not sensor._resting)
            assert world.wakes == 0
            world.clock.go(0.6)
            world.send("event1", nudge)
            await until(lambda: world.wakes == 1)

    play(scene())


def test_a_far_motion_is_no_bump(world: World) -> None:
    async def scene() -> None:
        world.mouse()
        async with world.sensor(ignore_bumps=True):
            world.send("event1", event(EV_REL, 0, 40) + SYN)
            await until(lambda: world.wakes == 1)

    play(scene())


def test_devices_come_and_go(world: World) -> None:
    """Neither is a sign; what is plugged in is listened to, what is unplugged is let go of."""

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert sensor.latest(1.0).sign == "no source: no input device can be read"
            assert sensor.describe() == ["no input device: this source tells nothing"]
            world.keyboard()
            await until(lambda: sensor._devices)
            assert world.wakes == 0
            world.send("event0", KEY)
            await until(lambda: world.wakes == 1)
            (world.dev / "input/event0").unlink()
            await until(lambda: not sensor._devices)

    play(scene())


def test_the_folder_may_come_late(world: World) -> None:
    async def scene() -> None:
        (world.dev / "input").rmdir()
        async with world.sensor() as sensor:
            (world.dev / "input").mkdir()
            await until(lambda: sensor._folder_wd != -1)
            world.keyboard()
            await until(lambda: sensor._devices)

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
            assert "event0: not read (keyboard 'Board': Permission denied)" in sensor.describe()
            locked = False
            os.chmod(world.dev / "input/event0", 0o600)
            await until(lambda: not sensor.latest(1.0).error)
            assert sensor.latest(1.0).sign == input_module.BLIND_SIGN  # who used it meanwhile is not known
            assert sensor.describe() == ["keyboard 'Board' (event0): read, only the time of use is kept"]

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
            await until(lambda: world.wakes)
            told = repr([sensor.latest(world.clock.now_s()), sensor.describe()])
            assert {word for word in (str(SECRET), f"{SECRET:x}", str(SENTINEL)) if word in told} == set()
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
    shipped = Path(__file__).parents[2] / "config"
    (tmp_path / "runtime.yaml").write_text((shipped / "runtime.yaml").read_text())
    (tmp_path / "node.yaml").write_text(f"presence: {presence}\n".replace("off", '"off"'))
    senses = Senses(load(tmp_path), SystemClock())
    assert (None if senses.input is None else senses.input.required) is required
