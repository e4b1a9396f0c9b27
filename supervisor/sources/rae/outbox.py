"""The outbox to the control node: it posts results, posts tasks again, and settles what a crash left."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Final

from states.ending import Ending
from supervisor.sources import sanitize
from supervisor.sources.base import RESUBMIT, STATE_KEY, Claim, SourceSettings
from supervisor.sources.errors import MIB, RequestError
from supervisor.sources.events import EventLog
from supervisor.sources.in_flight import UNKNOWN, InFlightRecord, InFlightTask
from supervisor.sources.link import RetryingLink
from supervisor.sources.lost_attempts import GIVEN_UP, MAX_LOST, with_count
from supervisor.sources.outbox import Outbox
from supervisor.sources.rae.api import BAD_GATEWAY, NotFound, RaeApi, TaskTooLarge, UnknownPath, surely_not_created

MAX_BODY_BYTES: Final = 64 * MIB  # the largest body that the real server was seen to take
REFUSALS: Final = 5  # after so many 500s from a server that takes heartbeats, it is the result that it cannot take
MAX_REPOSTS: Final = 2  # of one task without an answer that was read: each may be one more task at the server
LOST_PATHS: Final = 3  # after so many unknown paths, this release has no way to post a task
OVER: Final = ("COMPLETED", "FAILED")
NOT_FINAL: Final = (401, 403, 405, 408, 421, 425, 429)  # 4xx that say nothing about the outcome: it is tried again


class Step(Enum):
    """What an item still needs."""

    RECOVER = auto()  # ask the server what became of a task that a crash left
    REPOST = auto()  # post the task again, then fail the old one
    RESULT = auto()  # post the outcome


@dataclass(slots=True)
class Item:
    """One task's outcome on its way. A retry goes on where the last try stopped."""

    id: str
    type: str
    step: Step
    payload: Mapping[str, Any] = field(default_factory=dict, repr=False)
    priority: int = 0
    lost: int = 0
    result: Mapping[str, Any] = field(default_factory=dict, repr=False)
    error: str | None = None
    reason: str = ""  # of a hand-back
    left_by_crash: bool = False
    node: str = ""
    repost: str | None = None
    posts: int = 0  # posted again without an answer that was read
    given_back: bool = False
    body: bytes | None = field(default=None, repr=False)
    bare: bool = False  # it holds only a reason
    blind: bool = False  # it was posted, and the answer was lost
    refusals: int = 0
    lost_paths: int = 0

    @classmethod
    def settled(cls, task_id: str, task_type: str, result: Mapping[str, Any], error: str | None) -> Item:
        """An outcome; `error` None: success."""
        line = None if error is None else sanitize.reason(error)
        return cls(task_id, task_type, Step.RESULT, result=result, error=line, bare=error is not None and not result)

    @classmethod
    def handed_back(cls, claim: Claim, ending: Ending, on_preempt: str) -> Item:
        """A task given back unrun or preempted."""
        payload = claim.payload if ending.saved_state is None else {**claim.payload, STATE_KEY: ending.saved_state}
        reason = sanitize.reason(ending.error)
        item = cls(claim.id, claim.type, Step.REPOST, payload, claim.priority, claim.lost, reason=reason, given_back=True)
        if on_preempt != RESUBMIT:
            item.fail_preempted()
        return item

    @classmethod
    def left(cls, task: InFlightTask) -> Item:
        """A task that a crash left."""
        reason = "node restarted while it had the task"
        posts = max(task.posts, task.repost == UNKNOWN)
        return cls(
            task.id, task.type, Step.RECOVER, lost=task.lost, left_by_crash=True, node=task.node, repost=task.repost,
            posts=posts, reason=reason,
        )  # fmt: skip

    def fail(self, error: str) -> None:
        """Make it a failure with this reason and no result."""
        self.step, self.error, self.result, self.payload, self.body = Step.RESULT, error, {}, {}, None
        self.bare = True

    def fail_preempted(self, more: str = "") -> None:
        """Make it a failure with the prefix that a scheduler can read; with the id of the re-post if there is one."""
        more = f"; resubmitted as {self.repost}" if self.repost else more
        self.fail(f"preempted: {self.reason}{more}")

    def encode_task(self) -> bytes:
        """The task as it is posted again."""
        payload = with_count(self.payload, self.lost)
        return sanitize.encode({"type": self.type, "payload": payload, "priority": self.priority})

    def encode(self) -> bytes:
        """The outcome as it is posted; a failure of its own when it is too large."""
        body = sanitize.encode({"task_id": self.id, "result": self.result, "error": self.error})
        if len(body) <= MAX_BODY_BYTES:
            return body
        limit_mib = MAX_BODY_BYTES // MIB
        self.error = f"result too large: {len(body) / MIB:.1f} MiB, at most {limit_mib} MiB can be delivered"
        return sanitize.encode({"task_id": self.id, "result": {}, "error": self.error})


