"""The outbox: outcomes in memory until the control node has them (R21). One worker delivers them in their order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from supervisor.linux.bounded import wait_for_event
from supervisor.sources import sanitize as clean
from supervisor.sources.backoff import Backoff
from supervisor.sources.base import Claim
from supervisor.sources.errors import MIB, RequestError
from supervisor.sources.in_flight import UNKNOWN, InFlightRecord, InFlightTask
from supervisor.sources.rae.api import BAD_GATEWAY, NotFound, RaeApi, TaskTooLarge, UnknownPath, created_for_sure_not

MAX_BODY_BYTES: Final = 64 * MIB  # the most that the real server was seen to take
REFUSALS: Final = 5  # so many 500s from a server that is sound otherwise, and it is the result that it cannot take
LAST_PAUSE_S: Final = 0.5
LOST_PATHS: Final = 3  # so many unknown paths, and this release has no way to post a task
OVER: Final = ("COMPLETED", "FAILED")
KEPT: Final = (401, 403, 405, 408, 421, 425, 429)  # 4xx that say nothing about the outcome: it is kept and tried again

Event = Callable[..., None]


class Step(Enum):
    """What an item still needs."""

    RECOVER = auto()  # ask the server what became of a task that a crash left
    REPOST = auto()  # post the task anew, then fail the old one
    RESULT = auto()  # post the outcome


@dataclass(slots=True)
class Item:
    """One task's outcome on its way. What is known only later (a new id, an encoded body) is filled in, so that a retry goes
    on where the last try stopped."""

    id: str
    type: str
    step: Step
    payload: Mapping[str, Any] = field(default_factory=dict, repr=False)
    priority: int = 0
    result: Mapping[str, Any] = field(default_factory=dict, repr=False)
    error: str | None = None
    reason: str = ""
    left_by_crash: bool = False
    node: str = ""
    repost: str | None = None
    body: bytes | None = field(default=None, repr=False)
    bare: bool = False  # nothing but a reason is left of it
    blind: bool = False  # it was posted, and the answer was lost
    refusals: int = 0
    faults: int = 0  # of ours
    lost_paths: int = 0

    @classmethod
    def settled(cls, claim: Claim, result: Mapping[str, Any], error: str | None) -> Item:
        """An outcome; `error` None: success."""
        words = None if error is None else clean.reason(error)
        return cls(claim.id, claim.type, Step.RESULT, result=result, error=words, bare=error is not None and not result)

    @classmethod
    def handed_back(cls, claim: Claim, reason: str, on_preempt: str) -> Item:
        """A task given back unrun or preempted."""
        item = cls(claim.id, claim.type, Step.REPOST, claim.payload, claim.priority, reason=clean.reason(reason))
        if on_preempt != "resubmit":
            item.fail(f"preempted: {item.reason}")
        return item

    @classmethod
    def left(cls, entry: InFlightTask) -> Item:
        """A task that a crash left."""
        reason = "node restarted while it had the task"
        return cls(
            entry.id, entry.type, Step.RECOVER, left_by_crash=True, node=entry.node, repost=entry.repost, reason=reason
        )

    def fail(self, error: str) -> None:
        """Make it a failure with this reason and no result."""
        self.step, self.error, self.result, self.payload, self.body = Step.RESULT, error, {}, {}, None
        self.bare = True

    def encode_anew(self) -> bytes:
        """The task as it is posted anew."""
        return clean.encode({"type": self.type, "payload": clean.mapping(self.payload), "priority": self.priority})

    def encode(self) -> bytes:
        """The outcome as it is posted; a failure of its own when it is too large."""
        body = clean.encode({"task_id": self.id, "result": clean.mapping(self.result), "error": self.error})
        if len(body) <= MAX_BODY_BYTES:
            return body
        limit_mib = MAX_BODY_BYTES // MIB
        self.error = f"result too large: {len(body) / MIB:.1f} MiB, at most {limit_mib} MiB can be delivered"
        return clean.encode({"task_id": self.id, "result": {}, "error": self.error})


class Outbox:
    """Delivers items by `api`, first in, first out.

    `event(name, **fields)` is told what the journal should know, never a payload; `on_trouble` what is the link's fault,
    `blame` the reason of any other trouble; `sound` tells whether the server is well otherwise; `on_preempt` how a type of
    task is given back.
    """

    def __init__(
        self,
        api: RaeApi,
        notes: InFlightRecord,
        *,
        on_preempt: Callable[[str], str],
        event: Event,
        on_trouble: Callable[[RequestError], None],
        blame: Callable[[str], None],
        sound: Callable[[], Awaitable[bool]],
        wake: Callable[[], None],
    ) -> None:
        self._api = api
        self._notes = notes
        self._backoff = Backoff()
        self._on_preempt = on_preempt
        self._event = event
        self._on_trouble = on_trouble
        self._blame = blame
        self._sound = sound
        self._wake = wake
        self._items: deque[Item] = deque()
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._open = asyncio.Event()
        self._open.set()
        self._hurry = asyncio.Event()
        self._registered = asyncio.Event()
        self._longest_pause_s = float("inf")

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, task_id: str) -> bool:
        return any(item.id == task_id for item in self._items)

    @property
    def ids(self) -> list[str]:
        """The tasks whose outcomes are not delivered."""
        return [item.id for item in self._items]

    @property
    def recovering(self) -> bool:
        """A task that a crash left is not settled yet."""
        return any(item.left_by_crash for item in self._items)

    def put(self, item: Item) -> None:
        """Take an item. A second outcome of one task is not an outcome: the first stands."""
        if item.id in self:
            self._event("outcome-ignored", task=item.id, type=item.type, reason="the task has an outcome already")
            return
        self._items.append(item)
        self._filled.set()
        self._emptied.clear()

    def close(self) -> None:
        """Try nothing until opened: the link was given up."""
        self._open.clear()

    def open(self) -> None:
        """The link is back, or the last chance is here: try now."""
        self._open.set()
        self._hurry.set()

    async def last_chance(self) -> None:
        """Deliver without long pauses until everything is delivered, or cancelled: the node stops."""
        self._longest_pause_s = LAST_PAUSE_S
        self.open()
        await self._emptied.wait()

    def registered(self) -> None:
        """The server has told what it calls this node."""
        self._registered.set()
        self.open()

    async def run(self) -> None:
        """Deliver for ever."""
        while True:
            await self._filled.wait()
            item = self._items[0]
            retrying = AsyncRetrying(
                retry=retry_if_exception_type(RequestError), wait=self._backoff, sleep=self._pause, before_sleep=self._report
            )
            await retrying(self._deliver, item)
            try:
                await self._notes.remove(item.id)
            except OSError as error:
                self._event("note-not-removed", task=item.id, reason=str(error))
            self._items.popleft()
            if not self._items:
                self._filled.clear()
                self._emptied.set()
            self._wake()

    async def _pause(self, seconds: float) -> None:
        self._hurry.clear()
        await wait_for_event(self._hurry, min(seconds, self._longest_pause_s))

    def _report(self, state: RetryCallState) -> None:
        trouble = state.outcome.exception() if state.outcome else None
        if isinstance(trouble, RequestError):
            (self._on_trouble(trouble) if _is_the_links(trouble) else self._blame(trouble.reason))

    async def _deliver(self, item: Item) -> None:
        """Go as far with an item as it goes; returns when nothing is left to do for it.

        Raises:
            RequestError: to be tried again.
        """
        await self._open.wait()
        try:
            if item.step is Step.RECOVER and not await self._recover(item):
                return
            if item.step is Step.REPOST:
                await self._repost(item)
            await self._post(item)
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001  a fault of ours: it is tried again, but not for ever, for others wait
            reason = f"the outcome could not be handled ({type(error).__name__})"
            item.faults += 1
            if item.faults < REFUSALS:
                raise RequestError(reason, status=0) from None
            self._event("outcome-lost", task=item.id, type=item.type, reason=reason)

    async def _recover(self, item: Item) -> bool:
        """Decide about a task that a crash left; False when there is nothing to settle."""
        await self._registered.wait()
        priority, payload, kind = 0, None, item.type
        try:
            task = await self._api.task(item.id)
        except NotFound:
            self._event("note-removed", task=item.id, type=item.type, reason="the control node does not know the task")
            return False
        except RequestError as trouble:
            if isinstance(trouble, TaskTooLarge) and trouble.state in OVER:
                self._event("note-removed", task=item.id, type=item.type, reason=f"it is {trouble.state} already")
                return False
            item.refusals += trouble.status == 500 and await self._sound()
            if not (isinstance(trouble, TaskTooLarge) or lasting(trouble) or item.refusals >= REFUSALS):
                raise
            item.refusals, task = 0, None  # what cannot be looked at cannot be posted anew; it must not be waited for
        if task is not None:
            whose = task.get("assigned_node_id")
            ours = isinstance(whose, str) and whose in {self._api.compute_id, item.node} - {""}
            if task.get("status") != "PROCESSING" or not ours:
                reason = "the task is settled or with another node"
                self._event("note-removed", task=item.id, type=item.type, reason=reason)
                return False
            payload, priority, kind = task.get("payload"), task.get("priority", 0), task.get("type", item.type)
        if item.repost:
            item.fail(_resubmitted(item))
        elif isinstance(payload, dict) and isinstance(kind, str) and self._on_preempt(kind) == "resubmit":
            item.type, item.payload, item.step = kind, payload, Step.REPOST
            item.priority = priority if type(priority) is int else 0
        else:
            item.fail(f"preempted: {item.reason}")
        return True

    async def _repost(self, item: Item) -> None:
        """Post the task anew, at least once, and known: the note and the journal say when it may have been twice."""
        before = item.repost
        if before == UNKNOWN:
            reason = "the answer to an earlier re-post was lost: the task may now exist twice"
            self._event("repost-repeated", task=item.id, type=item.type, reason=reason)
        await self._note_repost(item, UNKNOWN)
        try:
            new_id = await self._api.create(await asyncio.to_thread(item.encode_anew))
        except RequestError as trouble:
            if before is None and created_for_sure_not(trouble):
                item.repost = None
            item.lost_paths += isinstance(trouble, UnknownPath)
            item.refusals += trouble.status == 500 and await self._sound()
            if not lasting(trouble) and item.lost_paths < LOST_PATHS and item.refusals < REFUSALS:
                raise
            item.refusals = 0
            self._event("repost-refused", task=item.id, type=item.type, reason=trouble.reason)
            item.fail(f"preempted: {item.reason}; could not be resubmitted (status {trouble.status})")
            return
        await self._note_repost(item, new_id)
        self._event("reposted", task=item.id, type=item.type, new_task=new_id)
        item.fail(_resubmitted(item))

    async def _note_repost(self, item: Item, new_id: str) -> None:
        item.repost = new_id
        try:
            await self._notes.repost(item.id, new_id)
        except OSError as error:
            self._event("note-not-kept", task=item.id, type=item.type, reason=str(error))

    async def _post(self, item: Item) -> None:
        """Post the outcome; what the server says no to for good is lost, and the journal says so."""
        while True:
            if item.body is None:
                item.body = await asyncio.to_thread(item.encode)
                item.result = {}
            try:
                await self._api.result(item.id, item.body)
            except RequestError as trouble:
                if trouble.sent and (trouble.status is None or trouble.status >= BAD_GATEWAY):
                    item.blind = True
                if lasting(trouble):
                    if await self._has_it(item):
                        break
                    if isinstance(trouble, NotFound) or item.bare:
                        self._event("outcome-lost", task=item.id, type=item.type, reason=trouble.reason)
                        return
                    reason = f"the control node refused the result with status {trouble.status}"
                    if trouble.status == 413:
                        reason = f"result too large for the control node: {len(item.body) / MIB:.2f} MiB"
                    self._replace(item, reason)
                    continue
                if trouble.status == 500 and await self._sound():
                    item.refusals += 1
                    if item.refusals >= REFUSALS and await self._has_it(item):
                        break
                    if item.refusals == REFUSALS:
                        self._replace(item, f"the control node refused the outcome {REFUSALS} times with status 500")
                    if item.refusals == 2 * REFUSALS:  # not even a bare failure: the others do not wait for it
                        self._event("outcome-lost", task=item.id, type=item.type, reason=trouble.reason)
                        return
                raise
            break
        self._event("delivered", task=item.id, type=item.type, error=item.error is not None)

    def _replace(self, item: Item, reason: str) -> None:
        """The server will not take this outcome: say so in its place, so that no submitter waits for ever."""
        self._event("outcome-refused", task=item.id, type=item.type, reason=reason)
        item.fail(reason if item.error is None else f"{item.error} ({reason})")

    async def _has_it(self, item: Item) -> bool:
        """Whether an earlier post, whose answer was lost, has settled the task: then it must not be settled otherwise."""
        if not item.blind:
            return False
        try:
            task = await self._api.task(item.id)
        except NotFound:
            return False
        except TaskTooLarge as large:
            return large.state in OVER
        return task is not None and task.get("status") in OVER


def _resubmitted(item: Item) -> str:
    return f"preempted: {item.reason}; resubmitted as {item.repost}"


def lasting(trouble: RequestError) -> bool:
    """The server says no to this request, and would again."""
    if isinstance(trouble, UnknownPath) or trouble.status is None:
        return False
    return 400 <= trouble.status < 500 and trouble.status not in KEPT


def _is_the_links(trouble: RequestError) -> bool:
    """It says something about the way to the control node, not about this outcome."""
    status = trouble.status
    return status is None or status in (401, 403) or 300 <= status < 400
