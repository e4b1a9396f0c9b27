"""A clock that a test owns, and an event loop that lives by it: what nothing happens in is skipped."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass
class ManualClock:
    """Both times in seconds, moved by the test alone, or by a `MadeLoop`; `holders`: who has it stand still there."""

    now: float = 1000.0
    wall: float = 1_800_000_000.0
    holders: int = 0

    def now_s(self) -> float:
        """See Clock."""
        return self.now

    def wall_s(self) -> float:
        """See Clock."""
        return self.wall

    def go(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.wall += seconds

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let the loop skip no time while somebody in real time is waited for."""
        self.holders += 1
        try:
            yield
        finally:
            self.holders -= 1


class _Skip(selectors.DefaultSelector):
    """Waits for nothing: the time that the loop would have slept is over at once."""

    def __init__(self, clock: ManualClock, sockets: bool) -> None:
        super().__init__()
        self._clock, self._sockets = clock, sockets

    def select(self, timeout: float | None = None) -> Any:
        """See BaseSelector."""
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if self._clock.holders:
            return super().select(0.05)
        if self._sockets:
            time.sleep(1e-4)  # what was sent over loopback a moment ago is there now
            events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("nothing would ever happen again")
            self._clock.go(max(timeout, 1e-6))
        return events


class _Inline(ThreadPoolExecutor):
    """A worker thread's work, done here: no time passes meanwhile."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See Executor."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # handed to who waits, as a thread would
            future.set_exception(error)
        return future


class MadeLoop(asyncio.SelectorEventLoop):
    """The event loop of made time. `sockets`: real ones are on it, and both their ends."""

    def __init__(self, clock: ManualClock, *, sockets: bool = False) -> None:
        super().__init__(_Skip(clock, sockets))
        self.time = clock.now_s  # type: ignore[method-assign]
        self.set_default_executor(_Inline(1))
