"""A running command, as the node holds it: by its shim (see shim.py), and without it when it does not answer (R2, R19).

The shim starts the command, freezes, stops and outlives it; here is its door on the loop: orders out, words in, and the
outcome read when the tree is seen to be gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from supervisor.tasks.executors.base import FreezeFailed, StartFailed, StopFailed, Wake
from supervisor.tasks.process import containment, process_tree
from supervisor.tasks.process.pipes import Pipes
from supervisor.tasks.process.result import Judge

START_LIMIT_S = 10.0
ANSWER_LIMIT_S = 6.0  # beyond the grace: the shim's own limits for freezing and killing, and a busy machine
RESCUE_LIMIT_S = 5.0
_ROOT = str(Path(__file__).resolve().parents[3])
# Imported, not run as a script, so that its bytecode is cached; our path comes last, so that nothing in it can stand in
# for the standard library.
_SHIM = (
    "import sys; sys.path.append(sys.argv[3]); from supervisor.tasks.process.shim import main; "
    "main(int(sys.argv[1]), sys.argv[2])"
)


class CommandTask:
    """One running command; a RunningTask. The shim's process is not reaped before the tree is gone, so that its number,
    by which the tree is found, stays its own."""

    def __init__(
        self, mark: str, cgroup: str | None, payload: bytes, max_result: int, wake: Wake, judge: Judge
    ) -> None:
        self._judge = judge
        self._mark = mark
        self._cgroup = cgroup
        self._payload = payload
        self.ended_at: dict[str, str] = {}  # the error of one that the kernel ended at a limit, by limit
        self._max_result = max_result
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._waiting: list[asyncio.Future[str]] = []  # of stop
        self._on_ice: deque[asyncio.Future[str]] = deque()  # of freeze and thaw, in their order
        self._rescue: asyncio.Task[None] | None = None
        self._heard = b""
        self._shim_over = False
        self._control: socket.socket | None = None
        self._cpu_s = 0.0
        self._rungs = ""
        self._alive = True
        self._stopping = False
        self._error: str | None = None
        self._result: Mapping[str, Any] = {}
        self._state: Any = None

    # What a RunningTask shows.

    @property
    def alive(self) -> bool:
        """See RunningTask: until the shim had nothing left to wait for, or a search has found nothing."""
        return self._alive

    @property
    def ended(self) -> bool:
        """See RunningTask."""
        return not self._alive

    @property
    def error(self) -> str | None:
        """See RunningTask."""
        return self._error

    @property
    def result(self) -> Mapping[str, Any]:
        """See RunningTask. Of a failed task: the end of its stderr, for the control node alone."""
        return self._result

    @property
    def state(self) -> Any:
        """See RunningTask."""
        return self._state

    def pids(self) -> frozenset[int]:
        """See RunningTask."""
        return self._tree.pids() if self._alive else frozenset()

    def cpu_s(self) -> float:
        """See RunningTask."""
        if self._alive:
            self._cpu_s = max(self._cpu_s, self._tree.cpu_s())
        return self._cpu_s

    async def freeze(self) -> str:
        """See RunningTask."""
        if not self._alive:
            raise FreezeFailed("it is gone already")
        if not self._stopping:
            self._tree.freeze_first()
        try:
            return await self._ice({"freeze": True})
        except FreezeFailed:
            if not self._stopping:
                self._tree.thaw()
            raise

    async def thaw(self) -> str:
        """See RunningTask."""
        return await self._ice({"thaw": True}) if self._alive else "gone already"

    async def _ice(self, order: Mapping[str, Any]) -> str:
        """Have the shim freeze or thaw."""
        if not self._say(order):
            raise FreezeFailed("its shim was killed")
        word: asyncio.Future[str] = self._loop.create_future()
        self._on_ice.append(word)
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return await word
        except TimeoutError:
            raise FreezeFailed("its shim did not answer") from None

    async def stop(self, grace_s: float) -> str:
        """See RunningTask. The shim carries it out; when it does not answer, we do. It may be called again meanwhile:
        the shortest grace counts."""
        if not self._alive:
            return self._rungs or "gone already"
        word: asyncio.Future[str] = self._loop.create_future()
        self._waiting.append(word)
        if not self._stopping:  # a later order only shortens the grace in which it runs to obey
            self._stopping = True
            self._tree.freeze_first()
        try:
            if self._say({"stop": grace_s}):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace_s + ANSWER_LIMIT_S):
                        return await asyncio.shield(word)
                self._begin_rescue("its shim did not answer")
            else:
                self._begin_rescue("its shim was killed")
            try:
                async with asyncio.timeout(2 * RESCUE_LIMIT_S):
                    return await word
            except TimeoutError:
                raise StopFailed(f"no end of it was seen within {2 * RESCUE_LIMIT_S:.0f} s") from None
        finally:
            if word in self._waiting:
                self._waiting.remove(word)

    # The shim.

    async def start(self, workdir: Path, order: Mapping[str, Any]) -> None:
        """Start the shim, and by it the command.

        Args:
            workdir: wiped by the shim when the daemon is lost.
            order: see Shim.start.

        Raises:
            StartFailed: it did not start; what was there of it is gone.
        """
        try:
            self._pipes = Pipes(self._payload, self._max_result, self._too_long)
            self._payload = b""
            self._shim = self._open(workdir)
        except OSError as error:
            process_tree.tree_of(0, self._cgroup).remove()
            raise StartFailed(f"the task's shim could not be started: {error.strerror}") from None
        self._tree = process_tree.tree_of(self._shim.pid, self._cgroup)
        exit_fd = os.pidfd_open(self._shim.pid)
        self._loop.add_reader(exit_fd, self._shim_exited, exit_fd)
        assert self._control is not None
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await self._loop.sock_sendall(self._control, json.dumps({**order, "cgroup": self._cgroup}).encode() + b"\n")
                self._loop.add_reader(self._control, self._hear)
                self._pipes.watch()
                await self._started
        except StartFailed as failed:
            self._let_go()
            self._tree.remove()
            raise StartFailed(f"{order['argv'][0]}: {failed}") from None
        except (TimeoutError, OSError) as error:
            left = await asyncio.to_thread(containment.clear, self._tree, self._mark, RESCUE_LIMIT_S)
            self._shim.kill()
            self._let_go()
            reason = f"not started within {START_LIMIT_S:.0f} s" if isinstance(error, TimeoutError) else "its shim ended"
            raise StartFailed(reason + (f"; still alive: {', '.join(left)}" if left else "")) from None
        except asyncio.CancelledError:
            self._let_go()  # to the shim the daemon is lost: it kills what it has started
            raise

    def _open(self, workdir: Path) -> subprocess.Popen[bytes]:
        """Start the shim with the task's ends of the pipes. Raises OSError."""
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        stdin, stdout, stderr = self._pipes.theirs
        try:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SHIM, str(theirs.fileno()), str(workdir), _ROOT],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(theirs.fileno(),),
                env={
                    containment.SHIM_VARIABLE: f"{self._mark}.{os.getpid()}",
                    containment.CGROUP_VARIABLE: self._cgroup or "",
                },
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            self._pipes.finish()
            self._control.close()
            raise
        finally:
            theirs.close()
            self._pipes.release()

    def _say(self, message: Mapping[str, Any]) -> bool:
        """Give the shim an order; whether it could be given."""
        if self._control is None:
            return False
        try:
            self._control.send(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def _too_long(self) -> None:
        """A flood on stdout is the task's own fault: no grace."""
        self._say({"stop": 0})

    def _hear(self) -> None:
        """Read what the shim says; its silence without a last word means that it was killed."""
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
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._understand(json.loads(line))

    def _understand(self, word: Mapping[str, Any]) -> None:
        if "started" in word or "failed" in word:
            if not self._started.done():
                if "failed" in word:
                    self._started.set_exception(StartFailed(word["failed"]))
                else:
                    self._started.set_result(None)
        elif "ice" in word:
            asked = self._on_ice.popleft()
            if asked.done():  # nobody waits for it any more
                return
            if word["ok"]:
                asked.set_result(word["ice"])
            else:
                asked.set_exception(FreezeFailed(word["ice"]))
        elif "left" in word:
            self._answer(StopFailed(f"still alive after the kill: {', '.join(word['left'])} ({word['rungs']})"))
        elif "gone" in word:
            self._cpu_s = max(self._cpu_s, word["cpu_s"])
            self._rungs = word["rungs"]
            if (state := word.get("state")) is not None:
                try:
                    self._state = msgspec.json.decode(state)
                except (msgspec.DecodeError, RecursionError):
                    self._rungs += ", its state is not JSON"
            self._finish(word["gone"], None, word.get("over", ()))

    def _shim_exited(self, exit_fd: int) -> None:
        self._loop.remove_reader(exit_fd)
        os.close(exit_fd)
        self._shim_over = True
        self._reap()

    def _reap(self) -> None:
        if self._shim_over and not self._alive:
            self._shim.wait()

    def _close_control(self) -> None:
        if self._control is not None:
            self._loop.remove_reader(self._control)
            self._control.close()
            self._control = None

    def _let_go(self) -> None:
        """Be done with the shim and the pipes."""
        self._alive = False
        while self._on_ice:
            if not (asked := self._on_ice.popleft()).done():
                asked.set_exception(FreezeFailed("it ended meanwhile"))
        self._close_control()
        self._pipes.finish()
        self._reap()

    # The end.

    def _finish(self, status: int | None, lost: str | None, over: Sequence[str] = ()) -> None:
        """The tree is gone: read the outcome, tell whoever waits."""
        if not self._alive:
            return
        self._let_go()
        self._error, self._result = (lost, {}) if lost else self._judge(status, self._pipes, self._max_result)
        if self._error is not None and over and status is not None and os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
            self._error = self.ended_at.get(over[0], f"limit: {over[0]}: ended by the kernel")
        self._answer(self._rungs or "gone")
        self._wake()

    def _answer(self, word: str | StopFailed) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                if isinstance(word, StopFailed):
                    waiting.set_exception(word)
                else:
                    waiting.set_result(word)

    def _begin_rescue(self, reason: str) -> None:
        """Clear away the tree ourselves, once at a time."""
        if self._alive and self._rescue is None:
            self._rescue = self._loop.create_task(self._clear(reason))

    async def _clear(self, reason: str) -> None:
        left = await asyncio.to_thread(containment.clear, self._tree, self._mark, RESCUE_LIMIT_S)
        self._rescue = None
        if left:
            self._answer(StopFailed(f"{reason}; still alive: {', '.join(left)}"))
            self._loop.call_later(1.0, self._begin_rescue, reason)
        elif self._alive:
            self._shim.kill()
            self._rungs = f"cleared away by the daemon, for {reason}"
            self._finish(None, f"lost: stopped, for {reason}")
