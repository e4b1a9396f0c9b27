"""What a command's end says: its result, or the error with its kind (R4, R6)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from supervisor.tasks.process.pipes import Pipes

_MIB = 1 << 20

Outcome = tuple[str | None, Mapping[str, Any]]
Judge = Callable[[int | None, Pipes, int], Outcome]


def judge(status: int | None, pipes: Pipes, max_result: int) -> Outcome:
    """A task's error (None: it succeeded) and result. The error begins with its kind (`exit:`, `signal:`, `result:`,
    `lost:`) and holds nothing that the task or its payload said (R6); a failed task's result is its `status` (exit code, or
    minus the signal's number) and the end of its `stderr`.

    Args:
        status: wait status of the main process; None: it was not seen to end.
        pipes: what it has written.
        max_result: the bound that stdout was read with, bytes.
    """
    error, result = _judge(status, pipes, max_result)
    if error is not None:
        code = None if status is None else os.waitstatus_to_exitcode(status)
        result = ({"status": code} if code and not pipes.overflow else {}) | ({"stderr": pipes.err} if pipes.err else {})
    return error, result


def fault(status: int | None, pipes: Pipes, max_result: int) -> str | None:
    """What is wrong whatever the output says: too much of it, or how the main process ended."""
    if pipes.overflow:
        return f"result: larger than {max_result / _MIB:g} MiB (max_result_mb)"
    if status is None:
        return "lost: its end was not seen"
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"signal: {-code} ({_signal_name(-code)})"
    return f"exit: code {code}" if code else None


def _judge(status: int | None, pipes: Pipes, max_result: int) -> Outcome:
    if (wrong := fault(status, pipes, max_result)) is not None:
        return wrong, {}
    if not pipes.out.strip():
        return None, {}
    try:
        value = msgspec.json.decode(pipes.out)
    except UnicodeDecodeError:
        return "result: not a JSON object: it is not UTF-8", {}
    except msgspec.DecodeError as error:
        return f"result: not a JSON object: {error}", {}
    except RecursionError:
        return "result: not a JSON object: nested too deep", {}
    if not isinstance(value, dict):
        return f"result: not a JSON object: it is JSON of another type ({type(value).__name__})", {}
    return None, value


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time" if number >= signal.SIGRTMIN else "unknown"
