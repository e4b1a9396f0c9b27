"""Terminals of a test's own: nobody else's come, go or are typed into, so nothing of this machine's can be seen."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

CLONE_NEWNS = 0x20000
PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE


def own_terminals(test: Callable[..., None]) -> Callable[..., None]:
    """Run the test in a process with its own /dev/pts. Without the right to mount, it runs as it is."""

    @functools.wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        if (pid := os.fork()) == 0:
            code = 1
            try:
                _mount()
                test(*args, **fixtures)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert status == 0, "it failed in its own process, as stderr says"

    return run


def _mount() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) == 0:
        assert libc.mount(b"none", b"/", None, PRIVATE, None) == 0
        assert libc.mount(b"devpts", b"/dev/pts", b"devpts", 0, b"newinstance,ptmxmode=0666") == 0
