"""Which sandbox a task gets: a systemd unit of its own, bubblewrap, or none.

What this machine offers is found out at the daemon's start and at each reload, never before a task.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from supervisor.config.load import Config
from supervisor.config.schema import TaskType
from supervisor.tasks.process import bubblewrap

VARIABLE: Final = "RAE_NODE_TASKS"  # set to `unit` by rae-node.service
SOCKETS: Final = {False: Path("/run/rae-task.sock"), True: Path("/run/rae-task-network.sock")}  # by: with the network


class Kind(enum.StrEnum):
    """What separates a task from the machine."""

    UNIT = "unit"
    BUBBLEWRAP = "bubblewrap"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a task gets."""

    kind: Kind
    reason: str  # for `doctor` and `status`


class NoSandbox(Exception):
    """The sandbox that a type asks for is not to be had; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What this machine offers."""

    unit: str = "this node does not run as the installed service"  # why there are no units for tasks; empty: there are
    bubblewrap: bubblewrap.Found = field(default_factory=lambda: bubblewrap.Found("bubblewrap was not tried"))
    hidden: tuple[str, ...] = ()  # the node's own files and folders
    units_only: bool = False  # it is an installed node: nothing weaker takes the unit's place


def in_service() -> bool:
    """This process is the installed service: its tasks have units, or do not start."""
    return os.environ.get(VARIABLE) == "unit"


def no_unit() -> str:
    """Why no task can have a unit here; empty: it can, as far as the sockets show."""
    if not in_service():
        return "this node does not run as the installed service"
    for path in SOCKETS.values():
        if not path.is_socket():
            return f"{path} is missing"
        if path.stat().st_uid != os.geteuid():
            return f"{path} is another user's"
    return ""


def look(hidden: tuple[str, ...] = ()) -> Offer:
    """Find out what this machine offers. Blocks, see `bubblewrap.tried`."""
    return Offer(no_unit(), bubblewrap.tried(), hidden, in_service())


def own_paths(config: Config) -> tuple[str, ...]:
    """What is the node's alone: configuration, key, and all its folders."""
    paths, token = config.paths, config.node.control.token
    found = [config.folder, paths.logs, paths.workdir, paths.runtime, paths.state]
    return (*map(str, found), *([str(config.resolve(token.file))] if token.file else []))


def choose(task_type: TaskType, offer: Offer) -> Sandbox:
    """The sandbox for tasks of this type. Raises NoSandbox."""
    found = offer.bubblewrap
    in_unit = Sandbox(Kind.UNIT, "a systemd unit of its own, under a user of its own")
    inside = Sandbox(Kind.BUBBLEWRAP, "bubblewrap, tried: it works" + (f"; {found.missing}" if found.missing else ""))
    match task_type.sandbox:
        case "unit" if offer.unit:
            raise NoSandbox(f"sandbox: unit: {offer.unit}: install it with deploy/install, or set sandbox: auto")
        case "auto" if offer.unit and offer.units_only:
            raise NoSandbox(f"{offer.unit}: run deploy/install again, as root")
        case "unit":
            return in_unit
        case "bubblewrap" if found.fault:
            raise NoSandbox(f"sandbox: {found.fault}, or set sandbox: auto")
        case "bubblewrap":
            return inside
        case "none":
            chosen = Sandbox(Kind.NONE, "sandbox: none")
        case _ if not offer.unit:
            return in_unit
        case _ if not found.fault:
            return inside
        case _:
            chosen = Sandbox(Kind.NONE, f"{offer.unit}; {found.fault}")
    if task_type.executor == "shell_command":
        raise NoSandbox(f"shell_command needs a sandbox ({chosen.reason})")
    return chosen


def notes(tasks: Mapping[str, TaskType], offer: Offer) -> list[str]:
    """For `status`: the types whose tasks have no sandbox, and those whose tasks cannot start for that."""
    types: dict[str, list[str]] = {}
    for name, task in tasks.items():
        if task.executor not in ("command", "shell_command"):
            continue
        try:
            chosen = choose(task, offer)
        except NoSandbox as refused:
            types.setdefault(f"cannot start: {refused}", []).append(name)
        else:
            if chosen.kind is Kind.NONE:
                types.setdefault(f"run without a sandbox: {chosen.reason}", []).append(name)
    return [f"tasks of type {', '.join(names)} {text}" for text, names in types.items()]
