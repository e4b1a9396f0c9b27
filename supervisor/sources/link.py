"""A link that is made again when it fails: with back-off and jitter, or given up where the configuration says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_never

from states.observation import Link
from supervisor.linux.bounded import wait_for_event
from supervisor.linux.clock import Clock
from supervisor.sources.backoff import backoff_s
from supervisor.sources.base import LinkStatus
from supervisor.sources.errors import RequestError, own_faults

Work = Callable[[], Awaitable[None]]

BUSY: Final = (429, 500, 503)  # the other side may have too much to do. RAE's own rate limit answers 500, without Retry-After


async def nothing() -> None:
    """The `close` of a link that has nothing to clean up."""


class RetryingLink:
    """Calls `connect` once, then `keep` again and again. Nothing else changes the status of the link.

    `connect` and `keep` raise `RequestError` when the link has failed; then `close` is called. A link that had worked
    (`keep` returned once, or its owner set `proven`) is made again at once. Any other waits, longer each time; after an
    answer with Retry-After, or with a status of BUSY, it always waits. `changed(link, reason)` is called after each change.
    """

    def __init__(
        self,
        connect: Work,
        keep: Work,
        close: Work,
        *,
        clock: Clock,
        retry: bool,
        changed: Callable[[Link, str], None],
    ) -> None:
        self._connect = connect
        self._keep = keep
        self._close = close
        self._clock = clock
        self._retry = retry
        self._changed = changed
        self._resumed = asyncio.Event()
        self._news = asyncio.Event()
        self._failed = asyncio.Event()
        self._failure: RequestError | None = None
        self.proven = False
        self.stopping = False  # the node stops: no error changes the link any more
        self.status = LinkStatus(Link.DOWN, clock.now_s(), "not started")

    @property
    def up(self) -> bool:
        """The link works, as far as is known."""
        return self.status.link is Link.UP

    async def run(self) -> None:
        """Make and keep the link; never returns."""
        self._set(Link.DOWN, "connecting")
        while True:
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(RequestError),
                wait=self._backoff_s,
                stop=stop_never if self._retry else stop_after_attempt(1),
                sleep=self._pause,
                before_sleep=self._before_pause,
                reraise=True,
            )
            try:
                await retrying(self._once)
            except RequestError as error:
                self._resumed.clear()
                reason = f"{error.reason}; given up (execution.retry_on_disconnect: false) until resumed"
                self.record_error(reason)
                self._set(Link.LOST, reason)
                await self._resumed.wait()
                self._set(Link.DOWN, "connecting")

    def resume(self) -> None:
        """Make a link again that was given up; cut short the wait for the next try."""
        self._resumed.set()

    def fail(self, error: RequestError) -> None:
        """Somebody else saw this error: the link is down at once, and `rest` raises the error."""
        if self.up and not self.stopping:
            self._failure = error
            self._down(error)
            self._failed.set()
            self._news.set()

    def record_error(self, reason: str) -> None:
        """Keep an error for the status; it does not change the link."""
        self.status = replace(self.status, error=reason, error_s=self._clock.now_s())

    def hurry(self) -> None:
        """Cut `rest` short: there is news to send."""
        self._news.set()

    async def rest(self, interval_s: float | None, pace_s: float = 0.0) -> None:
        """For `keep`: wait one interval, or until `hurry` is called, but `pace_s` at least. `fail` ends the wait at once.

        Raises:
            RequestError: the one that `fail` was called with.
        """
        await wait_for_event(self._failed, pace_s)
        await wait_for_event(self._news, None if interval_s is None else interval_s - pace_s)
        self._news.clear()
        if self._failure is not None:
            raise self._failure

    def stopped(self) -> None:
        """The node has stopped."""
        self._set(Link.DOWN, "stopped")

    def _down(self, error: RequestError, next_try_s: float | None = None) -> None:
        self.record_error(error.reason)
        self._set(Link.DOWN, error.reason, next_try_s)

    def _set(self, link: Link, reason: str, next_try_s: float | None = None) -> None:
        before = self.status
        since_s = before.since_s if link is before.link else self._clock.now_s()
        self.status = replace(before, link=link, since_s=since_s, reason=reason, next_try_s=next_try_s)
        if (link, reason) != (before.link, before.reason):
            self._changed(link, reason)

    async def _once(self) -> None:
        self.proven = False
        self._failure = None
        self._failed.clear()
        try:
            with own_faults("the link could not be kept"):
                await self._connect()
            self._set(Link.UP, "")
            while True:
                with own_faults("the link could not be kept"):
                    await self._keep()
                self.proven = True
        except RequestError as error:
            if not self._retry or not self.proven or error.retry_after_s is not None or error.status in BUSY:
                raise
            self._down(error)
        finally:
            await self._close()

    def _backoff_s(self, state: RetryCallState) -> float:
        if self.proven:  # the failures before were another story
            state.attempt_number = 1
        return backoff_s(state)

    async def _pause(self, seconds: float) -> None:
        self._resumed.clear()
        await wait_for_event(self._resumed, seconds)
        self.status = replace(self.status, next_try_s=None)

    def _before_pause(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait_s = state.next_action.sleep if state.next_action else 0.0
        if isinstance(error, RequestError):
            self._down(error, self._clock.now_s() + wait_s)
