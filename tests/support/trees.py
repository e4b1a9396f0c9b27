"""Process trees that a supervisor must get hold of, and a stand-in for the daemon that starts them.

Run as a program: `trees.py nasty COUNT FOLDER [SECONDS]`, `trees.py hoppers COUNT FOLDER`, and
`trees.py daemon {cgroup|tree|detect} ROOT GRACE TYPE…` (GRACE `-`: start and wait to be killed).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY = 65534


def until(condition: Callable[[], bool], limit_s: float = 30.0, what: str = "the condition") -> None:
    """Wait until it holds; fail after `limit_s` seconds."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come true within {limit_s} s"
        time.sleep(0.005)


async def until_async(condition: Callable[[], bool], limit_s: float = 30.0, what: str = "the condition") -> None:
    """The same on the loop."""
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"{what} did not come true within {limit_s} s"
        await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    """It exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def pids_in(folder: Path) -> list[int]:
    """The workers that a tree has noted in its folder."""
    return [int(path.name) for path in folder.iterdir() if path.name.isdigit()]


def marked_with(text: str) -> list[int]:
    """The living processes with this text in the environment they were started with, whoever's they are."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                hit = text.encode() in (entry / "environ").read_bytes()
            except OSError:
                continue
            if hit and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


@dataclass(frozen=True)
class Plain:
    """An interpreter that a plain user can start, with this file, the project and its dependencies in reach."""

    python: str
    path: str  # this file
    libraries: str

    @property
    def environment(self) -> dict[str, str]:
        """What the interpreter needs to find them."""
        repository = Path(self.path).parents[2]
        return {"PATH": os.defpath, "PYTHONPATH": f"{repository}:{self.libraries}", "PYTHONDONTWRITEBYTECODE": "1"}

    def command(self, *words: str) -> list[str]:
        """The argv for one of this file's programs."""
        return [self.python, self.path, *words]

    def works(self) -> bool:
        """A plain user can start it."""
        argv = [self.python, "-c", f"import supervisor.tasks.executors.command; open({self.path!r})"]
        try:
            return not subprocess.run(
                argv, env=self.environment, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True, timeout=30
            ).returncode
        except OSError:
            return False


OURS = Plain(sys.executable, str(Path(__file__).resolve()), sysconfig.get_path("purelib"))


def command(*words: str) -> list[str]:
    """The argv for one of this file's programs, for ourselves."""
    return OURS.command(*words)


def plain(folder: Path) -> Plain | None:
    """Ours where a plain user can reach it; else a copy in `folder`, for a checkout below a home that is closed to others.
    None: no interpreter can be started."""
    pythons = dict.fromkeys((sys.executable, os.path.realpath(sys.executable), "/usr/bin/python3"))
    found = [Plain(python, OURS.path, OURS.libraries) for python in pythons]
    copied = folder / "tests" / "support" / Path(OURS.path).name
    found += [Plain(python, str(copied), str(folder / "libraries")) for python in pythons]
    for candidate in found:
        if candidate.path == str(copied) and not copied.exists():
            folder.chmod(0o755)
            for name in ("supervisor", "states"):
                shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copytree(REPOSITORY / "tests" / "support", copied.parent, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copytree(f"{OURS.libraries}/msgspec", folder / "libraries" / "msgspec")
        if candidate.works():
            return candidate
    return None


def _nasty(count: int, folder: str, seconds: float) -> None:
    """Workers that count in a file; every other one is double-forked into a session of its own. All ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # before the first worker can be seen
    for number in range(count):
        if os.fork() == 0:
            if number % 2:
                between = os.getpid()
                os.setsid()
                if os.fork():
                    os._exit(0)
                while os.getppid() == between:  # who sees it finds it at its subreaper, not on the way there
                    time.sleep(0.001)
            path = f"{folder}/{os.getpid()}"
            with open(path, "w") as file:
                while True:
                    file.seek(0)
                    file.write(repr(time.monotonic()))
                    file.flush()
                    sum(range(3000))
                    time.sleep(0.002)  # the machine is shared, and the tree at idle priority
    time.sleep(seconds)
    print("{}")


def _hoppers(count: int, folder: str) -> None:
    """Chains of processes of which each does nothing but fork and end: no list of pids is ever right."""
    for _ in range(count):
        if os.fork() == 0:
            os.setsid()
            Path(folder, str(os.getpid())).touch()
            while True:
                if os.fork():
                    os._exit(0)
    signal.pause()


async def _daemon(kind: str, root: str, grace: str, argv: list[str]) -> None:
    """Start a command as the daemon does; then stop it, or hold it until somebody kills us."""
    from supervisor.config.schema import TaskType
    from supervisor.sources.base import Claim
    from supervisor.tasks.executors.base import describe
    from supervisor.tasks.executors.command import CommandExecutor
    from supervisor.tasks.process import containment
    from supervisor.tasks.workdir import Workdir

    contained = containment.TreeContainment("by order") if kind == "tree" else containment.detect()
    assert kind == "detect" or isinstance(contained, containment.TreeContainment) == (kind == "tree"), contained.summary()
    workdir = Workdir(Path(root)).fresh("one")
    task = await CommandExecutor(TaskType(argv=argv), contained).start(Claim("one", "nasty"), workdir, lambda: None)
    print(json.dumps({"workdir": str(workdir), "contained": contained.summary()}), flush=True)
    if grace == "-":
        await asyncio.sleep(3600)
    await asyncio.to_thread(sys.stdin.readline)  # the test says when the tree stands
    pids = sorted(task.pids())
    rungs = describe(*await task.stop(float(grace)))
    print(json.dumps({"rungs": rungs, "pids": pids, "error": task.error, "cpu_s": task.cpu_s()}), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["nasty", count, folder, *rest]:
            _nasty(int(count), folder, float(rest[0]) if rest else 3600.0)
        case ["hoppers", count, folder]:
            _hoppers(int(count), folder)
        case ["daemon", kind, root, grace, *argv]:
            asyncio.run(_daemon(kind, root, grace, argv))
        case _:
            sys.exit(2)
