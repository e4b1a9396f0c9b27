"""Run as root inside `support.uml`: what a task may do where its service has the cgroup v2 controllers. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from supervisor.config.schema import TaskType
from supervisor.sources.base import Claim
from supervisor.tasks.executors.command import CommandExecutor
from supervisor.tasks.process.command_process import CommandTask
from supervisor.tasks.process.containment import CgroupContainment, detect

ROOT = Path("/sys/fs/cgroup")
PROCESSES = 12  # of the tree that is frozen
BURN = "while True: pass"
MANY = "import os\nfor _ in range({}):\n    if os.fork() == 0: break\nopen(str(os.getpid()), 'w').close()\nwhile True: pass"
HOG = "kept = [bytearray(1 << 20) for _ in range(400)]"
# A shell: the emulated kernel forks it quicker than Python. The first fork that is refused ends the inner one.
BOMB = """
mkfifo wait; exec 3<>wait
(n=0; while [ $n -lt 3000 ]; do echo $n > count; read x <&3 & n=$((n + 1)); done) 2> /dev/null
read n < count
echo "{\\"born\\": $n, \\"refused\\": $((n < 2999))}"
"""


def py(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def delegate(name: str, user: int) -> str:
    """A cgroup as systemd gives it to a service with Delegate=yes."""
    path = ROOT / name
    path.mkdir()
    for file in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(path / file, user, user)
    os.setxattr(path, "trusted.delegate", b"1")
    (path / "cgroup.procs").write_text(str(os.getpid()))
    return str(path)


class Held:
    """Starts tasks and looks at their cgroups."""

    def __init__(self, held: CgroupContainment) -> None:
        self.held = held
        self.root = Path(tempfile.gettempdir(), "work")
        self.ended = asyncio.Event()
        self.count = 0

    async def start(self, code: str | list[str], **fields: Any) -> CommandTask:
        self.ended.clear()
        self.count += 1
        folder = self.root / f"task-{self.count}"
        folder.mkdir(parents=True)
        executor = CommandExecutor(TaskType(argv=py(code) if isinstance(code, str) else code, **fields), self.held)
        return await executor.start(Claim(f"id-{self.count}", "kind", {}), folder, self.ended.set)

    def file(self, task: CommandTask, name: str) -> str:
        return Path(f"{task._launch.cgroup}/{name}").read_text().strip()

    async def outcome(self, code: str, **fields: Any) -> str | None:
        task = await self.start(code, **fields)
        async with asyncio.timeout(200):
            await self.ended.wait()
        return task.error


async def limits(held: Held) -> dict[str, Any]:
    found: dict[str, Any] = {"memory": await held.outcome(HOG, max_memory_gb=0.0625)}
    task = await held.start("import time; time.sleep(1000)", max_memory_gb=0.5, max_processes=300)
    names = ("memory.max", "memory.oom.group", "pids.max", "cpu.max", "cpu.idle")
    found["files"] = {name: held.file(task, name) for name in names}
    await task.stop(0)
    bomb = await held.start(["/bin/sh", "-c", BOMB], max_processes=1)
    async with asyncio.timeout(200):  # a thousand of them end too
        await held.ended.wait()
    found["bomb"] = [bomb.error, dict(bomb.result)]
    held.held.cpu_percent = 40.0
    task = await held.start(BURN)
    await asyncio.sleep(0.5)
    begun_s, used_s = time.monotonic(), task.cpu_s()
    await asyncio.sleep(2)
    found["cpu_percent"] = (task.cpu_s() - used_s) / (time.monotonic() - begun_s) * 100
    await task.freeze()
    found["while_frozen"] = {name: held.file(task, name) for name in ("cpu.max", "cpu.idle")}
    await task.thaw()
    found["after_thaw"] = {name: held.file(task, name) for name in ("cpu.max", "cpu.idle")}
    await task.stop(0)
    held.held.cpu_percent = 100.0
    return found


async def frozen(held: Held, lifted: bool, count: int) -> float:
    """Milliseconds to freeze an idle tree of `count` that burns beside another cgroup that does; by the kernel's freeze
    alone, or with normal priority given back first."""
    task = await held.start(MANY.format(count - 1), max_processes=1000)
    folder = held.root / f"task-{held.count}"
    while len(list(folder.iterdir())) < count:
        await asyncio.sleep(0.05)
    burner = other()
    await asyncio.sleep(0.5)
    begun_s = time.perf_counter()
    if lifted:
        await task.freeze()
    else:
        Path(f"{task._launch.cgroup}/cgroup.freeze").write_text("1")
        while "frozen 1" not in held.file(task, "cgroup.events"):
            await asyncio.sleep(0.0005)
    took_ms = (time.perf_counter() - begun_s) * 1000
    os.kill(burner, 9)
    os.waitpid(burner, 0)
    await task.stop(0)
    return took_ms


def other() -> int:
    """Somebody else's work, in a cgroup of its own at the root."""
    (ROOT / "others").mkdir(exist_ok=True)
    if (pid := os.fork()) == 0:
        (ROOT / "others" / "cgroup.procs").write_text("0")
        while True:
            pass
    return pid


def main(kind: str) -> dict[str, Any]:
    user = 65534 if kind == "plain" else 0
    (ROOT / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    base = delegate("service", user)
    if kind == "shared":  # an orphan, so that it is none of ours
        subprocess.run(["sh", "-c", f"(echo 0 > {base}/cgroup.procs; exec sleep 1000) &"], check=True)
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    held = detect()
    assert isinstance(held, CgroupContainment), held.summary()
    found: dict[str, Any] = {
        "summary": held.summary(), "base": held.base, "controllers": sorted(held.controllers),
        "own": Path("/proc/self/cgroup").read_text().strip(), "again": sorted(detect().controllers),  # type: ignore[attr-defined]
        "leaf_weight": Path(f"{base}/supervisor/cpu.weight").read_text().strip() if held.controllers else "",
    }  # fmt: skip
    if kind == "limits":
        found |= asyncio.run(limits(Held(held)))
    if kind == "freeze":
        tasks = Held(held)

        async def both() -> None:
            for name, lifted in (("alone", False), ("lifted", True)):
                found[name] = round(await frozen(tasks, lifted, PROCESSES), 1)

        asyncio.run(both())
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
