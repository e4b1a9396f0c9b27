"""The control node's queue and its nodes: pure logic in memory, with the rules of dialect B, and requeueing besides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID, uuid4

from supervisor.linux.clock import Clock
from supervisor.sources.lost_attempts import lost_in, with_count

LISTED_FOR_S: Final = 300.0  # GET nodes leaves out nodes whose heartbeat is older
REQUEUE_AFTER_S: Final = 120.0
KEEP_FINISHED: Final = 10_000  # finished tasks that can still be looked up; the oldest go first


# The fields of the wire contract, in its order.
_NODE: Final = (
    "id", "node_id", "status", "last_heartbeat", "capabilities", "ip_address", "created_at", "updated_at",
)  # fmt: skip
_TASK: Final = (
    "id", "type", "status", "priority", "payload", "result", "assigned_node_id", "error", "created_at", "started_at",
    "completed_at",
)  # fmt: skip


class NotFound(Exception):
    """No such node or task; the text is the answer's message."""


class Unstorable(Exception):
    """The real server's database refuses this value; the text is the database's message."""


@dataclass(slots=True)
class RegisteredNode:
    """A registered node. `seen_s`: CLOCK_BOOTTIME of its last sign of life."""

    id: UUID
    node_id: str
    status: str
    capabilities: Mapping[str, Any]
    ip_address: str | None
    created_at: str
    updated_at: str
    last_heartbeat: str
    seen_s: float
    life: Any = None  # one life of the daemon, from start to end, if its capabilities hold it

    def as_dict(self) -> dict[str, Any]:
        """The ComputeNode of the wire contract."""
        return _wire(self, _NODE)


@dataclass(slots=True)
class Task:
    id: UUID
    type: str
    priority: int
    created_at: str
    number: int  # order of creation
    payload: Mapping[str, Any] = field(repr=False)
    status: str = "PENDING"
    result: Mapping[str, Any] | None = field(default=None, repr=False)
    assigned_node_id: UUID | None = None
    error: str | None = None
    started_at: str | None = None
    completed_at: str | None = None
    life: Any = None  # of the node that it was given to

    def as_dict(self) -> dict[str, Any]:
        """The DelegatedTask of the wire contract."""
        return _wire(self, _TASK)


def _wire(item: RegisteredNode | Task, names: tuple[str, ...]) -> dict[str, Any]:
    values = {name: getattr(item, name) for name in names}
    return {name: str(value) if isinstance(value, UUID) else value for name, value in values.items()}


