"""The four sets of paths under which releases of the control node serve one and the same contract."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from supervisor.config.schema import Control


@dataclass(frozen=True, slots=True)
class Dialect:
    """Paths; `{id}` stands for a task's id. `task` None: this release cannot look a task up."""

    name: str
    nodes: str
    register: str
    heartbeat: str
    poll: str
    tasks: str
    task: str | None
    result: str


def _dialect(name: str, prefix: str, poll: str, *, lookup: bool = True) -> Dialect:
    return Dialect(
        name=name,
        nodes=f"{prefix}/nodes",
        register=f"{prefix}/nodes/register",
        heartbeat=f"{prefix}/nodes/heartbeat",
        poll=f"{prefix}/{poll}",
        tasks=f"{prefix}/tasks",
        task=f"{prefix}/tasks/{{id}}" if lookup else None,
        result=f"{prefix}/tasks/{{id}}/result",
    )


DIALECTS: Final[Mapping[str, Dialect]] = {
    dialect.name: dialect
    for dialect in (
        _dialect("A", "/control", "tasks/poll", lookup=False),  # until v2.6.0
        _dialect("B", "/control", "tasks_poll"),  # v2.7.0 to v2.9.0
        _dialect("C", "/v1/control", "tasks_poll"),  # v3.0.0 to v3.0.3
        _dialect("D", "/v2/nodes", "tasks_poll"),  # from v3.4.0
    )
}

_PLAIN_PATH: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+")
_REGISTER: Final = "/nodes/register"


def from_openapi(document: Any) -> Dialect | None:
    """The dialect that an OpenAPI document describes; None when it describes none, or more than one."""
    paths = document.get("paths") if isinstance(document, dict) else None
    if not isinstance(paths, dict):
        return None
    plain = [path for path in paths if isinstance(path, str) and _PLAIN_PATH.fullmatch(path)]
    registers = [path for path in plain if path.endswith(_REGISTER)]
    if len(registers) != 1:
        return None
    prefix = registers[0].removesuffix(_REGISTER)
    polls = [path for path in plain if path.startswith(f"{prefix}/tasks") and "poll" in path]
    if len(polls) != 1:
        return None
    lookup = any(
        re.fullmatch(rf"{re.escape(prefix)}/tasks/\{{[^/{{}}]+\}}", path) and isinstance(methods, dict) and "get" in methods
        for path, methods in paths.items()
    )
    found = _dialect("other", prefix, polls[0].removeprefix(f"{prefix}/"), lookup=lookup)
    known = (dialect for dialect in DIALECTS.values() if replace(dialect, name="other") == found)
    return next(known, found)


def configured(settings: Control) -> Dialect | None:
    """The dialect that node.yaml names; None: to be found."""
    return DIALECTS.get(settings.dialect)
