"""Which sandbox a task gets: a systemd unit of its own, bubblewrap, or none.

What this machine offers is found out at the daemon's start and at each reload, never before a task.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from supervisor.config.load import Config
from supervisor.config.schema import TaskType
from supervisor.tasks.process import bubblewrap


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

    unit: str = "the node is not installed with systemd"  # why there are no units for tasks; empty: there are
    bubblewrap: bubblewrap.Found = field(default_factory=lambda: bubblewrap.Found("bubblewrap was not tried"))
    hidden: tuple[str, ...] = ()  # the node's own files and folders


def no_unit() -> str:
    """Why tasks have no units of their own here; empty: they have."""
    return Offer().unit


def look(hidden: tuple[str, ...] = (), unit: Callable[[], str] = no_unit) -> Offer:
    """Find out what this machine offers. Blocks, see `bubblewrap.tried`."""
    return Offer(unit(), bubblewrap.tried(), hidden)


def own_paths(config: Config) -> tuple[str, ...]:
    """What is the node's alone: configuration, key, and all its folders."""
    paths, token = config.paths, config.node.control.token
    found = [config.folder, paths.logs, paths.workdir, paths.runtime, paths.state]
    return (*map(str, found), *([str(config.resolve(token.file))] if token.file else []))


def choose(task_type: TaskType, offer: Offer) -> Sandbox:
    """The sandbox for tasks of this type. Raises NoSandbox."""
    found = offer.bubblewrap
    unit = Sandbox(Kind.UNIT, "a systemd unit of its own, under a user of its own")
    inside = Sandbox(Kind.BUBBLEWRAP, "bubblewrap, tried: it works" + (f"; {found.missing}" if found.missing else ""))
    match task_type.sandbox:
        case "unit" if offer.unit:
            raise NoSandbox(f"sandbox: unit: {offer.unit}: install it with deploy/install, or set sandbox: auto")
        case "unit":
            return unit
        case "bubblewrap" if found.fault:
            raise NoSandbox(f"sandbox: {found.fault}, or set sandbox: auto")
        case "bubblewrap":
            return inside
        case "none":
            chosen = Sandbox(Kind.NONE, "sandbox: none")
        case _ if not offer.unit:
            return unit
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
