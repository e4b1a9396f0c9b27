"""The control node's wire form: routes, validation, and error bodies like the real server's."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs
from uuid import UUID

from supervisor.tools.demo.control_node import openapi
from supervisor.tools.demo.control_node.server import Reply, Request
from supervisor.tools.demo.control_node.store import ControlNode, NotFound, Unstorable

STATUSES: Final = ("ONLINE", "OFFLINE", "BUSY")
PRIORITY_MAX: Final = 2**31 - 1  # the column is a 32-bit integer

log = logging.getLogger(__name__)


class _Rejected(Exception):
    """The request gets this answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class _Route:
    method: str
    template: str
    handler: Callable[[Request, str], Any]
    schema: Mapping[str, Any]
    status: int = HTTPStatus.OK


class Api:
    """Answers requests from a `ControlNode`. The arguments move the paths, as releases of the real server did."""

    def __init__(self, node: ControlNode, *, prefix: str = "/control", poll: str = "/tasks_poll", lookup: bool = True) -> None:
        self._node = node
        routes = [
            _Route("GET", "/health", lambda _request, _id: {"status": "healthy"}, {"type": "object"}),
            _Route("GET", "/openapi.json", lambda _request, _id: self._openapi(), {"type": "object"}),
            _Route("POST", prefix + "/nodes/register", self._register, openapi.NODE),
            _Route("POST", prefix + "/nodes/heartbeat", self._heartbeat, openapi.NODE),
            _Route("GET", prefix + "/nodes", lambda _request, _id: node.nodes(), openapi.NODES),
            _Route("GET", prefix + poll, self._poll, openapi.TASK_OR_NULL),
            _Route("POST", prefix + "/tasks", self._create, openapi.TASK, HTTPStatus.CREATED),
            _Route("POST", prefix + "/tasks/{task_id}/result", self._result, openapi.TASK),
        ]
        if lookup:
            routes.append(_Route("GET", prefix + "/tasks/{task_id}", self._task, openapi.TASK))
        self._routes = routes
        self._patterns = [(re.compile(route.template.replace("{task_id}", "([^/]+)")), route) for route in routes]

    def __call__(self, request: Request) -> Reply:
        """The answer to a request; never raises."""
        for task_id in self._node.requeue():
            log.warning("task %s is pending again: its node went silent", task_id)
        try:
            return self._dispatch(request)
        except _Rejected as rejected:
            return rejected.reply
        except NotFound as error:
            return Reply(404, _error(404, str(error)))
        except Unstorable as error:
            return Reply(500, {"detail": str(error), **_error(500, "Internal Server Error")}, close=True)

    def _dispatch(self, request: Request) -> Reply:
        allowed = []
        for pattern, route in self._patterns:
            if match := pattern.fullmatch(request.path):
                if route.method == request.method:
                    return Reply(route.status, route.handler(request, match[1] if pattern.groups else ""))
                allowed.append(route.method)
        if allowed:
            return Reply(405, {"detail": "Method Not Allowed"}, {"allow": ", ".join(allowed)})
        return Reply(404, {"detail": "Not Found"})

    def _register(self, request: Request, _id: str) -> Any:
        body = _Body(request)
        node_id, _api_key = body.text("node_id"), body.text("api_key")
        capabilities, address = body.mapping("capabilities"), body.text("ip_address", optional=True)
        body.check()
        return self._node.register(node_id, capabilities, address or request.peer)

    def _heartbeat(self, request: Request, _id: str) -> Any:
        body = _Body(request)
        node_id, status = body.text("node_id"), body.text("status")
        if not body.faults and status not in STATUSES:
            body.fault("enum", "status", "Input should be 'ONLINE', 'OFFLINE' or 'BUSY'", status)
        body.check()
        return self._node.heartbeat(node_id, status)

    def _poll(self, request: Request, _id: str) -> Any:
        node_ids = parse_qs(request.query, keep_blank_values=True).get("node_id")
        if node_ids is None:
            raise _invalid(_fault("missing", ["query", "node_id"], "Field required", None))
        return self._node.claim(node_ids[-1])

    def _create(self, request: Request, _id: str) -> Any:
        body = _Body(request)
        kind, payload, priority = body.text("type"), body.mapping("payload"), body.integer("priority", 0)
        body.check()
        if abs(priority) > PRIORITY_MAX:
            raise _Rejected(Reply(500, _error(500, "value out of int32 range")))
        try:
            return self._node.create(kind, payload, priority)
        except Unstorable as error:
            raise _Rejected(Reply(500, _error(500, str(error)))) from None

    def _task(self, _request: Request, task_id: str) -> Any:
        return self._node.task(_path_id(task_id))

    def _result(self, request: Request, task_id: str) -> Any:
        path_id = _path_id(task_id)
        body = _Body(request)
        body_id, result, error = body.uuid("task_id"), body.mapping("result"), body.text("error", optional=True)
        body.check()
        if body_id != path_id:
            raise _Rejected(Reply(400, _error(400, "Task ID mismatch")))
        return self._node.finish(path_id, result, error)

    def _openapi(self) -> dict[str, Any]:
        shown = (route for route in self._routes if route.template != "/openapi.json")
        return openapi.document((route.method, route.template, int(route.status), dict(route.schema)) for route in shown)


