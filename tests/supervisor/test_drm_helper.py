"""The DRM helper by itself: who may have a GPU open and cannot be looked into (T16), and what is in fdinfo."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.drm_rig import DrmMachine

from supervisor.agents import answering
from supervisor.agents import drm as agent


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
    world = DrmMachine(open_folder / "machine")
    world.amd()
    for node in (world.dev / "dri").iterdir():
        node.chmod(0o666)
    other = subprocess.Popen(["sleep", "60"], user=12345, group=12345, extra_groups=[])
    roots = (str(world.sys), "/proc", str(world.dev))
    try:
        # The system's Python, and a copy of ours: nobody may look into a home's.
        for package in ("supervisor", "supervisor/agents"):
            (open_folder / package).mkdir()
            (open_folder / package / "__init__.py").touch()
        for module in (answering, agent):
            shutil.copy(str(module.__file__), open_folder / "supervisor/agents")
        start = ["/usr/bin/python3", "-I", "-c", answering.START, str(open_folder)]
        argv = [*start, "supervisor.agents.drm", str(os.getpid()), *roots]
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


@given(st.text(max_size=200))
def test_no_fdinfo_breaks_the_helper(text: str) -> None:
    for line in text.splitlines():
        assert agent.size(line.partition(":")[2]) >= 0


@pytest.mark.parametrize(
    ("text", "size"), [("12 KiB", 12288), ("1 MiB", 1 << 20), ("7", 7), ("-1 KiB", 0), ("x KiB", 0), ("", 0)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert agent.size(text) == size
