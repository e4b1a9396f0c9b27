"""Containment with real processes: detection, what a killed daemon leaves (nothing), the sweep at start (R2, R6, R19)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.trees import NOBODY, OURS, Plain, alive, marked_with, pids_in, plain, until

from supervisor.tasks.executors.base import StopFailed
from supervisor.tasks.process import containment, process_tree
from supervisor.tasks.process.containment import CgroupContainment, TreeContainment, detect, node_mark, task_mark

DETECTED = detect()
WORKERS = 10


class Setting:
    """Who runs the daemon, where, and how its tasks are contained."""

    def __init__(self, kind: str, user: int | None, base: str | None, folder: Path, run_by: Plain) -> None:
        self.run_by = run_by
        self.kind = kind
        self.user = user
        self.base = base  # a cgroup that the daemon is put into
        self.root = folder / "work"
        self.out = folder / "out"
        self.out.mkdir()
        if user is not None:
            for path in (folder, self.out):
                os.chown(path, user, user)

    def daemon(self, grace: str, *task: str) -> subprocess.Popen[str]:
        """Start the stand-in, and wait until its tree stands."""
        argv = self.run_by.command("daemon", self.kind, str(self.root), grace, *self.run_by.command(*task))
        if self.base is not None:
            argv = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', self.base, *argv]
            if self.user is not None:
                setpriv = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
                argv = [*argv[:4], *setpriv, *argv[4:]]
        elif self.user is not None:
            argv = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *argv]
        daemon = subprocess.Popen(
            argv, env=self.run_by.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert daemon.stdout is not None
        said = json.loads(daemon.stdout.readline())
        assert said["contained"].startswith("process tree" if self.kind == "tree" else "a cgroup v2 of its own"), said
        return daemon

    def groups(self) -> list[str]:
        """The cgroups of this node's tasks."""
        mark = node_mark(self.root)
        return [path for path, _, _ in os.walk("/sys/fs/cgroup") if mark in path]


@contextmanager
def cgroup_for(user: int) -> Iterator[str]:
    """A cgroup delegated to a plain user, as systemd does it."""
    assert isinstance(DETECTED, CgroupContainment)
    base = f"{DETECTED.base}/rae-test-{os.urandom(4).hex()}"
    os.mkdir(base)
    try:
        for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(f"{base}/{name}", user, user)
        yield base
    finally:
        tree = process_tree.CgroupTree(0, base)
        until(lambda: not tree.pids(), what="the test's cgroup is empty")
        tree.remove()


@pytest.fixture(scope="module")
def nobody() -> Iterator[Plain | None]:
    """What a plain user can start, or None."""
    with tempfile.TemporaryDirectory(prefix="rae-containment-plain-") as folder:
        yield plain(Path(folder)) if os.geteuid() == 0 else None


@pytest.fixture(params=["cgroup", "tree", "cgroup-as-nobody", "tree-as-nobody"])
def setting(request: pytest.FixtureRequest, nobody: Plain | None) -> Iterator[Setting]:
    """Both kinds of containment, as this user and as a plain one."""
    kind, _, other = request.param.partition("-as-")
    run_by = nobody if other else OURS
    if kind == "cgroup" and not isinstance(DETECTED, CgroupContainment):
        pytest.skip(DETECTED.summary())
    if run_by is None:
        pytest.skip("needs root, and an interpreter that a plain user can start")
    folder = Path(tempfile.mkdtemp(prefix="rae-containment-"))
    try:
        if kind == "cgroup" and other:
            with cgroup_for(NOBODY) as base:
                yield Setting("detect", NOBODY, base, folder, run_by)
        else:
            user = NOBODY if other else None
            yield Setting("detect" if kind == "cgroup" else "tree", user, None, folder, run_by)
    finally:
        for pid in marked_with(str(folder)) + marked_with(node_mark(folder / "work")):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder)


def finish(daemon: subprocess.Popen[str]) -> None:
    daemon.kill()
    daemon.communicate()


def test_a_killed_daemon_leaves_no_process_and_no_file(setting: Setting) -> None:
    daemon = setting.daemon("-", "nasty", str(WORKERS), str(setting.out))
    until(lambda: len(pids_in(setting.out)) == WORKERS)
    workers = pids_in(setting.out)
    (task,) = setting.root.iterdir()
    (task / "half-written").write_text("sentinel")
    finish(daemon)
    until(lambda: not [pid for pid in workers if alive(pid)], what="the workers are gone")
    until(lambda: not list(setting.root.iterdir()), what="the work folder is empty")
    until(lambda: not marked_with(node_mark(setting.root)), what="the shim is gone")
    until(lambda: not setting.groups(), what="the cgroup is gone")


