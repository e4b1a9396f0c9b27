"""Tasks and results as they travel: JSON, read strictly. What cannot be read as a task is never run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from supervisor.sources.base import Claim
from supervisor.sources.ids import is_id, same_id
from supervisor.sources.sanitize import decode, encode

MAX_TYPE_CHARS: Final = 128


class Poison(Exception):
    """It is not a task. The text says why and quotes nothing of it. `task_id`: its id, if at least that can be read."""

    def __init__(self, reason: str, task_id: str = "") -> None:
        super().__init__(reason)
        self.task_id = task_id


@dataclass(frozen=True, slots=True)
class Result:
    """One task's outcome. `error` None: it succeeded."""

    id: str
    type: str
    node: str
    result: Mapping[str, Any]
    error: str | None

    @property
    def status(self) -> str:
        """In the RAE control node's terms."""
        return "COMPLETED" if self.error is None else "FAILED"

    def encode(self) -> bytes:
        """The result as it is stored."""
        body = {"id": self.id, "type": self.type, "node": self.node, "status": self.status}
        return encode({**body, "result": self.result, "error": self.error})


def is_type(value: Any) -> TypeGuard[str]:
    """It can be the type of a task, and be shown anywhere."""
    return isinstance(value, str) and 0 < len(value) <= MAX_TYPE_CHARS and value.isprintable()


def encode_task(claim: Claim) -> bytes:
    """A task as it is posted."""
    return encode({"id": claim.id, "type": claim.type, "payload": claim.payload, "priority": claim.priority})


def decode_task(data: bytes) -> Claim:
    """The task.

    Raises:
        Poison: it is not a task.
    """
    value = _object(data, "the task")
    task_id, kind, payload, priority = (value.get(name) for name in ("id", "type", "payload", "priority"))
    if not is_id(task_id):
        raise Poison("the task's id is not a UUID")
    task_id = task_id.lower()
    if not is_type(kind):
        raise Poison("the task has no usable type", task_id)
    if not isinstance(payload, dict):
        raise Poison("the task's payload is not an object", task_id)
    if priority is not None and type(priority) is not int:
        raise Poison("the task's priority is not an integer", task_id)
    return Claim(task_id, kind, payload, priority or 0)


def decode_saved(data: bytes) -> dict[str, Any]:
    """What a task has saved; it replaces those keys of the payload.

    Raises:
        Poison: it is not JSON, or not an object.
    """
    return _object(data, "what the task has saved")


def decode_result(data: bytes) -> Result:
    """The result.

    Raises:
        Poison: it is not a result.
    """
    value = _object(data, "the result")
    texts = {name: value.get(name) for name in ("id", "type", "node")}
    error, result = value.get("error"), value.get("result")
    if not is_id(texts["id"]) or not all(isinstance(text, str) for text in texts.values()):
        raise Poison("the result does not say whose it is")
    texts["id"] = texts["id"].lower()
    if not isinstance(result, dict) or not (error is None or (isinstance(error, str) and error)):
        raise Poison("the result is not one", texts["id"])
    return Result(**texts, result=result, error=error)  # type: ignore[arg-type]  # texts were checked


def stored_result(data: bytes, task_id: str) -> Result:
    """What is stored as this task's result; a failure with the reason if it is no result, or another task's."""
    try:
        result = decode_result(data)
    except Poison as poison:
        return no_result(task_id, str(poison))
    return result if same_id(result.id, task_id) else no_result(task_id, "it is another task's")


def no_result(task_id: str, why: str) -> Result:
    """The failure in place of something that a node stored as a result."""
    return Result(task_id, "", "", {}, f"what the fleet holds for it is no result: {why}")


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = decode(data)
    except ValueError:
        raise Poison(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise Poison(f"{what} is not an object")
    return value
