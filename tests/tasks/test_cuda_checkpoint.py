"""The CUDA checkpoint: the real helper and the real cuda.bindings over the stand-in library, on real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from support.cuda_standin import CudaStandIn, cuda, cuda_library
from support.sysbox import cgroup2_root

from supervisor.linux.helper_process import child
from supervisor.tasks import cuda_checkpoint
from supervisor.tasks.cuda_checkpoint import Checkpointer, CheckpointFailed, driver_version, unusable
from supervisor.tasks.executors.base import describe
from supervisor.tools.doctor import doctor

__all__ = ["cuda", "cuda_library"]  # fixtures

PATIENCE_S = 30.0


@pytest.fixture
def spawn() -> Iterator[Callable[[int], list[int]]]:
    """Processes that wait, in the order of their pids; ended with the test."""
    there: list[subprocess.Popen[bytes]] = []

    def many(count: int) -> list[int]:
        there.extend(subprocess.Popen(["sleep", "600"]) for _ in range(count))
        return sorted(process.pid for process in there[-count:])

    yield many
    for process in there:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def begun(cuda: CudaStandIn) -> AsyncIterator[Checkpointer]:
    """A checkpointer with its helper at hand; in the end nothing of it is left."""
    there = Checkpointer(proc_root=cuda.proc, sys_root=cuda.sys)
    await there.begin()
    assert there.problem == ""
    try:
        yield there
    finally:
        there.end()
        await until(lambda: not helpers(), "the helper's end")  # a killed process takes a moment to die


def helpers() -> list[psutil.Process]:
    """Our helpers that are not dead."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie has no command line
            if any(word == "supervisor.tasks.cuda_helper" for word in process.cmdline()):
                found.append(process)
    return found


def ended(process: psutil.Process) -> bool:
    """It is a zombie, or was reaped: one without a command line may still have its pipes open."""
    try:
        return process.status() == "zombie"
    except psutil.NoSuchProcess:
        return True


