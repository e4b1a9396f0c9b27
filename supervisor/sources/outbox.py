"""The outbox: outcomes wait in memory until the other side has them. One worker delivers them, first in, first out."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from supervisor.linux.bounded import wait_for_event
from supervisor.sources.backoff import backoff_s
from supervisor.sources.base import Wake
from supervisor.sources.errors import RequestError
from supervisor.sources.events import EventLog, TaskRef
from supervisor.sources.in_flight import InFlightRecord
from supervisor.sources.link import RetryingLink

MAX_FAULTS: Final = 5  # an outcome that fails so often by a fault of ours is dropped: the others wait for it
LAST_PAUSE_S: Final = 0.5  # the longest pause between tries while the node stops

ItemT = TypeVar("ItemT", bound=TaskRef)


class _OwnFault(RequestError):
    """An exception in our own code."""


class Outbox(ABC, Generic[ItemT]):
    """Delivers items by `_deliver`, one after the other, while it is open. It opens when the link is up for the first time."""

    def __init__(self, link: RetryingLink, record: InFlightRecord, log: EventLog) -> None:
        self._link = link
        self._record = record
        self._log = log
        self._items: deque[ItemT] = deque()
        self._over: ItemT | None = None  # delivered or dropped, and on its way out
        self._faults = 0
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._opened = asyncio.Event()
        self._hurry = asyncio.Event()
        self._longest_pause_s = float("inf")

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, task_id: str) -> bool:
        return any(item.id == task_id for item in self._items)

    def __iter__(self) -> Iterator[ItemT]:
        return iter(self._items)

    def put(self, item: ItemT) -> None:
        """Take an item. The first outcome of a task stands; a second one is ignored."""
        if item.id in self:
            self._log("outcome-ignored", item, reason="the task has an outcome already")
            return
        self._items.append(item)
        self._filled.set()
        self._emptied.clear()

    def take(self, other: Outbox[ItemT]) -> None:
        """Take all items of another outbox, whose worker has ended."""
        for item in other._items:
            if item is not other._over:
                self.put(item)
        other._items.clear()
        other._filled.clear()
        other._emptied.set()

    def open(self) -> None:
        """Try now."""
        self._opened.set()
        self._hurry.set()

    def close(self) -> None:
        """Try nothing until it is opened."""
        self._opened.clear()

    async def deliver_all(self) -> None:
        """Deliver without long pauses; returns when the outbox is empty. For the stop of the node."""
        self._longest_pause_s = LAST_PAUSE_S
        self.open()
        await self._emptied.wait()

    async def run(self, wake: Wake) -> None:
        """Deliver; never returns. `wake` is called after each item."""
        while True:
            await self._filled.wait()
            item = self._items[0]
            self._faults = 0
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(RequestError), wait=backoff_s, sleep=self._pause, before_sleep=self._report
            )
            await retrying(self._try, item)
            self._over = item
            self._finished(item)
            await self.forget(item.id)
            self._items.popleft()
            if not self._items:
                self._filled.clear()
                self._emptied.set()
            wake()

    async def forget(self, task_id: str) -> None:
        """Remove the task from the record of the tasks in flight."""
        try:
            await self._record.remove(task_id)
        except OSError as error:
            self._log("note-not-removed", task=task_id, reason=str(error))

    async def _close_note(self, item: ItemT) -> None:
        """The item may wait for long. Its attempt is over: a node that ends meanwhile loses none."""
        try:
            await self._record.close(item.id)
        except OSError as error:
            self._log("note-not-kept", item, reason=str(error))

    @abstractmethod
    async def _deliver(self, item: ItemT) -> None:
        """Deliver the item, or decide that it cannot be delivered.

        Raises:
            RequestError: try again.
        """

    def _finished(self, item: ItemT) -> None:
        """The item is delivered or dropped."""

    def _is_link_error(self, error: RequestError) -> bool:
        """The error is about the link, not about this outcome."""
        return True

    async def _try(self, item: ItemT) -> None:
        if not self._opened.is_set():
            await self._close_note(item)
            await self._opened.wait()
        try:
            await self._deliver(item)
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001
            reason = f"the outcome could not be handled ({type(error).__name__})"
            self._faults += 1
            if self._faults < MAX_FAULTS:
                raise _OwnFault(reason) from None
            self._log("outcome-lost", item, reason=reason)

    async def _pause(self, seconds: float) -> None:
        self._hurry.clear()
        await self._close_note(self._items[0])
        await wait_for_event(self._hurry, min(seconds, self._longest_pause_s))

    def _report(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RequestError):
            ours = isinstance(error, _OwnFault) or not self._is_link_error(error)
            self._link.record_error(error.reason) if ours else self._link.fail(error)
