"""What a task gets of the GPUs: the lent ones, by nodes and by variables (R4)."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.drm_rig import AMD, DrmMachine, world
from support.gpu_rig import NvidiaMachine, now, nvidia, until
from support.nvml_standin import StandIn, nvml_library, standin
from support.waiting import play

from states.observation import Gpu
from supervisor.config.schema import GpuSettings
from supervisor.sensors.gpu.grant import NO_CUDA, NO_ROCM, Grant, Nvidia, Other, grant
from supervisor.sensors.gpu.lent import LentGpus
from supervisor.sensors.gpu.nvml import numbers

__all__ = ["nvidia", "nvml_library", "standin", "world"]  # fixtures

TWO = ["count=2", "0.uuid=GPU-desk", "1.uuid=GPU-lent", "0.minor=1", "1.minor=0"]
NODES = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "kfd", "dri/by-path")


@pytest.fixture
def desk(world: DrmMachine) -> DrmMachine:
    """A machine with two GPUs of NVIDIA and one of AMD."""
    world.card("0000:01:00.0", "nvidia")
    world.card("0000:02:00.0", "nvidia")
    world.amd()
    for name in NODES:
        (world.dev / name).touch()
    return world


def granted(machine: DrmMachine, **settings: object) -> Grant:
    """What a task gets once the GPUs were seen."""
    found: list[Grant] = []

    async def scene() -> None:
        async with machine.watched(LentGpus(machine.setup(GpuSettings(**settings)))) as sensor:
            await until(lambda: now(sensor).value == Gpu())
            found.append(sensor.grant())

    play(scene())
    return found[0]


def names(machine: DrmMachine, nodes: tuple[str, ...]) -> set[str]:
    return {node.removeprefix(f"{machine.dev}/") for node in nodes}


ALL = {"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "kfd"} | {
    f"dri/{kind}{number}" for kind, first in (("card", 0), ("renderD", 128)) for number in range(first, first + 3)
}


@pytest.mark.parametrize(
    ("lend", "nodes", "variables"),
    [
        pytest.param(
            ["GPU-lent"], {"nvidia0", "nvidiactl", "nvidia-uvm", "dri/renderD129"},
            {"CUDA_VISIBLE_DEVICES": "GPU-lent", "NVIDIA_VISIBLE_DEVICES": "GPU-lent", **NO_ROCM}, id="one of two",
        ),
        pytest.param(
            ["GPU-desk"], {"nvidia1", "nvidiactl", "nvidia-uvm", "dri/renderD128"},
            {"CUDA_VISIBLE_DEVICES": "GPU-desk", "NVIDIA_VISIBLE_DEVICES": "GPU-desk", **NO_ROCM}, id="the other",
        ),
        pytest.param(
            [], {"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "dri/renderD128", "dri/renderD129"},
            {"CUDA_VISIBLE_DEVICES": "GPU-desk,GPU-lent", "NVIDIA_VISIBLE_DEVICES": "GPU-desk,GPU-lent", **NO_ROCM},
            id="all of NVIDIA's",
        ),
        pytest.param(
            [AMD], {"kfd", "dri/renderD130"},
            {**NO_CUDA, "ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0"}, id="AMD's beside NVIDIA's",
        ),
    ],
)  # fmt: skip
def test_a_task_gets_the_lent_gpus_and_nothing_else(
    standin: StandIn, desk: DrmMachine, lend: list[str], nodes: set[str], variables: dict[str, str]
) -> None:
    """Neither what shows a picture, nor what sets a screen's mode: they are the person's."""
    standin.shows(*TWO)
    found = granted(desk, lend=lend)
    assert names(desk, found.nodes) == nodes
    assert names(desk, found.closed) == ALL - nodes
    assert (found.variables, found.open_variables) == (variables, variables)
    other = {name for name in ALL - nodes if name.startswith(("nvidia0", "nvidia1", "dri/renderD"))}
    assert names(desk, found.other_gpus) == other


def test_a_machine_that_lends_none_grants_none(standin: StandIn, desk: DrmMachine) -> None:
    found = LentGpus(desk.setup(GpuSettings(presence="none"))).grant()
    assert (found.nodes, found.variables) == ((), {**NO_CUDA, **NO_ROCM})
    assert names(desk, found.closed) == ALL


def test_a_gpu_that_has_slept_since_the_start_is_known_by_the_drivers_own_files(
    standin: StandIn, nvidia: NvidiaMachine
) -> None:
    """A question to NVML would wake it. Before its first use it has no UUID there."""
    nvidia.pci("suspended", "auto")
    folder = nvidia.proc / "driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t Any\nGPU UUID: \t GPU-????????-????\nDevice Minor: \t 3\n")
    (nvidia.dev / "nvidia3").touch()
    one = {"NVIDIA_VISIBLE_DEVICES": "GPU-a", "CUDA_VISIBLE_DEVICES": "GPU-a"}
    for lend, visible in (([], {"NVIDIA_VISIBLE_DEVICES": "all"}), (["GPU-a"], one)):

        async def scene(lend: list[str] = lend, visible: dict[str, str] = visible) -> None:
            async with nvidia.watched(LentGpus(nvidia.setup(GpuSettings(lend=lend)))) as sensor:
                assert now(sensor).value == Gpu()
                assert sensor.grant() == Grant((f"{nvidia.dev}/nvidia3",), (), visible, visible)

        play(scene())


def test_the_drivers_own_files(tmp_path: Path) -> None:
    for pci, text in (("0000:01:00.0", "GPU UUID: GPU-a\nDevice Minor: 1\n"), ("0000:02:00.0", "GPU UUID: GPU-b\n")):
        (tmp_path / "driver/nvidia/gpus" / pci).mkdir(parents=True)
        (tmp_path / "driver/nvidia/gpus" / pci / "information").write_text(text)
    assert numbers(tmp_path) == {"GPU-a": (1, "0000:01:00.0")}


def test_gpus_that_nobody_has_opened_yet_are_not_taken_for_one(tmp_path: Path) -> None:
    """Both have the same question marks for a UUID. Which of them is lent is not known, so no task gets either."""
    folder = tmp_path / "driver/nvidia/gpus"
    for minor, pci in enumerate(("0000:01:00.0", "0000:02:00.0")):
        (folder / pci).mkdir(parents=True)
        (folder / pci / "information").write_text(f"GPU UUID: GPU-????????-????\nDevice Minor: {minor}\n")
    assert sorted(numbers(tmp_path)) == ["0000:01:00.0", "0000:02:00.0"]


def test_libraries_count_what_they_see(tmp_path: Path) -> None:
    """ROCr knows a GPU by its own number, or else counts; HIP counts what ROCr has left; Level Zero counts by address."""

    def other(pci: str, driver: str, lent: bool, number: str = "") -> Other:
        (tmp_path / pci).mkdir(exist_ok=True)
        (tmp_path / pci / "unique_id").write_text(number)
        return Other(pci, str(tmp_path / pci), driver, lent)

    known = grant("/nowhere", None, [other("a", "amdgpu", False, "1"), other("b", "amdgpu", True, "4f3c2b1a00112233")])
    assert known.variables["ROCR_VISIBLE_DEVICES"] == known.open_variables["ROCR_VISIBLE_DEVICES"] == "GPU-4f3c2b1a00112233"
    assert known.variables["HIP_VISIBLE_DEVICES"] == "0"
    assert "CUDA_VISIBLE_DEVICES" not in known.variables, "HIP reads it too"
    counted = grant("/nowhere", None, [other("a", "amdgpu", False), other("b", "amdgpu", True)])
    assert (counted.variables["ROCR_VISIBLE_DEVICES"], counted.open_variables["ROCR_VISIBLE_DEVICES"]) == ("0", "1")
    intel = grant("/nowhere", Nvidia(("GPU-a",), ()), [other("c", "i915", False), other("d", "xe", True)])
    assert (intel.variables["ZE_AFFINITY_MASK"], intel.open_variables["ZE_AFFINITY_MASK"]) == ("0", "1")
    assert intel.variables["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    assert "ROCR_VISIBLE_DEVICES" not in intel.variables, "some programs refuse it beside CUDA"
