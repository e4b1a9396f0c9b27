"""DANGEROUS, and off without `allow_any_command: true`: runs the text of a task with /bin/sh.

Everybody who can post to the control node, which asks for no password, then gives orders on this machine. So a command starts
only in a sandbox (see process/sandbox.py). It is contained, limited and stopped like every task, but its sender decides what
it does. A command named in node.yaml (executor: command) is better.

Payload: `command`, optionally `env` (an object of texts) and `cwd` (a folder below the work folder, made if missing).
Result: `status`, `returncode`, `stdout`, `stderr` (its end). An exit code other than 0 is a failure.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from supervisor.sources.base import Claim
from supervisor.tasks.executors.base import StartFailed
from supervisor.tasks.executors.command import CommandExecutor
from supervisor.tasks.process.pipes import Pipes
from supervisor.tasks.process.result import CommandResult, fault

# The text comes in a variable: other users of this machine can read a command line, but not the environment.
_SCRIPT: Final = (
    'rae_command=$RAE_COMMAND; unset RAE_COMMAND; mkdir -p -- "$RAE_CWD" && cd -- "$RAE_CWD" || exit; unset RAE_CWD; '
    'eval "$rae_command"'
)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LONGEST: Final = 120_000  # bytes; the kernel takes 128 KiB for one variable
_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # bytes that every file system takes below a work folder


class ShellExecutor(CommandExecutor):
    """Runs the text of a task."""

    def _order(self, claim: Claim) -> tuple[list[str], bytes, dict[str, str]]:
        if not self._type.allow_any_command:
            raise StartFailed(f"shell commands are off on this node (tasks.{claim.type}.allow_any_command)")
        command = claim.payload.get("command")
        if not isinstance(command, str) or not command.strip():
            raise StartFailed("bad payload: it has no command")
        if not _encodable(command):
            raise StartFailed("bad payload: its command holds a NUL, or half a character")
        if len(command.encode()) > _LONGEST:
            raise StartFailed(f"bad payload: its command is longer than {_LONGEST} bytes")
        folder = _below(claim.payload.get("cwd"))
        variables = {**_variables(claim.payload.get("env")), "RAE_COMMAND": command, "RAE_CWD": folder}
        return ["/bin/sh", "-c", _SCRIPT], b"", variables

    def _judge(self, status: int | None, pipes: Pipes, memory_limit: str) -> CommandResult:
        failure = fault(status, pipes, memory_limit)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        result: Mapping[str, Any] = {
            "status": "error" if failure else "success",
            "returncode": code,
            "stdout": pipes.out.decode(errors="replace"),
            "stderr": pipes.err,
        }
        return replace(failure or CommandResult(), result=result)


def _encodable(text: str) -> bool:
    """The kernel can take it: it has no NUL, and can be written as UTF-8."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def _below(cwd: object) -> str:
    """The folder to start in, relative to the work folder. Raises StartFailed."""
    if cwd is None:
        return "."
    path = os.path.normpath(cwd) if isinstance(cwd, str) and _encodable(cwd) else ".."
    if path == ".." or path.startswith(("/", "../")):
        raise StartFailed("bad payload: its cwd is not a folder below the task's own work folder")
    if len(path.encode()) > _LONGEST_PATH or any(len(name.encode()) > _LONGEST_NAME for name in path.split("/")):
        raise StartFailed("bad payload: its cwd cannot be made: it is too long")
    return path


def _variables(env: object) -> dict[str, str]:
    if env is None:
        return {}
    if not isinstance(env, Mapping):
        raise StartFailed("bad payload: its env is not an object")
    for name, value in env.items():
        if not _NAME.fullmatch(str(name)) or not isinstance(value, str) or not _encodable(value):
            raise StartFailed("bad payload: its env is not an object of names and texts")
    return {str(name): str(value) for name, value in env.items()}