def run(scene: Coroutine[Any, Any, None]) -> None:
    """One scene, within a time in which even a busy machine has done with it."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S * 3):
            await scene

    asyncio.run(bounded())


async def until(there: Callable[[], object], what: str) -> None:
    """Wait for something."""
    late_s = time.monotonic() + PATIENCE_S
    while not there():
        assert time.monotonic() < late_s, f"{what} did not come"
        await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Case:
    """What two processes with CUDA, A and B, and one without go through. `{A}` is A's pid.

    Args:
        text: the rungs, or (a part of) why it failed.
        order: the calls that change something.
        after: the states of A and B in the end.
        usable: None: it succeeds.
        before: the states of A and B in the beginning; empty: it has no CUDA.
        stop: A is stopped before.
        limit_s: the time for it.
    """

    text: str
    order: str
    after: str
    usable: bool | None = None
    plays: tuple[str, ...] = ()
    before: str = "running running"
    stop: bool = False
    limit_s: float = PATIENCE_S
    dies: tuple[str, ...] = field(default=())


HANG, BUSY = 600_000, 600_000

OUT = {
    "two": Case(
        "2 processes: locked # ms, VRAM out # ms",
        "lock A, lock B, checkpoint A, checkpoint B", "checkpointed checkpointed",
    ),
    "one": Case("locked # ms, VRAM out # ms", "lock A, checkpoint A", "checkpointed", before="running"),
    "none": Case("no CUDA process", "", "", before=""),
    "one was locked before": Case(
        "2 processes: locked # ms, VRAM out # ms", "lock A, checkpoint B, checkpoint A", "checkpointed checkpointed",
        before="running locked",
    ),
    "one is out already": Case(
        "2 processes: locked # ms, VRAM out # ms", "lock B, checkpoint B", "checkpointed checkpointed",
        before="checkpointed running",
    ),
    "one dies of the lock": Case(
        "2 processes: locked # ms, VRAM out # ms", "lock A, lock B, checkpoint B", "running checkpointed",
        plays=("kill.lock.{A}=1",), dies=("A",),
    ),
    "one dies of the checkpoint": Case(
        "2 processes: locked # ms, VRAM out # ms", "lock A, lock B, checkpoint A, checkpoint B", "locked checkpointed",
        plays=("kill.checkpoint.{A}=1",), dies=("A",),
    ),
    "busy": Case(
        "process {A} cannot be locked: its work on the GPU did not end in time (CUDA error NOT_READY)",
        "lock A", "running running", usable=True, plays=(f"busy={BUSY}",), limit_s=6,
    ),
    "the second is busy": Case(
        "process {B} cannot be locked: its work on the GPU did not end in time (CUDA error NOT_READY)",
        "lock A, lock B, unlock A", "running running", usable=True, plays=(f"busy.{{B}}={BUSY}",), limit_s=6,
    ),
    "locks come late": Case(
        "process {B} cannot be locked: its work on the GPU did not end in time",
        "lock A, unlock A", "running running", usable=True, plays=("delay.lock.{A}=3500",), limit_s=7,
    ),
    "the second is not locked": Case(
        "process {B} cannot be locked: CUDA error ILLEGAL_ADDRESS",
        "lock A, lock B, unlock A", "running running", usable=True, plays=("err.lock.{B}=700",),
    ),
    "the first cannot be unlocked again": Case(
        "process {A} cannot be unlocked: the NVIDIA driver reports an unknown error",
        "lock A, lock B, unlock A", "locked running", usable=False, plays=("err.lock.{B}=700", "err.unlock.{A}=999"),
    ),
    "the first fails": Case(
        "the VRAM of process {A} cannot be moved: the NVIDIA driver reports an unknown error",
        "lock A, lock B, checkpoint A, unlock B", "failed running", usable=False, plays=("err.checkpoint.{A}=999",),
    ),
    "the second cannot be moved": Case(
        "the VRAM of process {B} cannot be moved: the NVIDIA driver cannot checkpoint what it uses (managed or shared",
        "lock A, lock B, checkpoint A, checkpoint B, unlock B", "checkpointed running",
        usable=False, plays=("err.checkpoint.{B}=801",),
    ),
    "failed before": Case("process {B} is in the state FAILED", "", "running failed", usable=False, before="running failed"),
    "not permitted": Case(
        "process {A} cannot be asked: the NVIDIA driver does not permit it (CUDA error NOT_PERMITTED)",
        "", "running running", usable=True, plays=("err.state.{A}=800",),
    ),
    "stopped": Case(
        "process {A} is stopped or frozen: it must run for this", "", "running running", usable=True, stop=True,
    ),
    "no answer about the state": Case("not done within 3 s", "", "running running", False, (f"delay.state={HANG}",), limit_s=3),
    "the lock hangs": Case("not done within 3 s", "lock A", "running running", False, (f"delay.lock={HANG}",), limit_s=3),
    "the move hangs": Case(
        "not done within 3 s", "lock A, lock B, checkpoint A", "locked locked", False, (f"delay.checkpoint={HANG}",), limit_s=3,
    ),
    "unknown code": Case(
        "cuCheckpointProcessLock cannot be called: 7777 is not a valid CUresult",
        "lock A", "running running", usable=True, plays=("err.lock.{A}=7777",),
    ),
}

BACK = {
    "two": Case(
        "2 processes: VRAM back # ms, unlocked # ms",
        "restore A, restore B, unlock A, unlock B", "running running", before="checkpointed checkpointed",
    ),
    "one of two": Case("2 processes: VRAM back # ms, unlocked # ms", "restore B, unlock B", "running running",
                       before="running checkpointed"),
    "locked only": Case("VRAM back # ms, unlocked # ms", "unlock A", "running", before="locked"),
    "none": Case("no CUDA process", "", "", before=""),
    "no room": Case(
        "process {B} cannot have its VRAM back: there is not enough free memory (CUDA error OUT_OF_MEMORY)",
        "restore A, restore B", "locked checkpointed", usable=False,
        plays=("err.restore.{B}=2",), before="checkpointed checkpointed",
    ),
    "not unlocked": Case(
        "process {A} cannot be unlocked: CUDA error ILLEGAL_ADDRESS",
        "restore A, unlock A", "locked", usable=False, plays=("err.unlock=700",), before="checkpointed",
    ),
    "one dies of it": Case(
        "2 processes: VRAM back # ms, unlocked # ms", "restore A, restore B, unlock A, unlock B", "checkpointed running",
        plays=("kill.restore.{A}=1",), before="checkpointed checkpointed", dies=("A",),
    ),
    "failed": Case("process {A} is in the state FAILED", "", "failed", usable=False, before="failed"),
    "frozen yet": Case("process {A} is stopped or frozen: it must run for this", "", "checkpointed", usable=True,
                       before="checkpointed", stop=True),
    "it hangs": Case("not done within 3 s", "restore A", "checkpointed", False, (f"delay.restore={HANG}",), "checkpointed",
                     limit_s=3),
}


@pytest.mark.parametrize(("kind", "case"), [
    *(pytest.param("out", case, id=f"out: {name}") for name, case in OUT.items()),
    *(pytest.param("back", case, id=f"back: {name}") for name, case in BACK.items()),
])  # fmt: skip
def test_what_is_done(cuda: CudaStandIn, spawn: Callable[[int], list[int]], kind: str, case: Case) -> None:
    pids = spawn(3)
    named = dict(zip("AB", pids, strict=False))
    cases_pids = list(zip(pids, case.before.split(), strict=False))
    for pid, state in cases_pids:
        cuda.uses_cuda(pid, state)
    cuda.plays(*(line.format(**named) for line in case.plays))
    if case.stop:
        os.kill(pids[0], signal.SIGSTOP)

    async def scene() -> None:
        async with begun(cuda) as there:
            order = getattr(there, kind)
            if case.usable is None:
                said = describe(*await order(pids, case.limit_s))
            else:
                with pytest.raises(CheckpointFailed) as failure:
                    await order(pids, case.limit_s)
                said = str(failure.value)
                assert failure.value.usable is case.usable, said
            assert case.text.format(**named) in re.sub(r"\d+ ms", "# ms", said)

    run(scene())
    by_pid = {str(pid): name for name, pid in named.items()}
    assert ", ".join(f"{call} {by_pid[pid]}" for call, pid in map(str.split, cuda.order())) == case.order
    assert " ".join(cuda.state(pid) for pid, _ in cases_pids) == case.after
    assert {name for name, pid in named.items() if psutil.Process(pid).status() == "zombie"} == set(case.dies)
    seen = {call[-1] for call in cuda.calls() if call[0] in ("state", "lock", "restore", "unlock")}
    assert seen <= {"running", *(["gone"] if case.dies else [])}  # never one that is frozen


def test_out_and_back_of_a_false_alarm(cuda: CudaStandIn, spawn: Callable[[int], list[int]]) -> None:
    """The whole way, twice, with the tree frozen while its VRAM is out: as the ladder does it."""
    pids = spawn(3)
    for pid in pids[:2]:
        cuda.uses_cuda(pid)

    async def scene() -> None:
        async with begun(cuda) as there:
            helper = helpers()
            assert not there.restored
            for _ in range(2):
                assert describe(*await there.out(pids, PATIENCE_S)).startswith("2 processes: locked ")
                assert not there.restored
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                assert [cuda.state(pid) for pid in pids[:2]] == ["checkpointed"] * 2
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
                assert describe(*await there.back(pids, PATIENCE_S)).startswith("2 processes: VRAM back ")
                assert [cuda.state(pid) for pid in pids[:2]] == ["running"] * 2
                assert there.restored
            assert helpers() == helper  # one for all of it

    run(scene())
    a, b = pids[:2]
    once = [f"{call} {pid}" for call in ("lock", "checkpoint", "restore", "unlock") for pid in (a, b)]
    assert cuda.order() == once * 2
    # no context: what makes one is not among the calls, and the stand-in has none that could
    assert cuda.calls()[0] == ("init",)
    assert {call[0] for call in cuda.calls()} == {"init", "state", "lock", "checkpoint", "restore", "unlock"}
    assert all(0 < int(call[2]) <= PATIENCE_S * 500 for call in cuda.calls() if call[0] == "lock")  # half of the time at most


def test_a_frozen_cgroup(cuda: CudaStandIn, spawn: Callable[[int], list[int]]) -> None:
    """A frozen process looks asleep in /proc, but the driver would wait for it all the same: it is not asked."""
    root = cgroup2_root()
    if root is None or not os.access(root, os.W_OK):
        pytest.skip("no cgroup v2 that may be written")
    (pid,) = spawn(1)
    cuda.uses_cuda(pid)
    group = root / f"rae-node-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))

        async def scene() -> None:
            async with begun(cuda) as there:
                (group / "cgroup.freeze").write_text("1")
                with pytest.raises(CheckpointFailed, match="is stopped or frozen: it must run for this") as failure:
                    await there.out([pid], PATIENCE_S)
                assert failure.value.usable
                (group / "cgroup.freeze").write_text("0")
                await until(lambda: "frozen 0" in (group / "cgroup.events").read_text(), "the thaw")
                assert describe(*await there.out([pid], PATIENCE_S)).startswith("locked ")
                (group / "cgroup.freeze").write_text("1")
                with pytest.raises(CheckpointFailed, match="must run for this") as failure:
                    await there.back([pid], PATIENCE_S)
                assert failure.value.usable  # still out: thaw it, and ask again
                (group / "cgroup.freeze").write_text("0")
                await until(lambda: "frozen 0" in (group / "cgroup.events").read_text(), "the thaw")
                assert describe(*await there.back([pid], PATIENCE_S)).startswith("VRAM back ")

        run(scene())
    finally:
        (group / "cgroup.freeze").write_text("0")
        os.kill(pid, signal.SIGKILL)
        late_s = time.monotonic() + PATIENCE_S
        while "populated 1" in (group / "cgroup.events").read_text() and time.monotonic() < late_s:
            time.sleep(0.005)
        group.rmdir()
    assert cuda.order() == [f"{call} {pid}" for call in ("lock", "checkpoint", "restore", "unlock")]
    assert {call[-1] for call in cuda.calls() if len(call) > 1} == {"running"}


def test_a_process_that_is_stopped_after_it_was_asked(cuda: CudaStandIn, spawn: Callable[[int], list[int]]) -> None:
    """The driver then waits for it, whatever time it was given: the helper is left, and the task must be killed."""
    (pid,) = spawn(1)
    cuda.uses_cuda(pid)
    cuda.plays("delay.state=1500")

    async def scene() -> None:
        async with begun(cuda) as there:
            out = asyncio.create_task(there.out([pid], 6.0))
            await until(lambda: ("state", str(pid), "0", "running") in cuda.calls(), "the question for its state")
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(CheckpointFailed, match="not done within 6 s") as failure:
                await out
            assert not failure.value.usable
            with pytest.raises(CheckpointFailed) as failure:  # nothing is asked of the driver about it any more
                await there.back([pid], PATIENCE_S)
            assert not failure.value.usable

    run(scene())
    assert cuda.order() == [f"lock {pid}"]


def test_broken_off(cuda: CudaStandIn, spawn: Callable[[int], list[int]]) -> None:
    """After a cancelled order the state of the task is unknown; the next task starts afresh."""
    (pid,) = spawn(1)
    cuda.uses_cuda(pid)
    cuda.plays(f"delay.lock={HANG}")

    async def scene() -> None:
        async with begun(cuda) as there:
            out = asyncio.create_task(there.out([pid], PATIENCE_S))
            await until(cuda.order, "the lock")
            out.cancel()
            with pytest.raises(asyncio.CancelledError):
                await out
            with pytest.raises(CheckpointFailed, match="an earlier order was not finished") as failure:
                await there.out([pid], PATIENCE_S)
            assert not failure.value.usable
            there.end()
            cuda.plays()
            await there.begin()
            assert there.problem == ""
            assert describe(*await there.out([pid], PATIENCE_S)).startswith("locked ")

    run(scene())


@pytest.mark.parametrize(("busy", "usable"), [(False, None), (True, False)])
def test_the_helper_dies(cuda: CudaStandIn, spawn: Callable[[int], list[int]], busy: bool, usable: bool | None) -> None:
    """Between two orders another one takes its place; in the middle of one nobody knows how far it came."""
    (pid,) = spawn(1)
    cuda.uses_cuda(pid)
    cuda.plays(*([f"delay.checkpoint={HANG}"] if busy else []))

    async def scene() -> None:
        async with begun(cuda) as there:
            (helper,) = helpers()
            if busy:
                out = asyncio.create_task(there.out([pid], PATIENCE_S))
                await until(lambda: f"checkpoint {pid}" in cuda.order(), "the checkpoint")
                helper.kill()
                with pytest.raises(CheckpointFailed, match="the helper for it: it ended") as failure:
                    await out
                assert failure.value.usable is usable
            else:
                helper.kill()
                await until(lambda: ended(helper), "its end")
                assert describe(*await there.out([pid], PATIENCE_S)).startswith("locked ")
                assert helpers() != [helper]

    run(scene())


def test_it_hangs_in_the_driver(cuda: CudaStandIn, spawn: Callable[[int], list[int]]) -> None:
    """A helper that cannot be killed (T20) is left behind, and no other is started beside it."""
    (pid,) = spawn(1)
    cuda.uses_cuda(pid)
    cuda.plays(f"delay.lock={HANG}")

    async def scene() -> None:
        there = Checkpointer(proc_root=cuda.proc, sys_root=cuda.sys)
        await there.begin()
        (helper,) = helpers()
        assert there._helper is not None
        there._helper._process.kill = lambda: None  # as in the uninterruptible sleep of a driver call
        with pytest.raises(CheckpointFailed, match="not done within 1 s"):
            await there.out([pid], 1.0)
        there.end()
        await there.begin()
        assert there.problem == f"an earlier helper (pid {helper.pid}) hangs in the NVIDIA driver: reboot"
        assert helpers() == [helper]
        there.end()  # waits for nothing
        helper.kill()
        await until(lambda: not helpers(), "its end")

    run(scene())


def test_it_dies_with_the_daemon(cuda: CudaStandIn) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from supervisor.tasks.cuda_checkpoint import Checkpointer\n"
        "async def main():\n"
        f"    there = Checkpointer(proc_root=Path({str(cuda.proc)!r}), sys_root=Path({str(cuda.sys)!r}))\n"
        "    await there.begin(); print(there.problem, end='|\\n', flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == "|\n"
            (helper,) = psutil.Process(daemon.pid).children()
        finally:
            daemon.kill()
    helper.wait(PATIENCE_S)


def test_one_order_at_a_time(cuda: CudaStandIn, spawn: Callable[[int], list[int]]) -> None:
    """`back` of a quick false alarm waits for `out`; `out` waits for a `begin` that runs beside the task's start."""
    (pid,) = spawn(1)
    cuda.uses_cuda(pid)
    cuda.plays("delay.init=300", "delay.checkpoint=300")

    async def scene() -> None:
        there = Checkpointer(proc_root=cuda.proc, sys_root=cuda.sys)
        begin = asyncio.create_task(there.begin())
        out = asyncio.create_task(there.out([pid], PATIENCE_S))
        back = asyncio.create_task(there.back([pid], PATIENCE_S))
        await asyncio.gather(begin, out, back)
        there.end()
        await until(lambda: not helpers(), "the helper's end")

    run(scene())
    assert cuda.order() == [f"{call} {pid}" for call in ("lock", "checkpoint", "restore", "unlock")]


