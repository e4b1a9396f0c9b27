"""The command executor with real processes: streams, outcomes, environment, stops (R2, R4, R6, R19, R23)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import resource
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.task_bench import Bench, contained, py, run
from support.trees import alive, command, marked_with, pids_in, until_async

from supervisor.config.daemon_clients import daemon_client
from supervisor.sensors.gpu.grant import NO_CUDA
from supervisor.tasks.executors.base import FreezeFailed, Rung, StartFailed, StopFailed, describe
from supervisor.tasks.process import command_process, shim
from supervisor.tasks.process.command_process import CommandTask
from supervisor.tasks.process.containment import CgroupContainment, Containment, TreeContainment
from supervisor.tasks.process.rungs import RungName

__all__ = ["contained"]
SECRET = "sentinel-4711"


async def nasty(bench: Bench, out: Path, count: int) -> tuple[CommandTask, list[int]]:
    """A nasty tree with that many workers, all running, and their pids, which they note in `out`."""
    out.mkdir()
    task = await bench.start(*command("nasty", str(count), str(out)))
    await until_async(lambda: len(pids_in(out)) == count)
    return task, pids_in(out)


OUTCOMES = [
    pytest.param(["true"], None, {}, id="nothing-on-stdout"),
    pytest.param(["echo", ' {"a": [1, null]} '], None, {"a": [1, None]}, id="an-object"),
    pytest.param(["cat"], None, {"say": "héllo", "n": 1}, id="payload-comes-back"),
    pytest.param(["sh", "-c", "exit 3"], "exit: code 3", {"status": 3}, id="exit-code"),
    pytest.param(["sh", "-c", "echo '{}'; exit 1"], "exit: code 1", {"status": 1}, id="exit-code-beats-output"),
    pytest.param(["sh", "-c", "echo lost >&2; exit 2"], "exit: code 2", {"status": 2, "stderr": "lost"}, id="its-stderr"),
    pytest.param(["sh", "-c", "echo noise >&2; echo '{}'"], None, {}, id="stderr-of-a-success-is-dropped"),
    pytest.param(["sh", "-c", "kill -9 $$"], "signal: 9 (SIGKILL)", {"status": -9}, id="killed"),
    pytest.param(["sh", "-c", "kill -TERM $$"], "signal: 15 (SIGTERM)", {"status": -15}, id="terminated"),
    pytest.param(["sh", "-c", "kill -40 $$"], "signal: 40 (real-time)", {"status": -40}, id="real-time-signal"),
    pytest.param(["echo", "[1]"], "result: not a JSON object: it is JSON of another type (list)", {}, id="a-list"),
    pytest.param(["echo", SECRET], "result: not a JSON object: JSON is malformed: invalid character (byte 0)", {}, id="text"),
    pytest.param(["printf", '{"' + SECRET], "result: not a JSON object: Input data was truncated", {}, id="cut"),
    pytest.param(["printf", '{"a":"\\377"}'], None, {"a": "\ufffd"}, id="not-utf-8"),
    pytest.param(["printf", '{"a":"\\377"'], "result: not a JSON object: it is not UTF-8", {}, id="neither-utf-8-nor-json"),
    pytest.param(["echo", '{"a":1e999,"b":-Infinity}'], None, {"a": math.inf, "b": -math.inf}, id="infinities"),
    pytest.param(["printf", '{"a":"\\\\ud800","b":"x\1y"}'], None, {"a": "\ud800", "b": "x\1y"}, id="half-a-character"),
    pytest.param(py("print('[' * 100000)"), "result: not a JSON object: nested too deep", {}, id="nested"),
    pytest.param(["sh", "-c", "sleep 1000 & setsid sleep 1000 & echo '{}'"], None, {}, id="what-outlives-it-is-killed"),
    pytest.param(["sh", "-c", "exec 0<&- 1>&- 2>&-; sleep 0.05"], None, {}, id="closes-its-streams"),
]


@pytest.mark.parametrize(("argv", "error", "result"), OUTCOMES)
def test_outcome(contained: Containment, tmp_path: Path, argv: list[str], error: str | None, result: Any) -> None:
    async def body(bench: Bench) -> None:
        got_error, got = await bench.outcome(*argv, payload={"say": "héllo", "n": 1})
        assert (got_error or "").startswith(error or "")
        assert (got_error is None) == (error is None)
        assert got == result
        assert SECRET not in (got_error or "")

    run(contained, tmp_path, body)


def test_five_megabytes_there_and_back(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        payload = {"data": "x" * (5 << 20)}
        assert await bench.outcome("cat", payload=payload) == (None, payload)

    run(contained, tmp_path, body)


def test_nothing_is_lost_of_a_task_that_ends_before_it_was_read(contained: Containment, tmp_path: Path) -> None:
    """Its last output is still in the pipe when its end is seen, and its stdin was closed long before."""

    async def body(bench: Bench) -> None:
        task = await bench.start("sh", "-c", "cat > /dev/null; sleep 0.1; echo '{\"said\": true}'; echo oh >&2")
        await asyncio.sleep(0.05)  # the payload is written, our end of stdin closed
        for fd in (task._pipes._stdout, task._pipes._stderr):
            asyncio.get_running_loop().remove_reader(fd)
        async with asyncio.timeout(20):
            await bench.ended.wait()
        assert (task.error, task.result) == (None, {"said": True})

    run(contained, tmp_path, body)


def test_stdin_that_nobody_reads_blocks_nothing(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        assert await bench.outcome("true", payload={"data": "x" * (5 << 20)}) == (None, {})
        bench.ended.clear()
        await bench.start("sleep", "1000", payload={"data": "x" * (5 << 20)})
        begun_s = time.monotonic()
        await asyncio.sleep(0)
        assert time.monotonic() - begun_s < 1

    run(contained, tmp_path, body)


def test_flood_is_the_tasks_own_fault(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        error, result = await bench.outcome("sh", "-c", "trap '' TERM; yes & yes", max_result_mb=0.5)
        assert error == "result: larger than 0.5 MiB (max_result_mb)"
        assert result == {}
        bench.ended.clear()
        error, result = await bench.outcome("sh", "-c", "yes >&2 & sleep 0.3; exit 1")
        assert error == "exit: code 1"
        assert len(result["stderr"]) <= 8192

    run(contained, tmp_path, body)


def test_born_with_little_and_last_in_line(contained: Containment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTROL_TOKEN", SECRET)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    code = """
import json, os, resource, signal
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(json.dumps({
    "env": dict(os.environ), "cwd": os.getcwd(), "nice": os.nice(0), "umask": os.umask(0), "nnp": status["NoNewPrivs"],
    "idle": os.sched_getscheduler(0) == os.SCHED_IDLE, "oom": open("/proc/self/oom_score_adj").read().strip(),
    "core": resource.getrlimit(resource.RLIMIT_CORE)[0], "fds": sorted(os.listdir("/proc/self/fd"), key=int)[:-1],
    "ignored": int(status["SigIgn"], 16) & (1 << 14 | 1 << 1 | 1 << 0), "blocked": int(status["SigBlk"], 16),
    "leader": os.getsid(0) == os.getpid() == os.getpgid(0), "mode": oct(os.stat(".").st_mode & 0o777),
}))
"""

    async def body(bench: Bench) -> None:
        error, born = await bench.outcome(*py(code), env={"TYPE": "t"})
        assert error is None, born
        env = born.pop("env")
        env.pop("LC_CTYPE", None)  # the interpreter's own coercion
        assert env.pop("RAE_NODE_TASK").endswith(bench.folder.name)
        folder = str(bench.folder)
        assert env == {
            "PATH": os.environ["PATH"], "LANG": os.environ.get("LANG", "C.UTF-8"), "HOME": folder, "TMPDIR": folder,
            "RAE_TASK_ID": "id-1", "RAE_TASK_TYPE": "kind", "TYPE": "t", "USER": "rae-task", "LOGNAME": "rae-task",
            **NO_CUDA,
        }  # fmt: skip
        assert born == {
            "cwd": folder, "nice": 19, "umask": 0o077, "nnp": "1", "idle": os.geteuid() == 0, "oom": "1000",
            "core": 1, "fds": ["0", "1", "2"], "ignored": 0, "blocked": 0, "leader": True, "mode": "0o700",
        }  # fmt: skip

    run(contained, tmp_path, body)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    ("uid", "born"),
    [(0, (os.SCHED_IDLE, 19, psutil.IOPRIO_CLASS_NONE)), (65534, (os.SCHED_OTHER, 19, psutil.IOPRIO_CLASS_IDLE))],
    ids=["may go back up", "may not"],
)
def test_last_in_line_for_processor_and_disk(uid: int, born: tuple[int, int, int]) -> None:
    """SCHED_IDLE alone is the idle I/O class too, as long as none is set (block/ioprio.c)."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_NICE, (0, 0))
        os.setresuid(uid, uid, uid)
        shim.be_polite()
        found = os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0), int(psutil.Process().ionice().ioclass)
        os.write(writer, json.dumps(found).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as found:
        assert tuple(json.load(found)) == born
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("argv", "fields", "reason"),
    [
        (["no-such-command"], {}, "no-such-command: No such file or directory"),
        (["/dev/null"], {}, "/dev/null: Permission denied"),
        ([], {}, "tasks.kind.argv is empty; name the command in node.yaml"),
        (["docker", "run", "x"], {}, f"tasks.kind.argv: {daemon_client(['docker'])}"),
        (["true"], {"env": {"A=B": ""}}, "true: ValueError: illegal environment variable name"),
        (["true"], {"payload": {"a": object()}}, "the payload cannot be written as JSON (TypeError)"),
    ],
)
def test_does_not_start(contained: Containment, tmp_path: Path, argv: list[str], fields: dict[str, Any], reason: str) -> None:
    async def body(bench: Bench) -> None:
        with pytest.raises(StartFailed) as failed:
            await bench.start(*argv, **fields)
        assert str(failed.value) == reason
        assert not bench.ended.is_set()

    run(contained, tmp_path, body)


