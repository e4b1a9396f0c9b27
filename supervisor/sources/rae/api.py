"""The control node's calls, typed: what is asked, what a good answer looks like, and what every other answer means."""

from __future__ import annotations

import asyncio
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from supervisor.config.schema import Control
from supervisor.sources import sanitize as clean
from supervisor.sources.base import Availability
from supervisor.sources.errors import RequestError
from supervisor.sources.ids import is_id, same_id
from supervisor.sources.rae.dialects import DIALECTS, Dialect, configured, from_openapi
from supervisor.sources.rae.transport import NOT_JSON, Answer, AnswerTooLarge, Transport

NO_KEY: Final = "none"  # register wants an api_key; the server only stores its hash
NIL_ID: Final = str(UUID(int=0))
BAD_GATEWAY: Final = 502
MAX_ID_CHARS: Final = 200  # of what the server calls this node: it goes into the note
MISREAD: Final = 422  # dialect A's poll, read by B to D as a look at a task with no id
SMALL_BYTES: Final = 256 * 1024  # of an answer that is about this node: parsing it holds up the loop for a moment
# The answers to a result and to a task's post give the task back whole, whatever its size; its id comes first and is enough.
TASK_BEGINS: Final = re.compile(rb'\s*\{\s*"id"\s*:\s*"(?P<id>[0-9a-fA-F-]{36})"\s*,')
# Of a task that is too large to be read, its state: it stands before what makes it large.
ITS_STATE: Final = re.compile(
    TASK_BEGINS.pattern + rb'\s*"type"\s*:\s*"(?:[^"\\]|\\.)*"\s*,\s*"status"\s*:\s*"(?P<state>[A-Z]+)"'
)


class UnknownPath(RequestError):
    """The server has no such route: another dialect, or another server."""


class TaskTooLarge(RequestError):
    """A task is larger than what is read of an answer; its id was at the beginning, `state` too if it is not empty."""

    def __init__(self, task_id: str, reason: str, state: str) -> None:
        super().__init__(reason, status=200)
        self.task_id = task_id
        self.state = state


class NotFound(RequestError):
    """The route is right; the server does not know the node or the task."""