class ControlNode:
    """A queue of tasks and the nodes that pull from it.

    As in the real one, a claim does not depend on the node's status, nor a result on the task's state. Unlike in the real
    one, a PROCESSING task whose node has sent no heartbeat for `requeue_after_s` seconds is PENDING again. So is a task
    that was given to an earlier life of a node (capabilities.life), when the new life polls: a node settles the tasks it
    knows before it asks for more, so it does not know this one; the answer was lost with the daemon.
    """

    def __init__(self, clock: Clock, *, requeue_after_s: float = REQUEUE_AFTER_S) -> None:
        self._clock = clock
        self._requeue_after_s = requeue_after_s
        self._nodes: dict[str, RegisteredNode] = {}
        self._tasks: dict[UUID, Task] = {}
        self._created = 0

    def register(self, node_id: str, capabilities: Mapping[str, Any], ip_address: str | None) -> dict[str, Any]:
        """Insert or update by `node_id`; the node is ONLINE afterwards."""
        _check(node_id, capabilities, ip_address)
        now = self._stamp()
        node = self._nodes.get(node_id)
        if node is None:
            node = self._nodes[node_id] = RegisteredNode(uuid4(), node_id, "ONLINE", {}, None, now, now, now, 0.0)
        node.capabilities, node.ip_address, node.life = capabilities, ip_address, capabilities.get("life")
        return self._sign_of_life(node, "ONLINE")

    def heartbeat(self, node_id: str, status: str) -> dict[str, Any]:
        """Note a sign of life.

        Raises:
            NotFound: the node is not registered.
        """
        _check(node_id)
        node = self._nodes.get(node_id)
        if node is None:
            raise NotFound(f"Node {node_id} not found. Register first.")
        return self._sign_of_life(node, status)

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are ONLINE and gave a sign of life in the last five minutes."""
        since_s = self._clock.now_s() - LISTED_FOR_S
        return [node.as_dict() for node in self._nodes.values() if node.status == "ONLINE" and node.seen_s > since_s]

    def create(self, kind: str, payload: Mapping[str, Any], priority: int) -> dict[str, Any]:
        _check(kind, payload)
        self._created += 1
        task = Task(uuid4(), kind, priority, self._stamp(), self._created, payload)
        self._tasks[task.id] = task
        return task.as_dict()

    def claim(self, node_id: str) -> dict[str, Any] | None:
        """Give out the oldest pending task of the highest priority; None when there is none.

        Raises:
            NotFound: the node is not registered.
        """
        _check(node_id)
        node = self._nodes.get(node_id)
        if node is None:
            raise NotFound(f"Node {node_id} not found.")
        if node.life is not None:
            self._take_back(t for t in self._tasks.values() if t.assigned_node_id == node.id and t.life != node.life)
        pending = (task for task in self._tasks.values() if task.status == "PENDING")
        task = min(pending, key=lambda task: (-task.priority, task.number), default=None)
        if task is None:
            return None
        task.status, task.assigned_node_id, task.started_at = "PROCESSING", node.id, self._stamp()
        task.life = node.life
        return task.as_dict()

    def task(self, task_id: UUID) -> dict[str, Any]:
        """Look a task up.

        Raises:
            NotFound: there is none.
        """
        if task_id not in self._tasks:
            raise NotFound("Task not found")
        return self._tasks[task_id].as_dict()

    def finish(self, task_id: UUID, result: Mapping[str, Any], error: str | None) -> dict[str, Any]:
        """Take a result, whatever the task's state; an empty error counts as none. The last write wins.

        Raises:
            NotFound: there is no such task.
            Unstorable: the result or the error cannot be stored; the task is left as it was.
        """
        if task_id not in self._tasks:
            raise NotFound(f"Task {task_id} not found.")
        _check(result, error)
        task = self._tasks[task_id]
        task.status = "FAILED" if error else "COMPLETED"
        task.result, task.error, task.completed_at = result, error, self._stamp()
        self._drop_old()
        return task.as_dict()

    def requeue(self) -> list[str]:
        """Take tasks back from nodes without a sign of life, with one lost attempt more; the ids of these tasks."""
        silent_since_s = self._clock.now_s() - self._requeue_after_s
        silent = {node.id for node in self._nodes.values() if node.seen_s <= silent_since_s}
        taken = self._take_back(task for task in self._tasks.values() if task.assigned_node_id in silent)
        for task in (self._tasks[UUID(name)] for name in taken):
            task.payload = with_count(task.payload, lost_in(task.payload) + 1)
        return taken

    @staticmethod
    def _take_back(tasks: Iterable[Task]) -> list[str]:
        taken = [task for task in tasks if task.status == "PROCESSING"]
        for task in taken:
            task.status, task.assigned_node_id, task.started_at, task.life = "PENDING", None, None, None
        return [str(task.id) for task in taken]

    def _sign_of_life(self, node: RegisteredNode, status: str) -> dict[str, Any]:
        node.status, node.seen_s = status, self._clock.now_s()
        node.last_heartbeat = node.updated_at = self._stamp()
        return node.as_dict()

    def _drop_old(self) -> None:
        finished = [task.id for task in self._tasks.values() if task.status in ("COMPLETED", "FAILED")]
        for task_id in finished[:-KEEP_FINISHED]:
            del self._tasks[task_id]

    def _stamp(self) -> str:
        return datetime.fromtimestamp(self._clock.wall_s(), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _check(*values: Any) -> None:
    """Refuse what PostgreSQL refuses: NUL, lone surrogates, NaN, infinities."""
    for leaf in _leaves(values):
        if isinstance(leaf, str):
            if "\0" in leaf:
                raise Unstorable("unsupported Unicode escape sequence\nDETAIL:  \\u0000 cannot be converted to text.")
            if not leaf.isascii() and any("\ud800" <= char <= "\udfff" for char in leaf):
                raise Unstorable("surrogates not allowed")
        elif isinstance(leaf, float) and not math.isfinite(leaf):
            raise Unstorable("invalid input syntax for type json")


def _leaves(value: Any) -> Iterator[Any]:
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, Mapping):
            todo.extend(item.keys())
            todo.extend(item.values())
        elif isinstance(item, list | tuple):
            todo.extend(item)
        else:
            yield item
