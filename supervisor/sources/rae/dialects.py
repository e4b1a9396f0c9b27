"""The four sets of paths under which releases of the control node serve the same contract."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Dialect:
    """`poll` is a whole path; the other paths follow from the prefix. `lookup` False: this release cannot look a task up."""

    name: str
    prefix: str
    poll: str
    lookup: bool = True


DIALECTS: Final[Mapping[str, Dialect]] = {
    "A": Dialect("A", "/control", "/control/tasks/poll", lookup=False),  # until v2.6.0
    "B": Dialect("B", "/control", "/control/tasks_poll"),  # v2.7.0 to v2.9.0
    "C": Dialect("C", "/v1/control", "/v1/control/tasks_poll"),  # v3.0.0 to v3.0.3
    "D": Dialect("D", "/v2/nodes", "/v2/nodes/tasks_poll"),  # from v3.4.0
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
    found = Dialect("other", prefix, polls[0], lookup)
    known = (dialect for dialect in DIALECTS.values() if replace(dialect, name="other") == found)
    return next(known, found)