# --- may it be used?


@dataclass(frozen=True)
class Machine:
    """A machine on which it cannot be used, and what is said of that."""

    problem: str
    driver: str = "580.65.06"
    plays: tuple[str, ...] = ()
    bindings: bool = True
    library: bool = True
    limit_s: float = PATIENCE_S


@pytest.mark.parametrize("machine", [
    Machine("no NVIDIA driver is loaded: install driver 570 or newer", driver=""),
    Machine("the NVIDIA driver is 550.163.01: install 570 or newer", driver="550.163.01"),
    Machine("cuda-bindings is not installed: run `sudo ", bindings=False),
    Machine("the NVIDIA driver is for CUDA 12.4: install driver 570 or newer", plays=("version=12040",)),
    Machine("CUDA cannot be used: there is no GPU that CUDA can use (CUDA error NO_DEVICE)", plays=("err.init=100",)),
    Machine("CUDA cannot be used: NVIDIA driver and library are of different versions", plays=("err.init=803",)),
    Machine("CUDA cannot be used: cuDriverGetVersion cannot be called: ", library=False),
    Machine("the NVIDIA driver did not answer within 1 s", plays=(f"delay.init={HANG}",), limit_s=1),
], ids=lambda machine: machine.problem[:50])  # fmt: skip
def test_where_it_cannot_be_used(
    cuda: CudaStandIn, spawn: Callable[[int], list[int]], monkeypatch: pytest.MonkeyPatch, machine: Machine
) -> None:
    (pid,) = spawn(1)
    cuda.uses_cuda(pid)
    cuda.driver(machine.driver)
    cuda.plays(*machine.plays)
    monkeypatch.setattr(cuda_checkpoint, "unusable", lambda *roots: unusable(*roots, lambda: machine.bindings))
    if not machine.library:
        monkeypatch.delenv("LD_LIBRARY_PATH")

    async def scene() -> None:
        there = Checkpointer(proc_root=cuda.proc, sys_root=cuda.sys)
        await there.begin(machine.limit_s)
        assert there.problem.startswith(machine.problem)
        assert "\n" not in there.problem
        with pytest.raises(CheckpointFailed) as failure:  # it is tried once more, and nothing is done to the task
            await there.out([pid], machine.limit_s)
        assert failure.value.usable
        there.end()
        await until(lambda: not helpers(), "the helper's end")

    run(scene())
    assert cuda.order() == []


