"""AMD and Intel GPUs on made-up trees of sysfs and /proc, read by the real helper: load, memory, whose it is, and sleep."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.nvml_standin import StandIn, nvml_library, standin

from states.observation import Gpu, Reading
from supervisor.agents import drm as agent
from supervisor.clock import SystemClock
from supervisor.sensors import gpu_watch
from supervisor.sensors.drm import AGENT, DrmSensor
from supervisor.sensors.drm_cards import Cards
from supervisor.sensors.drm_use import Card, Client, Look, busy_percent, judge
from supervisor.sensors.gpus import Gpus, combine
from supervisor.sensors.process import Name
from supervisor.settings import GpuSettings

__all__ = ["nvml_library", "standin"]  # fixtures

GIB = 2**30
CLOCK = SystemClock()
AMD, INTEL = "0000:03:00.0", "0000:00:02.0"


class World:
    """Roots of a machine's sysfs, /proc and /dev."""

    def __init__(self, folder: Path) -> None:
        self.sys, self.proc, self.dev = folder / "sys", folder / "proc", folder / "dev"
        for made in (self.sys / "class/drm", self.sys / "bus/pci/devices", self.proc, self.dev / "dri"):
            made.mkdir(parents=True)
        self.own: frozenset[int] = frozenset()
        self.wakes = 0
        self.cards = 0

    def card(self, pci: str = AMD, driver: str = "amdgpu", status: str = "active", **files: object) -> Path:
        """A GPU; `files` of its device's folder, or of its card's below `gt`."""
        device = self.sys / "devices" / pci
        name, render = f"card{self.cards}", f"renderD{128 + self.cards}"
        self.cards += 1
        for made in (device / "power", device / "drm" / name, device / "drm" / render, self.sys / "drivers" / driver):
            made.mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(self.sys / "drivers" / driver)
        (device / "drm" / name / "device").symlink_to(device)
        (self.sys / "class/drm" / name).symlink_to(device / "drm" / name)
        (self.sys / "class/drm" / f"{name}-HDMI-A-1").mkdir()
        for node in (name, render):
            (self.dev / "dri" / node).touch(mode=0o660)
        (device / "power/runtime_status").write_text(f"{status}\n")
        for file, value in files.items():
            self.write(device, file, value)
        return device

    def amd(self, percent: object = 0, used: int = 0, **more: Any) -> Path:
        return self.card(gpu_busy_percent=percent, mem_info_vram_used=used, mem_info_vram_total=16 * GIB, **more)

    def write(self, device: Path, file: str, value: object) -> None:
        path = device / file
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}")
        new.write_text(f"{value}\n")
        os.replace(new, path)

    def process(self, pid: int, comm: str, *fdinfos: dict[str, object], uid: int = 1000) -> None:
        """A process with these DRM descriptors."""
        folder = self.proc / str(pid)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "fd").mkdir(parents=True)
        (folder / "fdinfo").mkdir()
        (folder / "comm").write_text(f"{comm}\n")
        ids = "\t".join([str(uid)] * 4)
        (folder / "status").write_text(f"Name:\t{comm}\nUid:\t{ids}\nGid:\t{ids}\nGroups:\t\n")
        (folder / "fd/0").symlink_to("/dev/null")
        (folder / "fdinfo/0").write_text("pos:\t0\nflags:\t02\n")
        for fd, fields in enumerate(fdinfos, 3):
            (folder / f"fd/{fd}").symlink_to("/dev/dri/renderD128")
            (folder / f"fdinfo/{fd}").write_text("pos:\t0\n" + "".join(f"{k}:\t{v}\n" for k, v in fields.items()))

    @contextlib.asynccontextmanager
    async def sensor(self, settings: GpuSettings | None = None, **more: Any) -> AsyncIterator[DrmSensor]:
        roots = {"sys_root": self.sys, "proc_root": self.proc, "dev_root": self.dev}
        sensor = DrmSensor(CLOCK, settings or GpuSettings(), lambda: self.own, **roots, **more)
        await sensor.start(self._wake)
        try:
            yield sensor
        finally:
            await sensor.stop()
            assert helpers() == []

    def _wake(self) -> None:
        self.wakes += 1


