"""What an input device is, and whether a person caused what it sent. Pure; keeps nothing.

The kind comes from the capabilities that the kernel lists in sysfs. Power buttons, jacks, accelerometers and the brightness
keys of a screen's firmware are not used by a person. Every key, motion and touch of a keyboard, a mouse, a touch device or a
tablet is a sign; a light that a program blinks and a scan code without a key are none. The sticks of a worn gamepad drift and
send events without end, so only its buttons count, and axes that are away from every position where such an axis may rest. Of a
lid only its switch counts, either way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from supervisor.linux.text import one_line

EVENT: Final = struct.Struct("llHHi")  # struct input_event: seconds, microseconds, type, code, value
EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_SW = 0x00, 0x01, 0x02, 0x03, 0x05
USED: Final = (EV_KEY, EV_REL, EV_ABS)
SW_LID: Final = 0
REL_X, REL_Y = 0, 1
SYN_DROPPED: Final = 3

KEYS: Final = range(1, 0x100)
MOUSE: Final = range(0x110, 0x118)
JOYSTICK: Final = range(0x120, 0x130)
GAMEPAD: Final = range(0x130, 0x13F)
BTN_TOUCH, BTN_FINGER = 0x14A, 0x145
PENS: Final = frozenset({0x140, 0x141, 0x142, 0x143, 0x144, 0x14B, 0x14C})  # pen, rubber, brush, pencil, airbrush, stylus
REMOTE: Final = range(0x160, 0x2C0)  # remote controls, telephones, braille keyboards
LETTERS: Final = range(16, 26)  # a keyboard for text has the row from q to p
ABS_X, ABS_Y, ABS_RX, ABS_RY = 0, 1, 3, 4
ABS_MT_X: Final = 0x35
HATS: Final = range(0x10, 0x18)
MOVES: Final = frozenset({REL_X, REL_Y, 6, 7, 8})  # x, y, horizontal wheel, dial, wheel
ACCELEROMETER: Final = 6  # of a device's properties

# Keys that firmware presses: power, sleep, wake-up, suspend, battery, radios, screens and their brightness.
FIRMWARE: Final = frozenset({116, 142, 143, 205, 224, 225, 227, *range(236, 248)})

LONG_BITS: Final = 8 * struct.calcsize("l")


class Kind(StrEnum):
    """What a person uses; NONE: no person uses it."""

    KEYBOARD = "keyboard"
    POINTER = "pointer"
    TOUCH = "touch"
    TABLET = "tablet"
    GAMEPAD = "gamepad"
    LID = "lid"
    NONE = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """The range of an absolute axis."""

    least: int
    most: int


AxisOf = Callable[[int], Axis | None]
DEAD_ZONE: Final = 0.25  # of half an axis's range: how far a worn stick drifts


@dataclass(frozen=True, slots=True)
class Device:
    """A device as sysfs describes it; `node` is its name in /dev/input."""

    node: str
    name: str
    kind: Kind

    @property
    def label(self) -> str:
        """For people: "gamepad 'Pad' (event7)"."""
        return f"{self.kind} '{self.name}' ({self.node})"


def bits(text: str) -> frozenset[int]:
    """The numbers in one of the kernel's bitmaps: hexadecimal longs, the highest first.

    Raises:
        ValueError: it is no bitmap.
    """
    longs = [int(part, 16) for part in reversed(text.split())]
    return frozenset(
        place * LONG_BITS + bit for place, value in enumerate(longs) for bit in range(value.bit_length()) if value >> bit & 1
    )


def kind_of(
    keys: Collection[int], rels: Collection[int], axes: Collection[int], properties: Collection[int],
    switches: Collection[int] = (),
) -> Kind:  # fmt: skip
    """What a device with these keys, relative and absolute axes and switches is."""
    if ACCELEROMETER in properties:
        return Kind.NONE
    typed = {k for k in keys if (k in KEYS or k in REMOTE) and k not in FIRMWARE}
    has_letters = all(k in keys for k in LETTERS)
    buttons = any(k in JOYSTICK or k in GAMEPAD for k in keys)
    if any(k in PENS for k in keys):
        return Kind.TABLET
    if buttons and axes and not has_letters and 0x110 not in keys:
        return Kind.GAMEPAD
    if ABS_MT_X in axes or (ABS_X in axes and (BTN_TOUCH in keys or BTN_FINGER in keys)):
        return Kind.TOUCH
    if has_letters:
        return Kind.KEYBOARD
    if any(r in MOVES for r in rels) or any(k in MOUSE for k in keys):
        return Kind.POINTER
    if typed or buttons:
        return Kind.KEYBOARD
    return Kind.LID if SW_LID in switches else Kind.NONE


def describe(folder: Path, node: str) -> Device | None:
    """The device behind `node`, from /sys/class/input (`folder`); None: sysfs does not describe it, or not yet."""
    device = folder / node / "device"
    try:
        able = [bits((device / "capabilities" / what).read_text()) for what in ("key", "rel", "abs", "sw")]
        keys, rels, axes, switches = able
        properties = bits((device / "properties").read_text())
        name = (device / "name").read_text(errors="replace").strip()
    except (OSError, ValueError):
        return None
    clean = one_line(name.replace("'", " "), 40)
    return Device(node, clean or "unnamed", kind_of(keys, rels, axes, properties, switches))


def used(data: memoryview) -> bool:
    """Whether events show a person: a key, a motion, a touch, or that some were lost."""
    return any(kind in USED or (kind == EV_SYN and code == SYN_DROPPED) for kind, code, _ in _events(data))


def lid_moved(data: memoryview) -> bool:
    """Whether a lid was opened or closed."""
    return any(kind == EV_SW and code == SW_LID for kind, code, _ in _events(data))


def pressed(data: memoryview, axis_of: AxisOf) -> bool:
    """Whether a gamepad's events show a person: a button, or an axis away from its rest."""
    return any(kind == EV_KEY or (kind == EV_ABS and _away(code, value, axis_of(code))) for kind, code, value in _events(data))


def bumped(data: memoryview, pixels: int) -> bool:
    """Whether a pointer's events are a bump: only motion, and less than `pixels` of it."""
    moved = 0
    for kind, code, value in _events(data):
        if kind == EV_KEY or (kind == EV_REL and code not in (REL_X, REL_Y)) or (kind == EV_SYN and code == SYN_DROPPED):
            return False
        moved += abs(value) if kind == EV_REL else 0
    return moved < pixels


def _events(data: memoryview) -> list[tuple[int, int, int]]:
    whole = len(data) - len(data) % EVENT.size
    return [(kind, code, value) for _, _, kind, code, value in EVENT.iter_unpack(data[:whole])]


def _away(code: int, value: int, axis: Axis | None) -> bool:
    """Whether an axis is away from its rest. A stick rests in the middle; a trigger, a pedal or a throttle there or at either
    end. An axis without a known range is always away."""
    if code in HATS:
        return value != 0
    if axis is None or axis.most <= axis.least:
        return True
    middle, margin = (axis.least + axis.most) / 2, (axis.most - axis.least) / 2 * DEAD_ZONE
    rests = (middle,) if code in (ABS_X, ABS_Y, ABS_RX, ABS_RY) else (middle, axis.least, axis.most)
    return all(abs(value - rest) > margin for rest in rests)
