"""A task in a systemd unit of its own, under a user of its own (deploy/rae-task@.service).

Each connection to the socket of `rae-task.socket` makes systemd start one unit, with the shim in it. The unit's cgroup holds
the shim and the task. Its files that freeze, kill and limit belong to the node's group, so the node writes there directly:
neither the bus nor systemd is asked when a person is back. The task itself sees them read-only.

The shim is frozen together with the task, so the node freezes, thaws and kills, and keeps the time. The shim signals, reads
the saved state, and says how the task ended. That everything is gone, the node believes the kernel alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import glob
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from supervisor.linux.bounded import in_thread, wait_for_event
from supervisor.linux.helper_process import Streams
from supervisor.tasks.executors.base import FreezeFailed, NodeFault, Rung, StopFailed
from supervisor.tasks.process import process_tree
from supervisor.tasks.process.command_process import RESCUE_LIMIT_S, START_LIMIT_S, CommandTask
from supervisor.tasks.process.containment import Bounds
from supervisor.tasks.process.process_tree import CgroupTree
from supervisor.tasks.process.rungs import RungName
from supervisor.tasks.process.sandbox import SOCKETS, in_service
from supervisor.tasks.process.shim import FREEZE_LIMIT_S, HASTY_FREEZE_LIMIT_S

CGROUPS: Final = "/sys/fs/cgroup"
SLICE: Final = "rae.slice"
WORKDIR: Final = "/var/tmp/task"  # noqa: S108 - the unit's own /var/tmp, which ends with it
LATE_S: Final = 0.3  # a shim with ordinary priority says in this time that it has killed the task, and what state it saved
END_LIMIT_S: Final = 1.0  # the shim has said that the task is gone, and ends itself


class UnitTree(CgroupTree):
    """The unit's processes, from outside. Their priority against a person's programs is that of the slice."""

    def pids(self) -> frozenset[int]:
        """The members of the cgroup without the shim."""
        return super().pids() - {self.root}

    def living(self) -> list[process_tree.Process]:
        """The members of the cgroup: nothing leaves it."""
        return process_tree.look_alive(super().pids())

    def lift(self) -> None:
        """The slice runs before all others, until `relax`: what is to stop needs the processor for that."""
        self._set(*((name, "max") for name in self._lifted), slice_idle="0", weight="10000")

    def hurry(self) -> None:
        """See `lift`."""
        self.lift()

    def relax(self, *, idle: bool = False) -> None:
        """The slice runs after all others; with `idle`, only where no other wants the processor."""
        self._set(*self._lifted.items(), slice_idle="1" if idle else "0", weight="" if idle else "1")

    def _set(self, *files: tuple[str, str], slice_idle: str, weight: str) -> None:
        above = os.path.dirname(self.path)
        for path, value in (
            *((f"{self.path}/{name}", value) for name, value in files),
            (f"{above}/cpu.idle", slice_idle),
            (f"{above}/cpu.weight", weight),
        ):
            with contextlib.suppress(OSError):  # no cpu controller, or a kernel before 5.15
                if value:
                    process_tree.write(path, value)

    def request_freeze(self) -> None:
        """Some writes to kernel files."""
        self.lift()
        super().request_freeze()

    def limit(self, bounds: Bounds) -> None:
        """Set the limits of this task's type. Raises OSError."""
        controllers = frozenset(process_tree.read(f"{self.path}/cgroup.controllers").decode().split())
        for name, value in bounds.files(controllers).items():
            if name == "cpu.max":
                self._lifted[name] = value
            if name not in ("cpu.idle", "memory.oom.group"):  # the slice is idle; the shim must survive and say what ended it
                process_tree.write(f"{self.path}/{name}", value)

    def kill(self) -> None:
        """The kernel's kill: nothing leaves the cgroup."""
        self.kill_first()

    def remove(self) -> None:
        """By systemd."""


class UnitShim:
    """The shim in a unit that was started for us."""

    tree: UnitTree

    def __init__(self, control: socket.socket, tree: UnitTree) -> None:
        self.control, self.tree = control, tree

    def kill(self) -> None:
        """See Shim."""
        self.tree.kill_first()

    def release(self) -> None:
        """See Shim: systemd reaps it."""


async def connect(bounds: Bounds, *, network: bool) -> UnitShim:
    """A unit for one task, with the limits of its type, not yet with the task. Raises NodeFault."""
    control = socket.socket(socket.AF_UNIX)
    control.setblocking(False)
    try:
        async with asyncio.timeout(START_LIMIT_S):
            await asyncio.get_running_loop().sock_connect(control, str(SOCKETS[network]))
            line = await _line(control)
        hello = json.loads(line)
        tree = UnitTree(int(hello["pid"]), f"{CGROUPS}{os.path.normpath(hello['cgroup'])}")
        if not all(os.access(f"{tree.path}/{name}", os.W_OK) for name in ("cgroup.freeze", "cgroup.kill")):
            raise OSError(0, f"the node may not freeze and kill in {tree.path}: run deploy/install again, as root")
        tree.limit(bounds)
    except BaseException as error:
        control.close()  # the shim ends then, and its unit with it
        if isinstance(error, TimeoutError):
            raise NodeFault(f"systemd started no unit for the task within {START_LIMIT_S:.0f} s") from None
        if isinstance(error, OSError):
            raise NodeFault(f"no unit for the task ({SOCKETS[network]}): {error.strerror or error}") from None
        if isinstance(error, ValueError | TypeError | LookupError):
            raise NodeFault("the shim in the task's unit could not start: see `journalctl -u 'rae-task*'`") from None
        raise
    return UnitShim(control, tree)