def test_a_stop_as_that_user(setting: Setting) -> None:
    daemon = setting.daemon("0.2", "nasty", str(WORKERS), str(setting.out))
    until(lambda: len(pids_in(setting.out)) == WORKERS)
    workers = pids_in(setting.out)
    out, _ = daemon.communicate("go\n", timeout=60)
    said = json.loads(out)
    assert daemon.returncode == 0
    assert re.fullmatch(r"frozen \d+ ms, term \d+ ms, kill \d+ ms, gone \d+ ms", said["rungs"])
    assert set(workers) <= set(said["pids"])
    assert not [pid for pid in workers if alive(pid)]
    until(lambda: not setting.groups(), what="the cgroup is gone")


def test_hoppers_as_that_user(setting: Setting) -> None:
    daemon = setting.daemon("0", "hoppers", "6", str(setting.out))
    until(lambda: len(pids_in(setting.out)) == 6)
    out, _ = daemon.communicate("go\n", timeout=60)
    assert daemon.returncode == 0, out
    until(lambda: not marked_with(node_mark(setting.root)), what="the shim is gone")


def test_sweep_clears_what_daemon_and_shim_left(setting: Setting) -> None:
    """Both are killed at once, as systemd does with the whole service; the next start finds the orphans."""
    daemon = setting.daemon("-", "nasty", str(WORKERS), str(setting.out))
    until(lambda: len(pids_in(setting.out)) == WORKERS)
    workers = pids_in(setting.out)
    if setting.base:
        contained: containment.Containment = CgroupContainment(setting.base)
    else:
        contained = DETECTED if setting.kind == "detect" else TreeContainment("by choice")
    assert contained.sweep(setting.root) == 0  # the daemon lives: its task is left alone
    assert all(alive(pid) for pid in workers)
    shims = marked_with(f"RAE_NODE_SHIM={node_mark(setting.root)}")
    assert len(shims) == 1
    os.kill(daemon.pid, signal.SIGSTOP)  # so that it cannot see its shim end
    os.kill(shims[0], signal.SIGKILL)
    finish(daemon)
    assert any(alive(pid) for pid in workers)
    assert contained.sweep(setting.root) >= WORKERS - 1
    assert not [pid for pid in workers if alive(pid)]
    assert not setting.groups()
    assert contained.sweep(setting.root) == 0


def test_sweep_kills_a_shim_that_hangs(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containment, "_ORPHAN_SHIM_LIMIT_S", 0.1)
    daemon = setting.daemon("-", "nasty", str(WORKERS), str(setting.out))
    until(lambda: len(pids_in(setting.out)) == WORKERS)
    workers = pids_in(setting.out)
    (shim,) = marked_with(f"RAE_NODE_SHIM={node_mark(setting.root)}")
    os.kill(shim, signal.SIGSTOP)
    finish(daemon)
    TreeContainment("by choice").sweep(setting.root, limit_s=20)
    assert not [pid for pid in [*workers, shim] if alive(pid)]
    for group in setting.groups():
        until(lambda group=group: not process_tree.CgroupTree(0, group).pids())
        os.rmdir(group)


def test_sweep_names_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = node_mark(tmp_path)
    with subprocess.Popen(["sleep", "1000"], env={"PATH": os.defpath, "RAE_NODE_TASK": f"{mark}.task-1"}) as orphan:
        try:
            until(lambda: (process := process_tree.look(orphan.pid)) is not None and process.state == "S", what="its sleep")
            monkeypatch.setattr(process_tree, "send", lambda *_: None)
            with pytest.raises(StopFailed, match=rf"left by a crash and still alive: {orphan.pid} \(state S\)"):
                TreeContainment("by choice").sweep(tmp_path, limit_s=0.1)
            assert TreeContainment("by choice").sweep(tmp_path / "another", limit_s=0.1) == 0
            monkeypatch.undo()
            assert TreeContainment("by choice").sweep(tmp_path) == 1
        finally:
            orphan.kill()


def test_detect_proves_it() -> None:
    if not isinstance(DETECTED, CgroupContainment):
        pytest.skip(DETECTED.summary())
    assert DETECTED.summary().startswith(f"a cgroup v2 of its own for each task, below {DETECTED.base} (tried: ")
    assert not [name for name in os.listdir(DETECTED.base) if name.startswith(f"rae-probe-{os.getpid()}-")]
    mark = task_mark(Path("/tmp/none/task-1"))
    path = DETECTED.place(mark)
    assert path is not None
    assert path.endswith(f"/rae-task-{mark}")
    os.rmdir(path)


