"""The NVML sensor with the real pynvml over the stand-in library: what it reads, and every way in which it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.nvml_standin import GIB, StandIn, nvml_library, standin

from states.observation import Gpu, Reading
from supervisor.clock import SystemClock
from supervisor.sensors import gpu_watch, nvml
from supervisor.sensors import helper as helper_module
from supervisor.sensors.helper import Helper
from supervisor.sensors.nvml import AGENT, NvmlSensor
from supervisor.settings import GpuSettings

__all__ = ["nvml_library", "standin"]  # fixtures

CLOCK = SystemClock()


class World:
    """Roots of a machine's sysfs and /dev, the node's own pids, and a count of wakes."""

    def __init__(self, folder: Path) -> None:
        self.sys, self.dev = folder / "sys", folder / "dev"
        (self.sys / "bus/pci/devices").mkdir(parents=True)
        self.dev.mkdir()
        self.own: frozenset[int] = frozenset()
        self.wakes = 0

    def pci(self, status: str = "active", control: str = "on", driver: str = "nvidia", kind: str = "0x030000") -> None:
        """An NVIDIA device on the bus."""
        device = self.sys / "bus/pci/devices/0000:01:00.0"
        (device / "power").mkdir(parents=True, exist_ok=True)
        drivers = self.sys / "bus/pci/drivers" / driver
        drivers.mkdir(parents=True, exist_ok=True)
        (device / "driver").unlink(missing_ok=True)
        (device / "driver").symlink_to(drivers)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text(f"{kind}\n")
        (device / "power/control").write_text(f"{control}\n")
        (device / "power/runtime_status").write_text(f"{status}\n")

    @contextlib.asynccontextmanager
    async def sensor(self, settings: GpuSettings | None = None, **more: Any) -> AsyncIterator[NvmlSensor]:
        """A started sensor, stopped in the end, that leaves no process behind."""
        settings = settings or GpuSettings()
        more.setdefault("settle_s", 0.02)
        sensor = NvmlSensor(CLOCK, settings, lambda: self.own, sys_root=self.sys, dev_root=self.dev, **more)
        await sensor.start(self._wake)
        try:
            yield sensor
        finally:
            await sensor.stop()
            assert helpers() == []

    def _wake(self) -> None:
        self.wakes += 1


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "world"
    folder.mkdir()
    return World(folder)


@pytest.fixture(autouse=True)
def _soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure the next try comes soon."""
    monkeypatch.setattr(gpu_watch, "BACKOFF_S", (0.1,))


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A living process that is nobody's we know."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def helpers() -> list[psutil.Process]:
    """Our GPU helpers that run."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if str(AGENT) in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def now(sensor: NvmlSensor) -> Reading[Gpu]:
    return sensor.latest(CLOCK.now_s())


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait until the condition holds; fail with what it was when it does not."""
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "waited in vain"
        await asyncio.sleep(0.01)


