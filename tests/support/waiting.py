"""How tests wait: for a condition, never for a time, and not for ever. The deadline is for a machine that is busy."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

DEADLINE_S: Final = 30.0
LONGEST_PAUSE_S: Final = 0.3
Words = str | Callable[[], str]


def until(condition: Callable[[], Any], what: Words = "it", timeout_s: float = DEADLINE_S) -> Any:
    """The first true answer of `condition`; AssertionError with `what` was waited for after `timeout_s`."""
    end_s = time.monotonic() + timeout_s
    while True:
        asked_s = time.monotonic()
        if answer := condition():
            return answer
        _judge(end_s, what, timeout_s)
        # Many a condition starts a program: to ask takes a fifth of the time at most, the rest is for what is waited for.
        time.sleep(min(LONGEST_PAUSE_S, max(0.02, 4 * (time.monotonic() - asked_s))))


async def eventually(condition: Callable[[], Any], what: Words = "it", timeout_s: float = DEADLINE_S) -> Any:
    """The same on the loop."""
    end_s = time.monotonic() + timeout_s
    while not (answer := condition()):
        _judge(end_s, what, timeout_s)
        await asyncio.sleep(0.005)
    return answer


def _judge(end_s: float, what: Words, timeout_s: float) -> None:
    if time.monotonic() >= end_s:
        raise AssertionError(f"not within {timeout_s:g} s: {what if isinstance(what, str) else what()}")


def play(scene: Coroutine[Any, Any, None]) -> None:
    """Run a scene on a loop of its own, to its end."""
    asyncio.run(asyncio.wait_for(scene, 2 * DEADLINE_S))


def ready_s() -> float:
    """Seconds that this thread has been ready to run while another one ran: the machine's doing, not the thread's own."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


class Held:
    """How long the loop was held up by what ran on it, at most."""

    longest_s = 0.0


@contextlib.asynccontextmanager
async def watched_loop() -> AsyncIterator[Held]:
    """Measure it in the body; to be judged after it."""
    held = Held()

    async def watch() -> None:
        while True:
            began_s, ready = time.monotonic(), ready_s()
            await asyncio.sleep(0.01)
            held.longest_s = max(held.longest_s, time.monotonic() - began_s - (ready_s() - ready))

    watching = asyncio.create_task(watch())
    try:
        yield held
    finally:
        watching.cancel()