def test_a_start_given_up_leaves_nothing(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        starting = asyncio.create_task(bench.start("sleep", "1000"))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await until_async(lambda: not bench.folder.exists(), what="the shim has wiped")

    run(contained, tmp_path, body)


def test_a_start_that_hangs_is_given_up(contained: Containment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_process, "START_LIMIT_S", 0.2)
    monkeypatch.setattr(command_process, "_SHIM", "import time; time.sleep(1000)")

    async def body(bench: Bench) -> None:
        with pytest.raises(StartFailed, match="not started within 0 s"):
            await bench.start("true")

    run(contained, tmp_path, body)


def test_a_stop_with_grace_lets_it_end_itself(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        goodbye = "trap 'printf %s \"$SAVED\"; exit 0' TERM; touch up; while :; do sleep 0.01; done"
        task = await bench.start("sh", "-c", goodbye, env={"SAVED": '{"saved": 1}'})
        await until_async((bench.folder / "up").exists)
        rungs = await task.stop(10)
        assert [rung.name for rung in rungs] == ["frozen", "term", "gone"]
        assert (task.error, task.result) == (None, {"saved": 1})
        assert bench.ended.is_set()
        assert await task.stop(10) == rungs  # again: nothing to do

    run(contained, tmp_path, body)


@pytest.mark.parametrize("grace_s", [0.0, 0.2])
def test_stop_empties_a_nasty_tree(contained: Containment, tmp_path: Path, grace_s: float) -> None:
    async def body(bench: Bench) -> None:
        task, workers = await nasty(bench, tmp_path / "out", 20)
        await until_async(lambda: set(workers) <= task.pids())
        used_s = task.cpu_s()
        begun_s = time.monotonic()
        rungs = await task.stop(grace_s)
        took_s = time.monotonic() - begun_s
        assert not [pid for pid in workers if alive(pid)]
        assert grace_s <= took_s < grace_s + 3
        assert rungs[0].name is RungName.FROZEN
        assert task.error == "signal: 9 (SIGKILL)"
        assert task.cpu_s() >= used_s > 0

    run(contained, tmp_path, body)


@pytest.mark.parametrize("then", ["stop", "kill"])
def test_freeze_stops_all_and_thaw_lets_go_on(contained: Containment, tmp_path: Path, then: str) -> None:
    out = tmp_path / "out"

    def counters() -> list[str]:
        return [(out / str(pid)).read_text() for pid in pids_in(out)]

    async def body(bench: Bench) -> None:
        task, _ = await nasty(bench, out, 12)
        await until_async(lambda: all(counters()))
        for _ in range(3):
            assert re.fullmatch(r"frozen \d+ ms", describe(await task.freeze()))
            before, used_s = counters(), task.cpu_s()
            await asyncio.sleep(0.1)
            assert counters() == before
            assert task.cpu_s() - used_s < 0.05
            assert re.fullmatch(r"thawed \d+ ms", describe(await task.thaw()))
            await until_async(lambda: all(a != b for a, b in zip(counters(), before, strict=True)), what="all run on")  # noqa: B023
        assert describe(await task.thaw()) == "was not frozen"
        if os.geteuid() == 0:  # as last in line as it was born
            assert {os.sched_getscheduler(pid) for pid in pids_in(out)} == {os.SCHED_IDLE}
        await task.freeze()
        assert (await task.stop(0.2 if then == "stop" else 0))[0].name is RungName.FROZEN
        assert not [pid for pid in pids_in(out) if alive(pid)]
        assert describe(await task.thaw()) == "gone already"
        with pytest.raises(FreezeFailed, match="it is gone already"):
            await task.freeze()

    run(contained, tmp_path, body)


def test_a_task_that_is_being_stopped_is_not_thawed(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        task = await bench.start("sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.01; done")
        await until_async((bench.folder / "up").exists)
        await task.freeze()
        stopping = asyncio.create_task(task.stop(0.5))
        await asyncio.sleep(0.05)
        with pytest.raises(FreezeFailed, match="it is being stopped"):
            await task.freeze()
        assert describe(await task.thaw()) == "it is being stopped"
        await stopping
        assert not task.alive

    run(contained, tmp_path, body)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_freeze_without_a_shim_fails_with_a_reason(
    contained: Containment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blow: signal.Signals
) -> None:
    monkeypatch.setattr(command_process, "ANSWER_LIMIT_S", 0.3)

    async def body(bench: Bench) -> None:
        task = await bench.start("sleep", "1000")
        os.kill(task._shim.pid, blow)
        with pytest.raises(FreezeFailed, match=r"its shim (was killed|did not answer)|it ended|it is gone"):
            await task.freeze()
        with contextlib.suppress(ProcessLookupError):
            os.kill(task._shim.pid, signal.SIGCONT)

    run(contained, tmp_path, body)


def test_a_tree_is_frozen_before_its_shim_runs(contained: Containment, tmp_path: Path) -> None:
    if not isinstance(contained, CgroupContainment):
        pytest.skip("the order is read from the cgroup")

    async def body(bench: Bench) -> None:
        task = await bench.start("sh", "-c", "trap 'echo bye >&2; exit 3' TERM; touch up; while :; do sleep 0.01; done")
        await until_async((bench.folder / "up").exists)
        os.kill(task._shim.pid, signal.SIGSTOP)
        frozen = Path(task._launch.cgroup or "", "cgroup.freeze")
        stopping = asyncio.ensure_future(task.stop(20))
        await until_async(lambda: frozen.read_text() == "1\n", what="the order")
        os.kill(task._shim.pid, signal.SIGCONT)
        assert RungName.TERM in {rung.name for rung in await stopping}
        assert task.error == "exit: code 3"

    run(contained, tmp_path, body)


def test_a_later_order_leaves_a_tree_running_that_is_ending(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        work = "trap 'touch bye; while ! test -e end; do sleep 0.01; done; exit 3' TERM; touch up; while :; do sleep 0.01; done"
        task = await bench.start("sh", "-c", work)
        await until_async((bench.folder / "up").exists)
        stopping = asyncio.ensure_future(task.stop(30))
        await until_async((bench.folder / "bye").exists)
        again = asyncio.ensure_future(task.stop(25))
        await asyncio.sleep(0)
        (bench.folder / "end").touch()
        await stopping
        await again
        assert task.error == "exit: code 3"

    run(contained, tmp_path, body)


def test_a_freeze_given_up_does_not_confuse_the_next(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        task = await bench.start("sleep", "1000")
        given_up = asyncio.create_task(task.freeze())
        await asyncio.sleep(0)
        given_up.cancel()
        assert (await task.thaw()).name is RungName.THAWED
        assert (await task.freeze()).name is RungName.FROZEN

    run(contained, tmp_path, body)


def test_hoppers_are_caught(contained: Containment, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    async def body(bench: Bench) -> None:
        task = await bench.start(*command("hoppers", "10", str(out)))
        await until_async(lambda: len(pids_in(out)) == 10)
        await task.stop(0)
        assert not task.alive
        assert not marked_with(f"RAE_NODE_TASK={bench.tasks[0]._launch.mark}")

    run(contained, tmp_path, body)


def test_concurrent_stops_take_the_shortest_grace(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        task = await bench.start("sh", "-c", "trap '' TERM; touch up; while :; do sleep 0.01; done")
        await until_async((bench.folder / "up").exists)
        begun_s = time.monotonic()
        polite = asyncio.create_task(task.stop(60))
        await asyncio.sleep(0.1)
        answers = await asyncio.gather(polite, task.stop(0), task.stop(30))
        assert time.monotonic() - begun_s < 10
        assert len(set(answers)) == 1

    run(contained, tmp_path, body)


def test_stop_while_it_ends_by_itself(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        for delay_ms in range(8):
            bench.ended.clear()
            task = await bench.start("sh", "-c", "sleep 0.004; echo '{}'")
            await asyncio.sleep(delay_ms / 1000)
            await task.stop(5)
            assert not task.alive
            assert bench.ended.is_set()
            bench.work.wipe(bench.folder)

    run(contained, tmp_path, body)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_task_that_attacks_its_shim(
    contained: Containment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blow: signal.Signals
) -> None:
    monkeypatch.setattr(command_process, "ANSWER_LIMIT_S", 0.3)

    async def body(bench: Bench) -> None:
        task, workers = await nasty(bench, tmp_path / "out", 8)
        os.kill(task._shim.pid, blow)
        if blow == signal.SIGSTOP:
            assert await task.stop(0) == (Rung(RungName.CLEARED, detail="its shim did not answer"),)
        async with asyncio.timeout(10):
            await bench.ended.wait()
        assert task.error == f"lost: stopped, for its shim {'was killed' if blow == signal.SIGKILL else 'did not answer'}"
        assert not [pid for pid in workers if alive(pid)]

    run(contained, tmp_path, body)


def test_what_cannot_be_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(bench: Bench) -> None:
        task = await bench.start("sleep", "1000")
        stopping = asyncio.create_task(task.stop(60))
        await asyncio.sleep(0)
        task._handle({"left": ["77 (state D)"], "rungs": [["frozen", 0.001], ["kill", 0.003]]})
        with pytest.raises(StopFailed, match=r"still alive after the kill: 77 \(state D\) \(frozen 1 ms, kill 3 ms\)"):
            await stopping
        assert task.alive

    run(TreeContainment("by choice"), tmp_path, body)


@pytest.mark.parametrize(
    "older",
    ["shim._SYS_CLONE3 = 9999", "shim.process_tree._children = lambda pid: open('/nothing')"],
    ids=["clone3", "children"],
)
def test_on_a_kernel_without(contained: Containment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: str) -> None:
    patched = f"from supervisor.tasks.process import shim; {older}; main("
    monkeypatch.setattr(command_process, "_SHIM", command_process._SHIM.replace("main(", patched, 1))

    async def body(bench: Bench) -> None:
        task, workers = await nasty(bench, tmp_path / "out", 6)
        assert set(workers) <= task.pids()
        assert (await task.stop(0))[0].name is RungName.FROZEN
        assert not [pid for pid in workers if alive(pid)]

    run(contained, tmp_path, body)


def test_nothing_of_payload_or_result_reaches_a_command_line(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        task = await bench.start("sh", "-c", "cat > /dev/null; sleep 1000", payload={"key": SECRET}, env={"TOKEN": SECRET})
        for pid in [*task.pids(), task._shim.pid]:
            assert SECRET not in Path(f"/proc/{pid}/cmdline").read_text()
        assert SECRET not in Path(f"/proc/{task._shim.pid}/environ").read_text()
        assert json.loads(json.dumps(dict(task.result))) == {}

    run(contained, tmp_path, body)