class ResultPoster:
    """Posts outcomes to the control node, for the outbox and for a bridge."""

    def __init__(self, api: RaeApi, log: EventLog) -> None:
        self._api = api
        self._log = log

    async def post(self, item: Item) -> bool:
        """Post the outcome. An outcome that the server refuses for good becomes a bare failure.

        Returns:
            False when the server refuses that too: the outcome is lost, and the journal says so.

        Raises:
            RequestError: try again.
        """
        while True:
            if item.body is None:
                item.body = await asyncio.to_thread(item.encode)
                item.result = {}
            try:
                await self._api.result(item.id, item.body)
                break
            except asyncio.CancelledError:
                item.blind = True  # it may be on its way still
                raise
            except RequestError as error:
                item.blind = item.blind or (error.sent and (error.status is None or error.status >= BAD_GATEWAY))
                final = is_final(error)
                if not final:
                    item.refusals += await self.is_refusal(error)
                    if item.refusals < REFUSALS:
                        raise
                if await self._has_it(item):
                    break
                if isinstance(error, NotFound) or item.bare:
                    self._log("outcome-lost", item, reason=error.reason)
                    return False
                reason = f"the control node refused the result with status {error.status}"
                if error.status == 413:
                    reason = f"result too large for the control node: {len(item.body) / MIB:.2f} MiB"
                elif not final:
                    reason = f"the control node refused the result {REFUSALS} times with status 500"
                self._log("outcome-refused", item, reason=reason)
                item.refusals = 0
                item.fail(reason if item.error is None else f"{item.error} ({reason})")
        self._log("delivered", item, error=item.error is not None)
        return True

    async def is_refusal(self, error: RequestError) -> bool:
        """A 500 from a server that takes heartbeats: it is about this request."""
        return error.status == 500 and await self._api.takes_heartbeat()

    async def _has_it(self, item: Item) -> bool:
        """An earlier post, whose answer was lost, has settled the task: it must not be settled otherwise."""
        if not item.blind:
            return False
        try:
            task = await self._api.task(item.id)
        except NotFound:
            return False
        except TaskTooLarge as large:
            return large.state in OVER
        return task is not None and task.get("status") in OVER