MOUNT = "30 20 0:26 / {mount} rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "membership", "reason"),
    [
        ("1 1 0:1 / / rw - ext4 /dev/a rw\n", "0::/\n", "none is mounted"),
        (MOUNT, "4:memory:/x\n", "this process is in none"),
        (MOUNT, "0::/../other\n", "its own is outside of what it can see"),
        (MOUNT, "0::/system.slice/nothing\n", "{mount}/system.slice/nothing is not delegated to uid {uid}"),
        (MOUNT, "0::/root.service\n", "{mount}/root.service is not delegated to uid {uid}"),
        (MOUNT, "0::/\n", "cgroup.freeze is missing there (Linux 5.14 is needed)"),
    ],
)
def test_detect_says_why_not(tmp_path: Path, mountinfo: str, membership: str, reason: str) -> None:
    (tmp_path / "root.service").mkdir()
    for folder in (tmp_path, tmp_path / "root.service"):
        (folder / "cgroup.procs").touch(mode=0o644 if os.geteuid() == 0 else 0o444)
    if os.geteuid() != 0 and "freeze" in reason:
        pytest.skip("root's case")
    (tmp_path / "mountinfo").write_text(mountinfo.format(mount=tmp_path))
    (tmp_path / "membership").write_text(membership)
    found = detect(str(tmp_path / "mountinfo"), str(tmp_path / "membership"))
    assert isinstance(found, TreeContainment)
    assert found.reason == "no cgroup v2 to use: " + reason.format(mount=tmp_path, uid=os.geteuid())
    assert not [name for name in os.listdir(tmp_path) if name.startswith("rae-probe")] or "freeze" in reason


def test_detect_without_proc(tmp_path: Path) -> None:
    found = detect(str(tmp_path / "none"), str(tmp_path / "none"))
    assert found.summary().startswith("process tree below a subreaper (no cgroup v2 to use: No such file or directory)")
    assert found.place("x.y") is None


def test_root_needs_the_mark_of_delegation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere: only what systemd marked as given away counts, or the root of a container."""
    if os.geteuid() != 0 or not isinstance(DETECTED, CgroupContainment):
        pytest.skip("needs root and a cgroup v2")
    folder = f"{DETECTED.base}/rae-test-{os.urandom(4).hex()}"
    os.mkdir(folder)
    try:
        assert not containment._is_ours(folder, at_root=False)
        assert containment._is_ours(folder, at_root=True)
        os.setxattr(folder, "trusted.delegate", b"1")
        assert containment._is_ours(folder, at_root=False)
    finally:
        os.rmdir(folder)


def test_signal_hits_no_later_process_of_the_same_number() -> None:
    with subprocess.Popen(["sleep", "1000"]) as victim:
        process = process_tree.look(victim.pid)
        assert process is not None
        process.started -= 1  # as if it had been another one
        process_tree.send(process, signal.SIGKILL)
        assert alive(victim.pid)
        process.started += 1
        process_tree.send(process, signal.SIGKILL)
        assert victim.wait(10) == -signal.SIGKILL


def test_quick_and_thorough_walks_agree() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 1000 & sh -c 'sleep 1000 & wait' & wait"], start_new_session=True) as shell:
        try:
            until(lambda: len(process_tree.descendants(shell.pid)) == 3)
            quick = process_tree.quick_descendants
            until(lambda: {process.pid for process in process_tree.descendants(shell.pid)} == set(quick(shell.pid)))
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
    assert list(process_tree.quick_descendants(shell.pid)) == []
    assert process_tree.look(shell.pid) is None


def test_a_process_that_waits_for_a_stopped_vfork_counts_as_stopped(tmp_path: Path) -> None:
    """SIGSTOP takes effect only when its child goes on: a shell between its fork and the command looks like that."""
    os.mkfifo(gate := tmp_path / "gate")
    code = (
        "import os\n"
        "if (parent := os.fork()):\n"  # ours is the tree below it, whatever else the tests have started
        "    os._exit(os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]))\n"
        f"gate = (os.POSIX_SPAWN_OPEN, 0, {str(gate)!r}, os.O_RDONLY, 0)\n"  # the child waits there, before its exec
        "os.waitpid(os.posix_spawn('/bin/sh', ['sh', '-c', 'read line'], {}, file_actions=[gate]), 0)\n"
    )
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code]) as root:
        tree = process_tree.ProcessTree(root.pid)
        try:
            until(lambda: [process.state for process in tree.living()][:1] == ["D"], what="the vfork")
            assert tree.freeze(5)
            assert [process.state for process in tree.living()] == ["D", "T"]
            tree.thaw()
            gate.write_text("go on\n")
            assert root.wait(30) == 0
        finally:
            tree.kill()
            root.kill()
