"""Hostile tasks in bubblewrap: the whole table of tests/support/attacks.py, and ways to outlive a stop (R2, R4, R6)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import attacks
from support.task_bench import Bench, contained, run
from support.trees import until_async
from support.waiting import until

from supervisor.config.schema import Notice
from supervisor.tasks.process import landlock, sandbox
from supervisor.tasks.process.containment import Containment, TreeContainment
from supervisor.tasks.process.rungs import RungName

__all__ = ["contained"]
HERE = sandbox.look()
pytestmark = [pytest.mark.skipif(bool(HERE.bubblewrap.fault), reason=HERE.bubblewrap.fault)]
PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]
# Of this run alone: others may try the same attacks meanwhile.
LEFT = f"{attacks.LEFT}-{os.getpid()}"
SOURCE = Path(attacks.__file__).read_text().replace(f'"{attacks.LEFT}"', f'"{LEFT}"')
SECRET = "sentinel-4711"
RINGS = (-3, -4)  # of the session, of the user
_LIBC = ctypes.CDLL(None, use_errno=True)


def processes_left() -> list[int]:
    """Processes of any user that an attack has left."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found += [int(name)] if LEFT.encode() in Path(f"/proc/{name}/cmdline").read_bytes() else []
    return found


class Target:
    """A node's own files, sockets and keys, and another program: all of this user, and below a path that tasks may read."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.own = [base / name for name in ("agent", "state", "logs", "run", "work")]
        for folder in self.own:
            folder.mkdir()
        self.files = {base / "agent/node.yaml": SECRET, base / "agent/key": SECRET, base / "state/in-flight.json": "{}",
                      base / "logs/decisions.jsonl": SECRET}  # fmt: skip
        for path, text in self.files.items():
            path.write_text(text)
        (base / "work" / "another").mkdir()
        (base / "work" / "another" / "file").write_text(SECRET)
        self.sockets = [self._listen(str(base / "run/control.sock")), self._listen(f"\0{base}/.X11-unix/X0")]
        self.server = socket.create_server(("127.0.0.1", 0))
        self.victim = subprocess.Popen(["sleep", "1000"], env={"TOKEN": SECRET})
        _LIBC.syscall(attacks._KEYCTL, 1, None)
        key = (b"user", b"rae-attack", SECRET.encode(), len(SECRET))
        self.keys = [int(_LIBC.syscall(attacks._ADD_KEY, *key, ring)) for ring in RINGS]

    def _listen(self, address: str) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.bind(address)
        made.listen()
        return made

    def world(self) -> dict[str, Any]:
        """What the attacks are told."""
        cgroup = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
        return {
            "cgroups": [f"{mount}{cgroup}" for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")],
            "control": [str(self.base / "run/control.sock")], "sockets": [str(self.base / "run/control.sock")],
            "uid": os.getuid(),
            "abstract": [f"{self.base}/.X11-unix/X0"], "key_name": "rae-attack", "keys": [key for key in self.keys if key > 0],
            "pids": [os.getpid(), self.victim.pid], "secrets": [str(path) for path in self.files], "secret": SECRET,
            "large": ["/opt", "/srv"], "folders": [str(folder) for folder in self.own[:-1]],
            "files": [str(path) for path in self.files], "workroot": str(self.base / "work"), "homes": [str(Path.home())],
            "port": self.server.getsockname()[1],
        }  # fmt: skip

    def check(self) -> None:
        """Everything is as it was."""
        assert {path: path.read_text() for path in self.files} == self.files
        assert all(folder.stat().st_mode & 0o700 == 0o700 for folder in self.own)
        assert self.victim.poll() is None
        assert os.getpriority(os.PRIO_PROCESS, self.victim.pid) == os.getpriority(os.PRIO_PROCESS, 0)
        assert resource.prlimit(self.victim.pid, resource.RLIMIT_NOFILE) == resource.getrlimit(resource.RLIMIT_NOFILE)

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()
        for made in (*self.sockets, self.server):
            made.close()
        for key, ring in zip(self.keys, RINGS, strict=True):
            _LIBC.syscall(attacks._KEYCTL, 9, key, ring)


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "network"])
def tried(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, Any], bool]]:
    """What came of every attack, and whether the task had the network. Not in /tmp, which the task has for itself."""
    if request.param and landlock.abi() < 6:
        pytest.skip("with the network, abstract sockets are open before Linux 6.12")
    target = Target(Path(tempfile.mkdtemp(prefix="rae-attacks-", dir="/var/tmp")))
    found: dict[str, Any] = {}

    async def body(bench: Bench) -> None:
        bench.contained.offer = sandbox.Offer(bubblewrap=HERE.bubblewrap, hidden=tuple(map(str, target.own)))
        fields = {"sandbox_read": [str(target.base)], "sandbox_network": request.param, "max_processes": 100}
        error, result = await bench.outcome(*PYTHON, SOURCE, sandbox="bubblewrap", payload=target.world(), **fields)
        assert error is None, result
        found.update(result)
        assert not processes_left()
        bench.work.wipe(bench.folder)

    try:
        run(TreeContainment("by choice"), target.base, body)
        target.check()
        yield found, request.param
    finally:
        target.close()
        shutil.rmtree(target.base)


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_it_gets_nowhere(tried: tuple[dict[str, Any], bool], name: str) -> None:
    found, network = tried
    if network and name == "uses the network":
        pytest.skip("that is what it may do")
    assert [f"{what}: {came}" for what, came in found[name].items() if came.startswith(attacks.DONE)] == []


def test_nothing_is_left_on_the_machine(tried: tuple[dict[str, Any], bool]) -> None:
    """What it wrote, it wrote into its own memory, which is gone."""
    found, _ = tried
    paths = [what.partition(" (")[0] for what in found["leaves files in every folder that can be written"]]
    assert len(paths) > 15
    assert [path for path in paths if os.path.lexists(path)] == []
    assert (_LIBC.shmget(attacks.KEY, 0, 0), _LIBC.semget(attacks.KEY, 0, 0), _LIBC.msgget(attacks.KEY, 0)) == (-1, -1, -1)
    assert _LIBC.mq_open(f"/{LEFT}".encode(), os.O_RDONLY) == -1
    until(lambda: LEFT not in Path("/proc/keys").read_text(), "the kernel has removed the keys with their namespace")


SLEEP = f"import time; open('up', 'w').close(); time.sleep(1000)  # {LEFT}"
BOMB = f"""
import os, sys, time
open('up', 'w').close()
code = "import os, time; os.setsid(); os.fork(); time.sleep(1000)  # {LEFT}"
while True:
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-ISc", code], {{}})
    time.sleep(0.05)
