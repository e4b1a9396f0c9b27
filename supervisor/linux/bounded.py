"""Waits that end in time, whatever the awaited task or thread does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

CANCEL_AGAIN_S: Final = 0.1

T = TypeVar("T")


async def wait_for_event(event: asyncio.Event, within_s: float | None) -> bool:
    """Wait until the event is set, at most `within_s` seconds (None: without a limit); returns whether it is."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()


async def within(limit_s: float, work: Awaitable[T]) -> T:
    """The result of `work`. After `limit_s` seconds it is cancelled and left, even if it ignores the cancellation.

    Raises:
        TimeoutError: it was not done in time.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait([task], timeout=limit_s)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio logs its error


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended.

    Cancels again and again: up to Python 3.11 `asyncio.wait_for` swallows a cancellation that comes together with its result.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)


def in_thread(function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
    """Call a function that may hang, in a thread of its own that keeps neither the loop's worker threads nor the process's end.

    Returns:
        A future with its result or its exception.

    Raises:
        OSError: no thread can be started.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():  # nobody waits for it any more
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def call() -> None:
        result, failure = None, None
        try:
            result = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(deliver, result, failure)

    try:
        threading.Thread(target=call, name=getattr(function, "__name__", "call"), daemon=True).start()
    except RuntimeError as error:
        raise OSError("no thread can be started") from error
    return future
