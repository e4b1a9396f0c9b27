"""Shell commands: only where they were let in, in the wire contract's form, failures as failures (R2, R4, R6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.task_bench import Bench, contained, run
from support.trees import until_async

from supervisor.tasks.executors.base import StartFailed
from supervisor.tasks.executors.shell import ShellExecutor
from supervisor.tasks.process import sandbox
from supervisor.tasks.process.bubblewrap import Found
from supervisor.tasks.process.containment import Containment, TreeContainment

__all__ = ["contained"]
SECRET = "sentinel-4711"
HERE = sandbox.look()
BOXED: dict[str, Any] = {"executor": "shell_command"}
sandboxed = pytest.mark.skipif(bool(HERE.bubblewrap.fault), reason=HERE.bubblewrap.fault)


def done(code: int | None = 0, out: str = "", err: str = "") -> dict[str, Any]:
    return {"status": "error" if code else "success", "returncode": code, "stdout": out, "stderr": err}


OUTCOMES = [
    ({"command": "echo héllo; echo oh >&2"}, None, done(0, "héllo\n", "oh")),
    ({"command": "exit 3"}, "exit: code 3", done(3)),
    ({"command": "kill -9 $$"}, "signal: 9 (SIGKILL)", done(-9)),
    ({"command": "no-such-command-4711 2>/dev/null"}, "exit: code 127", done(127)),
    ({"command": "echo 'an unclosed quote\" 2>/dev/null"}, "exit: code 2", None),
    ({"command": "printf 'a\\377b'"}, None, done(0, "a\ufffdb")),
    ({"command": "printf '[1'"}, None, done(0, "[1")),
    ({"command": "cat; read x || echo nothing"}, None, done(0, "nothing\n")),
    ({"command": "echo $A $PATH | cut -c1-3; env | grep -c RAE_CO", "env": {"A": "b", "PATH": "/"}}, "exit: code 1",
     done(1, "b /\n0\n")),
    ({"command": "basename $PWD; cd ..; ls", "cwd": "x/y"}, None, done(0, "y\ny\n")),
]  # fmt: skip


@sandboxed
@pytest.mark.parametrize(("payload", "error", "result"), OUTCOMES)
def test_outcome(contained: Containment, tmp_path: Path, payload: Any, error: str | None, result: Any) -> None:
    async def body(bench: Bench) -> None:
        bench.make, contained.offer = ShellExecutor, HERE
        said, got = await bench.outcome(payload=payload, allow_any_command=True, **BOXED)
        assert said == error
        assert result is None or got == result

    run(contained, tmp_path, body)


REFUSED = [
    ({}, "bad payload: it has no command"),
    ({"command": " "}, "bad payload: it has no command"),
    ({"command": ["ls"]}, "bad payload: it has no command"),
    ({"command": "a\0b"}, "bad payload: its command holds a NUL"),
    ({"command": "x" * 120_001}, "bad payload: its command is longer than 120000 bytes"),
    ({"command": "ls", "cwd": "/etc"}, "bad payload: its cwd is not a folder below"),
    ({"command": "ls", "cwd": "../other"}, "bad payload: its cwd is not a folder below"),
    ({"command": "ls", "cwd": 7}, "bad payload: its cwd is not a folder below"),
    ({"command": "ls", "cwd": SECRET * 30}, "bad payload: its cwd cannot be made"),
    ({"command": "ls", "cwd": "x/" * 3000}, "bad payload: its cwd cannot be made"),
    ({"command": "ls", "cwd": "x\ud800"}, "bad payload: its cwd is not a folder below"),
    ({"command": "echo \ud800"}, "bad payload: its command holds a NUL, or half a character"),
    ({"command": "ls", "env": {"A": "\ud800"}}, "bad payload: its env is not an object of names and texts"),
    ({"command": "ls", "env": ["A=b"]}, "bad payload: its env is not an object"),
    ({"command": "ls", "env": {"A": 1}}, "bad payload: its env is not an object of names and texts"),
    ({"command": "ls", "env": {"A=": "1"}}, "bad payload: its env is not an object of names and texts"),
]


@pytest.mark.parametrize(("payload", "reason"), REFUSED)
def test_what_makes_no_sense_is_not_started(tmp_path: Path, payload: Any, reason: str) -> None:
    async def body(bench: Bench) -> None:
        bench.make = ShellExecutor
        with pytest.raises(StartFailed) as failed:
            await bench.start(payload=payload, allow_any_command=True, **BOXED)
        assert str(failed.value).startswith(reason)
        assert SECRET not in str(failed.value)

    run(TreeContainment("by choice"), tmp_path, body)


@sandboxed
def test_off_unless_let_in_and_never_on_a_command_line(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        bench.make, contained.offer = ShellExecutor, HERE
        with pytest.raises(StartFailed, match=r"shell commands are off on this node \(tasks.kind.allow_any_command\)"):
            await bench.start(payload={"command": "true"})
        await bench.start(payload={"command": f": {SECRET}; sleep 1000 & touch up; wait"}, allow_any_command=True, **BOXED)
        await until_async((bench.folder / "up").exists)
        await until_async(lambda: len(bench.tasks[0].pids()) == 4)  # two of them bubblewrap's
        pids = [*bench.tasks[0].pids(), bench.tasks[0]._shim.pid]

        def sleepers() -> list[int]:
            return [pid for pid in pids if Path(f"/proc/{pid}/comm").read_text() == "sleep\n"]

        await until_async(lambda: bool(sleepers()))
        for pid in pids:
            assert SECRET not in Path(f"/proc/{pid}/cmdline").read_text()
        assert SECRET.encode() not in Path(f"/proc/{sleepers()[0]}/environ").read_bytes()

    run(contained, tmp_path, body)


@pytest.mark.parametrize(("setting", "reason"), [
    ("none", "shell_command needs a sandbox (sandbox: none)"),
    ("auto", "shell_command needs a sandbox (this node does not run as the installed service; bubblewrap is not here: "),
    ("bubblewrap", "sandbox: bubblewrap is not here: install it"),
    ("unit", "sandbox: unit: this node does not run as the installed service: install it with deploy/install"),
])  # fmt: skip
def test_without_a_sandbox_no_command_is_started(tmp_path: Path, setting: Any, reason: str) -> None:
    contained = TreeContainment("by choice")
    contained.offer = sandbox.Offer(bubblewrap=Found("bubblewrap is not here: install it (apt-get install bubblewrap)"))

    async def body(bench: Bench) -> None:
        bench.make = ShellExecutor
        with pytest.raises(StartFailed) as failed:
            await bench.start(payload={"command": "true"}, allow_any_command=True, sandbox=setting, **BOXED)
        assert str(failed.value).startswith(reason)

    run(contained, tmp_path, body)