async def _line(control: socket.socket) -> bytes:
    loop, line = asyncio.get_running_loop(), b""
    while not line.endswith(b"\n") and (part := await loop.sock_recv(control, 4096)):
        line += part
    return line


def fault() -> str:
    """Why systemd starts no unit for a task now; empty: it does, tried with both sockets. Blocks."""
    try:
        for network in SOCKETS:
            asyncio.run(connect(Bounds(), network=network)).control.close()
    except NodeFault as fault:
        return str(fault)
    return ""


class UnitHelper:
    """A helper process beside a task, started and ended by the task's shim; a HelperProcess."""

    pid = 0  # not known yet

    def __init__(self, kill: Callable[[], object]) -> None:
        self._kill, self._gone = kill, asyncio.Event()

    @property
    def gone(self) -> bool:
        """See Child."""
        return self._gone.is_set()

    dead = gone

    def kill(self) -> None:
        """See Child."""
        if not self.gone:
            self._kill()

    async def wait(self, timeout_s: float) -> bool:
        """See Child."""
        return await wait_for_event(self._gone, timeout_s)

    def abandon(self) -> None:
        """See Child: it ends with the unit."""

    def heard(self, pid: int) -> None:
        """The shim says that it has started, or by 0 that it has ended."""
        if pid:
            self.pid = pid
        else:
            self._gone.set()


