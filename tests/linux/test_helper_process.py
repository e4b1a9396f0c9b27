"""A helper process: the program by itself, and what the daemon does with one that misbehaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from support.gpu_rig import NvidiaMachine, helpers, nvidia, until
from support.nvml_standin import StandIn, nvml_library, standin
from support.trees import alive
from support.waiting import play
from support.waiting import until as wait_for

from supervisor.linux import helper_main
from supervisor.linux.helper_process import Helper, child
from supervisor.sensors.gpu import nvml_helper as gpu

__all__ = ["nvidia", "nvml_library", "standin"]  # fixtures


def ask_alone(text: str, parent: int) -> subprocess.CompletedProcess[str]:
    """The program without a daemon, with `text` as its stdin."""
    argv = [*helper_main.command("supervisor.sensors.gpu.nvml_helper")[:-2], str(parent), "supervisor.sensors.gpu.nvml_helper"]
    return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=60)


def test_the_helper_answers_each_line_and_ends_with_its_input(standin: StandIn) -> None:
    """The program by itself: one JSON line a request, nothing else."""
    run = ask_alone("look\nwhat\nlook\n", os.getpid())
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert [run.returncode, run.stderr, len(answers)] == [0, "", 2]
    assert answers[0]["devices"][0]["uuid"] == "GPU-fake-0"


def test_a_fault_is_not_forgotten_for_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver reports an uncorrectable memory error, and right after it that it cleans up the programs (Xid 45)."""
    there = [[48, 45, 45], [], [31]]

    def wait(_events: object, _ms: int) -> SimpleNamespace:
        if not there[0]:
            there.pop(0)
            raise gpu.nvml.NVMLError(gpu.nvml.NVML_ERROR_TIMEOUT)
        return SimpleNamespace(eventType=gpu.nvml.nvmlEventTypeXidCriticalError, eventData=there[0].pop(0))

    monkeypatch.setattr(gpu.nvml, "nvmlEventSetCreate", object)
    monkeypatch.setattr(gpu.nvml, "nvmlDeviceRegisterEvents", lambda *_: None)
    monkeypatch.setattr(gpu.nvml, "nvmlEventSetWait_v2", wait)
    faults = gpu.Faults()
    assert [faults.of("GPU-a", None) for _ in range(3)] == [[48, 45], [48, 45], [48, 45, 31]]


def test_the_helper_dies_with_its_parent(standin: StandIn, tmp_path: Path) -> None:
    """Also when the parent is killed and the pipes stay open elsewhere; a stranger's child ends at once."""
    script = (
        "import os, signal, subprocess, sys\n"
        f"sys.path.append({helper_main.ROOT!r}); from supervisor.linux import helper_main\n"
        "p = subprocess.Popen(helper_main.command('supervisor.sensors.gpu.nvml_helper'), stdin=0, stdout=subprocess.PIPE)\n"
        "p.stdout.readline(); print(p.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) as parent:
        assert parent.stdin
        assert parent.stdout
        parent.stdin.write("look\n")
        parent.stdin.flush()
        pid = int(parent.stdout.readline())
        parent.wait(10)
        wait_for(lambda: not alive(pid), "its end")
        parent.stdin.close()
    orphan = ask_alone("look\n", os.getppid())
    assert [orphan.returncode, orphan.stdout] == [0, ""]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('not asked', flush=True); input()", "it spoke without being asked"),
        ("input(); print('x' * 3000000, flush=True); input()", "its answer is too long"),
        ("import sys; input(); sys.exit('broken installation')", "it ended: broken installation"),
        ("input(); import time; time.sleep(60)", "no answer within 1 s"),
    ],
)
def test_a_helper_that_misbehaves_is_killed_with_a_reason(program: str, reason: str) -> None:
    """The loop gets a reason on one line, and no exception."""
    reasons: list[str] = []

    async def scene() -> None:
        helper = Helper(child([sys.executable, "-c", program]), lambda line: None, reasons.append)
        if "not asked" not in reason and "without" not in reason:
            helper.ask(b"look\n", 1.0 if "within" in reason else 60.0)
        await until(lambda: reasons)
        assert await helper.wait(20)
        assert not helper.stuck

    play(scene())
    assert reasons == [reason]


def test_one_that_cannot_be_watched_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is free for its end: it is the start that fails, each time, and nothing remains of it."""
    before, open_before = set(psutil.Process().children()), set(os.listdir("/proc/self/fd"))

    def refuse(pid: int) -> int:
        raise OSError(24, "Too many open files")

    async def scene() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pidfd_open", refuse)
            with pytest.raises(OSError, match="Too many open files"):
                Helper(child([sys.executable, "-c", "input()"]), lambda line: None, lambda reason: None)
        assert set(psutil.Process().children()) <= before

    play(scene())
    assert set(os.listdir("/proc/self/fd")) <= open_before  # what an earlier test has left may go meanwhile


def test_stderr_never_blocks_the_helper() -> None:
    """More than a pipe can take is drained, and only its end is kept."""
    lines: list[bytes] = []
    program = "import sys; input(); sys.stderr.write('noise ' * 100000); print('done', flush=True); input()"

    async def scene() -> None:
        helper = Helper(child([sys.executable, "-c", program]), lines.append, lines.append)  # type: ignore[arg-type]
        helper.ask(b"look\n", 60.0)
        await until(lambda: lines)
        helper.end()
        assert await helper.wait(20)

    play(scene())
    assert lines == [b"done"]


def test_signals_are_the_daemons_business(standin: StandIn, nvidia: NvidiaMachine) -> None:
    """A Ctrl-C at the terminal of the daemon does not reach the helper: it leads a session of its own."""

    async def scene() -> None:
        async with nvidia.sensor():
            (one,) = helpers()
            assert os.getsid(one.pid) == one.pid

    play(scene())
