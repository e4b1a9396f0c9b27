"""A real terminal: tmux, detached, on a socket of its own. What is on its screen can be read, and keys can be pressed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.waiting import until


@dataclass(frozen=True)
class Terminal:
    """One window."""

    socket: Path

    def tmux(self, *words: str) -> str:
        """A command of tmux; what it printed."""
        done = subprocess.run(["tmux", "-S", str(self.socket), *words], capture_output=True, text=True, timeout=30, check=True)
        return done.stdout

    def screen(self) -> str:
        """What is there to see, line by line."""
        return self.tmux("capture-pane", "-p", "-t", "0")

    def colours(self) -> str:
        """The same with its escape sequences."""
        return self.tmux("capture-pane", "-p", "-e", "-t", "0")

    def press(self, *keys: str) -> None:
        """Keys, by tmux's names."""
        self.tmux("send-keys", "-t", "0", *keys)

    def resize(self, width: int, height: int) -> None:
        """Another size."""
        self.tmux("resize-window", "-t", "0", "-x", str(width), "-y", str(height))

    def wait(self, seen: Callable[[str], object], what: str, timeout_s: float = 30) -> str:
        """The screen once it is as wanted."""
        until(lambda: seen(self.screen()), lambda: f"{what}, but\n{self.screen()}", timeout_s)
        return self.screen()


@contextmanager
def terminal(
    folder: Path, argv: Sequence[str], env: Mapping[str, str] | None = None, width: int = 80, height: int = 24
) -> Iterator[Terminal]:
    """`argv` in a terminal; when it has ended, the last line says `exit N`. Skips where there is no tmux."""
    if shutil.which("tmux") is None:
        pytest.skip("no tmux here: apt-get install tmux")
    window = Terminal(folder / f"tmux-{time.monotonic_ns()}.sock")
    # A worker of pytest has the size of the terminal that it was started in: here the window's own counts.
    ours = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    settings = {**ours, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **(env or {})}
    script = 'trap : INT; "$@"; printf "exit %s" $?; exec sleep 1000'
    words = ["tmux", "-S", str(window.socket), "-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height)]
    subprocess.run([*words, "sh", "-c", script, "sh", *argv], env=settings, check=True, timeout=30)
    try:
        yield window
    finally:
        subprocess.run(["tmux", "-S", str(window.socket), "kill-server"], capture_output=True, timeout=30, check=False)