def ask_alone(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program without a daemon, with `text` as its stdin."""
    argv = [sys.executable, "-I", str(AGENT), *arguments]
    return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=10)


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, 25))


def test_a_quiet_gpu_is_free_and_wakes_nobody_again(standin: StandIn, world: World) -> None:
    """One reading, one wake; further looks that show the same wake nobody."""

    async def scene() -> None:
        async with world.sensor() as sensor:
            reading = now(sensor)
            assert (Gpu(), "", "NVML") == (reading.value, reading.error, reading.source)
            assert CLOCK.now_s() - reading.read_at_s < 2
            sensor.demand(0.2)
            await until(lambda: now(sensor).read_at_s > reading.read_at_s + 0.5)
            assert world.wakes == 1

    play(scene())


@pytest.mark.parametrize(("percent", "believed"), [(0, True), (10, True), (11, False), (97, False)])
def test_a_first_sample_that_shows_a_load_is_discarded(
    standin: StandIn, world: World, percent: int, believed: bool
) -> None:
    """A driver that was just loaded shows 90 percent and more (T14); what is low cannot be that, and answers at once."""
    standin.shows(f"0.util={percent}")

    async def scene() -> None:
        async with world.sensor(settle_s=60.0) as sensor:
            assert (now(sensor).value is not None) is believed
            if not believed:
                sensor._look()  # the next one counts
                await until(lambda: now(sensor).value is not None)
            assert now(sensor).value == Gpu(percent)

    play(scene())


def test_who_is_on_it(standin: StandIn, world: World, stranger: subprocess.Popen[bytes]) -> None:
    """Others by name and pid; the task's own neither counted nor weighed; rows for doctor."""
    world.own = frozenset({os.getpid()})
    standin.shows(
        f"0.proc={os.getpid()}:{5 * GIB}:c", f"0.proc={stranger.pid}:{GIB}:g", f"0.mem_used={7 * GIB}", "0.util=80",
        "0.mem_reserved=300000000", "0.temp=61",
    )  # fmt: skip

    async def scene() -> None:
        async with world.sensor() as sensor:
            reading = now(sensor)
            assert Gpu(80, 2.0, 1, True, (f"sleep (pid {stranger.pid})",)) == reading.value
            assert "1 GiB of VRAM held by no listed process" in reading.source
            (row,) = sensor.describe()
            assert (
                row["uuid"], row["used_gb"], row["temperature_c"], row["driver"],
            ) == ("GPU-fake-0", 7.0, 61, "580.00.00")  # fmt: skip
            assert {("own", 5.0), ("foreign", 1.0)} == {(p["whose"], p["used_gb"]) for p in row["processes"]}

    play(scene())


def test_a_task_that_has_just_ended_is_no_stranger(standin: StandIn, world: World) -> None:
    """The driver lists it a moment longer: its memory counts, but nobody is there."""
    task = subprocess.Popen(["sleep", "60"])
    world.own = frozenset({task.pid})
    standin.shows(f"0.proc={task.pid}:{5 * GIB}:c", f"0.mem_used={5 * GIB}", "0.util=90")

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value == Gpu(0, 0, 0)
            task.kill()
            task.wait()
            world.own = frozenset()
            reading = await sensor.refresh(3)
            assert reading.value == Gpu(90, 5.0, 0)

    play(scene())


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        pytest.param(["0.err=15"], "the GPU is lost", id="lost"),
        pytest.param(["err.nvmlInit=9"], "the NVIDIA driver is not loaded", id="driver not loaded"),
        pytest.param(["err.nvmlInit=18"], "of different versions (an update was installed): reboot", id="mismatch"),
        pytest.param(["err.nvmlInit=4"], "no permission", id="no permission"),
        pytest.param(["err.nvmlDeviceGetCount=999"], "unknown error (NVML error 999)", id="unknown error"),
        pytest.param(["err.nvmlDeviceGetUUID=15"], "its UUID cannot be read", id="no UUID"),
        pytest.param(["err.nvmlDeviceGetMemoryInfo=3"], "its memory cannot be read: not supported", id="no memory"),
        pytest.param(["err.nvmlDeviceGetGraphicsRunningProcesses=3"], "its processes cannot be listed", id="no processes"),
        pytest.param(["err.nvmlDeviceGetUtilizationRates=3"], "its utilisation cannot be read: not", id="no utilisation"),
        pytest.param(["0.mig=1", "err.nvmlDeviceGetUtilizationRates=3"], "read while MIG is on", id="MIG"),
        pytest.param(["0.util=255"], "impossible utilisation (255 %)", id="impossible utilisation"),
        pytest.param(["0.mem_used=99999999999999"], "impossible memory", id="impossible memory"),
    ],
)
def test_what_nvml_cannot_say_is_unknown_with_the_reason(
    standin: StandIn, world: World, lines: list[str], words: str
) -> None:
    """Each error by its name, in words; when it is over, the reading comes back by itself (R12)."""
    standin.shows(*lines)

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value is None
            assert words in now(sensor).error
            standin.shows()
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


def test_an_old_driver_without_the_second_memory_call(standin: StandIn, world: World) -> None:
    """The first form is asked then; what the driver reserves is not told."""
    standin.shows("err.nvmlDeviceGetMemoryInfo_v2=25", f"0.mem_used={GIB}")

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value == Gpu(0, 1.0, 0)
            assert sensor.describe()[0]["reserved_gb"] is None

    play(scene())


def test_a_call_that_hangs_is_abandoned(standin: StandIn, world: World) -> None:
    """Unknown after the deadline, the loop free meanwhile, the helper gone, and a new one when the driver answers."""
    standin.shows()

    async def scene() -> None:
        async with world.sensor(deadline_s=0.2, first_deadline_s=0.2) as sensor:
            assert now(sensor).value == Gpu()
            (old,) = helpers()
            standin.shows("delay.nvmlDeviceGetUtilizationRates=60000")
            began_s, late_s = time.monotonic(), 0.0
            sensor.demand(0.2)
            while now(sensor).value is not None:
                before_s = time.monotonic()
                await asyncio.sleep(0)
                late_s = max(late_s, time.monotonic() - before_s)
                assert before_s - began_s < 3
            assert now(sensor).error == "the NVIDIA driver hangs: no answer within 0.2 s"
            assert late_s < 0.1
            await until(lambda: old not in helpers())
            standin.shows()
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


