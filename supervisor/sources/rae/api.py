"""The control node's calls, typed: what is asked, what a good answer looks like, and what each other answer means."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections import defaultdict
from typing import Any, Final
from uuid import UUID

from supervisor.sources.api_key import advice
from supervisor.sources.base import Availability, SourceSettings
from supervisor.sources.errors import RequestError
from supervisor.sources.ids import is_id, same_id
from supervisor.sources.rae.dialects import DIALECTS, Dialect, from_openapi
from supervisor.sources.rae.transport import NOT_JSON, Answer, AnswerTooLarge, Request, Transport
from supervisor.sources.sanitize import encode

NO_KEY: Final = "none"  # register wants an api_key; the server only stores its hash
NIL_ID: Final = str(UUID(int=0))
BAD_GATEWAY: Final = 502
MAX_ID_CHARS: Final = 200  # of the server's id of this node: it goes into the record of the tasks in flight
WRONG_DIALECT_S: Final = 60.0  # the pause where only a setting can help
MISREAD: Final = 422  # dialect A's poll, which B to D read as a look at a task without an id
SMALL_BYTES: Final = 256 * 1024  # of an answer about this node: parsing it holds up the loop for a moment
# The answers to a result and to a task's post hold the whole task, whatever its size; its id comes first and is enough.
TASK_BEGINS: Final = re.compile(rb'\s*\{\s*"id"\s*:\s*"(?P<id>[0-9a-fA-F-]{36})"\s*,')
# The state of a task that is too large to be read: it stands before what makes the task large.
TASK_STATE: Final = re.compile(
    TASK_BEGINS.pattern + rb'\s*"type"\s*:\s*"(?:[^"\\]|\\.)*"\s*,\s*"status"\s*:\s*"(?P<state>[A-Z]+)"'
)


class UnknownPath(RequestError):
    """The server has no such route: another dialect, or another server."""


class NotFound(RequestError):
    """The route is right; the server does not know the node or the task."""


class TaskTooLarge(RequestError):
    """A task is larger than the node reads. Its id was at the beginning, and its `state` if that is not empty."""

    def __init__(self, task_id: str, reason: str, state: str) -> None:
        super().__init__(reason, status=200)
        self.task_id = task_id
        self.state = state


class RaeApi:
    """One control node. A call without a good answer raises `RequestError`; none is repeated. One call of a kind at once."""

    def __init__(self, transport: Transport, settings: SourceSettings) -> None:
        self._transport = transport
        self._node_id = settings.node_id
        self._settings = settings
        self._key: str | None = None
        self._capabilities = settings.capabilities
        self._dialect = DIALECTS.get(settings.control.dialect)  # None: to be found
        self._fixed = self._dialect is not None
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by kind of request
        self._last_heartbeat = Availability.BUSY
        self.compute_id = ""  # the server's id of this node, from register

    @property
    def dialect(self) -> str:
        """The dialect's name; empty while it is not found."""
        return self._dialect.name if self._dialect else ""

    async def _paths(self) -> Dialect:
        """The dialect. If it is not known: from the OpenAPI document, else by probes that change nothing."""
        async with self._locks["dialect"]:
            if self._dialect is None:
                self._dialect = await self._from_openapi() or await self._by_probing()
            return self._dialect

    def new_run(self) -> None:
        """Register as another run of this node from now on, if the capabilities name the run."""
        if "life" in self._capabilities:
            self._capabilities = {**self._capabilities, "life": os.urandom(8).hex()}

    async def introduce(self, availability: Availability) -> None:
        """Register with the key as it is now, then send a heartbeat: register makes each node ONLINE at the server."""
        await self._read_key()
        try:
            await self.register()
        except UnknownPath:
            await self.register()  # the dialect is looked for again, unless the configuration names it
        await self.heartbeat(availability)

    async def look(self) -> None:
        """Find out whether this control node would take this node, by requests that change nothing.

        Raises:
            RequestError: it would not, or does not answer; the reason names what to correct.
        """
        await self._read_key()
        found = await self._from_openapi()
        if self._fixed and found is not None and found.name != self.dialect:
            reason = f"{self._transport.url} speaks dialect {found.name}, and control.dialect is {self.dialect}"
            raise RequestError(f"{reason}; set control.dialect to auto")
        self._dialect = self._dialect or found
        await self.answers()

    @property
    def has_key(self) -> bool:
        """A key is sent."""
        return self._key is not None

    async def _read_key(self) -> None:
        self._key = await self._settings.key()
        self._transport.use_key(self._key)

    async def register(self) -> None:
        """Make this node known; a heartbeat with the real availability must follow."""
        paths = await self._paths()
        body = {"node_id": self._node_id, "api_key": self._key or NO_KEY, "capabilities": self._capabilities}
        request = Request("POST", f"{paths.prefix}/nodes/register", content=encode(body), max_bytes=SMALL_BYTES)
        value = await self._call("register", request)
        compute_id = value.get("id") if isinstance(value, dict) else None
        if not isinstance(compute_id, str) or not 0 < len(compute_id) <= MAX_ID_CHARS:
            raise self._malformed("register")
        self.compute_id = compute_id

    async def heartbeat(self, availability: Availability) -> None:
        """Report whether work is welcome."""
        self._last_heartbeat = availability
        paths = await self._paths()
        body = {"node_id": self._node_id, "status": availability.value}
        request = Request("POST", f"{paths.prefix}/nodes/heartbeat", content=encode(body), max_bytes=SMALL_BYTES)
        if not isinstance(await self._call("heartbeat", request), dict):
            raise self._malformed("heartbeat")

    async def takes_heartbeat(self) -> bool:
        """Whether the server takes a heartbeat now. If so, its refusal of another request is about that request."""
        try:
            await self.heartbeat(self._last_heartbeat)
        except RequestError:
            return False
        return True

    async def poll(self) -> dict[str, Any] | None:
        """Ask for a task; None: there is none. The server has handed it out even if the answer is lost or too large."""
        paths = await self._paths()
        try:
            value = await self._call("poll", Request("GET", paths.poll, query={"node_id": self._node_id}, patient=True))
        except AnswerTooLarge as answer:
            raise _task_too_large(answer) or answer from None
        if value is not None and (not isinstance(value, dict) or not is_id(value.get("id"))):
            raise self._malformed("poll")
        return value

    async def task(self, task_id: str) -> dict[str, Any] | None:
        """A task as the server has it; None: this dialect has no call for it."""
        paths = await self._paths()
        if not paths.lookup:
            return None
        try:
            value = await self._call("task", Request("GET", f"{paths.prefix}/tasks/{task_id}", patient=True))
        except AnswerTooLarge as answer:
            large = _task_too_large(answer)
            raise large if large is not None and same_id(large.task_id, task_id) else answer from None
        if not isinstance(value, dict) or not same_id(value.get("id"), task_id):
            raise self._malformed("task")
        return value

    async def answers(self) -> None:
        """Ask something that changes nothing, and that needs the server's list of tasks as a poll does.

        Raises:
            RequestError: no good answer.
        """
        paths = await self._paths()
        if paths.lookup:
            with contextlib.suppress(NotFound):
                await self.task(NIL_ID)
        else:
            with contextlib.suppress(AnswerTooLarge):
                await self._call("node list", Request("GET", f"{paths.prefix}/nodes", max_bytes=SMALL_BYTES))

    async def create(self, body: bytes) -> str:
        """Post a task (JSON object with type, payload, priority); its id."""
        paths = await self._paths()
        request = Request("POST", f"{paths.prefix}/tasks", content=body, enough=TASK_BEGINS, patient=True)
        value = await self._call("task post", request)
        if not isinstance(value, dict) or not is_id(value.get("id")):
            raise self._malformed("task post")
        return str(value["id"])

    async def result(self, task_id: str, body: bytes) -> None:
        """Post an outcome (JSON object with task_id, result, error)."""
        paths = await self._paths()
        request = Request("POST", f"{paths.prefix}/tasks/{task_id}/result", content=body, enough=TASK_BEGINS, patient=True)
        value = await self._call("result", request)
        if not isinstance(value, dict) or not same_id(value.get("id"), task_id):
            raise self._malformed("result")

    async def _call(self, what: str, request: Request) -> Any:
        async with self._locks[what]:
            answer = await self._transport.send(request)
        try:
            return self._good(what, answer)
        except RequestError as error:
            wrong_dialect = isinstance(error, UnknownPath) or (what == "poll" and error.status == MISREAD)
            if not wrong_dialect:
                raise
            if not self._fixed:
                self._dialect = None  # to be found again
                raise
            reason = f"{self._transport.url} has no path for {what} as control.dialect: {self.dialect} has it ({error.status})"
            advice = "set control.dialect to auto, which finds the right one"
            raise UnknownPath(f"{reason}; {advice}", status=error.status, retry_after_s=WRONG_DIALECT_S) from None

    def _good(self, what: str, answer: Answer) -> Any:
        """The value of a good answer; each other answer is an error, by its status."""
        url, status = self._transport.url, answer.status
        if status in (200, 201):
            if answer.value is NOT_JSON:
                content_type = answer.content_type or "no content type"
                raise RequestError(f"{url} answered {what} with {status} and {content_type} that is not JSON")
            return answer.value
        if status in (401, 403):
            whose = "a node without a key" if self._key is None else "this node's key"
            reason = f"{url} refuses {whose} ({status}): {advice(self._settings.control, self._key)}"
            raise RequestError(reason, status=status)
        if status == 405 or (status == 404 and not _knows_route(answer.value)):
            raise UnknownPath(f"{url} wants {what} at another path than before ({status})", status=status)
        if status == 404:
            raise NotFound(f"{url} does not know it: {what} answered with 404", status=status)
        if 300 <= status < 400:
            reason = f"{url} redirects {what} elsewhere ({status}), which is not followed; correct control.url"
            raise RequestError(reason, status=status)
        raise RequestError(f"{url} answered {what} with {status}", status=status, retry_after_s=answer.retry_after_s)

    def _malformed(self, what: str) -> RequestError:
        return RequestError(f"{self._transport.url} answered {what} with something else than the contract says")

    async def _from_openapi(self) -> Dialect | None:
        try:
            answer = await self._transport.send(Request("GET", "/openapi.json"))
        except RequestError as error:
            if not error.sent:
                raise
            return None  # something answers there, although not this request: the paths are tried
        return from_openapi(answer.value) if answer.status == 200 else None

    async def _by_probing(self) -> Dialect:
        """With GETs only: the list of nodes shows the prefix; a look at a task that cannot exist tells A from B."""
        for name in ("B", "C", "D"):
            try:
                value = await self._call("node list", Request("GET", f"{DIALECTS[name].prefix}/nodes"))
            except UnknownPath:
                continue
            if not isinstance(value, list):
                raise self._malformed("node list")
            return await self._a_or_b() if name == "B" else DIALECTS[name]
        raise UnknownPath(f"no control node at {self._transport.url}: none of the known paths; check control.url", status=404)

    async def _a_or_b(self) -> Dialect:
        try:
            await self._call("task", Request("GET", f"{DIALECTS['B'].prefix}/tasks/{NIL_ID}"))
        except UnknownPath:
            return DIALECTS["A"]
        except NotFound:
            pass
        return DIALECTS["B"]


def surely_not_created(error: RequestError) -> bool:
    """The server has surely not taken what was posted: it was never sent, or the server itself refused it."""
    return not error.sent or (error.status is not None and error.status < BAD_GATEWAY)


def _task_too_large(answer: AnswerTooLarge) -> TaskTooLarge | None:
    """The task of an answer that was too large; None: the answer does not begin as a task."""
    begin = TASK_BEGINS.match(answer.head)
    if answer.code != 200 or begin is None or not is_id(task_id := begin["id"].decode()):
        return None
    state = TASK_STATE.match(answer.head)
    return TaskTooLarge(task_id, answer.reason, state["state"].decode() if state else "")


def _knows_route(value: Any) -> bool:
    """A 404's body comes from the route itself; for an unknown path it is `{"detail": "Not Found"}` or something foreign."""
    return isinstance(value, dict) and (isinstance(value.get("error"), dict) or value.get("detail") not in (None, "Not Found"))
