"""The box itself: it boots, anybody inside can run the node's Python, and nothing of it stays outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import sysbox
from support.sysbox import SysBox
from support.trees import alive
from support.waiting import until


def test_it_runs_without_a_failed_unit(box: SysBox) -> None:
    assert box.state == "running"
    assert box.run("systemctl", "list-units", "--failed", "--no-legend").stdout == ""


@pytest.mark.parametrize("user", [None, "guest"])
def test_anybody_inside_can_run_the_checkout(box: SysBox, user: str | None) -> None:
    uid = box.add_user(user) if user else 0
    script = "import os, dbus_fast, supervisor; print(os.getuid(), supervisor.__file__)"
    assert box.run(box.python, "-c", script, user=user).stdout.split() == [
        str(uid), str(sysbox.REPO / "supervisor/__init__.py"),
    ]


def test_nothing_stays_outside(tmp_path: Path) -> None:
    if reason := sysbox.unavailable():
        sysbox.refuse(reason)
    with SysBox(tmp_path) as box:
        cgroup, pid = box.cgroup, box.pid
        box.sh("touch /etc/made-inside; useradd -m made-inside")
        assert cgroup.exists()
    assert not cgroup.exists()
    until(lambda: not alive(pid), "its first process dead")
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    assert not os.path.exists("/etc/made-inside")


def test_a_reboot_keeps_what_is_on_disk(tmp_path: Path) -> None:
    if reason := sysbox.unavailable():
        sysbox.refuse(reason)
    with SysBox(tmp_path) as box:
        box.sh("echo kept > /etc/marker; echo gone > /tmp/marker")
        first = box.pid
        box.reboot()
        assert box.pid != first
        assert box.sh("cat /etc/marker; ls /tmp/marker 2>/dev/null || true") == "kept\n"


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    if reason := sysbox.unavailable():
        sysbox.refuse(reason)
    root = sysbox.cgroup2_root()
    assert root
    left, running = root / "sdbox-99999999-1", root / f"sdbox-{os.getpid()}-other"
    left.mkdir()
    running.mkdir()
    try:
        SysBox(tmp_path)
        assert not left.exists()
        assert running.exists(), "a run that is alive may be about to use it"
    finally:
        running.rmdir()


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [("os.geteuid", lambda: 1000, "needs root"), ("shutil.which", lambda name: None, "needs unshare")],
)
def test_where_no_box_can_be_had_it_says_why(
    monkeypatch: pytest.MonkeyPatch, attribute: str, value: object, reason: str
) -> None:
    monkeypatch.setattr(f"support.sysbox.{attribute}", value)
    assert reason in sysbox.unavailable()
