"""The DRM helper by itself: who may have a GPU open and cannot be looked into (T16), and what is in fdinfo."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.drm_rig import AMD, INTEL, DrmMachine, context, world

from states.observation import Gpu
from supervisor.config.schema import GpuSettings
from supervisor.linux import helper_main, small_files
from supervisor.linux.proc import Name
from supervisor.sensors.gpu import drm_helper as agent
from supervisor.sensors.gpu import pci_gpus
from supervisor.sensors.gpu.drm_usage import Look, judge
from supervisor.sensors.gpu.ownership import Known

__all__ = ["world"]  # a fixture


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
    assert agent.Rights([str(node)]).allow(5001, {5001, *groups}) is hidden


def test_who_may_open_a_node_that_cannot_be_seen_is_everybody(tmp_path: Path) -> None:
    """A service in a /dev of its own: others have the GPU's nodes all the same."""
    assert agent.Rights([str(tmp_path / "renderD128")]).allow(5001, set())


@pytest.mark.parametrize(
    ("number", "everybody"), [(errno.ENODATA, False), (errno.EOPNOTSUPP, False), (errno.EPERM, True), (errno.EIO, True)]
)
def test_who_may_open_a_node_whose_list_cannot_be_read_is_everybody(
    number: int, everybody: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "renderD128"
    node.touch(mode=0o600)

    def refuse(path: str, name: str) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(agent.os, "getxattr", refuse)
    assert agent.Rights([str(node)]).allow(5001, set()) is everybody


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
    world = DrmMachine(open_folder / "machine")
    world.amd()
    for node in (world.dev / "dri").iterdir():
        node.chmod(0o666)
    other = subprocess.Popen(["sleep", "60"], user=12345, group=12345, extra_groups=[])
    roots = (str(world.sys), "/proc", str(world.dev))
    try:
        # The system's Python, and a copy of ours: nobody may look into a home's.
        for package in ("supervisor", "supervisor/linux", "supervisor/sensors", "supervisor/sensors/gpu"):
            (open_folder / package).mkdir()
            (open_folder / package / "__init__.py").touch()
        rooms = {"linux": (helper_main, small_files), "sensors/gpu": (pci_gpus, agent)}
        for room, module in ((room, module) for room, modules in rooms.items() for module in modules):
            shutil.copy(str(module.__file__), open_folder / "supervisor" / room)
        start = ["/usr/bin/python3", "-I", "-c", helper_main.START, str(open_folder)]
        argv = [*start, str(os.getpid()), "supervisor.sensors.gpu.drm_helper", *roots]
        run = subprocess.run(
            argv, input="look\n", user=nobody, group=nobody, extra_groups=[], cwd="/", capture_output=True, text=True,
            timeout=20,
        )  # fmt: skip
        assert run.stderr == ""
        (card,) = json.loads(run.stdout)["devices"]
        assert other.pid in card["hidden"]
        (seen,) = msgspec.json.decode(run.stdout, type=Look).devices
        use = judge([seen], [AMD], {AMD: 0.0}, Known(GpuSettings(), lambda pid: Name("ssh-agent")))
        assert use.gpu == Gpu(), "that it could have the card open is no sign that it has"
        assert not [pid for pid in card["hidden"] if _uid(pid) == 0]
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()


def _uid(pid: int) -> int | None:
    try:
        return psutil.Process(pid).uids().effective
    except psutil.NoSuchProcess:
        return None


def look(world: DrmMachine) -> list[dict[str, Any]]:
    """What the helper answers, in this process."""
    return list(agent.Reader(str(world.sys), str(world.proc), str(world.dev)).look()["devices"])


@pytest.mark.parametrize(
    ("fields", "vram", "busy"),
    [
        pytest.param({}, 0, False, id="open, and never used"),
        pytest.param({"drm-engine-gfx": "5 ns", "drm-engine-compute": "7 ns"}, 0, True, id="has worked"),
        pytest.param({"drm-cycles-rcs": "5"}, 0, True, id="has worked, in cycles"),
        pytest.param({"drm-total-cycles-rcs": "7655183225"}, 0, False, id="the clock of all runs for everybody"),
        pytest.param({"drm-engine-capacity-gfx": "2"}, 0, False, id="what there is, is no work"),
        pytest.param({"drm-memory-gtt": "64 KiB"}, 0, True, id="has memory elsewhere"),
        pytest.param({"drm-memory-vram": "3 MiB"}, 3 << 20, True, id="has VRAM"),
        pytest.param(
            {"drm-total-vram": "9 MiB", "drm-resident-vram": "2 MiB", "drm-memory-vram": "3 MiB"}, 2 << 20, True,
            id="what was moved out of VRAM is not in it",
        ),
        pytest.param({"drm-total-vram": "9 MiB"}, 9 << 20, True, id="an older kernel reports less"),
        pytest.param({"drm-resident-vram0": "1 MiB", "drm-resident-vram1": "2 MiB"}, 3 << 20, True, id="two tiles"),
    ],
)  # fmt: skip
def test_what_fdinfo_tells_of_a_process(fields: dict[str, object], vram: int, busy: bool, world: DrmMachine) -> None:
    world.amd()
    world.process(4001, "game", {"drm-pdev": AMD, "drm-client-id": 1, **fields})
    (card,) = look(world)
    spent = 12 if "drm-engine-compute" in fields else None
    assert card["clients"] == [{"pid": 4001, "used": vram, "busy": busy, "engine_ns": spent}]


@pytest.mark.parametrize("readable", [True, False])
def test_what_computes_is_in_the_kernels_own_list(readable: bool, world: DrmMachine) -> None:
    """ROCm's processes, also those that may not be looked into."""
    world.amd()
    if readable:
        world.process(4001, "python3", context(vram_kib=1024))
    kfd = world.sys / "class/kfd/kfd"
    for folder, files in {
        "topology/nodes/0": {"gpu_id": 0, "properties": "location_id 0\ndomain 0"},
        "topology/nodes/1": {"gpu_id": 51234, "properties": f"location_id {3 << 8}\ndomain 0"},
        "proc/4001": {"vram_51234": 3 << 20, "vram_999": 9},
    }.items():
        for name, value in files.items():
            world.write(kfd / folder, name, value)
    (card,) = look(world)
    spent = 0 if readable else None
    assert card["clients"] == [{"pid": 4001, "used": 3 << 20, "busy": True, "engine_ns": spent, "kind": "c"}]


def test_a_context_that_a_broker_has_opened_is_its_users(world: DrmMachine) -> None:
    """logind opens the card for a compositor, and keeps a descriptor of the same context: it draws nothing itself."""
    world.amd()
    world.process(500, "systemd-logind", context(vram_kib=1024))
    world.process(900, "sway", context(vram_kib=1024))
    (card,) = look(world)
    assert card["clients"] == [{"pid": 900, "used": 1 << 20, "busy": True, "engine_ns": 0}]


@pytest.mark.parametrize("broker", ["systemd-logind", "elogind-daemon", "seatd"])
def test_a_logind_that_was_started_again_is_no_owner_either(broker: str, world: DrmMachine) -> None:
    """As after its upgrade: it is younger than the compositor then, and has its descriptors still."""
    world.amd()
    world.process(700, "gnome-shell", context(vram_kib=1024))
    world.process(900, broker, context(vram_kib=1024), uid=0)
    (card,) = look(world)
    assert [client["pid"] for client in card["clients"]] == [700]


def test_the_parts_of_a_gpu_are_told_apart(world: DrmMachine) -> None:
    device = world.card(INTEL, "i915")
    for part, idle_ms in (("gt0", 7), ("gt1", 9)):
        world.write(device, f"drm/card0/gt/{part}/rc6_residency_ms", idle_ms)
    world.write(device, "drm/card0/power/rc6_residency_ms", 7)
    (card,) = look(world)
    assert card["idle_ms"] == {"drm/card0/gt/gt0/rc6_residency_ms": 7, "drm/card0/gt/gt1/rc6_residency_ms": 9}


@pytest.mark.parametrize(
    ("driver", "file", "value", "error"),
    [
        ("amdgpu", "mem_info_vram_used", "?", "mem_info_vram_used holds no number"),
        ("amdgpu", "mem_info_vram_used", None, "mem_info_vram_used cannot be read: Is a directory"),
        ("amdgpu", "mem_info_vram_total", "", "mem_info_vram_total holds no number"),
        ("i915", "drm/card0/gt/gt1/rc6_residency_ms", "", "rc6_residency_ms holds no number"),
        ("xe", "tile0/gt0/gtidle/idle_residency_ms", None, "idle_residency_ms cannot be read: Is a directory"),
    ],
)
def test_what_is_there_and_cannot_be_read_is_an_error(
    driver: str, file: str, value: str | None, error: str, world: DrmMachine
) -> None:
    """Not nothing: what processes have is less than what is in use."""
    device = world.card(driver=driver, gpu_busy_percent=0)
    if driver == "i915":
        world.write(device, "drm/card0/gt/gt0/rc6_residency_ms", 7)
    if value is None:
        (device / file).mkdir(parents=True)
    else:
        world.write(device, file, value)
    assert [card["error"] for card in look(world)] == [error]


@pytest.mark.parametrize(
    ("refused", "error", "hidden"),
    [
        pytest.param("4001/fdinfo/3", PermissionError(13, "Permission denied"), [4001], id="its fdinfo is not for us"),
        pytest.param("4001/fdinfo/3", FileNotFoundError(2, "No such file"), [], id="it has closed it"),
        pytest.param("4001/fd", PermissionError(13, "Permission denied"), [4001], id="none of it is for us"),
        pytest.param("4001/fd", ProcessLookupError(3, "No such process"), [], id="it has ended"),
        pytest.param("4001/fd", OSError(24, "Too many open files"), None, id="we cannot look"),
        pytest.param("4001/fdinfo/3", OSError(12, "Cannot allocate memory"), None, id="we cannot read"),
    ],
)
def test_a_process_that_cannot_be_read_is_hidden_or_gone(
    refused: str, error: OSError, hidden: list[int] | None, world: DrmMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of our own ends the helper, which is then unknown; it is never taken for the end of a process."""
    world.amd()
    world.process(4001, "game", context(engine_ns=9))
    for node in (world.dev / "dri").iterdir():
        node.chmod(0o666)

    def refuse(path: str) -> None:
        if path == f"{world.proc}/{refused}":
            raise error

    list_folder, read = os.listdir, agent.text
    monkeypatch.setattr(agent.os, "listdir", lambda path: refuse(path) or list_folder(path))
    monkeypatch.setattr(agent, "text", lambda path: refuse(path) or read(path))
    if hidden is None:
        with pytest.raises(OSError, match=error.strerror):
            look(world)
    else:
        assert [card["hidden"] for card in look(world)] == [hidden]


@pytest.mark.parametrize(("state", "threads", "hidden"), [("Z (zombie)", 1, []), ("Z (zombie)", 2, [4001]), ("S", 1, [4001])])
def test_a_process_that_has_ended_is_not_hidden(
    state: str, threads: int, hidden: list[int], world: DrmMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its parent has not taken note of belongs to root in /proc; with threads left it has files."""
    world.amd()
    world.process(4001, "game")
    status = world.proc / "4001/status"
    status.write_text(f"{status.read_text()}State:\t{state}\nThreads:\t{threads}\n")
    for node in (world.dev / "dri").iterdir():
        node.chmod(0o666)

    def refuse(folder: str) -> tuple[str, list[str]]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(agent, "files_of", refuse)
    assert [card["hidden"] for card in look(world)] == [hidden]


def test_idle_times_are_of_the_moment_they_were_read(world: DrmMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the processes take after that."""
    world.amd()
    reader, began_at_s = agent.Reader(str(world.sys), str(world.proc), str(world.dev)), []
    monkeypatch.setattr(reader, "_read_processes", lambda *_: began_at_s.append(time.monotonic()))
    assert reader.look()["at_s"] <= began_at_s[0]


@pytest.mark.parametrize("visible", [True, False])
def test_where_other_users_processes_are_not_even_listed_some_may_be_hidden(visible: bool, world: DrmMachine) -> None:
    """/proc mounted with hidepid: the first process is always there."""
    world.amd()
    world.process(4002, "ours")
    (world.proc / "self").symlink_to("4002")
    if visible:
        world.process(1, "systemd", uid=0)
    assert [(card["error"], card["hidden"]) for card in look(world)] == [("", [] if visible else [1])]


def test_a_process_whose_first_thread_has_ended_is_seen() -> None:
    """Its files are then only its other threads'."""
    script = (
        "import ctypes, os, threading, time\n"
        "held = open('/dev/null')\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print(held.fileno(), flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(None)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            fd = process.stdout.readline().strip()
            folder, end_s = f"/proc/{process.pid}", time.monotonic() + 30
            while Path(folder, "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                assert time.monotonic() < end_s
                time.sleep(0.01)
            files, opened = agent.files_of(folder)
            assert fd in opened
            assert os.readlink(f"{files}/fd/{fd}") == "/dev/null"
        finally:
            process.kill()


@given(st.text(max_size=200))
def test_no_fdinfo_breaks_the_helper(text: str) -> None:
    for line in text.splitlines():
        assert agent.size(line.partition(":")[2]) >= 0


@pytest.mark.parametrize(
    ("text", "size"), [("12 KiB", 12288), ("1 MiB", 1 << 20), ("7", 7), ("-1 KiB", 0), ("x KiB", 0), ("", 0)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert agent.size(text) == size
