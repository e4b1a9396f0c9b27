"""DANGEROUS, and off unless `allow_any_command: true` says otherwise: runs the text that a task brings by /bin/sh.

Whoever can post to the control node, which asks nobody for a password, then does on this machine what the service's user
may do. It is contained, bounded and stopped like every task, but what it does meanwhile is up to its sender. A command
named in node.yaml (executor: command) is the better way; `sandbox: bubblewrap` keeps the worst off.

Payload: `command`, optionally `env` (an object of texts) and `cwd` (a folder below the work folder, made if need be).
Result: `status`, `returncode`, `stdout`, `stderr` (its end). Another exit code than 0 is a failure.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from supervisor.sources.base import Claim
from supervisor.tasks.executors.base import StartFailed
from supervisor.tasks.executors.command import CommandExecutor
from supervisor.tasks.process.pipes import Pipes
from supervisor.tasks.process.result import CommandResult, fault

# The text comes in a variable, which others of this machine cannot read, as they can a command line (R6).
_SCRIPT: Final = 'rae_command=$RAE_COMMAND; unset RAE_COMMAND; cd -- "$RAE_CWD" || exit; unset RAE_CWD; eval "$rae_command"'
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LONGEST: Final = 120_000  # bytes; the kernel takes 128 KiB for one variable


class ShellExecutor(CommandExecutor):
    """See the module."""

    def _order(self, claim: Claim, workdir: Path) -> tuple[list[str], bytes, dict[str, str]]:
        if not self._type.allow_any_command:
            raise StartFailed(f"shell commands are off on this node (tasks.{claim.type}.allow_any_command)")
        command = claim.payload.get("command")
        if not isinstance(command, str) or not command.strip():
            raise StartFailed("bad payload: it has no command")
        if not _sound(command):
            raise StartFailed("bad payload: its command holds a NUL, or half a character")
        if len(command.encode()) > _LONGEST:
            raise StartFailed(f"bad payload: its command holds a NUL, or is longer than {_LONGEST} bytes")
        place = _below(workdir, claim.payload.get("cwd"))
        variables = {**_variables(claim.payload.get("env")), "RAE_COMMAND": command, "RAE_CWD": place}
        return ["/bin/sh", "-c", _SCRIPT], b"", variables

    def _judge(self, status: int | None, pipes: Pipes, max_result: int) -> CommandResult:
        failure = fault(status, pipes, max_result)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        result: Mapping[str, Any] = {
            "status": "error" if failure else "success",
            "returncode": code,
            "stdout": pipes.out.decode(errors="replace"),
            "stderr": pipes.err,
        }
        return CommandResult(result, failure.kind, failure.detail) if failure else CommandResult(result)


def _sound(text: str) -> bool:
    """The kernel can take it: no NUL, and it can be written as UTF-8."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _below(workdir: Path, cwd: object) -> str:
    """The folder to begin in; nothing but the work folder and what is below it."""
    if cwd is None:
        return str(workdir)
    place = os.path.normpath(os.path.join(workdir, cwd)) if isinstance(cwd, str) and _sound(cwd) else ""
    if place != str(workdir) and not place.startswith(f"{workdir}/"):
        raise StartFailed("bad payload: its cwd is not a folder below the task's own work folder")
    try:
        os.makedirs(place, mode=0o700, exist_ok=True)
    except (OSError, RecursionError) as error:  # whose own words would hold the path
        why = error.strerror if isinstance(error, OSError) else "too deep"
        raise StartFailed(f"bad payload: its cwd cannot be made: {why}") from None
    return place


def _variables(env: object) -> dict[str, str]:
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise StartFailed("bad payload: its env is not an object")
    for name, value in env.items():
        if not _NAME.fullmatch(str(name)) or not isinstance(value, str) or not _sound(value):
            raise StartFailed("bad payload: its env is not an object of names and texts")
    return {str(name): str(value) for name, value in env.items()}