class UnitTask(CommandTask):
    """A command in a unit of its own; a RunningTask."""

    _tree: UnitTree
    _helper: UnitHelper | None = None
    _asked_s = 0.0  # the first order to stop
    _kill_at_s = 0.0
    _frozen = False
    _killing = False
    _shim_late_s = 0.0  # from that order until the shim has heard of it
    _sizes: asyncio.Future[int] | None = None

    async def begin(self) -> None:
        """See CommandTask. The shim starts at ordinary priority (deploy/rae-task@.service), for beside a busy machine it would
        take a minute, and only then the slice is idle. Nothing is left of a task that did not start."""
        try:
            await super().begin()
        except BaseException:
            self._tree.kill_first()
            raise
        finally:
            self._tree.relax(idle=True)

    def pids(self) -> frozenset[int]:
        """See RunningTask."""
        return super().pids() - {0 if self._helper is None else self._helper.pid}

    def start_helper(self, module: str, streams: Streams) -> UnitHelper:
        """Start a helper process (see helper_main) in the unit, as the task's user; one at a time. Raises OSError."""
        if self._control is None:
            raise ProcessLookupError(errno.ESRCH, "the task is gone")
        socket.send_fds(self._control, [json.dumps({"helper": module}).encode() + b"\n"], streams)
        self._helper = UnitHelper(lambda: self._send(helper=None))
        return self._helper

    async def disk(self) -> int:
        """See RunningTask. Nobody but the shim can look into the unit's folders; a frozen one answers later."""
        if self._sizes is None:
            self._sizes = self._loop.create_future()
            if not self._send(disk=True):
                self._sizes.set_result(0)
        try:
            return await asyncio.shield(self._sizes)
        finally:
            if self._sizes is not None and self._sizes.done():
                self._sizes = None

    async def freeze(self) -> Rung:
        """See RunningTask."""
        if not self.alive:
            raise FreezeFailed("it is gone already")
        if self._stopping:
            raise FreezeFailed(str(RungName.BEING_STOPPED))
        began_s = time.monotonic()
        self._tree.request_freeze()
        self._frozen = await in_thread(self._tree.freeze, FREEZE_LIMIT_S)
        took_s = time.monotonic() - began_s
        if not self.alive:
            raise FreezeFailed("it ended meanwhile")
        if self._frozen or self._stopping:
            return Rung(RungName.FROZEN, took_s)
        self._let_run()
        raise FreezeFailed(str(Rung(RungName.THAWED_AGAIN, took_s)))

    async def thaw(self) -> Rung:
        """See RunningTask."""
        if not self.alive:
            return Rung(RungName.GONE_ALREADY)
        if self._stopping or not self._frozen:
            return Rung(RungName.BEING_STOPPED if self._stopping else RungName.WAS_NOT_FROZEN)
        began_s = time.monotonic()
        self._let_run()
        return Rung(RungName.THAWED, time.monotonic() - began_s)

    def _let_run(self) -> None:
        self._frozen = False
        self._tree.relax(idle=True)
        self._tree.thaw()

    async def stop(self, grace_s: float) -> tuple[Rung, ...]:
        """See RunningTask. May be called again meanwhile: the shortest grace counts."""
        if not self.alive:
            return self._rungs or (Rung(RungName.GONE_ALREADY),)
        if self._stopping:
            self._kill_at_s = min(self._kill_at_s, time.monotonic() + grace_s)
            self._send(stop=grace_s)
            return await asyncio.shield(self._stopped)
        self._stopping = True
        self._asked_s = time.monotonic()
        freeze_s = FREEZE_LIMIT_S if grace_s > 0 else HASTY_FREEZE_LIMIT_S
        self._kill_at_s = self._asked_s + freeze_s + grace_s
        self._tree.request_freeze()
        frozen = await in_thread(self._tree.freeze, freeze_s)
        self._note(RungName.FROZEN if frozen else RungName.NOT_FROZEN)
        now_s = time.monotonic()
        self._kill_at_s = min(self._kill_at_s, now_s + grace_s)
        self._shim_late_s = now_s - self._asked_s
        if self._kill_at_s > now_s and self._send(stop=grace_s):
            self._tree.relax()
            self._tree.thaw()
            if await self._ended_by(0.0):
                return self._rungs
            self._tree.lift()
            if await self._ended_by(LATE_S):
                return self._rungs
        self._note(RungName.KILL)
        await self._kill_all()
        return self._rungs

    def _note(self, name: RungName) -> None:
        self._rungs += (Rung(name, time.monotonic() - self._asked_s),)

    async def _ended_by(self, late_s: float) -> bool:
        """Wait for the end until `late_s` after the time to kill, which may come nearer meanwhile; returns whether it came."""
        while self.alive and (left_s := self._kill_at_s + late_s - time.monotonic()) > 0:
            await asyncio.wait([self._stopped], timeout=min(left_s, 0.1))
        return not self.alive

    async def _kill_all(self) -> None:
        """Kill what is in the cgroup, and wait until the kernel says that it is empty. Raises StopFailed."""
        out_of_memory = self._tree.out_of_memory()
        self._killing = True
        self._tree.kill_first()
        if not await in_thread(self._tree.wait_empty, RESCUE_LIMIT_S):
            self._stopping = self._killing = False  # the next order tries again
            failure = StopFailed(f"still alive after the kill: {', '.join(map(str, self._tree.living()))}")
            self._answer_stops(failure)
            raise failure
        if self.alive:
            self._note(RungName.GONE)
            self._finish(signal.SIGKILL, out_of_memory=out_of_memory)

    # --- messages

    def _handle(self, message: Mapping[str, Any]) -> None:
        match message:
            case {"disk": int(size)}:
                if self._sizes is not None and not self._sizes.done():
                    self._sizes.set_result(size)
            case {"helper": int(pid)}:
                if self._helper is not None:
                    self._helper.heard(pid)
            case {"left": _}:
                pass  # the kernel's list counts, at the time to kill
            case _:
                super()._handle(message)

    def _ended(self, status: int | None, out_of_memory: bool) -> None:
        """The shim ends itself now. The task counts as gone when the kernel says that nothing is left."""
        self._close_control()
        self._rescue = self._loop.create_task(self._see_end(status, out_of_memory))

    async def _see_end(self, status: int | None, out_of_memory: bool) -> None:
        for limit_s in (END_LIMIT_S, RESCUE_LIMIT_S):
            if await in_thread(self._tree.wait_empty, limit_s):
                self._finish(status, out_of_memory=out_of_memory)
                return
            self._tree.kill_first()
        self._rescue = None
        self._begin_rescue("something of it outlived its shim")

    def _release(self) -> None:
        super()._release()
        if self._helper is not None:
            self._helper.heard(0)

    def _all_rungs(self, of_shim: tuple[Rung, ...]) -> tuple[Rung, ...]:
        late_s = self._shim_late_s
        later = (Rung(rung.name, None if rung.seconds is None else rung.seconds + late_s) for rung in of_shim)
        return (*self._rungs, *(rung for rung in later if rung.name is not RungName.FROZEN))

    def _begin_rescue(self, reason: str) -> None:
        if not self._killing:  # then the shim ends by our own kill
            super()._begin_rescue(reason)


def sweep(limit_s: float = 5.0) -> int:
    """Kill every task's unit that an earlier daemon has left; returns how many there were. Blocks, for `limit_s` at most.
    Raises StopFailed."""
    if not in_service():
        return 0
    left = [CgroupTree(0, path) for path in sorted(glob.glob(f"{CGROUPS}/{SLICE}/rae-task*@*.service"))]
    for tree in left:
        tree.kill_first()
    if alive := [tree.path for tree in left if not tree.wait_empty(limit_s / len(left))]:
        raise StopFailed(f"left by a crash and still alive: {', '.join(alive)}")
    return len(left)
