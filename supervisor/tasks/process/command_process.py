"""A running command as the daemon sees it. The shim (see shim.py) starts, freezes and stops the command, and outlives the
daemon; this side sends it orders and reads its answers on the loop. If the shim does not answer, this side clears the tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from supervisor.tasks import usage
from supervisor.tasks.executors.base import FreezeFailed, NodeFault, Rung, StartFailed, StopFailed, Wake, describe
from supervisor.tasks.process import containment, process_tree
from supervisor.tasks.process.pipes import Pipes
from supervisor.tasks.process.process_tree import ProcessTree
from supervisor.tasks.process.result import CommandResult, FailureKind, Judge, read_json
from supervisor.tasks.process.rungs import RungName

START_LIMIT_S = 10.0  # for the shim, and again for what it starts
ANSWER_LIMIT_S = 6.0  # beyond the grace: the shim's own limits for freezing and killing, and a busy machine
RESCUE_LIMIT_S = 5.0
_ROOT = str(Path(__file__).resolve().parents[3])
# Imported, not run as a script, so that its bytecode is cached. Our path comes last, so that nothing in it can replace the
# standard library.
_SHIM = (
    "import sys; sys.path.append(sys.argv[3]); from supervisor.tasks.process.shim import main; "
    "main(int(sys.argv[1]), sys.argv[2])"
)
_MOST_RECEIVED = 1 << 20  # bytes of one message; a shim that sends more is not ours any more


@dataclass(frozen=True, slots=True)
class Launch:
    """What is started, and how; as JSON it is the shim's start order."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)  # all of it
    workdir: str  # where it starts; the shim wipes it when the daemon is lost
    mark: str  # see `containment.task_mark`
    cgroup: str | None  # already made; in a unit: the unit's own
    max_result: int  # bytes of stdout; more is a failure
    sandbox: str  # the name of the sandbox's own process, which gets no signal meant for the task; empty: none
    notice: tuple[int, float] | None  # signal and seconds of the notice before SIGTERM
    memory_limit: str  # where the kernel kills it, for its error
    closed: Sequence[str] = ()  # files that it may not open, where the kernel can see to that (see landlock)


async def start(launch: Launch, payload: bytes, wake: Wake, judge: Judge) -> CommandTask:
    """Start the shim, and by it the command. `payload` goes to its stdin, `wake` is called at its end, `judge` makes its
    outcome. Raises StartFailed; then nothing of it is left."""
    try:
        shim = ChildShim(launch)
    except OSError as error:
        process_tree.tree_of(0, launch.cgroup).remove()
        raise NodeFault(f"the task's shim could not be started: {error.strerror}") from None
    return await begin(CommandTask, shim, launch, payload, wake, judge)


async def begin(
    kind: type[CommandTask], shim: Shim, launch: Launch, payload: bytes, wake: Wake, judge: Judge
) -> CommandTask:
    """Let a shim that waits for its order start the command. Raises StartFailed."""
    try:
        task = kind(shim, launch, payload, wake, judge)
    except OSError as error:
        shim.control.close()
        shim.kill()
        shim.release()
        shim.tree.remove()
        raise NodeFault(f"no pipes for the task: {error.strerror}") from None
    await task.begin()
    return task


class Shim(Protocol):
    """A shim as the daemon sees it."""

    control: socket.socket

    @property
    def tree(self) -> ProcessTree:
        """The processes, without the shim where that is outside."""
        ...

    def kill(self) -> None:
        """Kill the shim, after its tree."""
        ...

    def release(self) -> None:
        """The tree is gone: let go of the shim. It ends when `control` is closed."""
        ...


class ChildShim:
    """A shim that is our child. It is reaped only after the tree is gone: the tree is found by the shim's pid, which must not
    be used again before. Raises OSError if it cannot be started."""

    def __init__(self, launch: Launch) -> None:
        self.control, theirs = socket.socketpair()
        self.control.setblocking(False)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SHIM, str(theirs.fileno()), launch.workdir, _ROOT],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={
                    containment.SHIM_VARIABLE: f"{launch.mark}.{os.getpid()}",
                    containment.CGROUP_VARIABLE: launch.cgroup or "",
                },
                cwd="/",
                start_new_session=True,
            )
            self.pid = self._process.pid
            self._exit_fd = os.pidfd_open(self.pid)
        except OSError:
            self.control.close()
            raise
        finally:
            theirs.close()
        self.tree = process_tree.tree_of(self.pid, launch.cgroup)

    def kill(self) -> None:
        """See Shim."""
        self._process.kill()

    def release(self) -> None:
        """See Shim."""
        asyncio.get_running_loop().add_reader(self._exit_fd, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._exit_fd)
        os.close(self._exit_fd)
        self._process.wait()


