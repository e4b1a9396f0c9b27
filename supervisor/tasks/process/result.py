"""How a command ended: its result, or a failure with its kind. The error text is made here and nowhere else."""

from __future__ import annotations

import enum
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from supervisor.tasks.process.pipes import Pipes

_MIB = 1 << 20


class FailureKind(enum.StrEnum):
    """What a failed command failed by; its error begins with this."""

    EXIT = "exit"
    SIGNAL = "signal"
    RESULT = "result"
    LIMIT = "limit"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The outcome of a command. `result` is its JSON object; of a failed one it has `status` (exit code, or minus the
    signal) and `stderr` (its end)."""

    result: Mapping[str, Any] = field(default_factory=dict, repr=False)
    kind: FailureKind | None = None  # None: it succeeded
    detail: str = ""  # the rest of the error; contains nothing that the task or its payload said

    @property
    def error(self) -> str | None:
        """None: it succeeded. Else one line for the submitter, such as `exit: code 3`."""
        return None if self.kind is None else f"{self.kind}: {self.detail}"


Judge = Callable[[int | None, Pipes, str], CommandResult]


def judge(status: int | None, pipes: Pipes, memory_limit: str) -> CommandResult:
    """The outcome of a command that answers with a JSON object, or with nothing. Arguments: see `fault`."""
    outcome = fault(status, pipes, memory_limit) or _decode(pipes.out)
    if outcome.kind is None:
        return outcome
    code = None if status is None else os.waitstatus_to_exitcode(status)
    result = ({"status": code} if code and not pipes.overflow else {}) | ({"stderr": pipes.err} if pipes.err else {})
    return replace(outcome, result=result)


def fault(status: int | None, pipes: Pipes, memory_limit: str) -> CommandResult | None:
    """The failure that does not depend on what was written: too much output, or how the main process ended.
    `status` is its wait status; None: its end was not seen. `memory_limit`: where the kernel killed a process; empty: nowhere.
    """
    code = None if status is None else os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL and memory_limit:
        return CommandResult({}, FailureKind.LIMIT, f"memory: {memory_limit}")
    if pipes.overflow:
        return CommandResult({}, FailureKind.RESULT, f"larger than {pipes.max_out / _MIB:g} MiB (max_result_mb)")
    if code is None:
        return CommandResult({}, FailureKind.LOST, "its end was not seen")
    if code < 0:
        return CommandResult({}, FailureKind.SIGNAL, f"{-code} ({_signal_name(-code)})")
    return CommandResult({}, FailureKind.EXIT, f"code {code}") if code else None


def _decode(out: bytes) -> CommandResult:
    if not out.strip():
        return CommandResult()
    try:
        value = read_json(out)
    except ValueError as error:
        problem = str(error)
    else:
        if isinstance(value, dict):
            return CommandResult(value)
        problem = f"it is JSON of another type ({type(value).__name__})"
    return CommandResult({}, FailureKind.RESULT, f"not a JSON object: {problem}")


def read_json(data: bytes | str) -> Any:
    """The JSON that a task has written, with what JSON does not have and programs write all the same: NaN and infinities, half
    characters, bytes that are not UTF-8, control characters, numbers without end. The sender cleans it (`sources/sanitize.py`).

    Raises:
        ValueError: it is no JSON even so.
    """
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError as error:  # of msgspec and of UTF-8
        problem = str(error) if isinstance(error, msgspec.DecodeError) else "it is not UTF-8"
    try:
        text = data.decode(errors="replace") if isinstance(data, bytes) else data
        return json.loads(text, strict=False, parse_int=_whole)
    except (ValueError, RecursionError):
        raise ValueError(problem) from None


def _whole(digits: str) -> int | str:
    """Python reads no integer of more digits."""
    return int(digits) if len(digits) < sys.int_info.default_max_str_digits else f"<integer of {len(digits)} digits>"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time" if number >= signal.SIGRTMIN else "unknown"