"""
DEAF = f"""
import os, signal
for n in range(1, 32):
    n in (9, 17, 19) or signal.signal(n, signal.SIG_IGN)
os.fork() or os.setsid()
{SLEEP}
"""
KILLS, STOPS = (SLEEP.replace("time.sleep", f"os.kill({to}); time.sleep") for to in ("-1, 9", "os.getpid(), 19"))
OUTLIVES = {
    "forks without end, in new sessions and without environment": BOMB,
    "is deaf to every signal, and so are its children": DEAF,
    "kills the first process of its sandbox": f"import os\nfor n in (15, 19, 9):\n    os.kill(1, n)\n{SLEEP}",
    "kills all that it can": f"import os\nos.fork() or os.setsid()\n{KILLS}",
    "traces and stops the first process of its sandbox": f"import ctypes\nctypes.CDLL(None).ptrace(16, 1, None, None)\n{SLEEP}",
    "makes namespaces of its own": f"import ctypes\nctypes.CDLL(None).unshare(0x10000000 | 0x20000000)\n{SLEEP}",
    "stops itself and its children": f"import os\nos.fork()\n{STOPS}",
}


@pytest.mark.parametrize("name", OUTLIVES)
def test_it_does_not_outlive_its_stop(contained: Containment, tmp_path: Path, name: str) -> None:
    grace_s = 0.0 if isinstance(contained, TreeContainment) else 0.3

    async def body(bench: Bench) -> None:
        contained.offer = HERE
        task = await bench.start(*PYTHON, OUTLIVES[name], sandbox="bubblewrap")
        await until_async((bench.folder / "up").exists)
        await asyncio.sleep(0.1)
        rungs = await task.stop(grace_s)
        assert rungs[-1].name in (RungName.GONE, RungName.ENDED_ITSELF, RungName.GONE_ALREADY)
        assert not task.alive
        assert not processes_left()
        bench.work.wipe(bench.folder)

    run(contained, tmp_path, body)


STATES = {
    "a pipe": "os.mkfifo('rae-state.json')",
    "a link to the machine's files": "os.symlink('/etc/passwd', 'rae-state.json')",
    "a link to nothing": "os.symlink('/nowhere', 'rae-state.json')",
    "a folder": "os.mkdir('rae-state.json')",
    "too much": "open('rae-state.json', 'w').write('1' * 70000)",
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_a_saved_state_that_is_no_plain_file_is_not_read(tmp_path: Path, name: str) -> None:
    code = f"import os, signal, time\nsignal.signal(10, lambda *_: {STATES[name]})\n{SLEEP}"

    async def body(bench: Bench) -> None:
        bench.contained.offer = HERE
        task = await bench.start(*PYTHON, code, sandbox="bubblewrap", notice=Notice("USR1", 1.0))
        await until_async((bench.folder / "up").exists)
        rungs = [rung.name for rung in await task.stop(2)]
        assert rungs[:2] == [RungName.FROZEN, RungName.NOTICE]
        assert task.state is None
        bench.work.wipe(bench.folder)

    run(TreeContainment("by choice"), tmp_path, body)