def context(pid: str = AMD, client: int = 1, vram_kib: int = 0, engine_ns: int = 0, **more: object) -> dict[str, object]:
    """A DRM descriptor as amdgpu writes it."""
    return {
        "drm-driver": "amdgpu", "drm-pdev": pid, "drm-client-id": client, "drm-memory-vram": f"{vram_kib} KiB",
        "drm-engine-gfx": f"{engine_ns} ns",
    } | {key.replace("_", "-"): value for key, value in more.items()}  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(autouse=True)
def _soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_watch, "BACKOFF_S", (0.1,))


def helpers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if str(AGENT) in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def now(sensor: DrmSensor | Gpus) -> Reading[Gpu]:
    return sensor.latest(CLOCK.now_s())


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        await asyncio.sleep(0.01)


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 25))


# --- with the real helper


def test_an_amd_gpu_is_read_and_followed(world: World) -> None:
    device = world.amd(percent=7, used=GIB)
    world.process(4001, "game", context(vram_kib=1 << 20, engine_ns=5), context(client=1, vram_kib=1 << 20))

    async def scene() -> None:
        async with world.sensor() as sensor:
            sensor.demand(0.2)
            assert (now(sensor).value, now(sensor).source) == (Gpu(7, 1, 1, True, ("game (pid 4001)",)), "DRM")
            (row,) = sensor.describe()
            assert (row["pci"], row["driver"], row["lent"], row["used_gb"], row["total_gb"]) == (AMD, "amdgpu", True, 1, 16)
            assert row["processes"] == [{"pid": 4001, "name": "game", "used_gb": 1.0, "whose": "foreign"}]
            shutil.rmtree(world.proc / "4001")
            world.write(device, "gpu_busy_percent", 0)
            world.write(device, "mem_info_vram_used", 0)
            await until(lambda: now(sensor).value == Gpu())
            wakes = world.wakes
            read_at_s = now(sensor).read_at_s
            await until(lambda: now(sensor).read_at_s > read_at_s + 0.3)
            assert world.wakes == wakes

    play(scene())


def test_the_own_task_is_not_held_against_itself(world: World) -> None:
    world.amd(percent=100, used=10 * GIB)
    world.process(4002, "worker", context(vram_kib=9 << 20, engine_ns=1))
    world.own = frozenset({4002})

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value == Gpu(0, 1)

    play(scene())


@pytest.mark.parametrize(
    ("driver", "file"),
    [("i915", "drm/card0/gt/gt0/rc6_residency_ms"), ("xe", "tile0/gt0/gtidle/idle_residency_ms")],
)
def test_an_intel_gpu_is_busy_while_it_is_not_idle(driver: str, file: str, world: World) -> None:
    """Two looks tell; the busiest of its parts counts."""
    device = world.card(INTEL, driver)
    world.write(device, file, 0)
    world.write(device, file.replace("gt0", "gt1"), 10**9)
    began_s = time.monotonic()

    async def scene() -> None:
        async with world.sensor() as sensor:
            sensor.demand(0.3)
            assert now(sensor).value == Gpu(100)
            async with asyncio.TaskGroup() as tasks:
                idle = tasks.create_task(be_idle())
                await until(lambda: (seen := now(sensor).value) is not None and seen.percent < 20)
                idle.cancel()
            (row,) = sensor.describe()
            assert (row["driver"], row["total_gb"]) == (driver, None)

    async def be_idle() -> None:
        while True:
            world.write(device, file, int((time.monotonic() - began_s) * 1000))
            await asyncio.sleep(0.005)

    play(scene())


