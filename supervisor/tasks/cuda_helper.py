"""Moves a task's VRAM to main memory and back by NVIDIA's process checkpoint, in a helper process (see helper_main).

A driver call can hang in the kernel, and a lock waits for the process's work on the GPU; so the daemon cannot do this
itself. The helper holds the driver open but makes no context: it uses no VRAM and no GPU. It lives only while a task runs
that may be checkpointed. Its requests:

- `probe`: can the checkpoint be used here?
- `out LIMIT_MS PID...`: lock every process that uses CUDA, while all of them run; then move the VRAM of each to its own
  memory. Writes nothing to disk. Skips processes without CUDA.
- `back PID...`: move the VRAM back, then unlock all of them.

The answer: `{"problem": str, "rungs": [[RungName, seconds or null, processes], ...], "usable": bool}`. `problem` says why it
was not done; then `usable` says whether the processes are unchanged. If not, they must be killed, as they are: a process that
gets its VRAM back before takes it from the person, and has been seen to hang the machine.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, Literal

from supervisor.linux import helper_main
from supervisor.linux.proc import name_of
from supervisor.tasks.process import process_tree
from supervisor.tasks.process.rungs import RungName

LEAST: Final = 12080  # the driver's number for CUDA 12.8, which came with driver 570
LOCK_SHARE: Final = 0.5  # of the time for `out`; the rest is for copying, which cannot be interrupted

RUNNING, LOCKED, CHECKPOINTED = "RUNNING", "LOCKED", "CHECKPOINTED"
NO_CUDA: Final = frozenset({"NOT_INITIALIZED", "INVALID_VALUE"})  # the driver's errors for a process without CUDA

# What the driver's errors mean here; others keep the driver's name.
MEANINGS: Final[dict[str, str]] = {
    "ILLEGAL_STATE": "it is in a state in which that cannot be done",
    "NO_DEVICE": "there is no GPU that CUDA can use",
    "NOT_PERMITTED": "the NVIDIA driver does not permit it",
    "NOT_READY": "its work on the GPU did not end in time",
    "NOT_SUPPORTED": "the NVIDIA driver cannot checkpoint what it uses (managed or shared GPU memory?)",
    "OPERATING_SYSTEM": "the operating system or its rights do not allow it, or an earlier restore has failed",
    "OUT_OF_MEMORY": "there is not enough free memory",
    "SYSTEM_DRIVER_MISMATCH": "NVIDIA driver and library are of different versions (an update was installed): reboot",
    "SYSTEM_NOT_READY": "the NVIDIA driver is not ready: is nvidia-fabricmanager, if the machine needs it, running?",
    "UNKNOWN": "the NVIDIA driver reports an unknown error: do /dev/nvidia-uvm and the other nodes exist?",
}

Rung = tuple[RungName, float | None, int]  # name, seconds, processes


class CudaError(Exception):
    """The driver did not do it; `name` is its error, without CUDA_ERROR_."""

    def __init__(self, name: str, text: str = "") -> None:
        super().__init__(text or (f"{MEANINGS[name]} (CUDA error {name})" if name in MEANINGS else f"CUDA error {name}"))
        self.name = name


class RequestFailed(Exception):
    """A request was not carried out; `usable`: the processes are unchanged."""

    def __init__(self, text: str, *, usable: bool) -> None:
        super().__init__(text)
        self.usable = usable


class Driver:
    """The calls of libcuda.so.1 that are needed, each for one process; each raises CudaError if it fails. So does the
    constructor, or ImportError if there is no cuda-bindings."""

    def __init__(self) -> None:
        from cuda.bindings import driver  # some 15 MiB; looks for the library at the first call

        self._cuda: Any = driver
        if not hasattr(driver, "cuCheckpointProcessLock"):
            raise ImportError("it is too old")
        self.version = int(self._call("cuDriverGetVersion")[0])
        if self.version >= LEAST:
            self._call("cuInit", 0)  # else every process would be reported as one without CUDA

    def state(self, pid: int) -> str:
        """RUNNING, LOCKED, CHECKPOINTED, FAILED, or on the way between two of them."""
        return str(self._call("cuCheckpointProcessGetState", pid)[0].name).removeprefix("CU_PROCESS_STATE_")

    def lock(self, pid: int, limit_ms: int) -> None:
        """Wait until its work on the GPU has ended, and let it start no more."""
        arguments = self._cuda.CUcheckpointLockArgs()
        arguments.timeoutMs = limit_ms
        self._call("cuCheckpointProcessLock", pid, arguments)

    def do(self, action: Literal["Checkpoint", "Restore", "Unlock"], pid: int) -> None:
        """Move the process's VRAM to its own memory, move it back, or let the process work again."""
        self._call(f"cuCheckpointProcess{action}", pid, None)

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        try:
            code, *values = getattr(self._cuda, name)(*arguments)
        except Exception as error:  # noqa: BLE001 - no library, no such call, a code unknown to the binding: its own types
            raise CudaError("", f"{name} cannot be called: {' '.join(str(error).split()) or repr(error)}") from None
        if int(code):
            raise CudaError(code.name.removeprefix("CUDA_ERROR_"))
        return list(values)


