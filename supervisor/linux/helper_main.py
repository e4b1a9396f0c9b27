"""How a helper process starts, answers and ends.

A helper is a module with `replies(*arguments)`, which returns its functions by request. Each line on stdin is a request and its
arguments; the answer is one line of JSON on stdout. The helper ends when stdin ends, and the kernel kills it when its parent
dies. It runs isolated, with its parent's interpreter, and imports little: each helper is a process, and its memory counts.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

PR_SET_PDEATHSIG: Final = 1
ROOT: Final = os.path.abspath(f"{__file__}/../../..")
# ROOT comes last in the path, so that nothing in it can replace a module of the standard library.
START: Final = "import sys; sys.path.append(sys.argv[1]); from supervisor.linux.helper_main import main; main(sys.argv[2:])"

Replies = Mapping[str, Callable[..., Mapping[str, Any]]]


def command(module: str, *arguments: str) -> list[str]:
    """The command that starts a module as a helper of this process."""
    return [sys.executable, "-I", "-c", START, ROOT, str(os.getpid()), module, *arguments]


def main(argv: list[str]) -> None:
    """Run a helper; `argv` is what `command` put after ROOT."""
    parent, module, *arguments = argv
    end_with_parent(int(parent))
    answer_requests(importlib.import_module(module).replies(*arguments))


def end_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent dies; ends at once if the parent is dead already."""
    import ctypes  # the parent imports this file too, and does not need it

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)


def answer_requests(replies: Replies) -> None:
    """Answer each request until stdin ends or nobody reads the answers; ignores unknown requests."""
    try:
        for line in sys.stdin:
            request, *arguments = line.split() or [""]
            if request in replies:
                sys.stdout.write(json.dumps(replies[request](*arguments)) + "\n")
                sys.stdout.flush()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)