def test_a_sleeping_gpu_is_free_and_left_asleep(world: World) -> None:
    """Nothing of it is read but its power state: the files that would wake it are pipes nobody writes to."""
    device = world.card(AMD, "amdgpu", "suspended")
    for file in ("gpu_busy_percent", "mem_info_vram_used"):
        os.mkfifo(device / file)

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert (now(sensor).value, now(sensor).source) == (Gpu(), "PCI runtime_status (asleep)")
            assert helpers() == []
            assert sensor.describe() == [{"pci": AMD, "lent": True, "power": "suspended"}]
            first_s = now(sensor).read_at_s
            await until(lambda: now(sensor).read_at_s > first_s)
            for file in ("gpu_busy_percent", "mem_info_vram_used"):
                (device / file).unlink()
            world.write(device, "gpu_busy_percent", 50)
            world.write(device, "power/runtime_status", "active")
            await until(lambda: now(sensor).value == Gpu(50))
            world.write(device, "power/runtime_status", "suspended")
            assert now(sensor).value == Gpu()
            await until(lambda: not helpers())

    play(scene())


def test_one_that_sleeps_beside_one_that_is_awake_is_not_read(world: World) -> None:
    world.amd(percent=3)
    other = world.card(INTEL, "i915", "suspended")
    os.mkfifo(other / "mem_info_vram_used")

    async def scene() -> None:
        async with world.sensor(GpuSettings(lend=[AMD, INTEL])) as sensor:
            assert now(sensor).value == Gpu(3)
            assert [row["power"] for row in sensor.describe()] == ["active", "suspended"]

    play(scene())


@pytest.mark.parametrize(
    ("percent", "error"),
    [
        ("", "gpu_busy_percent holds no number"),
        ("many", "gpu_busy_percent holds no number"),
        (None, "gpu_busy_percent cannot be read: No such file"),
        ("101", "impossible utilisation (101 %)"),
        ("-1", "impossible utilisation (-1 %)"),
    ],
)
def test_what_a_driver_cannot_say_is_unknown_and_tried_again(percent: str | None, error: str, world: World) -> None:
    device = world.amd()
    if percent is None:
        (device / "gpu_busy_percent").unlink()
    else:
        world.write(device, "gpu_busy_percent", percent)

    async def scene() -> None:
        async with world.sensor() as sensor:
            await until(lambda: error in now(sensor).error)
            assert now(sensor).value is None
            world.write(device, "gpu_busy_percent", 1)
            await until(lambda: now(sensor).value == Gpu(1))

    play(scene())


def test_a_read_that_hangs_is_unknown_and_left_behind(world: World) -> None:
    """A pipe without a writer stands for a driver that does not come back."""
    device = world.card(AMD)
    os.mkfifo(device / "gpu_busy_percent")

    async def scene() -> None:
        async with world.sensor(deadline_s=0.2) as sensor:
            sensor._first_deadline_s = 0.2
            sensor._helper_failed("started anew")
            await until(lambda: now(sensor).error == "the GPU's driver hangs: no answer within 0.2 s")
            (device / "gpu_busy_percent").unlink()
            world.write(device, "gpu_busy_percent", 2)
            await until(lambda: now(sensor).value == Gpu(2))

    play(scene())


def test_none_is_absent_and_one_that_comes_is_seen(world: World) -> None:
    (world.dev / "dri").rmdir()

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value == Gpu(present=False)
            (world.dev / "dri").mkdir()
            world.amd(percent=4)
            await until(lambda: now(sensor).value == Gpu(4))

    play(scene())


def test_one_that_is_named_must_be_there(world: World) -> None:
    world.amd()

    async def scene() -> None:
        async with world.sensor(GpuSettings(lend=[INTEL])) as sensor:
            assert f"GPU {INTEL} (gpu.lend in node.yaml) is not there" in now(sensor).error
            device = world.card(INTEL, "i915")
            world.write(device, "drm/card1/gt/gt0/rc6_residency_ms", 0)
            await until(lambda: now(sensor).value == Gpu(100))

    play(scene())


