"""Moves a GPU task's VRAM to main memory while the task is paused, and back if it was a false alarm.

This uses NVIDIA's process checkpoint. All processes of the task that use CUDA are locked while they run; then their VRAM is
moved to their own memory, nothing to disk. After that they may be frozen. A lock on a frozen process hangs, so the order is:
out, freeze; thaw, back. Never across a sleep: the task is ended before.

A helper process (cuda_helper.py) loads the driver. It exists while such a task runs, and may be left behind when it hangs in
the driver. It must have the user of the task, or the driver refuses it; so for a task in a unit of its own it runs there, and
the task can take hold of it. That the VRAM is out, the node believes NVML alone. There a helper that hangs is not left behind:
the task is not gone before it. What fails half-way leaves the processes unusable; then they must be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec

from supervisor.linux import helper_main
from supervisor.linux.helper_process import Helper, HelperProcess, Streams, child
from supervisor.linux.proc import name_of
from supervisor.linux.text import one_line
from supervisor.tasks.executors.base import CheckpointFailed, Rung
from supervisor.tasks.process.rungs import RungName

DRIVER: Final = 570  # the first that has the calls
PACKAGE: Final = "cuda-bindings"
BEGIN_S: Final = 20.0  # to load the driver: without the persistence daemon that takes seconds
ANSWER_SHARE: Final = 0.9  # of the time for `out`: what the helper may use
END_S: Final = 1.5
SPARE_GB: Final = 1.0  # memory that must stay free beside the moved VRAM
GIB: Final = 1 << 30
_UNKNOWN: Final = "it was not looked at yet"
_MODULE: Final = "supervisor.tasks.cuda_helper"
_LONGEST: Final = 300  # characters of a problem


class _Reply(msgspec.Struct):
    """An answer of cuda_helper.py."""

    problem: str
    rungs: list[tuple[RungName, float | None, int]]
    usable: bool


StartHelper = Callable[[str, Streams], HelperProcess]


def beside_us(module: str, streams: Streams) -> HelperProcess:
    """Start a module as a helper that is our own child (see helper_main). Raises OSError."""
    return child(helper_main.command(module))(streams)


class Checkpointer:
    """Checkpoints one task after the other. One order at a time; a second one waits for the first."""

    def __init__(self, *, proc_root: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> None:
        self._proc_root, self._sys_root = proc_root, sys_root
        self._lock = asyncio.Lock()
        self._start: StartHelper = beside_us
        self._helper: Helper | None = None
        self._ending: Helper | None = None  # the last one that was asked to end
        self._answer: asyncio.Future[bytes] | None = None
        self._unsure = ""  # why the state of the task's processes is unknown
        self.problem = _UNKNOWN
        """Empty: the checkpoint can be used, as far as known. Else why not, and what to do."""
        self.restored = False
        """The last order gave the task its VRAM back. With the open kernel module, the end of such a process has been seen to
        hang the machine, unless its VRAM was moved out again before."""

    async def begin(self, limit_s: float = BEGIN_S, start: StartHelper = beside_us) -> None:
        """A task starts that may be checkpointed: start the helper by `start`, which raises OSError, and find out whether the
        checkpoint can be used (`problem`). Raises nothing but cancellation; takes `limit_s` seconds at most; may run while the
        task runs."""
        self._unsure, self.restored, self._start = "", False, start
        try:
            with contextlib.suppress(CheckpointFailed):  # `problem` has it
                async with asyncio.timeout(limit_s), self._lock:
                    await self._ready(limit_s)
        except TimeoutError:
            self.problem = f"the NVIDIA driver did not answer within {limit_s:g} s"

    async def out(self, pids: Collection[int], limit_s: float, vram_gb: float = 0.0) -> tuple[Rung, ...]:
        """Move the VRAM of the processes that use CUDA to their memory. They must not be frozen before this returns. Whether
        the VRAM is free then, only NVML knows. Raises CheckpointFailed.

        Args:
            pids: all processes of the task.
            limit_s: the time for it; the processes get half of it to end their work on the GPU.
            vram_gb: GiB that they have, as far as known. If memory has no room for that, nothing is done.
        """
        if no_room := self._no_room(pids, vram_gb):
            raise CheckpointFailed(no_room, usable=True)
        rungs = await self._order("out", pids, limit_s)
        self.restored = False
        return rungs

    async def back(self, pids: Collection[int], limit_s: float) -> tuple[Rung, ...]:
        """Give the processes their VRAM back, within `limit_s` seconds. They must be thawed before, and so much VRAM must be
        free: a restore without room never succeeds again. Skips processes that have ended. Raises CheckpointFailed; if it is
        `usable`, nothing was done, and this may be tried once more."""
        rungs = await self._order("back", pids, limit_s)
        self.restored = True
        return rungs

    def end(self) -> None:
        """The task is over: end the helper, without waiting for it. One that hangs in the driver is left behind."""
        self._unsure, self._start = "", beside_us
        self._drop()
        self.problem = _UNKNOWN

    # --- the helper

    async def _order(self, name: Literal["out", "back"], pids: Collection[int], limit_s: float) -> tuple[Rung, ...]:
        loop = asyncio.get_running_loop()
        until_s, asked = loop.time() + limit_s, False
        try:
            async with asyncio.timeout(limit_s), self._lock:
                if self._unsure:
                    raise CheckpointFailed(self._unsure, usable=False)
                await self._ready(limit_s)
                left_s = until_s - loop.time()
                limits = [f"{left_s * ANSWER_SHARE * 1000:.0f}"] if name == "out" else []
                asked, self._unsure = True, "an earlier order was not finished"
                rungs = await self._ask(" ".join([name, *limits, *map(str, sorted(pids))]), left_s)
                self._unsure = ""
                return rungs
        except TimeoutError:
            raise CheckpointFailed(f"not done within {limit_s:g} s", usable=not asked) from None
        except CheckpointFailed as failed:
            self._unsure = "" if failed.usable else str(failed)
            raise

    async def _ready(self, limit_s: float) -> None:
        """Have a helper that has loaded CUDA. Raises CheckpointFailed, whose text is also the `problem`."""
        if self._helper is not None and not self.problem and not self._helper.dead:
            return
        self._drop()
        self.problem = unusable(self._proc_root, self._sys_root)
        if not self.problem and self._ending is not None and not self._ending.gone and not await self._ending.wait(END_S):
            self.problem = f"an earlier helper (pid {self._ending.pid}) hangs in the NVIDIA driver: reboot"
        if not self.problem:
            try:
                self._helper = Helper(partial(self._start, _MODULE), self._answered, self._lost)
                self.problem = "the NVIDIA driver did not answer"  # if this is cancelled before the answer
                await self._ask("probe", limit_s)
                self.problem = ""
            except OSError as error:
                self.problem = f"the helper for it cannot be started: {error.strerror}"
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
            reply = msgspec.json.decode(await self._answer, type=_Reply)
            if reply.problem:
                raise CheckpointFailed(one_line(reply.problem, _LONGEST), usable=reply.usable)
            return tuple(Rung(*rung) for rung in reply.rungs)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            text = f"the helper's answer cannot be understood ({type(error).__name__})"
            raise CheckpointFailed(text, usable=False) from None
        except asyncio.CancelledError:
            self._drop()
            raise
        finally:
            self._answer = None

    def _answered(self, line: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(line)

    def _lost(self, reason: str) -> None:
        """The helper hangs or has ended. Without an order in progress that does no harm: the next order starts another one."""
        self._drop()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(CheckpointFailed(f"the helper for it: {reason}", usable=False))

    def _drop(self) -> None:
        if self._helper is not None:
            if self._answer is not None:
                self._helper.kill()  # in the middle of a call it would not see the end of its stdin
            else:
                self._helper.end()
            self._ending, self._helper = self._helper, None

    # --- memory

    def _no_room(self, pids: Collection[int], vram_gb: float) -> str:
        """Why `vram_gb` GiB more do not fit into the machine's memory, or into a cgroup of the processes; empty: they fit.
        Without room the kernel would kill the task half-way."""
        if vram_gb <= 0:
            return ""
        free_gb = _available_gb(self._proc_root)
        if free_gb is not None and free_gb < vram_gb + SPARE_GB:
            return f"{vram_gb:.1f} GiB of VRAM have no room in memory: {free_gb:.1f} GiB are free, {SPARE_GB:g} must stay so"
        for path in {name_of(self._proc_root, pid).cgroup for pid in pids}:
            for cgroup in (Path(path), *Path(path).parents):
                left_gb = _left_gb(self._sys_root / "fs/cgroup" / str(cgroup).lstrip("/"))
                if left_gb is not None and left_gb < vram_gb:
                    limit = f"the task's memory limit, of which {left_gb:.1f} GiB are left (tasks.<type>.max_memory_gb)"
                    return f"{vram_gb:.1f} GiB of VRAM have no room in {limit}"
        return ""


def _available_gb(proc_root: Path) -> float | None:
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (proc_root / "meminfo").read_text(), re.MULTILINE)
        return int(found[1]) / (1 << 20) if found else None
    return None


def _left_gb(cgroup: Path) -> float | None:
    """What its processes may still take; None: no limit. Cached files count as free: the kernel drops them first."""
    try:
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["file"]) - int(stat["shmem"])) / GIB
    except (OSError, ValueError, KeyError):  # "max" is not a number
        return None


# --- what is known without loading the driver


def driver_version(proc_root: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> str:
    """The version of the loaded NVIDIA driver; empty: there is none."""
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
    """cuda-bindings is installed for this interpreter. Loads nothing of it."""
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except (ImportError, ValueError):
        return False


def unusable(
    proc_root: Path = Path("/proc"), sys_root: Path = Path("/sys"), there: Callable[[], bool] = bindings_there
) -> str:
    """Why the checkpoint cannot be used on this machine, and what to do, as far as known without loading the driver. Empty:
    no reason is known."""
    version = driver_version(proc_root, sys_root)
    if not version:
        return f"no NVIDIA driver is loaded: install driver {DRIVER} or newer"
    if int(version.split(".")[0]) < DRIVER:
        return f"the NVIDIA driver is {version}: install {DRIVER} or newer"
    if not there():
        return f"{PACKAGE} is not installed: run `sudo {sys.prefix}/bin/pip install 'rae-node[cuda]'`"
    return ""