LIAR = """
import sys
for line in sys.stdin:
    told = '{"problem": "", "rungs": [], "usable": true}' if line == "probe\\n" else eval(sys.argv[1])
    print(told, flush=True)
"""


@pytest.mark.parametrize(("told", "text", "usable"), [
    ("'{}'", "the helper's answer cannot be understood (ValidationError)", False),
    ("""'{"x": ' + '[' * 100_000""", "the helper's answer cannot be understood (RecursionError)", False),
    ("""'{"problem'""", "the helper's answer cannot be understood (DecodeError)", False),
    ("""'{"problem": "", "rungs": [["locked", "3", 1]], "usable": true}'""", "cannot be understood (ValidationError)", False),
    ("""'{"problem": "", "rungs": [["mine", 3, 1]], "usable": true}'""", "cannot be understood (ValidationError)", False),
    (r"""'{"problem": "\\u001b[2Ja\\nb' + 'c' * 1000 + '", "rungs": [], "usable": true}'""", "a b" + "c" * 296 + "…", True),
])  # fmt: skip
def test_a_task_has_got_hold_of_its_helper(cuda: CudaStandIn, told: str, text: str, usable: bool) -> None:
    """In a unit they have the same user. It can say what it wants, and that harms nobody."""

    async def scene() -> None:
        there = Checkpointer(proc_root=cuda.proc, sys_root=cuda.sys)
        argv = [sys.executable, "-I", "-c", LIAR, told]
        await there.begin(start=lambda _module, streams: child(argv)(streams))
        assert there.problem == ""
        with pytest.raises(CheckpointFailed, match=re.escape(text)) as failure:
            await there.out([os.getpid()], PATIENCE_S)
        assert failure.value.usable is usable
        there.end()

    run(scene())