class _Body:
    """A request's JSON object; collects every fault, as the real validation does."""

    def __init__(self, request: Request) -> None:
        self.faults: list[dict[str, Any]] = []
        if not request.body:
            raise _invalid(_fault("missing", ["body"], "Field required", None))
        try:
            value = json.loads(request.body.decode())
        except (ValueError, RecursionError):
            raise _Rejected(Reply(400, {"detail": "There was an error parsing the body"})) from None
        if not isinstance(value, dict):
            raise _invalid(_fault("model_attributes_type", ["body"], "Input should be a valid dictionary", None))
        self._value: dict[str, Any] = value

    def fault(self, kind: str, name: str, text: str, value: Any) -> None:
        self.faults.append(_fault(kind, ["body", name], text, value))

    def check(self) -> None:
        if self.faults:
            raise _invalid(*self.faults)

    def text(self, name: str, *, optional: bool = False) -> Any:
        """A string; with `optional` None when absent or null."""
        value = self._get(name, optional=optional)
        may_be_null = optional or name not in self._value  # a missing one is a fault already
        if not isinstance(value, str) and not (value is None and may_be_null):
            self.fault("string_type", name, "Input should be a valid string", value)
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self._get(name)
        if name in self._value and not isinstance(value, dict):
            self.fault("dict_type", name, "Input should be a valid dictionary", value)
        return value if isinstance(value, dict) else {}

    def integer(self, name: str, default: int) -> int:
        """An integer, also written as an integral float or as text."""
        value = self._value.get(name, default)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,30}", value.strip()):
            return int(value)
        if not isinstance(value, int):
            self.fault("int_type", name, "Input should be a valid integer", value)
            return default
        return int(value)

    def uuid(self, name: str) -> UUID | None:
        value = self._get(name)
        try:
            return UUID(value)
        except (ValueError, TypeError, AttributeError):
            if name in self._value:
                self.fault("uuid_parsing", name, "Input should be a valid UUID", value)
            return None

    def _get(self, name: str, *, optional: bool = False) -> Any:
        if name not in self._value and not optional:
            self.fault("missing", name, "Field required", None)
        return self._value.get(name)


def _path_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise _invalid(_fault("uuid_parsing", ["path", "task_id"], "Input should be a valid UUID", text)) from None


def _invalid(*faults: dict[str, Any]) -> _Rejected:
    details = list(faults)
    return _Rejected(Reply(422, {"detail": details, **_error(422, "Validation Error", details=details)}))


def _fault(kind: str, where: list[str], text: str, value: Any) -> dict[str, Any]:
    """What is wrong, and where. Only a value that is a short text is sent back."""
    return {"type": kind, "loc": where, "msg": text, "input": value if isinstance(value, str) and len(value) < 200 else None}


def _error(status: int, message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"code": str(status), "message": message, **more}}