@cache
def loaded() -> Driver:
    """The driver, loaded once. Raises RequestFailed."""
    try:
        driver = Driver()
    except ImportError as error:
        raise RequestFailed(f"cuda-bindings cannot be used: {error}", usable=True) from None
    except CudaError as error:
        raise RequestFailed(f"CUDA cannot be used: {error}", usable=True) from None
    if driver.version < LEAST:
        version = f"{driver.version // 1000}.{driver.version % 1000 // 10}"
        raise RequestFailed(f"the NVIDIA driver is for CUDA {version}: install driver 570 or newer", usable=True)
    return driver


def probe() -> list[Rung]:
    """Load the library, once."""
    loaded()
    return []


def out(limit_ms: str, *pids: str) -> list[Rung]:
    """Move VRAM out."""
    began_s = time.monotonic()
    lock_until_s = began_s + int(limit_ms) / 1000 * LOCK_SHARE
    driver, states = loaded(), _states(map(int, pids))
    if not states:
        return [(RungName.NO_CUDA, None, 1)]
    locked = [pid for pid, state in states.items() if state == LOCKED]
    for pid in (pid for pid, state in states.items() if state == RUNNING):
        left_ms = int((lock_until_s - time.monotonic()) * 1000)
        try:
            if left_ms <= 0:
                raise CudaError("NOT_READY")
            driver.lock(pid, left_ms)
            locked.append(pid)
        except CudaError as error:
            if not gone(pid):
                _unlock(locked)
                usable = _state(pid) == RUNNING
                raise RequestFailed(f"process {pid} cannot be locked: {error}", usable=usable) from None
    locked_s = time.monotonic()
    for pid in locked:
        try:
            driver.do("Checkpoint", pid)
            if (state := driver.state(pid)) != CHECKPOINTED:
                raise CudaError("", f"its state is {state}")
        except CudaError as error:
            if not gone(pid):
                for other in (other for other in locked if _state(other) == LOCKED):  # locked, it may ignore a signal to end
                    with contextlib.suppress(CudaError):
                        driver.do("Unlock", other)
                raise RequestFailed(f"the VRAM of process {pid} cannot be moved: {error}", usable=False) from None
    out_s = time.monotonic()
    return [(RungName.LOCKED, locked_s - began_s, len(states)), (RungName.VRAM_OUT, out_s - locked_s, 1)]


def back(*pids: str) -> list[Rung]:
    """Move VRAM back."""
    began_s = time.monotonic()
    driver, states = loaded(), _states(map(int, pids))
    if not states:
        return [(RungName.NO_CUDA, None, 1)]
    for pid in (pid for pid, state in states.items() if state == CHECKPOINTED):
        try:
            driver.do("Restore", pid)
        except CudaError as error:
            if not gone(pid):
                raise RequestFailed(f"process {pid} cannot have its VRAM back: {error}", usable=False) from None
    restored_s = time.monotonic()
    _unlock([pid for pid, state in states.items() if state != RUNNING])
    unlocked_s = time.monotonic()
    return [(RungName.VRAM_BACK, restored_s - began_s, len(states)), (RungName.UNLOCKED, unlocked_s - restored_s, 1)]


def _states(pids: Iterable[int]) -> dict[int, str]:
    """The state of each process that uses CUDA. All are asked before one is locked: beside a locked process that shares
    memory with it, another may not answer."""
    found: dict[int, str] = {}
    for pid in pids:
        if pid == os.getpid():
            continue
        if stopped(pid):  # the driver would wait for it for ever, whatever time limit it has
            raise RequestFailed(f"process {pid} is stopped or frozen: it must run for this", usable=True)
        try:
            found[pid] = loaded().state(pid)
        except CudaError as error:
            if error.name not in NO_CUDA and not gone(pid):
                raise RequestFailed(f"process {pid} cannot be asked: {error}", usable=True) from None
    for pid, state in found.items():
        if state not in (RUNNING, LOCKED, CHECKPOINTED):
            raise RequestFailed(f"process {pid} is in the state {state}", usable=False)
    return found


def _state(pid: int) -> str:
    try:
        return loaded().state(pid)
    except CudaError:
        return ""


def _unlock(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            loaded().do("Unlock", pid)
        except CudaError as error:
            if not gone(pid):
                raise RequestFailed(f"process {pid} cannot be unlocked: {error}", usable=False) from None


def gone(pid: int) -> bool:
    """It is dead, or was reaped."""
    process = process_tree.look(pid)
    return process is None or not process.living


def stopped(pid: int) -> bool:
    """By a signal, by a tracer, or as part of a frozen cgroup (v2)."""
    process = process_tree.look(pid)
    if process is not None and not process.running:
        return True
    path = name_of(Path("/proc"), pid).cgroup
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        for name, frozen in (("cgroup.events", "frozen 1"), ("cgroup.freeze", "1")):
            try:
                with open(f"{root}{path}/{name}", encoding="utf-8") as file:
                    if frozen in file.read().split("\n"):
                        return True
            except OSError:
                continue
    return False


def answer(carry_out: Callable[..., list[Rung]], *arguments: str) -> dict[str, Any]:
    """The answer to a request."""
    try:
        return {"problem": "", "rungs": carry_out(*arguments), "usable": True}
    except RequestFailed as failed:
        return {"problem": str(failed), "rungs": [], "usable": failed.usable}


def replies() -> helper_main.Replies:
    """The functions by request; see helper_main."""
    return {request.__name__: partial(answer, request) for request in (probe, out, back)}