def test_a_helper_that_cannot_be_killed_is_left_alone(
    standin: StandIn, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uninterruptible sleep (here: a kill that is not sent): no second helper while the first is there."""
    monkeypatch.setattr(helper_module, "END_S", 0.1)
    standin.shows("delay.nvmlInit=60000")
    kill = Helper.kill

    async def scene() -> None:
        async with world.sensor(first_deadline_s=0.2) as sensor:
            assert "hangs" in now(sensor).error
            await until(lambda: "cannot be killed" in now(sensor).error)
            (stuck,) = helpers()
            assert f"process {stuck.pid} cannot be killed" in now(sensor).error
            monkeypatch.setattr(Helper, "kill", kill)
            stuck.kill()
            standin.shows()
            await until(lambda: now(sensor).value == Gpu())

    monkeypatch.setattr(Helper, "kill", lambda self: self._close())
    play(scene())


def test_a_helper_that_dies_is_replaced(standin: StandIn, world: World) -> None:
    """Unknown, with the reason, until the next one has answered."""

    async def scene() -> None:
        async with world.sensor() as sensor:
            helpers()[0].kill()
            await until(lambda: now(sensor).error)
            assert now(sensor).error == "the GPU helper failed: it ended"
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


def test_no_gpu_and_no_library_is_absent_and_costs_no_process(standin: StandIn, world: World) -> None:
    """Stays fresh without a helper; a library that arrives later is noticed at the next look."""
    standin.uninstall()

    async def scene() -> None:
        async with world.sensor() as sensor:
            first = now(sensor)
            assert (Gpu(present=False), "") == (first.value, first.error)
            await until(lambda: not helpers())
            await until(lambda: now(sensor).read_at_s > first.read_at_s)
            assert now(sensor).value == Gpu(present=False)
            standin.install()
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


def test_a_library_that_shows_no_device_is_absent(standin: StandIn, world: World) -> None:
    """NVML without any GPU, on a machine where PCI has none either."""
    standin.shows("count=0")

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value == Gpu(present=False)

    play(scene())


@pytest.mark.parametrize("node", [False, True], ids=["on PCI", "a node in /dev"])
def test_a_gpu_that_nobody_can_ask_is_not_absent(standin: StandIn, world: World, node: bool) -> None:
    """There is one, and no library: unknown, not absent (R12)."""
    standin.uninstall()
    if node:
        (world.dev / "nvidia0").touch()
    else:
        world.pci(kind="0x030200")

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value is None
            assert "there is an NVIDIA GPU" in now(sensor).error
            assert "libnvidia-ml.so.1 does not load" in now(sensor).error

    play(scene())


def test_presence_none_never_looks(standin: StandIn, world: World) -> None:
    """`gpu.presence: none` says that there is nothing to look at."""

    async def scene() -> None:
        async with world.sensor(GpuSettings(presence="none")) as sensor:
            reading = sensor.latest(5.0)
            assert (Gpu(present=False), "gpu.presence: none", 5.0) == (
                reading.value, reading.source, reading.read_at_s,
            )  # fmt: skip
            assert helpers() == []

    play(scene())


def test_a_sleeping_gpu_is_free_without_nvml(standin: StandIn, world: World) -> None:
    """PCI's runtime status proves it, again at each look; awake, it is asked."""
    world.pci("suspended", "auto")
    standin.shows("0.util=50")

    async def scene() -> None:
        async with world.sensor() as sensor:
            first = now(sensor)
            assert (Gpu(), "PCI runtime_status (asleep)") == (first.value, first.source)
            assert sensor.describe() == [{"pci": "0000:01:00.0", "power": "suspended"}]
            await until(lambda: now(sensor).read_at_s > first.read_at_s)
            assert helpers() == []
            world.pci("active", "auto")
            await until(lambda: now(sensor).value == Gpu(50))
            world.pci("suspended", "auto")
            assert now(sensor).value == Gpu()
            await until(lambda: not helpers())

    play(scene())


def test_a_sleeping_device_of_another_driver_proves_nothing(standin: StandIn, world: World) -> None:
    """Lent to a virtual machine, or without driver: asleep for other reasons."""
    world.pci("suspended", "auto", driver="vfio-pci")
    standin.shows("0.util=50")

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert now(sensor).value == Gpu(50)

    play(scene())


def test_a_quiet_gpu_that_may_sleep_is_left_alone(
    standin: StandIn, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helper goes, so that its handle keeps nothing awake; one that stays awake all the same is watched again."""
    monkeypatch.setattr(nvml, "NAP_S", 0.2)
    world.pci("active", "auto")

    async def scene() -> None:
        async with world.sensor() as sensor:
            sensor.demand(0.2)
            assert now(sensor).value == Gpu()
            await until(lambda: not helpers())
            looks: set[float] = set()
            await until(lambda: looks.add(now(sensor).read_at_s) or len(looks) > 3)  # two naps in vain, then it stays
            assert len(helpers()) == 1

    play(scene())


def test_an_open_of_a_node_is_looked_at_at_once(
    standin: StandIn, world: World, stranger: subprocess.Popen[bytes]
) -> None:
    """Also what comes a moment after the open, as a context does; a node that appears is watched too."""

    async def scene() -> None:
        async with world.sensor() as sensor:
            (world.dev / "nvidia0").touch()
            await until(lambda: world.wakes >= 2)
            await until(lambda: not sensor._follow_up)
            wakes = world.wakes
            (world.dev / "nvidia0").open().close()
            await until(lambda: world.wakes > wakes)
            standin.shows(f"0.proc={stranger.pid}:{GIB}:g", f"0.mem_used={GIB}")
            await until(lambda: now(sensor).value == Gpu(0, 1.0, 1, True, (f"sleep (pid {stranger.pid})",)))

    play(scene())


def test_demand_decides_how_often(standin: StandIn, world: World) -> None:
    """Rarely by itself; every so many seconds when asked to."""

    async def scene() -> None:
        async with world.sensor() as sensor:
            standin.shows("0.util=50")
            sensor.demand(None)
            assert sensor._timer
            assert sensor._timer.when() - asyncio.get_running_loop().time() > 20
            sensor.demand(0.2)
            await until(lambda: now(sensor).value == Gpu(50))

    play(scene())


def test_the_first_sample_of_a_helper_is_not_believed(standin: StandIn, world: World) -> None:
    """Loading the driver shows as load; the reading comes with the second sample."""
    standin.shows("0.util=97")

    async def scene() -> None:
        starting = asyncio.create_task(entered())
        await until(lambda: helpers())
        standin.shows()
        await starting

    async def entered() -> None:
        async with world.sensor(settle_s=1.0) as sensor:
            assert now(sensor).value == Gpu()

    play(scene())


@pytest.mark.parametrize(
    ("xid", "said"), [(79, "GPU-fake-0: the driver reported Xid 79 (it has fallen off the bus)"), (31, "")]
)
def test_a_fault_of_the_gpu_itself_is_unknown_until_it_recovers(standin: StandIn, world: World, xid: int, said: str) -> None:
    """A program's own faults (Xid 31) are told, and nothing more."""

    async def scene() -> None:
        async with world.sensor() as sensor:
            sensor.demand(0.2)
            assert sensor.describe()[0]["xid"] == 0
            standin.shows(f"0.xid={xid}")
            if said:
                await until(lambda: now(sensor).error.startswith(said))
                standin.shows()
            else:
                await until(lambda: sensor.describe()[0]["xid"] == xid)
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


@pytest.mark.parametrize(
    ("lines", "throttled"),
    [
        ((), []),
        (("0.throttle=0x25",), ["power cap", "heat"]),
        (("0.throttle=0x1",), []),
        (("0.throttle=-1",), []),
        (("err.nvmlEventSetCreate=3", "0.throttle=0x80"), ["power brake"]),
        (("err.nvmlDeviceRegisterEvents=3",), []),
    ],
)
def test_what_holds_the_clocks_down_is_told(
    standin: StandIn, world: World, lines: tuple[str, ...], throttled: list[str]
) -> None:
    standin.shows(*lines)

    async def scene() -> None:
        async with world.sensor() as sensor:
            assert (now(sensor).value, sensor.describe()[0]["throttled"]) == (Gpu(), throttled)

    play(scene())


def test_after_a_suspend_nothing_is_known_until_a_new_helper_has_looked(standin: StandIn, world: World) -> None:
    """What was read before proves nothing; the old helper's handles neither."""
    slept_s = 0.0

    async def scene() -> None:
        nonlocal slept_s
        async with world.sensor(suspended_s=lambda: slept_s) as sensor:
            assert now(sensor).value == Gpu()
            before = {helper.pid for helper in helpers()}
            slept_s = 0.5
            assert now(sensor).value == Gpu()
            slept_s = 3600.0
            assert (now(sensor).value, now(sensor).error) == (None, "not looked at since the machine woke up")
            await until(lambda: now(sensor).value == Gpu())
            assert not before & {helper.pid for helper in helpers()}

    play(scene())


def test_a_driver_that_is_not_back_after_a_suspend_is_its_own_reason(standin: StandIn, world: World) -> None:
    slept_s = 0.0

    async def scene() -> None:
        nonlocal slept_s
        async with world.sensor(suspended_s=lambda: slept_s) as sensor:
            standin.shows("err.nvmlInit=9")
            slept_s = 60.0
            await until(lambda: "the NVIDIA driver is not loaded" in now(sensor).error)
            standin.shows()
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


def test_a_lent_gpu_that_is_unplugged(standin: StandIn, world: World) -> None:
    """The other one, which is not lent, stands for nothing."""
    standin.shows("count=2")

    async def scene() -> None:
        async with world.sensor(GpuSettings(lend=["GPU-fake-1"])) as sensor:
            assert now(sensor).value == Gpu()
            standin.shows("count=1")
            assert "GPU-fake-1 (gpu.lend in node.yaml) is not there" in (await sensor.refresh(3)).error

    play(scene())


def test_the_helper_answers_each_line_and_ends_with_its_input(standin: StandIn) -> None:
    """The program by itself: one JSON line a request, nothing else."""
    run = ask_alone("look\nwhat\nlook\n")
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert [run.returncode, run.stderr, len(answers)] == [0, "", 2]
    assert answers[0]["devices"][0]["uuid"] == "GPU-fake-0"


def test_the_helper_dies_with_its_parent(standin: StandIn, tmp_path: Path) -> None:
    """Also when the parent is killed and the pipes stay open elsewhere; a stranger's child ends at once."""
    script = (
        "import os, signal, subprocess, sys\n"
        f"argv = [sys.executable, '-I', {str(AGENT)!r}, str(os.getpid())]\n"
        "p = subprocess.Popen(argv, stdin=0, stdout=subprocess.PIPE)\n"
        "p.stdout.readline(); print(p.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdin
        assert parent.stdout
        parent.stdin.write("look\n")
        parent.stdin.flush()
        pid = int(parent.stdout.readline())
        parent.wait(10)
        end_s = time.monotonic() + 5
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end_s
            time.sleep(0.01)
        parent.stdin.close()
    orphan = ask_alone("look\n", str(os.getppid()))
    assert [orphan.returncode, orphan.stdout] == [0, ""]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('not asked', flush=True); input()", "it spoke without being asked"),
        ("input(); print('x' * 3000000, flush=True); input()", "its answer is too long"),
        ("import sys; input(); sys.exit('broken installation')", "it ended: broken installation"),
        ("input(); import time; time.sleep(60)", "no answer within 1 s"),
    ],
)
def test_a_helper_that_misbehaves_is_killed_with_a_reason(program: str, reason: str) -> None:
    """Whatever it does, the loop gets one line of words and no exception."""
    reasons: list[str] = []

    async def scene() -> None:
        helper = Helper([sys.executable, "-c", program], lambda line: None, reasons.append)
        if "not asked" not in reason and "without" not in reason:
            helper.ask(b"look\n", 1.0)
        await until(lambda: reasons)
        assert await helper.wait(5)
        assert not helper.stuck

    play(scene())
    assert reasons == [reason]


def test_stderr_never_blocks_the_helper() -> None:
    """More than a pipe holds is drained, and only its end is kept."""
    lines: list[bytes] = []
    program = "import sys; input(); sys.stderr.write('noise ' * 100000); print('done', flush=True); input()"

    async def scene() -> None:
        helper = Helper([sys.executable, "-c", program], lines.append, lines.append)  # type: ignore[arg-type]
        helper.ask(b"look\n", 5.0)
        await until(lambda: lines)
        helper.end()
        assert await helper.wait(5)

    play(scene())
    assert lines == [b"done"]


def test_signals_are_the_daemons_business(standin: StandIn, world: World) -> None:
    """A Ctrl-C at the terminal of the daemon does not reach the helper: it leads a session of its own."""

    async def scene() -> None:
        async with world.sensor():
            (one,) = helpers()
            assert os.getsid(one.pid) == one.pid

    play(scene())
