"""Made-up input devices: FIFOs of struct input_event, and the sysfs that describes them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.linux.clock import SystemClock
from supervisor.sensors.presence.evdev import EV_KEY, EV_SYN, EVENT, LONG_BITS, Axis
from supervisor.sensors.presence.input import InputDevices

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
        words.append(f"{value & (1 << LONG_BITS) - 1:x}")
        value >>= LONG_BITS
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
        axes: Iterable[int] = (), properties: Iterable[int] = (), switches: Iterable[int] = (),
    ) -> None:
        device = self.sys / "class/input" / node / "device"
        (device / "capabilities").mkdir(parents=True)
        (device / "name").write_text(f"{name}\n")
        (device / "properties").write_text(f"{bitmap(properties)}\n")
        for what, numbers in (("key", keys), ("rel", rels), ("abs", axes), ("sw", switches)):
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

    def lid(self, node: str = "event3") -> None:
        self.plug(node, "Lid Switch", switches=(0,))

    def send(self, node: str, data: bytes) -> None:
        os.write(self.writers[node], data)

    @contextlib.asynccontextmanager
    async def sensor(self, **options: Any) -> AsyncIterator[InputDevices]:
        options.setdefault("mask", lambda _fd: "")
        options.setdefault("axis_of", lambda _fd, _code: STICK)
        sensor = InputDevices(self.clock, dev_root=self.dev, sys_root=self.sys, **options)
        await sensor.start(self._wake)
        try:
            yield sensor
        finally:
            await sensor.stop()

    def _wake(self) -> None:
        self.wakes += 1

    def close(self) -> None:
        for fd in self.writers.values():
            os.close(fd)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An empty one."""
    made = World(tmp_path)
    yield made
    made.close()
