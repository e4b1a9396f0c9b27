"""What a task may do to processes that are not its own: nothing (R4); and what it may do to files: as before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.task_bench import Bench, contained, py, run
from support.trees import alive

from supervisor.sensors.gpu.grant import NOTHING, Grant
from supervisor.tasks.process import command_process, landlock
from supervisor.tasks.process.containment import Containment

__all__ = ["contained"]
BEGIN = """
import ctypes, json, os, sys
def does(what):
    try:
        what()
        return "done"
    except OSError as error:
        return error.strerror
"""
ATTACK = BEGIN + """
victim = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def tried(answer): return os.strerror(ctypes.get_errno()) if answer < 0 else "done"
libc.ptrace.argtypes = [ctypes.c_long] * 4
child = os.fork()
if child == 0:
    import time
    time.sleep(1000)
os.makedirs("a/b")
open("a/b/file", "w").close()
shim = os.getppid()
found = {
    "trace": tried(libc.ptrace(16, victim, 0, 0)), "memory": does(lambda: open(f"/proc/{victim}/mem", "rb").read(1)),
    "environment": does(lambda: open(f"/proc/{victim}/environ", "rb").read()),
    "trace_shim": tried(libc.ptrace(16, shim, 0, 0)),
    "signal": does(lambda: os.kill(victim, 15)), "signal_shim": does(lambda: os.kill(shim, 9)),
    "own_trace": tried(libc.ptrace(16, child, 0, 0)), "own_signal": does(lambda: os.kill(child, 9)),
    "rename": does(lambda: os.rename("a/b/file", "a/file")), "link": does(lambda: os.link("a/file", "a/b/again")),
}
print(json.dumps(found))
"""
NO = "Operation not permitted"
CLOSED = {
    "trace": NO, "memory": "Permission denied", "trace_shim": NO, "own_trace": "done", "own_signal": "done",
    "rename": "done", "link": "done",
}  # fmt: skip


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.mark.skipif(landlock.abi() < 2, reason="no Landlock here")
def test_what_is_not_its_own_is_closed_to_it(
    contained: Containment, tmp_path: Path, victim: subprocess.Popen[bytes]
) -> None:
    if landlock.abi() < 6:
        pytest.skip("signals are open before Linux 6.12")

    async def body(bench: Bench) -> None:
        error, found = await bench.outcome(*py(ATTACK), str(victim.pid))
        assert error is None, found
        assert found == {**CLOSED, "signal": NO, "signal_shim": NO, "environment": found["environment"]}
        assert alive(victim.pid)
        assert os.geteuid() == 0 or found["environment"] == "Permission denied"  # CAP_PERFMON may read it

    run(contained, tmp_path, body)


@pytest.mark.skipif(landlock.abi() < 2, reason="no Landlock here")
def test_on_an_older_kernel_it_cannot_trace(contained: Containment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = "from supervisor.tasks.process import shim; shim.landlock.abi = lambda: 2; main("
    monkeypatch.setattr(command_process, "_SHIM", command_process._SHIM.replace("main(", patch, 1))
    harmless = ATTACK.replace("os.kill(shim, 9)", "os.kill(shim, 0)").replace("os.kill(victim, 15)", "os.kill(victim, 0)")

    async def body(bench: Bench) -> None:
        error, found = await bench.outcome(*py(harmless), str(os.getpid()))
        assert error is None, found
        assert found == {**CLOSED, "signal": "done", "signal_shim": "done", "environment": found["environment"]}

    run(contained, tmp_path, body)


SUMMARIES = [
    (7, "by Landlock a task can neither trace nor signal what is not its own"),
    (4, "a task can signal what runs as the same user (Landlock keeps it from tracing)"),
    (0, "a task can signal what runs as the same user, and trace it (no Landlock)"),
]


@pytest.mark.parametrize(("version", "text"), SUMMARIES)
def test_what_doctor_says(version: int, text: str) -> None:
    assert landlock.summary(version) == text


def test_where_there_is_none_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    landlock.enter()
    os.kill(os.getppid(), 0)


CLOSING = BEGIN + """
from pathlib import Path
from supervisor.tasks.process import landlock
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
if len(sys.argv) > 2:
    landlock.abi = lambda: int(sys.argv[2])
here = Path(sys.argv[1])
landlock.enter([str(here / "dev/input"), str(here / "dev/nvidia1")])
print(json.dumps({
    "listen": does((here / "dev/input/event0").read_bytes),
    "inject": does(lambda: (here / "dev/input/event0").write_bytes(b"")),
    "other": does((here / "dev/nvidia1").read_bytes), "device": does((here / "dev/nvidia0").read_bytes),
    "file": does(lambda: (here / "work/new").write_text("x")),
    "null": does(Path("/dev/null").read_bytes), "proc": does(Path("/proc/self/stat").read_bytes),
    "rename": does(lambda: os.rename(here / "work/a/file", here / "work/file")), "run": os.system("/bin/true"),
}))
"""


@pytest.mark.parametrize("version", [[], ["3"]], ids=["this kernel", "an older one"])
@pytest.mark.skipif(landlock.abi() < 2, reason="no Landlock here")
def test_a_task_cannot_listen_to_the_keyboard_nor_use_another_gpu(version: list[str], tmp_path: Path) -> None:
    (tmp_path / "dev/input").mkdir(parents=True)
    (tmp_path / "work/a").mkdir(parents=True)
    for name in ("dev/input/event0", "dev/nvidia0", "dev/nvidia1", "work/a/file"):
        (tmp_path / name).touch()
    root = Path(landlock.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", CLOSING, str(tmp_path), *version], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    no = "Permission denied"
    open_ = dict.fromkeys(("device", "file", "null", "proc", "rename"), "done")
    assert json.loads(done.stdout) == {"listen": no, "inject": no, "other": no, **open_, "run": 0}


OTHER = BEGIN + """
print(json.dumps({name: does(lambda: open(f"{sys.argv[1]}/{name}").close()) for name in ("nvidia0", "nvidia1", "nvidiactl")}
      | {"which": os.environ["WHICH"], "own": os.environ["OWN"]}))
"""


@pytest.mark.skipif(landlock.abi() < 2, reason="no Landlock here")
def test_a_task_gets_the_lent_gpu_and_no_other(contained: Containment, tmp_path: Path) -> None:
    """By its variables, which node.yaml may change, and by what it may open."""
    dev = tmp_path / "dev"
    dev.mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (dev / name).touch()
    gpus = Grant((f"{dev}/nvidia0",), (f"{dev}/nvidia1", f"{dev}/nvidiactl"), {"WHICH": "x"}, {"WHICH": "open", "OWN": "y"})
    contained.gpus = gpus

    async def body(bench: Bench) -> None:
        error, found = await bench.outcome(*py(OTHER), str(dev), env={"OWN": "mine"})
        assert error is None, found
        assert found == {
            "nvidia0": "done", "nvidia1": "Permission denied", "nvidiactl": "done", "which": "open", "own": "mine",
        }  # fmt: skip

    try:
        run(contained, tmp_path / "work", body)
    finally:
        contained.gpus = NOTHING