def test_the_driver_comes_up_later(cuda: CudaStandIn, spawn: Callable[[int], list[int]]) -> None:
    (pid,) = spawn(1)
    cuda.uses_cuda(pid)
    cuda.plays("err.init=999")

    async def scene() -> None:
        there = Checkpointer(proc_root=cuda.proc, sys_root=cuda.sys)
        await there.begin()
        assert "unknown error" in there.problem
        cuda.plays()
        assert describe(*await there.out([pid], PATIENCE_S)).startswith("locked ")
        assert there.problem == ""
        there.end()
        await until(lambda: not helpers(), "the helper's end")

    run(scene())


MIB = 1 << 20


@pytest.mark.parametrize(("free_gb", "cgroup", "vram_gb", "reason"), [
    (64.0, None, 20.0, ""),
    (20.5, None, 20.0, "20.0 GiB of VRAM have no room in memory: 20.5 GiB are free, 1 must stay so"),
    (20.5, None, 0.0, ""),  # not known
    (64.0, ("max", 4096), 20.0, ""),
    (64.0, (24 * 1024, 3 * 1024), 20.0, ""),
    (64.0, (24 * 1024, 6 * 1024), 20.0, "20.0 GiB of VRAM have no room in the task's memory limit, of which 19.0 GiB are left"),
])  # fmt: skip
def test_room_for_it(
    cuda: CudaStandIn, spawn: Callable[[int], list[int]], free_gb: float, cgroup: tuple[Any, int] | None, vram_gb: float,
    reason: str,
) -> None:
    """VRAM becomes memory of the task's: without room there the kernel would kill it half-way."""
    (pid,) = spawn(1)
    cuda.uses_cuda(pid)
    cuda.memory(free_gb)
    if cgroup is not None:
        (cuda.proc / str(pid)).mkdir()
        (cuda.proc / str(pid) / "cgroup").write_text("0::/a.slice/task\n")
        folder = cuda.sys / "fs/cgroup/a.slice/task"
        folder.mkdir(parents=True)
        limit, used = cgroup
        (folder / "memory.max").write_text("max\n" if limit == "max" else f"{limit * MIB}\n")
        (folder / "memory.current").write_text(f"{used * MIB}\n")
        (folder / "memory.stat").write_text(f"anon {512 * MIB}\nfile {1536 * MIB}\nshmem {512 * MIB}\n")  # 1 GiB can be let go

    async def scene() -> None:
        async with begun(cuda) as there:
            if reason:
                with pytest.raises(CheckpointFailed) as failure:
                    await there.out([pid], PATIENCE_S, vram_gb)
                assert str(failure.value).startswith(reason)
                assert failure.value.usable
            else:
                await there.out([pid], PATIENCE_S, vram_gb)

    run(scene())
    assert bool(cuda.order()) is not bool(reason)


