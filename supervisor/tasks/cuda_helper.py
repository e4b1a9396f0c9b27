"""Moves a task's VRAM to host memory and back by NVIDIA's process checkpoint, in a process that may be left behind (R23).

A driver call can hang in the kernel (T20), and what locks a process waits for its work on the GPU. How it is started, and
ends: `helper_main`. It holds the driver open, but makes no context: it uses no VRAM, and no GPU. It lives only while a task
runs that may be checkpointed. It answers

- `probe`: may the checkpoint be used here?
- `out LIMIT_MS PID...`: lock every process that uses CUDA, while all of them run, then move the VRAM of each to its own
  memory. Nothing is written to disk (R6). What has no CUDA is passed over.
- `back PID...`: the VRAM comes back, then all of them are unlocked.

with `{"problem": str, "rungs": [[RungName, seconds or null, processes], ...], "usable": bool}`. `problem` says that it was
not done, and why; then `usable` says whether the processes are unchanged. If not, they must be killed. They are left as they
are: a process that was given its VRAM back only to be killed would take it from the person, and has been seen to hang the
machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from supervisor.linux import helper_main
from supervisor.tasks.process.rungs import RungName

LEAST: Final = 12080  # the driver's word for CUDA 12.8, which came with driver 570
LOCK_SHARE: Final = 0.5  # of the time for `out`; the rest is for the copying, which cannot be broken off

RUNNING, LOCKED, CHECKPOINTED = "RUNNING", "LOCKED", "CHECKPOINTED"
NO_CUDA: Final = frozenset({"NOT_INITIALIZED", "INVALID_VALUE"})  # what the driver says of a process without CUDA

Rung = tuple[RungName, float | None, int]  # name, seconds, processes

# What the driver's errors mean here; others keep its own name.
WORDS: Final[dict[str, str]] = {
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


class Refused(Exception):
    """The driver did not do it; `name` is its word for why, without CUDA_ERROR_."""

    def __init__(self, name: str, text: str = "") -> None:
        super().__init__(text or (f"{WORDS[name]} (CUDA error {name})" if name in WORDS else f"CUDA error {name}"))
        self.name = name


class Trouble(Exception):
    """An order was not carried out; `usable`: the processes are as they were."""

    def __init__(self, text: str, *, usable: bool) -> None:
        super().__init__(text)
        self.usable = usable


class Driver:
    """The calls, on one process each, that are needed of libcuda.so.1.

    Raises:
        ImportError: there is no cuda-bindings.
        Refused: by each call, and when CUDA does not come up.
    """

    def __init__(self) -> None:
        from cuda.bindings import driver  # some 15 MiB, and it looks for the library at the first call

        self._cuda: Any = driver
        if not hasattr(driver, "cuCheckpointProcessLock"):
            raise ImportError("it is too old")
        self.version = int(self._call("cuDriverGetVersion")[0])
        if self.version >= LEAST:
            self._call("cuInit", 0)  # without it the answer for every process would be that it has no CUDA

    def state(self, pid: int) -> str:
        """RUNNING, LOCKED, CHECKPOINTED, FAILED, or under way between two of them."""
        return str(self._call("cuCheckpointProcessGetState", pid)[0].name).removeprefix("CU_PROCESS_STATE_")

    def lock(self, pid: int, limit_ms: int) -> None:
        """Wait for its work on the GPU, and let it begin no more."""
        arguments = self._cuda.CUcheckpointLockArgs()
        arguments.timeoutMs = limit_ms
        self._call("cuCheckpointProcessLock", pid, arguments)

    def checkpoint(self, pid: int) -> None:
        """Its VRAM becomes memory of its own."""
        self._call("cuCheckpointProcessCheckpoint", pid, None)

    def restore(self, pid: int) -> None:
        """The reverse."""
        self._call("cuCheckpointProcessRestore", pid, None)

    def unlock(self, pid: int) -> None:
        """It may work again."""
        self._call("cuCheckpointProcessUnlock", pid, None)

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        try:
            code, *values = getattr(self._cuda, name)(*arguments)
        except Exception as error:  # noqa: BLE001 - no library, no such call in it, a code unknown to the binding: its own types
            raise Refused("", f"{name} cannot be called: {' '.join(str(error).split()) or repr(error)}") from None
        if int(code):
            raise Refused(code.name.removeprefix("CUDA_ERROR_"))
        return list(values)


class Mover:
    """Carries out the orders."""

    def __init__(self) -> None:
        self._driver: Driver | None = None

    def probe(self) -> dict[str, Any]:
        """Loads the library, once."""
        try:
            self._loaded()
            return self._said([])
        except Trouble as trouble:
            return self._said(trouble=trouble)

    def out(self, limit_ms: str, *pids: str) -> dict[str, Any]:
        """VRAM out of the way."""
        try:
            return self._said(self._out(int(limit_ms) / 1000, [int(pid) for pid in pids]))
        except Trouble as trouble:
            return self._said(trouble=trouble)

    def back(self, *pids: str) -> dict[str, Any]:
        """VRAM back."""
        try:
            return self._said(self._back([int(pid) for pid in pids]))
        except Trouble as trouble:
            return self._said(trouble=trouble)

    @staticmethod
    def _said(rungs: Sequence[Rung] = (), trouble: Trouble | None = None) -> dict[str, Any]:
        return {"problem": str(trouble or ""), "rungs": rungs, "usable": trouble is None or trouble.usable}

    def _loaded(self) -> Driver:
        if self._driver is None:
            try:
                driver = Driver()
            except ImportError as error:
                raise Trouble(f"cuda-bindings cannot be used: {error}", usable=True) from None
            except Refused as refused:
                raise Trouble(f"CUDA cannot be used: {refused}", usable=True) from None
            if driver.version < LEAST:
                version = f"{driver.version // 1000}.{driver.version % 1000 // 10}"
                raise Trouble(f"the NVIDIA driver is for CUDA {version}: install driver 570 or newer", usable=True)
            self._driver = driver
        return self._driver

    def _out(self, limit_s: float, pids: list[int]) -> list[Rung]:
        began_s = time.monotonic()
        driver, states = self._loaded(), self._states(pids)
        if not states:
            return [(RungName.NO_CUDA, None, 1)]
        locked = [pid for pid, state in states.items() if state == LOCKED]
        for pid in (pid for pid, state in states.items() if state == RUNNING):
            left_ms = int((began_s + limit_s * LOCK_SHARE - time.monotonic()) * 1000)
            try:
                if left_ms <= 0:
                    raise Refused("NOT_READY")
                driver.lock(pid, left_ms)
                locked.append(pid)
            except Refused as refused:
                if not gone(pid):
                    self._unlock(locked)
                    usable = self._state(pid) == RUNNING
                    raise Trouble(f"process {pid} cannot be locked: {refused}", usable=usable) from None
        locked_s = time.monotonic()
        for pid in locked:
            try:
                driver.checkpoint(pid)
                if (state := driver.state(pid)) != CHECKPOINTED:
                    raise Refused("", f"its state is {state}")
            except Refused as refused:
                if not gone(pid):
                    self._let_go(locked)
                    raise Trouble(f"the VRAM of process {pid} cannot be moved: {refused}", usable=False) from None
        out_s = time.monotonic()
        return [(RungName.LOCKED, locked_s - began_s, len(states)), (RungName.VRAM_OUT, out_s - locked_s, 1)]

    def _back(self, pids: list[int]) -> list[Rung]:
        began_s = time.monotonic()
        driver, states = self._loaded(), self._states(pids)
        if not states:
            return [(RungName.NO_CUDA, None, 1)]
        for pid in (pid for pid, state in states.items() if state == CHECKPOINTED):
            try:
                driver.restore(pid)
            except Refused as refused:
                if not gone(pid):
                    raise Trouble(f"process {pid} cannot have its VRAM back: {refused}", usable=False) from None
        restored_s = time.monotonic()
        self._unlock([pid for pid, state in states.items() if state != RUNNING])
        unlocked_s = time.monotonic()
        return [(RungName.VRAM_BACK, restored_s - began_s, len(states)), (RungName.UNLOCKED, unlocked_s - restored_s, 1)]

    def _states(self, pids: Iterable[int]) -> dict[int, str]:
        """The state of each that uses CUDA. All are asked before one is locked: beside a locked one that shares memory with
        it, a process may not answer."""
        found: dict[int, str] = {}
        for pid in pids:
            if stopped(pid):  # the driver would wait for it without end, whatever time it is given
                raise Trouble(f"process {pid} is stopped or frozen: it must run for this", usable=True)
            try:
                found[pid] = self._loaded().state(pid)
            except Refused as refused:
                if refused.name not in NO_CUDA and not gone(pid):
                    raise Trouble(f"process {pid} cannot be asked: {refused}", usable=True) from None
        for pid, state in found.items():
            if state not in (RUNNING, LOCKED, CHECKPOINTED):
                raise Trouble(f"process {pid} is in the state {state}", usable=False)
        return found

    def _state(self, pid: int) -> str:
        try:
            return self._loaded().state(pid)
        except Refused:
            return ""

    def _unlock(self, pids: Iterable[int]) -> None:
        for pid in pids:
            try:
                self._loaded().unlock(pid)
            except Refused as refused:
                if not gone(pid):
                    raise Trouble(f"process {pid} cannot be unlocked: {refused}", usable=False) from None

    def _let_go(self, pids: Iterable[int]) -> None:
        """Unlock those that hold their VRAM yet: a locked process may not hear that it should end."""
        for pid in pids:
            if self._state(pid) == LOCKED:
                try:
                    self._loaded().unlock(pid)
                except Refused:
                    continue


def status(pid: int) -> str:
    """The letter of its state; empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(") ")[2][:1]
    except OSError:
        return ""


def gone(pid: int) -> bool:
    """It is dead, or was reaped."""
    return status(pid) in ("", "Z", "X")


def stopped(pid: int) -> bool:
    """By a signal, a tracer, or as part of a frozen cgroup (v2)."""
    if status(pid) in ("T", "t"):
        return True
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            path = next((line[3:].strip() for line in file if line.startswith("0::")), "")
    except OSError:
        return False
    for root in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        for name, says in (("cgroup.events", "frozen 1"), ("cgroup.freeze", "1")):
            try:
                with open(f"{root}{path}/{name}", encoding="utf-8") as file:
                    if says in file.read().split("\n"):
                        return True
            except OSError:
                continue
    return False


def replies() -> helper_main.Replies:
    """The functions by request; see helper_main."""
    mover = Mover()
    return {"probe": mover.probe, "out": mover.out, "back": mover.back}
