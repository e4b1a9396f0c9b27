"""What a task uses, with real processes and files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.tasks import usage

MIB = 1 << 20


@contextmanager
def child(code: str, cwd: Path = Path("/")) -> Iterator[int]:
    """A process that has done what the code says, and waits."""
    argv = [sys.executable, "-I", "-S", "-c", f"import os\n{code}\nprint(flush=True); input()"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def test_memory_of_its_own_counts() -> None:
    with child("pass") as small, child("hog = bytearray(50 << 20)") as large:
        assert 49 < (usage.memory({large}) - usage.memory({small})) / MIB < 55
        assert abs(usage.memory({small, large}) - usage.memory({small}) - usage.memory({large})) < MIB


def test_memory_that_is_shared_counts_once_where_it_matters() -> None:
    code = "hog = bytearray(50 << 20)\nfamily = [pid for _ in range(4) if (pid := os.fork())]\nif len(family) < 4: os.pause()"
    with child(code.replace("os.pause()", "input()")) as parent:
        pids = {parent, *map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())}
        assert len(pids) == 5
        assert usage.memory(pids) / MIB > 250
        assert usage.memory(pids, 250 * MIB) / MIB < 90
        for pid in pids:
            os.kill(pid, 9)


def test_processes_that_are_gone_use_nothing() -> None:
    assert usage.memory({2**22 + 1}, 0.0) == 0


def test_disk(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "a/b").mkdir(parents=True)
    empty = usage.disk(work, ())
    (work / "a/b/big").write_bytes(b"x" * 5 * MIB)
    assert 5 * MIB <= usage.disk(work, ()) - empty < 6 * MIB
    os.link(work / "a/b/big", work / "again")
    (work / "sparse").touch()
    os.truncate(work / "sparse", 1 << 40)
    (tmp_path / "elsewhere").write_bytes(b"x" * 9 * MIB)
    (work / "link").symlink_to(tmp_path / "elsewhere")
    (work / "folder").symlink_to(tmp_path)
    assert usage.disk(work, ()) - empty < 6 * MIB, "one file counts once, holes and what is elsewhere do not"
    with child("f = open('gone', 'wb'); f.write(b'x' * (7 << 20)); f.flush(); os.unlink('gone')", work) as pid:
        assert 12 * MIB <= usage.disk(work, {pid}) - empty < 13 * MIB
    assert usage.disk(tmp_path / "nowhere", ()) == 0


def test_a_walk_is_bounded(tmp_path: Path) -> None:
    for name in range(1000):
        (tmp_path / str(name)).touch()
    for _ in range(2):
        assert usage.disk(tmp_path, (os.getpid(),), limit_s=-1.0) == 0


@pytest.mark.parametrize("name", ["folder", "no-permission"])
def test_what_cannot_be_looked_into_is_left_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(mode=0)
    assert usage.disk(tmp_path, ()) >= 0