# --- what the doctor says, without the driver


@pytest.mark.parametrize(("module", "proc", "version"), [
    ("580.65.06\n", "", "580.65.06"),
    ("", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC version: gcc 12.3.0\n",
     "550.54.14"),
    ("", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86  Release Build\n", "570.86"),
    ("", "", ""),
    ("garbage", "", ""),
])  # fmt: skip
def test_the_drivers_version(tmp_path: Path, module: str, proc: str, version: str) -> None:
    for path, text in ((tmp_path / "module/nvidia/version", module), (tmp_path / "driver/nvidia/version", proc)):
        path.parent.mkdir(parents=True)
        if text:
            path.write_text(text)
    assert driver_version(tmp_path, tmp_path) == version


def test_nothing_is_loaded_to_look() -> None:
    code = (
        "import sys; from supervisor.tasks.cuda_checkpoint import unusable; unusable()\n"
        "print([name for name in sys.modules if name.startswith('cuda.') or name == 'pynvml'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("kinds", "driver", "ok", "reason"), [
    (["none"], "580.65.06", None, "no task type asks for it (tasks.<type>.checkpoint)"),
    ([], "", None, "no task type asks for it (tasks.<type>.checkpoint)"),
    (["none", "cuda"], "580.65.06", True, "can be used by type1: NVIDIA driver 580.65.06"),
    (["cuda"], "open 595.71.05", True, "can be used by type0: NVIDIA driver 595.71.05 with the open kernel module, with which "
     "a machine was seen to hang at the end of a task whose VRAM had been moved back"),
    (["cuda"], "550.54.14", False, "type0 asks for it, but the NVIDIA driver is 550.54.14: install 570 or newer"),
    (["cuda", "cuda"], "", False, "type0, type1 ask for it, but no NVIDIA driver is loaded: install driver 570 or newer"),
])  # fmt: skip
def test_what_the_doctor_says(cuda: CudaStandIn, kinds: list[str], driver: str, ok: bool | None, reason: str) -> None:
    cuda.driver(driver.removeprefix("open "))
    if driver.startswith("open "):
        (cuda.proc / "driver/nvidia").mkdir(parents=True)
        (cuda.proc / "driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.71.05\n")
    tasks = {f"type{index}": SimpleNamespace(checkpoint=kind) for index, kind in enumerate(kinds)}
    config: Any = SimpleNamespace(node=SimpleNamespace(tasks=tasks))
    check = doctor.checkpoint(config, cuda.proc, cuda.sys)
    assert (check.name, check.ok, check.reason) == ("CUDA checkpoint", ok, reason)
