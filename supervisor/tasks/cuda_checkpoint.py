"""Takes a GPU task's VRAM out of the person's way while it is on hold, and gives it back when it was a false alarm (R23).

By NVIDIA's process checkpoint: all processes of the task that use CUDA are locked while they run, then their VRAM is
moved to memory of their own, nothing to disk (R6); after that they may be frozen. A lock on a frozen process hangs, so
the order is: out, freeze; thaw, back. Never across a sleep: the task is ended before (T22, T28).

The driver is loaded in a helper (supervisor/tasks/cuda_helper.py), which is there while such a task runs, and may be left
behind when it hangs in the driver (T20). What fails half-way leaves the processes unusable; then they must be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Final

from supervisor.linux import helper_main
from supervisor.linux.helper_process import Helper
from supervisor.tasks.executors.base import CheckpointFailed, Rung
from supervisor.tasks.process.rungs import RungName

DRIVER: Final = 570  # the first with calls for it
PACKAGE: Final = "cuda-bindings"
BEGIN_S: Final = 20.0  # to load the driver: without the persistence daemon that takes seconds
ANSWER_SHARE: Final = 0.9  # of the time for `out`, what the helper may plan with
END_S: Final = 1.5
SPARE_GB: Final = 1.0  # memory that must stay free beside the VRAM that comes into it
GIB: Final = 1 << 30


class Checkpointer:
    """The checkpoint of one task after the other. One order at a time; a second one waits for the first.

    Args:
        proc_root, sys_root: where to look for the driver and for memory.
    """

    def __init__(self, *, proc_root: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> None:
        self._proc_root, self._sys_root = proc_root, sys_root
        self._lock = asyncio.Lock()
        self._helper: Helper | None = None
        self._left: Helper | None = None  # the last one that was told to end
        self._answer: asyncio.Future[bytes] | None = None
        self._unsure = ""  # why the task's processes are in an unknown state
        self.problem = "it was not looked at yet"
        """Empty: may be used, as far as was seen. Else why not, and what to do."""
        self.restored = False
        """The last order that was carried out gave the task its VRAM back. With the open kernel module the end of such a
        process has been seen to hang the machine, unless its VRAM was taken out again before (T22)."""

    async def begin(self, limit_s: float = BEGIN_S) -> None:
        """A task starts that may be checkpointed: have the helper ready, and see whether the checkpoint can be used
        (`problem`). Never raises, but for cancellation; takes `limit_s` seconds at most, and may run beside the task."""
        self._unsure, self.restored = "", False
        try:
            with contextlib.suppress(CheckpointFailed):  # as `problem` says
                async with asyncio.timeout(limit_s), self._lock:
                    await self._ready(limit_s)
        except TimeoutError:
            self.problem = f"the NVIDIA driver did not answer within {limit_s:g} s"

    async def out(self, pids: Collection[int], limit_s: float, vram_gb: float = 0.0) -> tuple[Rung, ...]:
        """Move the VRAM of those of the processes that use CUDA to their memory, within `limit_s` seconds; in words
        ("locked 3 ms, VRAM out 120 ms"). They must not be frozen, and must not be from now on until this returns; whether the
        VRAM is free then is for who asks NVML to see.

        Args:
            pids: all processes of the task.
            limit_s: half of it may be waited for their work on the GPU to end.
            vram_gb: GiB that they hold, as far as known: it is not begun where memory has no room for that.

        Raises:
            CheckpointFailed: see there.
        """
        if no_room := next(self._no_room(pids, vram_gb), ""):
            raise CheckpointFailed(no_room, usable=True)
        rungs = await self._order(lambda left_s: f"out {left_s * ANSWER_SHARE * 1000:.0f}", pids, limit_s)
        self.restored = False
        return rungs

    async def back(self, pids: Collection[int], limit_s: float) -> tuple[Rung, ...]:
        """Give the processes their VRAM back, within `limit_s` seconds; in words ("VRAM back 80 ms, unlocked 1 ms"). They must
        be thawed before. Those that have ended meanwhile are passed over.

        See first that so much VRAM is free: a restore without room never succeeds again.

        Raises:
            CheckpointFailed: see there; `usable` here means that nothing was done: the VRAM is out yet, and this may be
                tried once more.
        """
        rungs = await self._order(lambda left_s: "back", pids, limit_s)
        self.restored = True
        return rungs

    def end(self) -> None:
        """The task is over: let the helper go, without waiting for it."""
        self._unsure = ""
        self._drop()
        self.problem = "it was not looked at yet"

    async def close(self) -> None:
        """No more tasks. A helper that hangs in the driver is left behind."""
        self.end()
        if self._left is not None:
            await self._left.end_or_abandon(END_S)
        self._left = None

    # --- the helper

    async def _order(self, order: Callable[[float], str], pids: Collection[int], limit_s: float) -> tuple[Rung, ...]:
        """`order`: its line, from the seconds that are left for it."""
        loop = asyncio.get_running_loop()
        until_s, asked = loop.time() + limit_s, False
        try:
            async with asyncio.timeout(limit_s):
                async with self._lock:
                    if self._unsure:
                        raise CheckpointFailed(self._unsure, usable=False)
                    await self._ready(limit_s)
                    left_s = until_s - loop.time()
                    asked, self._unsure = True, "an earlier order was not finished"
                    rungs = await self._ask(" ".join([order(left_s), *map(str, sorted(pids))]), left_s)
                    self._unsure = ""
                    return rungs
        except TimeoutError:
            raise CheckpointFailed(f"not done within {limit_s:g} s", usable=not asked) from None
        except CheckpointFailed as failed:
            self._unsure = "" if failed.usable else str(failed)
            raise

    async def _ready(self, limit_s: float) -> None:
        """A helper that has CUDA up, now; the reason why not is also the `problem`."""
        if self._helper is not None and not self.problem and not _dead(self._helper.pid):
            return
        self._drop()
        self.problem = unusable(self._proc_root, self._sys_root)
        if not self.problem and self._left is not None and not self._left.gone and not await self._left.wait(END_S):
            self.problem = f"an earlier helper (pid {self._left.pid}) hangs in the NVIDIA driver: reboot"
        if not self.problem:
            try:
                self._helper = Helper(helper_main.command("supervisor.tasks.cuda_helper"), self._answered, self._lost)
            except OSError as error:
                self.problem = f"the helper for it cannot be started: {error.strerror}"
        if not self.problem:
            self.problem = "the NVIDIA driver did not answer"  # if we are not here any more when it does
            try:
                await self._ask("probe", limit_s)
                self.problem = ""
            except CheckpointFailed as failed:
                self.problem = str(failed)
        if self.problem:
            self._drop()
            raise CheckpointFailed(self.problem, usable=True)

    async def _ask(self, line: str, limit_s: float) -> tuple[Rung, ...]:
        assert self._helper is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._helper.ask(f"{line}\n".encode(), limit_s)
        try:
            said = json.loads(await self._answer)
            problem, usable = str(said["problem"]), bool(said["usable"])
            rungs = tuple(Rung(RungName(name), seconds, processes) for name, seconds, processes in said["rungs"])
        except (ValueError, KeyError, TypeError) as error:
            problem, usable, rungs = f"the helper answers nonsense ({type(error).__name__})", False, ()
        except CheckpointFailed as failed:
            problem, usable, rungs = str(failed), False, ()
        except asyncio.CancelledError:
            self._drop()
            raise
        finally:
            self._answer = None
        if problem:
            raise CheckpointFailed(problem, usable=usable)
        return rungs

    def _answered(self, line: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(line)

    def _lost(self, reason: str) -> None:
        """The helper has hung or ended; without an order under way that harms nothing, for another one can go on."""
        self._drop()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(CheckpointFailed(f"the helper for it: {reason}", usable=False))

    def _drop(self) -> None:
        if self._helper is not None:
            if self._answer is not None:
                self._helper.kill()  # in the middle of a call: it would not see the end of its stdin
            else:
                self._helper.end()
            self._left, self._helper = self._helper, None

    # --- memory

    def _no_room(self, pids: Collection[int], vram_gb: float) -> Iterator[str]:
        """Why `vram_gb` GiB more do not go into the machine's memory, or into a cgroup's that the processes are in: the kernel
        would kill them half-way."""
        if vram_gb <= 0:
            return
        free_gb = _meminfo_gb(self._proc_root)
        if free_gb is not None and free_gb < vram_gb + SPARE_GB:
            yield f"{vram_gb:.1f} GiB of VRAM have no room in memory: {free_gb:.1f} GiB are free, {SPARE_GB:g} must stay so"
        for cgroup in {path for pid in pids if (path := _cgroup(self._proc_root, self._sys_root, pid)) is not None}:
            for folder in (cgroup, *cgroup.parents):
                left_gb = _left_gb(folder)
                if left_gb is not None and left_gb < vram_gb:
                    limit = f"the task's memory limit, of which {left_gb:.1f} GiB are left (tasks.<type>.max_memory_gb)"
                    yield f"{vram_gb:.1f} GiB of VRAM have no room in {limit}"


def _dead(child: int) -> bool:
    """It has ended, though the loop may not have seen that yet."""
    try:
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _meminfo_gb(proc_root: Path) -> float | None:
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (proc_root / "meminfo").read_text(), re.MULTILINE)
        return int(found[1]) / (1 << 20) if found else None
    return None


def _cgroup(proc_root: Path, sys_root: Path, pid: int) -> Path | None:
    with contextlib.suppress(OSError):
        for line in (proc_root / str(pid) / "cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return sys_root / "fs/cgroup" / line[3:].lstrip("/")
    return None


def _left_gb(cgroup: Path) -> float | None:
    """What its processes may take yet; None: no limit. Cached files count as free: the kernel lets go of them first."""
    try:
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["file"]) - int(stat["shmem"])) / GIB
    except (OSError, ValueError, KeyError):  # "max" is no number
        return None


# --- what can be seen without the driver


def driver_version(proc_root: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> str:
    """The loaded NVIDIA driver's; empty where there is none."""
    for path in (sys_root / "module/nvidia/version", proc_root / "driver/nvidia/version"):
        with contextlib.suppress(OSError):
            if found := re.search(r"(?:^|\s)(\d{3,}\.\d[\d.]*)", path.read_text(errors="replace")):
                return found[1]
    return ""


def open_module(proc_root: Path = Path("/proc")) -> bool:
    """The driver's kernel module is NVIDIA's open one."""
    with contextlib.suppress(OSError):
        return "Open Kernel Module" in (proc_root / "driver/nvidia/version").read_text(errors="replace")
    return False


def bindings_there() -> bool:
    """cuda-bindings is installed for this interpreter; nothing of it is loaded."""
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except (ImportError, ValueError):
        return False


def unusable(
    proc_root: Path = Path("/proc"), sys_root: Path = Path("/sys"), there: Callable[[], bool] = bindings_there
) -> str:
    """Why the checkpoint cannot be used on this machine, and what to do: as far as can be seen without loading the driver.
    Empty: nothing speaks against it."""
    version = driver_version(proc_root, sys_root)
    if not version:
        return f"no NVIDIA driver is loaded: install driver {DRIVER} or newer"
    if int(version.split(".")[0]) < DRIVER:
        return f"the NVIDIA driver is {version}: install {DRIVER} or newer"
    if not there():
        return f"{PACKAGE} is not installed: run `sudo {sys.prefix}/bin/pip install 'rae-node[cuda]'`"
    return ""
