"""A task's standard streams, on the loop, with limits: payload in, result out, the end of stderr. No files."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

_CHUNK = 1 << 16  # the size of a pipe
_STDERR_TAIL = 8192


class Pipes:
    """Three pipes. They never block us, whatever the task reads, writes, closes or leaves open. `payload` goes to stdin, which
    is closed then. `on_overflow` is called if stdout is longer than `max_out` bytes. Raises OSError: no pipe can be opened."""

    def __init__(self, payload: bytes, max_out: int, on_overflow: Callable[[], None]) -> None:
        self.overflow = False
        self._loop = asyncio.get_running_loop()
        self._left = memoryview(payload)
        self.max_out = max_out
        self._on_overflow = on_overflow
        self._out = bytearray()
        self._err = bytearray()
        self._ours: list[int] = []
        self._theirs: list[int] = []
        self._stdin = self._stdout = self._stderr = -1
        try:
            for _ in range(3):
                read_end, write_end = os.pipe2(os.O_CLOEXEC)
                ours, theirs = (write_end, read_end) if not self._ours else (read_end, write_end)
                self._ours.append(ours)
                self._theirs.append(theirs)
                os.set_blocking(ours, False)
                os.fchmod(theirs, 0o666)  # a task that is another user may open its /dev/stdout; nobody else can get at it
        except OSError:
            self.release()
            self.finish()
            raise
        self._stdin, self._stdout, self._stderr = self._ours

    @property
    def theirs(self) -> tuple[int, int, int]:
        """The task's ends: stdin, stdout, stderr."""
        stdin, stdout, stderr = self._theirs
        return stdin, stdout, stderr

    @property
    def out(self) -> bytes:
        """The bytes of stdout; empty after an overflow."""
        return bytes(self._out)

    @property
    def err(self) -> str:
        """The end of stderr."""
        return self._err.decode(errors="replace").strip()

    def release(self) -> None:
        """Close our copies of the task's ends."""
        for fd in self._theirs:
            os.close(fd)
        self._theirs.clear()

    def watch(self) -> None:
        """Start to write and read."""
        self._loop.add_writer(self._stdin, self._feed)
        self._loop.add_reader(self._stdout, self._collect, self._stdout)
        self._loop.add_reader(self._stderr, self._collect, self._stderr)

    def finish(self) -> None:
        """Read what is still in the pipes, and close them. Does not wait for others that have an end open."""
        for fd in (self._stdout, self._stderr):
            for _ in range(32):  # enough for a full pipe; more only if somebody goes on writing
                if fd not in self._ours or not self._collect(fd):
                    break
        for fd in [*self._ours]:
            self._close(fd)

    def _feed(self) -> None:
        try:
            self._left = self._left[os.write(self._stdin, self._left[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:
            self._left = memoryview(b"")  # the task does not read the rest
        if not self._left:
            self._close(self._stdin)

    def _collect(self, fd: int) -> bool:
        """Read once; returns whether there was data."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close(fd)
        elif fd == self._stderr:
            self._err += data
            del self._err[:-_STDERR_TAIL]
        elif len(self._out) + len(data) > self.max_out:
            self.overflow = True
            self._out.clear()
            self._close(fd)
            self._on_overflow()
        else:
            self._out += data
        return bool(data)

    def _close(self, fd: int) -> None:
        if fd in self._ours:
            self._ours.remove(fd)
            with contextlib.suppress(ValueError):
                self._loop.remove_reader(fd)
                self._loop.remove_writer(fd)
            os.close(fd)
