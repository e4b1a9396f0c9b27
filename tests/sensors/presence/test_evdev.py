"""What an input device is by its capabilities, and what its events say (R9)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.input_world import LETTERS, MOUSE_KEYS, PAD_KEYS, STICK, SYN, World, bitmap, event, world

from supervisor.sensors.presence.evdev import (
    EV_ABS,
    EV_KEY,
    EV_REL,
    EV_SW,
    EV_SYN,
    EVENT,
    SYN_DROPPED,
    Axis,
    Kind,
    bits,
    bumped,
    describe,
    kind_of,
    lid_moved,
    pressed,
    used,
)

__all__ = ["world"]
EV_MSC, EV_LED = 0x04, 0x11


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
        pytest.param((), (), (), (), Kind.NONE, id="speaker"),
    ],
)
def test_the_kind_follows_from_the_capabilities(
    keys: Any, rels: Any, axes: Any, properties: Any, kind: Kind, world: World
) -> None:
    assert kind_of(frozenset(keys), frozenset(rels), frozenset(axes), frozenset(properties)) is kind
    world.plug("event3", "It's\x07 a thing", keys, rels, axes, properties)
    device = describe(world.sys / "class/input", "event3")
    assert device is not None
    assert (device.kind, device.name) == (kind, "It s a thing")


@pytest.mark.parametrize(
    ("keys", "switches", "kind"),
    [((), (0,), Kind.LID), ((), (2, 4), Kind.NONE), (LETTERS, (0,), Kind.KEYBOARD), ((116,), (0,), Kind.LID)],
)
def test_a_switch_is_a_lid_where_it_says_so(keys: Any, switches: Any, kind: Kind, world: World) -> None:
    world.plug("event3", keys=keys, switches=switches)
    device = describe(world.sys / "class/input", "event3")
    assert device is not None
    assert device.kind is kind


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
    assert pressed(memoryview(event(kind, code, value) + SYN), lambda _: STICK) is sign


@pytest.mark.parametrize(
    ("data", "is_used", "is_lid"),
    [
        (event(EV_KEY, 30, 1) + SYN, True, False),
        (event(EV_MSC, 4, 0x70004) + event(EV_KEY, 30, 0) + SYN, True, False),
        (event(EV_REL, 0, 1) + SYN, True, False),
        (event(EV_ABS, 0x35, 1) + SYN, True, False),
        (event(EV_SYN, SYN_DROPPED, 0), True, False),
        (event(EV_LED, 1, 1) + SYN, False, False),
        (event(EV_MSC, 4, 0x70004) + SYN, False, False),
        (event(EV_SW, 0, 1) + SYN, False, True),
        (event(EV_SW, 0, 0) + SYN, False, True),
        (event(EV_SW, 2, 1) + SYN, False, False),
    ],
)
def test_which_events_are_a_person(data: bytes, is_used: bool, is_lid: bool) -> None:
    assert (used(memoryview(data)), lid_moved(memoryview(data))) == (is_used, is_lid)


def test_an_axis_that_does_not_say_its_range_is_held() -> None:
    assert pressed(memoryview(event(EV_ABS, 0, 1)), lambda _: None)


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
    assert pressed(memoryview(data), lambda _: Axis(least, most)) in (True, False)
    assert bumped(memoryview(data), 16) in (True, False)
    assert used(memoryview(data)) in (True, False)
    assert lid_moved(memoryview(data)) in (True, False)