class RaeApi:
    """One control node. A call without a good answer raises `RequestError`; none is repeated. One call of a kind at once."""

    def __init__(
        self, transport: Transport, settings: Control, *, node_id: str, token: str | None, capabilities: Mapping[str, Any]
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._node_id = node_id
        self._token = token
        self._capabilities = capabilities
        self._dialect = configured(settings)
        self._fixed = self._dialect is not None
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by kind of request
        self.compute_id = ""  # what the server calls this node, from register

    @property
    def dialect(self) -> str:
        """The dialect's name; empty while it is not found."""
        return self._dialect.name if self._dialect else ""

    async def paths(self) -> Dialect:
        """The dialect, looked for if it is not known: in the OpenAPI document, else by probing what changes nothing."""
        async with self._one_at_a_time["dialect"]:
            if self._dialect is None:
                self._dialect = await self._from_openapi() or await self._by_probing()
            return self._dialect

    def new_life(self) -> None:
        """Register as another life of this node from now on, where lives are told."""
        if "life" in self._capabilities:
            self._capabilities = {**self._capabilities, "life": os.urandom(8).hex()}

    async def introduce(self, availability: Availability) -> None:
        """Register, and tell the truth, for the server calls ONLINE whoever registers."""
        try:
            await self.register()
        except UnknownPath:
            await self.register()  # the dialect is looked for again, unless it is given
        await self.heartbeat(availability)

    async def register(self) -> None:
        """Make this node known; the server then calls it ONLINE, so a heartbeat with the truth must follow."""
        paths = await self.paths()
        body = {"node_id": self._node_id, "api_key": self._token or NO_KEY, "capabilities": clean.mapping(self._capabilities)}
        value = await self._call("register", "POST", paths.register, body, max_bytes=SMALL_BYTES)
        compute_id = value.get("id") if isinstance(value, dict) else None
        if not isinstance(compute_id, str) or not 0 < len(compute_id) <= MAX_ID_CHARS:
            raise self._malformed("register")
        self.compute_id = compute_id

    async def heartbeat(self, availability: Availability) -> None:
        """Tell whether work is welcome."""
        paths = await self.paths()
        body = {"node_id": self._node_id, "status": availability.value}
        if not isinstance(await self._call("heartbeat", "POST", paths.heartbeat, body, max_bytes=SMALL_BYTES), dict):
            raise self._malformed("heartbeat")

    async def takes_heartbeat(self, availability: Availability) -> bool:
        """Whether the server takes a heartbeat right now: if so, it is what else it refuses that it cannot take."""
        try:
            await self.heartbeat(availability)
        except RequestError:
            return False
        return True

    async def poll(self) -> dict[str, Any] | None:
        """Ask for a task; None: there is none. The server has handed it out even if the answer is lost on the way.

        Raises:
            TaskTooLarge: there is one that cannot be taken.
            RequestError: no good answer.
        """
        paths = await self.paths()
        try:
            value = await self._call("poll", "GET", paths.poll, query={"node_id": self._node_id})
        except AnswerTooLarge as much:
            raise _too_large(much) or much from None
        if value is not None and (not isinstance(value, dict) or not is_id(value.get("id"))):
            raise self._malformed("poll")
        return value

    async def task(self, task_id: str) -> dict[str, Any] | None:
        """A task as the server has it; None: this dialect cannot look one up.

        Raises:
            TaskTooLarge: it cannot be read.
            RequestError: no good answer.
        """
        paths = await self.paths()
        if paths.task is None:
            return None
        try:
            value = await self._call("task", "GET", paths.task.replace("{id}", task_id))
        except AnswerTooLarge as much:
            large = _too_large(much)
            raise large if large is not None and same_id(large.task_id, task_id) else much from None
        if not isinstance(value, dict) or not same_id(value.get("id"), task_id):
            raise self._malformed("task")
        return value

    async def create(self, body: bytes) -> str:
        """Post a task (JSON object with type, payload, priority); its id."""
        paths = await self.paths()
        value = await self._call("task post", "POST", paths.tasks, content=body, enough=TASK_BEGINS)
        if not isinstance(value, dict) or not is_id(value.get("id")):
            raise self._malformed("task post")
        return str(value["id"])

    async def result(self, task_id: str, body: bytes) -> None:
        """Post an outcome (JSON object with task_id, result, error)."""
        paths = await self.paths()
        path = paths.result.replace("{id}", task_id)
        value = await self._call("result", "POST", path, content=body, enough=TASK_BEGINS)
        if not isinstance(value, dict) or not same_id(value.get("id"), task_id):
            raise self._malformed("result")

    async def _call(
        self,
        what: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content: bytes | None = None,
        enough: re.Pattern[bytes] | None = None,
        max_bytes: int | None = None,
    ) -> Any:
        if body is not None:
            content = clean.encode(body)
        async with self._one_at_a_time[what]:
            answer = await self._transport.request(
                method, path, query=query, content=content, enough=enough, max_bytes=max_bytes
            )
        try:
            return self._good(what, answer)
        except RequestError as trouble:
            mistaken = isinstance(trouble, UnknownPath) or (what == "poll" and trouble.status == MISREAD)
            if mistaken and not self._fixed:
                self._dialect = None  # to be found again
            raise

    def _good(self, what: str, answer: Answer) -> Any:
        """The value of a good answer; every other answer is trouble, by its status."""
        url, status = self._transport.url, answer.status
        if status in (200, 201):
            if answer.value is NOT_JSON:
                kind = answer.content_type or "no content type"
                raise RequestError(f"{url} answered {what} with {status} and {kind} that is not JSON")
            return answer.value
        if status in (401, 403):
            advice = "set control.token" if self._token is None else "check control.token"
            raise RequestError(f"{url} refuses this node's key ({status}): {advice}", status=status)
        if status == 405 or (status == 404 and not _knows_route(answer.value)):
            where = "another path" if self._fixed else "another path than before"
            reason = f"{url} wants {what} at {where} ({status}); see control.dialect"
            raise UnknownPath(reason, status=status)
        if status == 404:
            raise NotFound(f"{url} does not know it: {what} answered with 404", status=status)
        if 300 <= status < 400:
            reason = f"{url} redirects {what} elsewhere ({status}), which is not followed; correct control.url"
            raise RequestError(reason, status=status)
        reason = f"{url} answered {what} with {status}"
        raise RequestError(reason, status=status, retry_after_s=answer.retry_after_s)

    def _malformed(self, what: str) -> RequestError:
        return RequestError(f"{self._transport.url} answered {what} with something else than the contract says")

    async def _from_openapi(self) -> Dialect | None:
        try:
            answer = await self._transport.request("GET", "/openapi.json")
        except RequestError as trouble:
            if not trouble.sent:
                raise
            return None  # something answers there, if only not this: the paths themselves are tried
        return from_openapi(answer.value) if answer.status == 200 else None

    async def _by_probing(self) -> Dialect:
        """GETs only: the list of nodes tells the prefix, a look at a task that cannot be tells A from B."""
        for name in ("B", "C", "D"):
            try:
                value = await self._call("node list", "GET", DIALECTS[name].nodes)
            except UnknownPath:
                continue
            if not isinstance(value, list):
                raise self._malformed("node list")
            return await self._a_or_b() if name == "B" else DIALECTS[name]
        raise UnknownPath(f"no control node at {self._transport.url}: none of the known paths; check control.url", status=404)

    async def _a_or_b(self) -> Dialect:
        lookup = DIALECTS["B"].task
        assert lookup is not None
        try:
            await self._call("task", "GET", lookup.replace("{id}", NIL_ID))
        except UnknownPath:
            return DIALECTS["A"]
        except NotFound:
            pass
        return DIALECTS["B"]


def created_for_sure_not(trouble: RequestError) -> bool:
    """The server has surely not taken what was posted: it was never sent, or the server itself said no."""
    return not trouble.sent or (trouble.status is not None and trouble.status < BAD_GATEWAY)


def _too_large(much: AnswerTooLarge) -> TaskTooLarge | None:
    """The task whose answer was too much; None: it does not begin as one."""
    begins = TASK_BEGINS.match(much.head)
    if much.code != 200 or begins is None or not is_id(task_id := begins["id"].decode()):
        return None
    its = ITS_STATE.match(much.head)
    return TaskTooLarge(task_id, much.reason, its["state"].decode() if its else "")


def _knows_route(value: Any) -> bool:
    """Whether a 404's body is the route's own; an unknown path is `{"detail": "Not Found"}` or not ours at all."""
    return isinstance(value, dict) and (isinstance(value.get("error"), dict) or value.get("detail") not in (None, "Not Found"))