class RaeOutbox(Outbox[Item]):
    """Delivers to the control node."""

    def __init__(
        self, api: RaeApi, settings: SourceSettings, link: RetryingLink, record: InFlightRecord, log: EventLog
    ) -> None:
        super().__init__(link, record, log)
        self._api = api
        self._settings = settings
        self._poster = ResultPoster(api, log)

    @property
    def recovering(self) -> bool:
        """A task that a crash left is not settled yet."""
        return any(item.left_by_crash for item in self)

    async def _deliver(self, item: Item) -> None:
        if item.step is Step.RECOVER:
            if not await self._recover(item):
                return
        elif item.given_back and not (item.repost or item.blind) and not await self._is_ours(item):
            return
        if item.step is Step.REPOST:
            await self._repost(item)
        await self._poster.post(item)

    def _is_link_error(self, error: RequestError) -> bool:
        status = error.status
        return status is None or status in (401, 403) or 300 <= status < 400

    async def _recover(self, item: Item) -> bool:
        """Decide about a task that a crash left; False when there is nothing to settle."""
        try:
            task = await self._look(item)
        except NotFound:
            return self._nothing_to_settle(item, "the control node does not know the task")
        payload, task_type = None, item.type  # what cannot be looked at cannot be posted again
        if task is not None:
            if not self._checked(item, task):
                return False
            payload, task_type = task.get("payload"), task.get("type", item.type)
        if item.repost:
            item.fail_preempted()
        elif item.lost >= MAX_LOST:
            self._log("given-up", item, reason=GIVEN_UP)
            item.fail(GIVEN_UP)
        elif isinstance(payload, dict) and isinstance(task_type, str) and self._settings.preempted(task_type) == RESUBMIT:
            priority = task.get("priority") if task else 0
            item.type, item.payload, item.step = task_type, payload, Step.REPOST
            item.priority = priority if type(priority) is int else 0
            item.given_back = True
        else:
            item.fail_preempted()
        return True

    async def _is_ours(self, item: Item) -> bool:
        """Whether a task that is given back still is this node's. One that cannot be looked at counts as ours: nothing else
        would bring it back."""
        item.node = item.node or self._record.node_of(item.id)
        try:
            task = await self._look(item)
        except NotFound:
            return True
        return task is None or self._checked(item, task)

    async def _look(self, item: Item) -> Mapping[str, Any] | None:
        """The task as the control node has it; None: it cannot be looked at.

        Raises:
            NotFound: the control node does not know the task.
            RequestError: try again.
        """
        try:
            return await self._api.task(item.id)
        except NotFound:
            raise
        except TaskTooLarge as large:
            return {"status": large.state} if large.state in OVER else None
        except RequestError as error:
            item.refusals += await self._poster.is_refusal(error)
            item.lost_paths += isinstance(error, UnknownPath)
            if not is_final(error) and item.refusals < REFUSALS and item.lost_paths < LOST_PATHS:
                raise
            item.refusals = item.lost_paths = 0
            return None

    def _checked(self, item: Item, task: Mapping[str, Any]) -> bool:
        """The task is still this node's to settle."""
        status, whose = task.get("status"), task.get("assigned_node_id")
        if status in OVER:
            return self._nothing_to_settle(item, f"it is {status} already")
        if status != "PROCESSING" or not isinstance(whose, str) or whose not in {self._api.compute_id, item.node} - {""}:
            return self._nothing_to_settle(item, "it is with another node, or waits for one")
        return True

    def _nothing_to_settle(self, item: Item, reason: str) -> bool:
        self._log("note-removed", item, reason=reason)
        return False

    async def _repost(self, item: Item) -> None:
        """Post the task again; the record and the journal say when it may have been twice. No third time: who posts without
        an end fills the server."""
        before = item.repost
        if item.posts >= MAX_REPOSTS:
            self._log("repost-refused", item, reason=f"{item.posts} re-posts were not answered")
            item.repost = None
            item.fail_preempted(f"; posted again {item.posts} times without an answer, so it may wait under other ids")
            return
        if before == UNKNOWN:
            reason = "the answer to an earlier re-post was lost: the task may now exist twice"
            self._log("repost-repeated", item, reason=reason)
        item.posts += 1
        await self._record_repost(item, UNKNOWN)
        try:
            new_id = await self._api.create(await asyncio.to_thread(item.encode_task))
        except RequestError as error:
            if surely_not_created(error):
                item.posts -= 1
                item.repost = before
            item.lost_paths += isinstance(error, UnknownPath)
            item.refusals += await self._poster.is_refusal(error)
            if not is_final(error) and item.lost_paths < LOST_PATHS and item.refusals < REFUSALS:
                raise
            item.refusals, item.repost = 0, None
            self._log("repost-refused", item, reason=error.reason)
            item.fail_preempted(f"; could not be resubmitted (status {error.status})")
            return
        item.posts = 0
        await self._record_repost(item, new_id)
        self._log("reposted", item, new_task=new_id)
        item.fail_preempted()

    async def _record_repost(self, item: Item, new_id: str) -> None:
        item.repost = new_id
        try:
            await self._record.repost(item.id, new_id, item.posts)
        except OSError as error:
            self._log("note-not-kept", item, reason=str(error))


def is_final(error: RequestError) -> bool:
    """The server refuses this request, and would refuse it again."""
    if isinstance(error, UnknownPath) or error.status is None:
        return False
    return 400 <= error.status < 500 and error.status not in NOT_FINAL
