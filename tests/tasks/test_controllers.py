"""Controllers of cgroup v2, on a kernel that has them: limits by the kernel, an idle tree that obeys at once (R4, R11, R23)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import uml
from support.controllers import PROCESSES

from supervisor.tasks.process.containment import Bounds

pytestmark = pytest.mark.slow
PROGRAM = str(Path(uml.__file__).with_name("controllers.py"))
ALL = frozenset({"cpu", "memory", "pids"})


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program found, by kind: one boot of the kernel for all of them."""
    if why := uml.unavailable():
        pytest.skip(why)
    return uml.run(tmp_path_factory.mktemp("uml"), PROGRAM, ("plain", "shared", "limits", "freeze"))


def test_the_service_moves_into_a_leaf_as_a_plain_user(inside: dict[str, Any]) -> None:
    found = inside["plain"]
    assert found["base"] == "/sys/fs/cgroup/service"
    assert found["own"] == "0::/service/supervisor"
    assert found["controllers"] == found["again"] == ["cpu", "memory", "pids"]
    assert "; limited by the kernel: cpu, memory, pids; " in found["summary"]
    assert found["leaf_weight"] == "10000"


def test_not_where_others_are_in_its_cgroup(inside: dict[str, Any]) -> None:
    found = inside["shared"]
    assert found["controllers"] == []
    said = "not by it: cpu, memory, pids (others' processes are in that cgroup too); the node itself looks once a second"
    assert said in found["summary"]


def test_limits_are_held_by_the_kernel(inside: dict[str, Any]) -> None:
    found = inside["limits"]
    assert found["memory"] == "limit: memory: the kernel ended it at 0.0625 GiB (tasks.kind.max_memory_gb)"
    assert found["files"] == {
        "memory.max": str(1 << 29), "memory.oom.group": "1", "pids.max": "4800", "cpu.max": "max 100000", "cpu.idle": "1",
    }  # fmt: skip
    assert found["bomb"] == [None, {"born": 1022, "refused": 1}]
    assert 15 < found["cpu_percent"] < 60  # of 40, on one processor, which is an emulated one
    assert found["while_frozen"] == {"cpu.max": "max 100000", "cpu.idle": "0"}
    assert found["after_thaw"] == {"cpu.max": "40000 100000", "cpu.idle": "1"}


def test_an_idle_tree_is_frozen_beside_a_busy_person(inside: dict[str, Any]) -> None:
    """No figure is asserted: an emulated processor is no measure. It is printed beside the freeze alone."""
    found = inside["freeze"]
    print(f"{PROCESSES} processes, frozen beside a burner: {found['lifted']} ms, by cgroup.freeze alone {found['alone']} ms")
    assert found["lifted"] > 0  # both were
    assert found["alone"] > 0


FILES = [
    (Bounds(), ALL, {"cpu.idle": "1", "memory.oom.group": "1"}),
    (Bounds(memory_bytes=7, processes=1000), ALL, {
        "cpu.idle": "1", "memory.oom.group": "1", "memory.max": "7", "pids.max": "16000",
    }),
    (Bounds(processes=3), frozenset({"pids"}), {"pids.max": "1024"}),
    (Bounds(80.0, 7, 3), frozenset(), {}),
]  # fmt: skip


@pytest.mark.parametrize(("bounds", "controllers", "files"), FILES)
def test_what_is_written_where(bounds: Bounds, controllers: frozenset[str], files: dict[str, str]) -> None:
    assert bounds.files(controllers) == files


def test_share_of_all_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert Bounds(80.0).files(ALL)["cpu.max"] == "1280000 100000"