class CommandTask:
    """One running command; a RunningTask."""

    def __init__(self, shim: Shim, launch: Launch, payload: bytes, wake: Wake, judge: Judge) -> None:
        """Raises OSError: no pipe can be opened."""
        self._launch, self._wake, self._judge = launch, wake, judge
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._stopped: asyncio.Future[tuple[Rung, ...]] = self._loop.create_future()  # replaced after each answer
        self._freezes: deque[asyncio.Future[Rung]] = deque()  # of freeze and thaw; the shim answers in their order
        self._rescue: asyncio.Task[None] | None = None
        self._received = b""
        self._cpu_s = 0.0
        self._rungs: tuple[Rung, ...] = ()
        self.alive = True
        self._stopping = False
        self.error: str | None = None
        self.result: Mapping[str, Any] = {}
        self.state: Any = None
        self._shim, self._tree = shim, shim.tree
        self._control: socket.socket | None = shim.control
        self._pipes = Pipes(payload, launch.max_result, self._too_long)

    # As a RunningTask.

    def pids(self) -> frozenset[int]:
        """See RunningTask."""
        return self._tree.pids() if self.alive else frozenset()

    def cpu_s(self) -> float:
        """See RunningTask."""
        if self.alive:
            self._cpu_s = max(self._cpu_s, self._tree.cpu_s())
        return self._cpu_s

    def memory(self, enough: float | None) -> int:
        """See RunningTask."""
        known = self._tree.memory()
        return usage.memory(self.pids(), enough) if known is None else known

    async def disk(self) -> int:
        """See RunningTask."""
        return await asyncio.to_thread(lambda: usage.disk(self._launch.workdir, self.pids()))

    def freeze_now(self) -> None:
        """See RunningTask."""
        if self.alive and not self._stopping:
            self._tree.request_freeze()

    async def freeze(self) -> Rung:
        """See RunningTask."""
        if not self.alive:
            raise FreezeFailed("it is gone already")
        self.freeze_now()
        try:
            rung = await self._ask(freeze=True)
            if rung.name is not RungName.FROZEN:
                raise FreezeFailed(str(rung))
            return rung
        except FreezeFailed:
            if not self._stopping:
                self._tree.thaw()
            raise

    async def thaw(self) -> Rung:
        """See RunningTask."""
        return await self._ask(thaw=True) if self.alive else Rung(RungName.GONE_ALREADY)

    async def _ask(self, **order: bool) -> Rung:
        """Let the shim freeze or thaw."""
        if not self._send(**order):
            raise FreezeFailed("its shim was killed")
        answer: asyncio.Future[Rung] = self._loop.create_future()
        self._freezes.append(answer)
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return await answer
        except TimeoutError:
            raise FreezeFailed("its shim did not answer") from None

    async def stop(self, grace_s: float) -> tuple[Rung, ...]:
        """See RunningTask. If the shim does not answer, the daemon kills the tree. May be called again meanwhile: the
        shortest grace counts."""
        if not self.alive:
            return self._rungs or (Rung(RungName.GONE_ALREADY),)
        if not self._stopping:  # a later order only shortens the grace, during which the task must run
            self._stopping = True
            self._tree.request_freeze()
        reason = "its shim was killed"
        if self._send(stop=grace_s):
            reason = "its shim did not answer"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s + ANSWER_LIMIT_S):
                    return await asyncio.shield(self._stopped)
        self._begin_rescue(reason)
        try:
            async with asyncio.timeout(2 * RESCUE_LIMIT_S):
                return await asyncio.shield(self._stopped)
        except TimeoutError:
            raise StopFailed(f"no end of it was seen within {2 * RESCUE_LIMIT_S:.0f} s") from None

    # The shim.

    async def begin(self) -> None:
        """Let the shim start the command; the task's ends of the pipes go with the order. Raises StartFailed."""
        assert self._control is not None
        try:
            async with asyncio.timeout(START_LIMIT_S):
                order = msgspec.json.encode(self._launch) + b"\n"
                sent = socket.send_fds(self._control, [order], self._pipes.theirs)  # an empty socket takes a first part
                self._pipes.release()
                await self._loop.sock_sendall(self._control, order[sent:])
                self._loop.add_reader(self._control, self._receive)
                self._pipes.watch()
                await self._started
        except StartFailed as failed:
            self._release()
            self._tree.remove()
            raise StartFailed(f"{self._launch.argv[0]}: {failed}") from None
        except (TimeoutError, OSError) as error:
            self._pipes.release()
            left = await asyncio.to_thread(containment.clear, self._tree, self._launch.mark, RESCUE_LIMIT_S)
            self._shim.kill()
            self._release()
            reason = f"not started within {START_LIMIT_S:.0f} s" if isinstance(error, TimeoutError) else "its shim ended"
            raise NodeFault(reason + (f"; still alive: {', '.join(left)}" if left else "")) from None
        except asyncio.CancelledError:
            self._release()  # the shim takes this for a lost daemon, and kills what it has started
            raise

    def _send(self, **order: Any) -> bool:
        """Send an order to the shim; returns whether that was possible."""
        if self._control is None:
            return False
        try:
            self._control.send(json.dumps(order).encode() + b"\n")
        except OSError:
            return False
        return True

    def _too_long(self) -> None:
        """Too much on stdout is the task's own fault: no grace."""
        self._send(stop=0)

    def _receive(self) -> None:
        """Read the shim's messages. An end of them before `gone` means that the shim was killed."""
        if self._control is None:
            return
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close_control()
            if self._started.done():
                self._begin_rescue("its shim was killed")
            else:
                self._started.set_exception(ConnectionResetError())
            return
        *lines, self._received = (self._received + data).split(b"\n")
        try:
            for line in lines:
                self._handle(json.loads(line))
            if len(self._received) > _MOST_RECEIVED:
                raise ValueError("a message without an end")
        except (ValueError, TypeError, RecursionError, LookupError):  # the task has got hold of its shim
            self._close_control()
            self._begin_rescue("its shim sent no message of a shim")

    def _handle(self, message: Mapping[str, Any]) -> None:
        match message:
            case {"started": _} if not self._started.done():
                self._started.set_result(None)
            case {"failed": reason} if not self._started.done():
                self._started.set_exception(StartFailed(reason))
            case {"rung": rung}:
                if not (waiting := self._freezes.popleft()).done():  # done: the caller gave up
                    waiting.set_result(*_rungs([rung]))
            case {"left": left, "rungs": rungs}:
                text = f"still alive after the kill: {', '.join(left)} ({describe(*_rungs(rungs))})"
                self._answer_stops(StopFailed(text))
            case {"gone": status, "cpu_s": cpu_s, "rungs": rungs, "out_of_memory": out_of_memory, "state": state}:
                self._cpu_s = max(self._cpu_s, cpu_s)
                self._rungs = self._all_rungs(_rungs(rungs))
                if state is not None:
                    try:
                        self.state = read_json(state)
                    except ValueError:
                        self._rungs += (Rung(RungName.STATE_NOT_JSON),)
                self._ended(status, out_of_memory)

    def _all_rungs(self, of_shim: tuple[Rung, ...]) -> tuple[Rung, ...]:
        """The steps of the stop, given those that the shim did."""
        return of_shim

    def _close_control(self) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
            self._control = None

    def _release(self) -> None:
        """Let go of the shim and the pipes."""
        self.alive = False
        while self._freezes:
            if not (waiting := self._freezes.popleft()).done():
                waiting.set_exception(FreezeFailed("it ended meanwhile"))
        self._close_control()
        self._pipes.finish()
        self._shim.release()

    # The end.

    def _ended(self, status: int | None, out_of_memory: bool) -> None:
        """The shim says that the tree is empty, and how its main process ended."""
        self._finish(status, out_of_memory=out_of_memory)

    def _finish(self, status: int | None, *, out_of_memory: bool = False, lost: str = "") -> None:
        """The tree is gone: read the outcome, and answer the callers."""
        if not self.alive:
            return
        self._release()
        outcome = self._judge(status, self._pipes, self._launch.memory_limit if out_of_memory else "")
        if lost:
            outcome = CommandResult({}, FailureKind.LOST, lost)
        self.error, self.result = outcome.error, outcome.result
        self._answer_stops(self._rungs or (Rung(RungName.GONE),))
        self._wake()

    def _answer_stops(self, answer: tuple[Rung, ...] | StopFailed) -> None:
        stopped, self._stopped = self._stopped, self._loop.create_future()
        if isinstance(answer, StopFailed):
            stopped.set_exception(answer)
            stopped.exception()  # perhaps nobody waits for it: then asyncio shall not complain
        else:
            stopped.set_result(answer)

    def _begin_rescue(self, reason: str) -> None:
        """Kill the tree without the shim; one attempt at a time."""
        if self.alive and self._rescue is None:
            self._rescue = self._loop.create_task(self._clear(reason))

    async def _clear(self, reason: str) -> None:
        left = await asyncio.to_thread(containment.clear, self._tree, self._launch.mark, RESCUE_LIMIT_S)
        self._rescue = None
        if left:
            self._answer_stops(StopFailed(f"{reason}; still alive: {', '.join(left)}"))
            self._loop.call_later(1.0, self._begin_rescue, reason)
        elif self.alive:
            self._shim.kill()
            self._rungs = (Rung(RungName.CLEARED, detail=reason),)
            self._finish(None, lost=f"stopped, for {reason}")


def _rungs(sent: Sequence[tuple[str, float | None]]) -> tuple[Rung, ...]:
    """The rungs of a message of the shim."""
    return tuple(Rung(RungName(name), seconds) for name, seconds in sent)
