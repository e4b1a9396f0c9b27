"""Bounded waits: nothing that hangs delays the caller."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from supervisor.linux.bounded import end, in_thread, wait_for_event, within


async def stubborn() -> None:
    """Ignores its first cancellation, as `asyncio.wait_for` can up to Python 3.11."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(60)
    await asyncio.sleep(60)


def test_an_event_is_waited_for_no_longer_than_asked() -> None:
    async def scene() -> None:
        event = asyncio.Event()
        assert not await wait_for_event(event, 0.01)
        asyncio.get_running_loop().call_soon(event.set)
        assert await wait_for_event(event, None)

    asyncio.run(scene())


def test_a_result_comes_in_time_or_not_at_all() -> None:
    async def scene() -> None:
        assert await within(1.0, asyncio.sleep(0, "done")) == "done"
        with pytest.raises(ZeroDivisionError):
            await within(1.0, in_thread(lambda: 1 // 0))
        began_s = time.monotonic()
        work = asyncio.ensure_future(stubborn())
        with pytest.raises(TimeoutError):
            await within(0.01, work)
        assert time.monotonic() - began_s < 5.0
        assert not work.done()
        await end(work)
        assert work.cancelled()

    asyncio.run(scene())


def test_a_caller_that_is_cancelled_takes_its_work_along() -> None:
    async def scene() -> None:
        work = asyncio.ensure_future(asyncio.sleep(60))
        caller = asyncio.ensure_future(within(60.0, work))
        await asyncio.sleep(0)
        await end(caller)
        await asyncio.sleep(0)
        assert work.cancelled()

    asyncio.run(scene())


def test_a_thread_that_hangs_keeps_nobody() -> None:
    release = threading.Event()

    async def scene() -> None:
        assert await in_thread(max, 1, 2) == 2
        with pytest.raises(TimeoutError):
            await within(0.01, in_thread(release.wait, 60))

    began_s = time.monotonic()
    asyncio.run(scene())
    assert time.monotonic() - began_s < 5.0
    release.set()


def test_without_a_thread_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    async def scene() -> None:
        with pytest.raises(OSError, match="no thread"):
            await in_thread(max, 1, 2)

    asyncio.run(scene())
