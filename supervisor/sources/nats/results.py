"""Results on their way into a fleet (R21): in memory until the fleet has them, first in, first out."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from states.observation import Link
from supervisor.linux.bounded import wait_for_event
from supervisor.sources.errors import RequestError
from supervisor.sources.link import RetryingLink
from supervisor.sources.nats import connection as wire
from supervisor.sources.nats import subjects as layout
from supervisor.sources.nats.connection import Connection
from supervisor.sources.nats.errors import TOO_LARGE, Exists, Refused
from supervisor.sources.nats.leases import Lease
from supervisor.sources.nats.messages import Result

REMEMBERED: Final = 512  # tasks whose results are stored, should one be delivered once more
PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)  # between tries to deliver while the link is up


@dataclass(slots=True)
class Outcome:
    """A result on its way."""

    lease: Lease
    result: Result
    body: bytes = b""
    replaced: bool = False  # by the reason why the fleet does not take it
    blind: bool = False  # it was sent, and the answer was lost
    stored: bool = False  # the fleet has it; the task is not acknowledged yet


class Results:
    """Stores results by `need()`, which gives the connection or raises RequestError.

    `settled(task_id)` is awaited when a task is over for this node; `second()` is called when another node's result was
    first; `fail` is told of trouble; `event(name, **fields)` is for the journal, never a payload.
    """

    def __init__(
        self,
        link: RetryingLink,
        need: Callable[[], Connection],
        *,
        settled: Callable[[str], Awaitable[None]],
        second: Callable[[], None],
        fail: Callable[[RequestError], None],
        event: Callable[..., None],
    ) -> None:
        self._link = link
        self._need = need
        self._settled = settled
        self._second = second
        self._fail = fail
        self._event = event
        self._waiting: list[Outcome] = []
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._hurry = asyncio.Event()
        self._last = False
        self._done: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def ids(self) -> list[str]:
        """The tasks whose results are not stored."""
        return [outcome.result.id for outcome in self._waiting]

    def stored(self, task_id: str) -> bool:
        """This node has stored the task's result, as far as it remembers."""
        return task_id in self._done

    def put(self, lease: Lease, result: Result) -> None:
        """Take a result."""
        self._waiting.append(Outcome(lease, result))
        self._emptied.clear()
        self._filled.set()

    def hurry(self) -> None:
        """The link is back: try now."""
        self._hurry.set()

    async def last_chance(self) -> None:
        """Deliver until everything is delivered, or cancelled: the node stops."""
        self._last = True
        self.hurry()
        await self._emptied.wait()

    async def run(self) -> None:
        """Deliver for ever."""
        failures = 0
        while True:
            await self._filled.wait()
            outcome = self._waiting[0]
            try:
                if self._link.link is not Link.UP and not self._last:
                    raise RequestError(self._link.reason)
                await self._deliver(outcome)
                failures = 0
            except RequestError as trouble:
                if isinstance(trouble, Refused) and self._replaced(outcome, trouble):
                    continue
                self._hurry.clear()
                self._fail(trouble)
                pause_s = PAUSES_S[min(failures, len(PAUSES_S) - 1)]
                failures += 1
                await wait_for_event(self._hurry, pause_s if self._link.link is Link.UP or self._last else None)
                continue
            except Exception as error:  # noqa: BLE001  one outcome must not hold up all others
                reason = f"it could not be delivered ({type(error).__name__})"
                self._event("outcome-lost", task=outcome.result.id, reason=f"{reason}; another node gets the task")
            self._waiting.pop(0)
            await self._settled(outcome.result.id)
            if not self._waiting:
                self._filled.clear()
                self._emptied.set()

    async def _deliver(self, outcome: Outcome) -> None:
        """Store the result, then acknowledge the task: a node that dies between the two has it acknowledged by the next."""
        link, result = self._need(), outcome.result
        if not outcome.body:
            outcome.body = await asyncio.to_thread(result.encode)
        first = True
        if not outcome.stored:
            first = await self._store(link, outcome)
            outcome.stored = first
        await link.word(outcome.lease.reply, wire.ACK)
        self._done[result.id] = None
        while len(self._done) > REMEMBERED:
            self._done.popitem(last=False)
        if first:
            self._event("delivered", task=result.id, type=result.type, error=result.error is not None)
            return
        self._second()
        whose = "another node's result, or this one, whose answer was lost," if outcome.blind else "another node's result"
        reason = f"{whose} was first, and stands; this one is dropped"
        self._event("done-twice", task=result.id, type=result.type, reason=reason)

    async def _store(self, link: Connection, outcome: Outcome) -> bool:
        """Have the result stored; False: there is one."""
        result = outcome.result
        try:
            # the message id holds the node: what this node sends again is the same, what another sends is a second one
            await link.store(layout.result_subject(result.id), outcome.body, f"{result.id}.{layout.token(result.node)}")
        except Exists:
            return False
        except Refused:
            raise
        except RequestError as trouble:
            outcome.blind = outcome.blind or trouble.sent
            raise
        return True

    def _replaced(self, outcome: Outcome, refused: Refused) -> bool:
        """The fleet says no to this result for good: its reason is the outcome then. False: it was just that."""
        if outcome.replaced:
            return False
        what = "result too large" if refused.status == TOO_LARGE else "the fleet refused the result"
        result, error = outcome.result, f"{what}: {refused.reason}"
        error = error if result.error is None else f"{result.error} ({error})"
        self._event("outcome-refused", task=result.id, type=result.type, reason=refused.reason)
        outcome.result, outcome.body, outcome.replaced = replace(result, result={}, error=error), b"", True
        return True
