"""What a task gets of this machine's GPUs: the lent ones, by their device nodes and by the variables that their libraries read.

A sandbox holds a task to the nodes. The variables are for a program that takes the first GPU that it finds, and for tasks
without a sandbox. Where a task sees nothing of the other GPUs, a library counts from 0 those that it sees.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from supervisor.linux.small_files import read_small

# In /dev. `dxg` is WSL2's.
PATTERNS: Final = ("nvidia[0-9]*", "nvidiactl", "nvidia-uvm*", "nvidia-modeset", "nvidia-caps", "dri/*", "kfd", "dxg")
GPU: Final = re.compile(r"/(?:nvidia|dri/renderD)[0-9]+$")
OF_ALL_NVIDIA: Final = ("nvidiactl", "nvidia-uvm", "dxg")  # without them no NVIDIA GPU can be used
NO_CUDA: Final = {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}
NO_ROCM: Final = {"ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}


@dataclass(frozen=True, slots=True)
class Grant:
    """nodes: the device nodes that a task may open.
    closed: all other nodes of GPUs.
    variables: for a task that cannot open the closed ones.
    open_variables: for one that can.
    """

    nodes: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    open_variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def other_gpus(self) -> tuple[str, ...]:
        """Of the closed ones, those that are a GPU by themselves."""
        return tuple(path for path in self.closed if GPU.search(path))


NOTHING: Final = Grant(variables=NO_CUDA, open_variables=NO_CUDA)


@dataclass(frozen=True, slots=True)
class Nvidia:
    """The lent GPUs of NVIDIA. `ids`: their UUIDs; None: all that are there. `nodes`: those that are theirs alone."""

    ids: tuple[str, ...] | None
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Other:
    """A GPU of AMD or Intel: PCI address, folder in sysfs, driver, and whether it is lent."""

    pci: str
    folder: str
    driver: str
    lent: bool


def grant(dev_root: str, nvidia: Nvidia | None, others: Sequence[Other]) -> Grant:
    """What a task gets.

    Args:
        nvidia: None: none of NVIDIA's is lent.
        others: those of AMD and Intel that are there, in the order of their addresses.
    """
    nodes: list[str] = []
    cuda = dict(NO_CUDA)
    if nvidia is not None:
        nodes += [*(f"{dev_root}/{name}" for name in OF_ALL_NVIDIA), *nvidia.nodes]
        ids = "all" if nvidia.ids is None else ",".join(nvidia.ids)
        cuda = {"NVIDIA_VISIBLE_DEVICES": ids} | ({} if nvidia.ids is None else {"CUDA_VISIBLE_DEVICES": ids})
    lent = [gpu for gpu in others if gpu.lent]
    for gpu in lent:
        nodes += render_nodes(dev_root, gpu.folder)
    if any(gpu.driver == "amdgpu" for gpu in lent):
        nodes.append(f"{dev_root}/kfd")
    there = sorted(path for pattern in PATTERNS for path in glob.glob(f"{glob.escape(dev_root)}/{pattern}") if _is_node(path))
    if any(gpu.driver == "amdgpu" for gpu in lent) and not any("nvidia" in path or path.endswith("/dxg") for path in there):
        cuda = {}  # ROCm's libraries read these variables too
    mine = tuple(path for path in there if path in nodes)
    closed = tuple(path for path in there if path not in nodes)
    return Grant(mine, closed, cuda | _variables(lent, lent, others), cuda | _variables(lent, others, others))


def render_nodes(dev_root: str, folder: str) -> list[str]:
    """The nodes of a PCI device with which programs render and compute; not those that show a picture."""
    try:
        names = os.listdir(f"{folder}/drm")
    except OSError:
        return []
    return [f"{dev_root}/dri/{name}" for name in names if name.startswith("renderD")]


def _is_node(path: str) -> bool:
    """Not /dev/dri/by-path, whose links lead to the nodes."""
    return not path.endswith("/by-path")


def _variables(lent: Sequence[Other], seen: Sequence[Other], others: Sequence[Other]) -> dict[str, str]:
    """For ROCm and Level Zero, where a task sees these GPUs. Only where there is such a GPU: some programs refuse ROCm's beside
    CUDA."""
    amd, intel = ([gpu for gpu in seen if (gpu.driver == "amdgpu") is is_amd] for is_amd in (True, False))
    found = dict(NO_ROCM) if any(gpu.driver == "amdgpu" for gpu in others) else {}
    if mine := [gpu for gpu in amd if gpu in lent]:
        ids = [_unique_id(gpu) for gpu in mine]
        indexes = [str(amd.index(gpu)) for gpu in mine]
        # HIP counts what ROCr has left.
        found = {
            "ROCR_VISIBLE_DEVICES": ",".join(ids if all(ids) else indexes),
            "HIP_VISIBLE_DEVICES": ",".join(str(index) for index in range(len(mine))),
        }
    if mine := [gpu for gpu in intel if gpu in lent]:
        found |= {
            "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1",
            "ZE_AFFINITY_MASK": ",".join(str(intel.index(gpu)) for gpu in mine),
        }
    return found


def _unique_id(gpu: Other) -> str:
    """As ROCr knows it; empty for one that has none, such as a processor's own."""
    number = read_small(f"{gpu.folder}/unique_id")
    return f"GPU-{number.removeprefix('0x').zfill(16)}" if number.strip("0x") else ""
