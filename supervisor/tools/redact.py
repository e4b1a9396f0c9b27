"""Settings and texts without secrets, for `config show` and `bugreport`.

A key belongs into a file of its own, and node.yaml names it. People write it elsewhere all the same: as the name of that file,
into a URL, an argument, an environment variable. All of these are hidden here.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from typing import Any, Final

import msgspec

from supervisor.config.load import Config
from supervisor.config.schema import SHIPPED_RUNTIME, NodeSettings, TaskType
from supervisor.sources.api_key import TokenError, token

HIDDEN: Final = "(hidden)"
LEAST: Final = 6  # characters: a shorter text stands in many places by chance
NAMES: Final = r"[\w.-]*(?:api[_-]?key|token|secret|passw(?:or)?d|passphrase|authorization|bearer|credentials?)[\w.-]*"
ASSIGNED: Final = re.compile(rf"(?i)\b({NAMES}[\"']?\s*[:=]\s*[\"']?)(?!\(hidden\)|null\b|true\b|false\b)([^\s\"',;{{}}\[\]]+)")
FLAG: Final = re.compile(rf"(?i)--?{NAMES}$|^(?:-H|--header|-u|--user)$")
USERINFO: Final = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def shown(config: Config, *, every: bool) -> dict[str, Any]:
    """Both files as they are understood, without secrets; without `every` only what differs from the defaults."""
    node = msgspec.to_builtins(config.node)
    runtime = msgspec.to_builtins(config.runtime)
    _hide(node)
    if not every:
        usual = msgspec.to_builtins(NodeSettings())
        usual["tasks"] = dict.fromkeys(node["tasks"], msgspec.to_builtins(TaskType()))
        node = _different(node, usual)
        runtime = _different(runtime, msgspec.to_builtins(SHIPPED_RUNTIME))
    return {"runtime.yaml": runtime, "node.yaml": node}


def _different(values: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(usual.get(name), dict):
            value = _different(value, usual[name])
            if not value:
                continue
        elif name in usual and value == usual[name]:
            continue
        found[name] = value
    return found


def _hide(node: dict[str, Any]) -> None:
    control = node["control"]
    control["url"] = USERINFO.sub(HIDDEN, control["url"])
    control["token"] = {name: HIDDEN if value else value for name, value in control["token"].items()}
    for task in node["tasks"].values():
        task["env"] = dict.fromkeys(task["env"], HIDDEN)
        task["argv"] = list(_arguments(task["argv"]))
    node["host"]["checks"] = [list(_arguments(argv)) for argv in node["host"]["checks"]]


def _arguments(argv: list[str]) -> Iterator[str]:
    """The arguments without what follows a name of a secret."""
    hide = False
    for argument in argv:
        yield HIDDEN if hide else scrub(argument)
        hide = FLAG.fullmatch(argument) is not None


def secrets_of(config: Config) -> set[str]:
    """Texts that are secret wherever they stand: the key, and what stands in the places of secrets."""
    found: set[str] = set()
    with contextlib.suppress(TokenError):
        found.add(token(config.control, os.environ) or "")
    node = config.node
    found |= {value for value in msgspec.to_builtins(node.control.token).values() if value}
    found |= {part for match in USERINFO.findall(node.control.url) for part in (match, *match.split(":"))}
    for task in node.tasks.values():
        found |= set(task.env.values())
        found |= {old for old, new in zip(task.argv, _arguments(task.argv), strict=True) if new == HIDDEN}
    return {text for text in found if len(text) >= LEAST}


def scrub(text: str, secrets: Collection[str] = ()) -> str:
    """The text without these secrets, without users in URLs, and without what is assigned to the name of a secret."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return ASSIGNED.sub(rf"\g<1>{HIDDEN}", USERINFO.sub(HIDDEN, text))