def test_the_one_with_most_memory_is_lent(world: World) -> None:
    world.card(INTEL, "i915")
    world.card("0000:0a:00.0", "amdgpu", gpu_busy_percent=9, mem_info_vram_total=GIB // 2)
    world.amd(percent=2)
    world.card("0000:0b:00.0", "nouveau")
    cards = Cards(world.sys)
    assert set(cards.there()) == {INTEL, AMD, "0000:0a:00.0"}
    assert cards.largest() == AMD


def test_an_open_in_the_folder_is_looked_at_at_once(world: World) -> None:
    world.amd()

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value == Gpu()
            world.process(4003, "game", context(engine_ns=9))
            (world.dev / "dri/renderD128").open().close()
            await until(lambda: (seen := now(sensor).value) is not None and seen.foreign == 1, 2.0)

    play(scene())


def test_after_a_suspend_it_is_looked_at_anew(world: World) -> None:
    world.amd()
    slept_s = 0.0

    async def scene() -> None:
        nonlocal slept_s
        async with world.sensor(suspended_s=lambda: slept_s) as sensor:
            assert now(sensor).value == Gpu()
            slept_s = 100.0
            assert now(sensor).error == "not looked at since the machine woke up"
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


@pytest.fixture
def nobody() -> int:
    """Somebody who is not root."""
    if os.getuid() != 0:
        pytest.skip("only root can look as somebody else")
    return pwd.getpwnam("nobody").pw_uid


@pytest.mark.parametrize(
    ("mode", "acl", "groups", "hidden"),
    [
        pytest.param(0o660, [], [], False, id="no right to the node"),
        pytest.param(0o666, [], [], True, id="everybody may"),
        pytest.param(0o660, [], [4242], True, id="by its group"),
        pytest.param(0o660, [(2, 6, 5001)], [], True, id="by an entry for the user"),
        pytest.param(0o660, [(2, 6, 5002)], [], False, id="by an entry for another"),
        pytest.param(0o660, [(8, 6, 4242)], [4242], True, id="by an entry for the group"),
    ],
)
def test_who_cannot_be_looked_into_counts_only_with_the_right_to_open_it(
    mode: int, acl: list[tuple[int, int, int]], groups: list[int], hidden: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = tmp_path / "renderD128"
    node.touch()
    node.chmod(mode)
    entries = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in acl)
    monkeypatch.setattr(agent.os, "getxattr", lambda path, name: entries if acl else _no_acl())
    monkeypatch.setattr(agent.os, "stat", lambda path: os.stat_result((mode | 0o020000, 0, 0, 1, 0, 4242, 0, 0, 0, 0)))
    assert agent.Rights([str(node)]).may(5001, {5001, *groups}) is hidden


def _no_acl() -> bytes:
    raise OSError(61, "No data available")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may look into, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_another_users_process_is_hidden_from_who_is_not_root(nobody: int, open_folder: Path) -> None:
    """A real process of another user on the real /proc, seen by the helper as nobody."""
    world = World(open_folder)
    world.amd()
    for node in (world.dev / "dri").iterdir():
        node.chmod(0o666)
    other = subprocess.Popen(["sleep", "60"], user=12345, group=12345, extra_groups=[])
    roots = (str(world.sys), "/proc", str(world.dev))
    try:
        # The system's Python, as nobody may look into a home's.
        argv = ["/usr/bin/python3", "-I", "-c", AGENT.read_text(), str(os.getpid()), *roots]
        run = subprocess.run(
            argv, input="look\n", user=nobody, group=nobody, extra_groups=[], cwd="/", capture_output=True, text=True,
            timeout=20,
        )  # fmt: skip
        assert run.stderr == ""
        (card,) = json.loads(run.stdout)["devices"]
        assert other.pid in card["hidden"]
        assert not [pid for pid in card["hidden"] if _uid(pid) == 0]
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()


def _uid(pid: int) -> int | None:
    try:
        return psutil.Process(pid).uids().effective
    except psutil.NoSuchProcess:
        return None


# --- the judgement


NAMES = {
    10: Name("worker"),
    20: Name("sway"),
    21: Name("kwin_wayland"),
    30: Name("game"),
    40: Name("model", "", "/system.slice/ollama.service"),
}


def seen(
    *cards: Card, own: frozenset[int] = frozenset(), percents: dict[str, float] | None = None, **settings: Any
) -> tuple[Gpu | None, str]:
    lent = {card.pci for card in cards}
    use = judge(
        cards, lent, percents or {}, own, {}, lambda pid: NAMES.get(pid, Name()), GpuSettings(**settings)
    )
    return use.gpu, use.error


def amd(*clients: Client, used: float = 0.0, hidden: tuple[int, ...] = ()) -> Card:
    return Card(AMD, "amdgpu", total=16 * GIB, used=int(used * GIB), clients=clients, hidden=hidden)


def client(pid: int, vram: float = 0.0, busy: bool = True) -> Client:
    return Client(pid, int(vram * GIB), busy)


GAME = "game (pid 30)"


@pytest.mark.parametrize(
    ("found", "gpu", "error"),
    [
        pytest.param(seen(amd()), Gpu(), "", id="nobody"),
        pytest.param(seen(amd(client(30, 1), used=1)), Gpu(0, 1, 1, True, (GAME,)), "", id="a game"),
        pytest.param(seen(amd(client(30, busy=False))), Gpu(), "", id="open, and never used"),
        pytest.param(seen(amd(used=3)), Gpu(0, 3), "", id="memory of nobody listed counts"),
        pytest.param(seen(amd(client(20, 1), used=1.5)), Gpu(0, 1.5), "", id="display server under the cap"),
        pytest.param(seen(amd(client(20, 3), used=3)), Gpu(0, 3, 1, True, ("sway (pid 20)",)), "", id="over the cap"),
        pytest.param(seen(amd(used=1, hidden=(21,))), Gpu(0, 1), "", id="hidden display server under the cap"),
        pytest.param(
            seen(amd(used=3, hidden=(21,))), Gpu(0, 3, 1, True, ("kwin_wayland (pid 21)",)), "", id="hidden, over the cap"
        ),
        pytest.param(seen(Card(INTEL, "i915", hidden=(21,))), Gpu(), "", id="hidden, on a GPU without memory"),
        pytest.param(seen(amd(hidden=(30,))), None, f"{GAME} may use the GPU and cannot be looked into", id="hidden"),
        pytest.param(seen(amd(hidden=(99,))), Gpu(), "", id="hidden and gone"),
        pytest.param(seen(amd(hidden=(10,)), own=frozenset({10})), Gpu(), "", id="hidden and ours"),
        pytest.param(seen(amd(hidden=(40,)), own_units=["ollama.service"]), Gpu(), "", id="hidden, of a unit of ours"),
        pytest.param(
            seen(amd(client(10, 4), used=5), own=frozenset({10}), percents={AMD: 99.0}), Gpu(0, 1), "", id="ours"
        ),
        pytest.param(
            seen(amd(client(10, 4), client(30), used=5), own=frozenset({10}), percents={AMD: 99.0}),
            Gpu(99, 1, 1, True, (GAME,)), "", id="ours beside a game",
        ),
        pytest.param(
            seen(Card(INTEL, "xe", clients=(client(30, 2), client(10, 1))), own=frozenset({10})),
            Gpu(0, 2, 1, True, (GAME,)), "", id="without a total, what is known is added up",
        ),
    ],
)  # fmt: skip
def test_whose_it_is(found: tuple[Gpu | None, str], gpu: Gpu | None, error: str) -> None:
    assert found[0] == gpu
    assert found[1].startswith(error)
    assert bool(found[1]) is bool(error)


@pytest.mark.parametrize(
    ("before", "after", "seconds", "percent"),
    [
        (0, 1000, 1.0, 0.0),
        (0, 250, 1.0, 75.0),
        (0, 0, 1.0, 100.0),
        (0, 1100, 1.0, 0.0),
        (500, 100, 1.0, None),
        (0, 10, 0.05, None),
        (None, 10, 1.0, None),
    ],
)
def test_idle_times_tell_how_busy_it_was(before: int | None, after: int, seconds: float, percent: float | None) -> None:
    then = Look(10.0, (Card(INTEL, "i915", idle_ms=before),))
    card = Card(INTEL, "i915", idle_ms=after)
    assert busy_percent(then, Look(10.0 + seconds, (card,)), card) == percent
    assert busy_percent(None, Look(10.0 + seconds, (card,)), card) is None


def test_a_driver_that_tells_nothing_is_unknown() -> None:
    card = Card(INTEL, "i915")
    with pytest.raises(ValueError, match="does not tell how busy it is"):
        busy_percent(None, Look(0.0, (card,)), card)


@given(st.text(max_size=200))
def test_no_fdinfo_breaks_the_helper(text: str) -> None:
    for line in text.splitlines():
        assert agent.size(line.partition(":")[2]) >= 0


@pytest.mark.parametrize(
    ("text", "size"), [("12 KiB", 12288), ("1 MiB", 1 << 20), ("7", 7), ("-1 KiB", 0), ("x KiB", 0), ("", 0)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert agent.size(text) == size


# --- both kinds


def test_several_lent_gpus_are_one_reading() -> None:
    first, second = Reading(Gpu(5, 1, 1, True, ("a",)), "", "NVML", 10.0), Reading(Gpu(50, 0.5), "", "DRM", 9.0)
    assert combine([first, second]) == Reading(Gpu(50, 1, 1, True, ("a",)), "", "NVML, DRM", 9.0)
    assert combine([first, Reading(None, "hangs", "DRM", 9.0)]).error == "hangs"
    assert combine([first, Reading(Gpu(present=False), "", "DRM", 9.0)]).value == Gpu(5, 1, 1, False, ("a",))
    assert combine([second]) is second


@pytest.fixture
def no_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This machine has no NVIDIA library, whatever it has."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libnvidia-ml.so.1").write_bytes(b"no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "lib"))


@contextlib.asynccontextmanager
async def both(world: World, **settings: Any) -> AsyncIterator[Gpus]:
    sensor = Gpus(
        CLOCK, GpuSettings(**settings), lambda: world.own, sys_root=world.sys, proc_root=world.proc, dev_root=world.dev
    )
    await sensor.start(world._wake)
    try:
        yield sensor
    finally:
        await sensor.stop()
        assert helpers() == []


@pytest.mark.usefixtures("no_nvml")
def test_without_nvidia_the_other_gpu_is_lent(world: World) -> None:
    async def scene() -> None:
        async with both(world) as sensor:
            assert now(sensor).value == Gpu(present=False)
            world.amd(percent=6)
            await until(lambda: now(sensor).value == Gpu(6))
            assert (await sensor.refresh(3)).value == Gpu(6)
            assert [row["pci"] for row in sensor.describe()] == [AMD]

    play(scene())


def test_nvidias_is_preferred_and_both_can_be_lent(standin: StandIn, world: World) -> None:
    """A laptop's own Intel or AMD part is its desktop's business, unless it is named."""
    world.amd(percent=6, used=2 * GIB)
    standin.shows("0.util=5", f"0.mem_used={GIB}")

    async def scene() -> None:
        async with both(world) as sensor:
            assert now(sensor).value == Gpu(5, 1)
            assert list(sensor._started) == [sensor.nvml]
        async with both(world, lend=["GPU-fake-0", AMD]) as sensor:
            assert now(sensor).value == Gpu(6, 2)
            assert [row.get("uuid") or row.get("pci") for row in sensor.describe()] == ["GPU-fake-0", AMD]

    play(scene())


@pytest.mark.usefixtures("no_nvml")
def test_what_is_named_alone_is_looked_at(world: World) -> None:
    world.amd(percent=6)

    async def scene() -> None:
        async with both(world, lend=[AMD.upper()]) as sensor:
            assert now(sensor).value == Gpu(6)
            assert list(sensor._started) == [sensor.drm]
        async with both(world, lend=[AMD, "GPU-there-is-none"]) as sensor:
            assert now(sensor).value == Gpu(6, present=False)
        async with both(world, presence="none") as sensor:
            assert now(sensor).value == Gpu(present=False)
            assert helpers() == []

    play(scene())
