"""A link that is kept: connect, keep, back off with full jitter, and give up when told to (R21). For any source."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, stop_never

from states.observation import Link
from supervisor.linux.bounded import wait_for_event
from supervisor.linux.clock import Clock
from supervisor.sources.backoff import Backoff
from supervisor.sources.errors import RequestError

Connect = Callable[[], Awaitable[None]]
CONNECTING: Final = "connecting"
NOT_STARTED: Final = "not started"
STOPPED: Final = "stopped"
NO_TROUBLE: Final = frozenset({"", NOT_STARTED, CONNECTING, STOPPED})


class RetryingLink:
    """Runs `connect` once and `keep` again and again; says up, down or lost, and nobody else does.

    `keep` returns when it is time to keep again, and raises `RequestError` when the link has failed; so does `connect`. The
    failure of a link that had proven sound (`keep` returned once, or its owner set `proven`) is tried again at once; any other
    waits, longer each time, and one with a Retry-After always waits. `changed(link, reason)` is told of every change,
    `parted()` whenever the link has gone down, to clear up.
    """

    def __init__(
        self,
        connect: Connect,
        keep: Connect,
        *,
        clock: Clock,
        retry: bool,
        changed: Callable[[Link, str], None],
        parted: Connect,
    ) -> None:
        self._connect = connect
        self._keep = keep
        self._clock = clock
        self._retry = retry
        self._changed = changed
        self._parted = parted
        self._backoff = Backoff()
        self._resumed = asyncio.Event()
        self.link = Link.DOWN
        self.since_s = clock.now_s()
        self.reason = NOT_STARTED
        self.next_try_s: float | None = None
        self.proven = False
        self.error = ""
        self.error_s: float | None = None

    async def run(self) -> None:
        """For ever."""
        self.say(Link.DOWN, CONNECTING)
        while True:
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(RequestError),
                wait=self._backoff,
                stop=stop_never if self._retry else stop_after_attempt(1),
                sleep=self._pause,
                before_sleep=self._will_retry,
                reraise=True,
            )
            try:
                await retrying(self._once)
            except RequestError as trouble:
                self._resumed.clear()
                self.say(Link.LOST, f"{trouble.reason}; given up (execution.retry_on_disconnect: false) until resumed")
                await self._resumed.wait()
                self.say(Link.DOWN, CONNECTING)

    def resume(self) -> None:
        """Lift a link that was given up; cut short the wait for the next try."""
        self._resumed.set()

    def say(self, link: Link, reason: str, next_try_s: float | None = None) -> None:
        """The link is now like that."""
        if reason not in NO_TROUBLE:
            self.blame(reason)
        changed = (link, reason) != (self.link, self.reason)
        if link is not self.link:
            self.since_s = self._clock.now_s()
        self.link, self.reason, self.next_try_s = link, reason, next_try_s
        if changed:
            self._changed(link, reason)

    def blame(self, reason: str) -> None:
        """There was trouble on the way, whatever it means for the link: `status` shows the last."""
        self.error, self.error_s = reason, self._clock.now_s()

    async def _once(self) -> None:
        self.proven = False
        try:
            await self._guarded(self._connect)
            self.say(Link.UP, "")
            while True:
                await self._guarded(self._keep)
                self.proven = True
        except RequestError as trouble:
            if not self._retry or not self.proven or trouble.retry_after_s is not None:
                raise
            self.say(Link.DOWN, trouble.reason)
        finally:
            await self._parted()

    async def _guarded(self, work: Connect) -> None:
        """No fault of ours ends the link's task in silence."""
        try:
            await work()
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001
            raise RequestError(f"the link could not be kept ({type(error).__name__})") from None

    async def _pause(self, seconds: float) -> None:
        self._resumed.clear()
        await wait_for_event(self._resumed, seconds)
        self.next_try_s = None

    def _will_retry(self, state: RetryCallState) -> None:
        trouble = state.outcome.exception() if state.outcome else None
        wait_s = state.next_action.sleep if state.next_action else 0.0
        self.say(Link.DOWN, trouble.reason if isinstance(trouble, RequestError) else "", self._clock.now_s() + wait_s)
