"""What our helper programs have in common: how one is started, that it dies with its parent, and how it answers.

A helper is a module with `main(arguments)`, whose first argument is its parent's pid. It answers one
line of JSON on stdout for each line on stdin that it knows, and ends when stdin ends. It is started isolated, by the
interpreter of its parent (`command`), and imports little: each is a process of its own, and its memory counts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

PR_SET_PDEATHSIG: Final = 1
ROOT: Final = os.path.abspath(f"{__file__}/../../..")
# Imported, not run as a script, so that its bytecode is cached; our path comes last, so that nothing in it can stand in
# for the standard library.
START: Final = "import sys; sys.path.append(sys.argv[1]); __import__(sys.argv[2], fromlist=['main']).main(sys.argv[3:])"


def command(module: str, *arguments: str) -> list[str]:
    """The command that starts a module as a helper of this process."""
    return [sys.executable, "-I", "-c", START, ROOT, module, str(os.getpid()), *arguments]


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, also if that has happened already."""
    import ctypes  # not in the parent, which has `command` from here

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)


def answer(replies: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
    """Answer each line, whose first word names the reply and whose further words are its arguments, until stdin ends or
    nobody reads the answers any more; other lines are passed over."""
    try:
        for line in sys.stdin:
            word, *arguments = line.split() or [""]
            if word in replies:
                sys.stdout.write(json.dumps(replies[word](*arguments)) + "\n")
                sys.stdout.flush()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)
