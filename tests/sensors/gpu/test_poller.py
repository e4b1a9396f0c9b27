"""When the NVML sensor looks and when it rests; helpers that hang, die or cannot be killed; a suspend."""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from support.gpu_rig import NvidiaMachine, helpers, now, nvidia, soon_again, stranger, until
from support.nvml_standin import GIB, StandIn, nvml_library, standin
from support.waiting import play, watched_loop

from states.observation import Gpu
from supervisor.config.schema import GpuSettings
from supervisor.linux import helper_process as helper_module
from supervisor.linux.helper_process import Helper
from supervisor.sensors.gpu import ownership, poller
from supervisor.sensors.gpu.poller import NEVER_LOOK

__all__ = ["nvidia", "nvml_library", "soon_again", "standin", "stranger"]  # fixtures

pytestmark = pytest.mark.usefixtures("soon_again")


def test_a_call_that_hangs_is_abandoned(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """Unknown after the deadline, the loop free meanwhile, the helper gone, and a new one when the driver answers."""
    standin.shows()

    async def scene() -> None:
        async with nvidia.sensor(deadline_s=1.0) as sensor, watched_loop() as held:
            sensor.demand(0.2)
            assert (await sensor.refresh(3)).value == Gpu()
            (old,) = helpers()
            standin.shows("delay.nvmlDeviceGetUtilizationRates=60000")
            await until(lambda: now(sensor).value is None)
            assert now(sensor).error == "the NVIDIA driver hangs: no answer within 1 s"
            assert held.longest_s < 0.5, "it waited on the loop"
            await until(lambda: old not in helpers())
            standin.shows()
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


def test_a_helper_that_cannot_be_killed_is_left_alone(
    standin: StandIn, nvidia: NvidiaMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uninterruptible sleep (here: a kill that is not sent): no second helper while the first is there."""
    monkeypatch.setattr(helper_module, "END_S", 0.1)
    standin.shows("delay.nvmlInit=60000")
    kill = Helper.kill

    async def scene() -> None:
        async with nvidia.sensor(first_deadline_s=0.2) as sensor:
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


def test_a_helper_that_dies_is_replaced(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """Unknown, with the reason, until the next one has answered."""

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            sensor.demand(2.0)
            await sensor.refresh(3)
            helpers()[0].kill()
            await until(lambda: now(sensor).error)
            assert now(sensor).error == "the GPU helper failed: it ended"
            await until(lambda: now(sensor).value == Gpu())

    play(scene())


def test_a_sleeping_gpu_is_free_without_nvml(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """PCI's runtime status proves it, again at each look; awake, it is asked."""
    nvidia.pci("suspended", "auto")
    standin.shows("0.util=15")

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            first = now(sensor)
            assert (Gpu(), "PCI runtime_status (asleep)") == (first.value, first.source)
            assert sensor.describe() == [{"pci": "0000:01:00.0", "power": "suspended"}]
            await until(lambda: now(sensor).read_at_s > first.read_at_s)
            assert helpers() == []
            nvidia.pci("active", "auto")
            await until(lambda: now(sensor).value == Gpu(15))
            nvidia.pci("suspended", "auto")
            await until(lambda: now(sensor).value == Gpu())  # an answer of before may be on its way
            await until(lambda: not helpers())

    play(scene())


def test_a_sleeping_device_of_another_driver_proves_nothing(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """Lent to a virtual machine, or without driver: asleep for other reasons."""
    nvidia.pci("suspended", "auto", driver="vfio-pci")
    standin.shows("0.util=15")

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            assert now(sensor).value == Gpu(15)

    play(scene())


@pytest.mark.parametrize(("demand_s", "let_go"), [(None, True), (5.0, True), (2.0, False)])
def test_the_driver_is_let_go_between_looks_that_are_far_apart(
    standin: StandIn, nvidia: NvidiaMachine, demand_s: float | None, let_go: bool
) -> None:
    """Its person may want to reset the GPU, and it may want to sleep; beside a task the helper stays."""

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            sensor.demand(demand_s)
            assert (await sensor.refresh(3)).value == Gpu()
            (helper,) = helpers()
            await until(lambda: not sensor._busy)
            assert holds_driver(helper) is not let_go
            assert (await sensor.refresh(3)).value == Gpu()
            assert helpers() == [helper], "a new process for each look would cost much more"

    play(scene())


def holds_driver(helper: psutil.Process) -> bool:
    """The library is in the process: on a real driver, its nodes are open."""
    return "libnvidia-ml" in Path(f"/proc/{helper.pid}/maps").read_text()


@pytest.mark.parametrize("refuses", ["it cannot be unloaded", "it crashes"])
def test_a_driver_that_cannot_be_let_go_ends_with_the_helper(
    standin: StandIn, nvidia: NvidiaMachine, refuses: str
) -> None:
    """That is no failure of the reading."""

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            await until(lambda: not sensor._busy)
            sensor.demand(2.0)
            await sensor.refresh(3)
            (helper,) = helpers()
            sensor._interval_s = 60.0
            helper.suspend()
            sensor._look_later()
            if refuses == "it crashes":
                helper.kill()
            else:
                sensor._answered(b'{"released": false}')
            await until(lambda: not helpers())
            assert now(sensor).value == Gpu()
            assert (await sensor.refresh(3)).value == Gpu()

    play(scene())


def test_an_open_while_the_driver_is_let_go_is_anothers(
    standin: StandIn, nvidia: NvidiaMachine, stranger: subprocess.Popen[bytes]
) -> None:
    (nvidia.dev / "nvidia0").touch()

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            await until(lambda: not sensor._busy)
            await sensor.refresh(3)
            assert sensor._releasing
            standin.shows(f"0.proc={stranger.pid}:{GIB}:g", f"0.mem_used={GIB}")
            (nvidia.dev / "nvidia0").open().close()
            await until(lambda: (seen := now(sensor).value) is not None and seen.foreign == 1)

    play(scene())


def test_beside_a_stranger_the_driver_is_in_use_in_any_case(
    standin: StandIn, nvidia: NvidiaMachine, stranger: subprocess.Popen[bytes]
) -> None:
    """To load it again at each look would take the stranger's time."""
    standin.shows(f"0.proc={stranger.pid}:{GIB}:g", f"0.mem_used={GIB}")

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            sensor.demand(5.0)
            await sensor.refresh(3)
            (helper,) = helpers()
            await until(lambda: not sensor._busy)
            assert holds_driver(helper)
            sensor.demand(None)
            await sensor.refresh(3)
            await until(lambda: not sensor._busy)
            assert not holds_driver(helper)

    play(scene())


def test_a_node_that_does_not_work_leaves_the_gpu_alone(
    standin: StandIn, nvidia: NvidiaMachine, stranger: subprocess.Popen[bytes]
) -> None:
    """Neither time nor an open makes it look; what it knew gets too old, with that reason. The next demand looks at once."""
    (nvidia.dev / "nvidia0").touch()

    async def scene() -> None:
        async with nvidia.sensor(max_age_s=0.3) as sensor:
            assert now(sensor).value == Gpu()
            sensor.demand(NEVER_LOOK)
            await until(lambda: not helpers())
            standin.shows(f"0.proc={stranger.pid}:{GIB}:g", f"0.mem_used={GIB}")
            (nvidia.dev / "nvidia0").open().close()
            await until(lambda: now(sensor).error == "left alone while the node does not work")
            assert (helpers(), sensor._timer) == ([], None)
            sensor.demand(None)
            await until(lambda: (seen := now(sensor).value) is not None and seen.foreign == 1)

    play(scene())


def test_an_open_of_a_node_is_looked_at_at_once(
    standin: StandIn, nvidia: NvidiaMachine, stranger: subprocess.Popen[bytes]
) -> None:
    """Also what comes a moment after the open, as a context does; a node that appears is watched too."""

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            (nvidia.dev / "nvidia0").touch()
            await until(lambda: nvidia.wakes >= 2)
            await until(lambda: not sensor._follow_up)
            wakes = nvidia.wakes
            (nvidia.dev / "nvidia0").open().close()
            await until(lambda: nvidia.wakes > wakes)
            standin.shows(f"0.proc={stranger.pid}:{GIB}:g", f"0.mem_used={GIB}")
            await until(lambda: now(sensor).value == Gpu(0, 1.0, 1, True, (f"sleep (pid {stranger.pid})",)))

    play(scene())


def test_a_node_that_is_made_anew_is_watched_anew(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """Also while somebody still has the old one open."""
    node = nvidia.dev / "nvidia0"
    node.touch()

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            with node.open():
                await until(lambda: nvidia.wakes >= 2)
                node.unlink()
                await until(lambda: not sensor._follow_up)
                wakes = nvidia.wakes
                node.touch()
                await until(lambda: nvidia.wakes > wakes)
                await until(lambda: not sensor._follow_up)
                wakes = nvidia.wakes
                node.open().close()
                await until(lambda: nvidia.wakes > wakes)

    play(scene())


def test_what_a_server_keeps_for_a_task_is_not_forgotten_by_a_failure(
    standin: StandIn, nvidia: NvidiaMachine, stranger: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory counts as ours, so that only this keeps the GPU from being lent again."""
    monkeypatch.setattr(poller, "REMNANT_S", 1.5)
    monkeypatch.setattr(ownership, "VRAM_RELEASE_S", 0.1)
    nvidia.own = frozenset({stranger.pid})
    listed = [f"0.proc={stranger.pid}:{2 * GIB}:c", f"0.mem_used={2 * GIB}"]
    standin.shows(*listed)

    async def scene() -> None:
        async with nvidia.sensor(GpuSettings(own_processes=["sleep"])) as sensor:
            sensor.demand(0.2)
            nvidia.own = frozenset()
            held = f"2 GiB by sleep (pid {stranger.pid})"
            await until(lambda: (seen := now(sensor).value) is not None and seen.held == held)
            standin.shows(*listed, "err.nvmlDeviceGetCount=999")
            await until(lambda: now(sensor).value is None)
            failed_at_s = time.monotonic()
            await until(lambda: now(sensor).value is None and time.monotonic() > failed_at_s + 1.6)
            standin.shows(*listed)
            await until(lambda: now(sensor).value is not None)
            assert now(sensor).value == Gpu(held=held)

    play(scene())


def test_demand_decides_how_often(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """Rarely by itself; every so many seconds when asked to."""

    async def scene() -> None:
        async with nvidia.sensor() as sensor:
            standin.shows("0.util=15")
            sensor.demand(None)
            assert sensor._timer
            assert sensor._timer.when() - asyncio.get_running_loop().time() > 20
            sensor.demand(0.2)
            await until(lambda: now(sensor).value == Gpu(15))

    play(scene())


def test_after_a_suspend_nothing_is_known_until_a_new_helper_has_looked(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """What was read before proves nothing; the old helper's handles neither."""
    slept_s = 0.0

    async def scene() -> None:
        nonlocal slept_s
        async with nvidia.sensor(suspended_s=lambda: slept_s) as sensor:
            assert now(sensor).value == Gpu()
            before = {helper.pid for helper in helpers()}
            slept_s = 0.5
            assert now(sensor).value == Gpu()
            slept_s = 3600.0
            assert (now(sensor).value, now(sensor).error) == (None, "not looked at since the machine woke up")
            await until(lambda: now(sensor).value == Gpu())
            assert not before & {helper.pid for helper in helpers()}

    play(scene())


def test_a_driver_that_is_not_back_after_a_suspend_is_its_own_reason(standin: StandIn, nvidia: NvidiaMachine) -> None:
    slept_s = 0.0

    async def scene() -> None:
        nonlocal slept_s
        async with nvidia.sensor(suspended_s=lambda: slept_s) as sensor:
            standin.shows("err.nvmlInit=9")
            slept_s = 60.0
            await until(lambda: "the NVIDIA driver is not loaded" in now(sensor).error)
            standin.shows()
            await until(lambda: now(sensor).value == Gpu())

    play(scene())
