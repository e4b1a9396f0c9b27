"""The OpenAPI document of the embedded control node: where its paths are, and what good answers look like."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

_UUID: Final = {"type": "string", "format": "uuid"}
_TIME: Final = {"type": "string", "format": "date-time"}
_TEXT: Final = {"type": "string"}
_OBJECT: Final = {"type": "object"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _all_of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "ComputeNode": _all_of(
        id=_UUID, node_id=_TEXT, status={"enum": ["ONLINE", "OFFLINE", "BUSY"]}, last_heartbeat=_or_null(_TIME),
        capabilities=_OBJECT, ip_address=_or_null(_TEXT), created_at=_TIME, updated_at=_TIME,
    ),
    "DelegatedTask": _all_of(
        id=_UUID, type=_TEXT, status={"enum": ["PENDING", "PROCESSING", "COMPLETED", "FAILED"]}, priority={"type": "integer"},
        payload=_OBJECT, result=_or_null(_OBJECT), assigned_node_id=_or_null(_UUID), error=_or_null(_TEXT), created_at=_TIME,
        started_at=_or_null(_TIME), completed_at=_or_null(_TIME),
    ),
}  # fmt: skip
NODE: Final = _ref("ComputeNode")
NODES: Final = {"type": "array", "items": NODE}
TASK: Final = _ref("DelegatedTask")
TASK_OR_NULL: Final = _or_null(TASK)


def document(routes: Iterable[tuple[str, str, int, dict[str, Any]]]) -> dict[str, Any]:
    """The document. A route: method, path, status and schema of its good answer."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, status, schema in routes:
        answer = {"description": "Successful Response", "content": {"application/json": {"schema": schema}}}
        paths.setdefault(path, {})[method.lower()] = {"responses": {str(status): answer}}
    info = {"title": "RAE control node, in memory", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": SCHEMAS}}
