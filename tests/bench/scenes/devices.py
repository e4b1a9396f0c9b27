"""What needs no session: input devices, BOINC's idle_detect, a foreign process on the GPU."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from inotify_simple import flags
from scenes.stage import CLOCK, REST_S, Decider, Deed, Quiet, Seen, Stage, deed, inotify_on, now_and, rested, ticking
from support.input_world import SYN, World, event
from support.nvml_standin import StandIn, build
from support.waiting import eventually

from supervisor.config.schema import GpuSettings
from supervisor.daemon.loop import BUSY_S
from supervisor.daemon.wiring import LOOK_INTERVAL_S
from supervisor.sensors.gpu.nvml import NvmlSensor
from supervisor.sensors.gpu.poller import Setup
from supervisor.sensors.presence import input as input_sensor
from supervisor.sensors.presence.evdev import EV_ABS, EV_KEY, EV_REL
from supervisor.sensors.presence.idle_detect import TIMES, IdleDetect
from supervisor.sensors.presence.input import InputDevices

GPU_MS = 20.0  # a foreign process on the GPU is seen so soon, and a driver's call later (performance.md)


KINDS: dict[str, tuple[Iterable[int], Iterable[int], Iterable[int], tuple[int, int, int]]] = {
    "keyboard": (range(1, 120), (), (), (EV_KEY, 30, 1)),
    "mouse": ((0x110, 0x111), (0, 1, 8), (), (EV_REL, 0, 3)),
    "touch": ((0x14A,), (), (0, 1, 0x35), (EV_ABS, 0x35, 100)),
    "tablet": ((0x140, 0x14A), (), (0, 1), (EV_ABS, 0, 100)),
    "gamepad": ((0x130, 0x131), (), (0, 1), (EV_KEY, 0x130, 1)),
}


@contextlib.asynccontextmanager
async def touching_devices(seen: Seen) -> AsyncIterator[Stage]:
    """Keyboard, mouse, touch screen, tablet and gamepad in turn."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        stack.enter_context(rested(input_sensor, QUIET_S=0.02, SETTLED_S=0.02))
        world = World(Path(name))
        stack.callback(world.close)
        ends: list[tuple[int, str, bytes]] = []
        loop = asyncio.get_running_loop()
        for number, (kind, (keys, rels, axes, sent)) in enumerate(KINDS.items()):
            node = f"event{number}"
            world.plug(node, kind, keys, rels, axes)
            reading, bare = os.pipe2(os.O_NONBLOCK)
            stack.callback(os.close, reading)
            stack.callback(os.close, bare)
            loop.add_reader(reading, lambda fd=reading: (os.read(fd, 4096), seen()))
            stack.callback(loop.remove_reader, reading)
            ends.append((bare, node, event(*sent) + SYN))
        sensor = InputDevices(CLOCK, required=True, dev_root=world.dev, sys_root=world.sys)
        decider = Decider([sensor])
        await sensor.start(decider.wake)
        turn = [0]

        def touch() -> None:
            bare, node, data = ends[turn[0] % len(ends)]
            turn[0] += 1
            os.write(bare, data)
            world.send(node, data)

        breaks = {"the last is unplugged": deed(lambda: shutil.rmtree(world.dev / "input"))}
        yield Stage(decider, now_and(touch), None, breaks, 0.05)
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
        sensor.demand(LOOK_INTERVAL_S)  # as beside a task
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
