"""`rae-node top`."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from supervisor.cli.common import ConfigOption, Exit, NoAnswer, ask_daemon, exit_with, query, runtime_folder, terminal

INTERVAL_S: Final = 1.0
TIMEOUT_S: Final = 3.0
MESSAGE_S: Final = 6.0  # how long the answer to a key is shown
TWO_HOURS_S: Final = 7200.0


def top(config: ConfigOption = None) -> None:
    """Watch the node live, and pause it by a key.

    What it does and what comes next, guards, task, link, curves of the last ten minutes, last decisions. Bars and curves show
    a reading as a part of the limit at which it blocks. Keys: `p` pause, `a` pause
    after the current task, `2` pause for two hours, `r` resume, `q` quit. Without a terminal it is printed once;
    `rae-node status --watch` goes on.

    Exit codes: 0 quit. 3 the daemon is not running. 4 it does not answer, or is another version.
    """
    first = ask_daemon(config, "status")
    if not (sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"):
        _once(first)
        return
    code, trouble = _show(runtime_folder(config), first)
    if code is not Exit.YES:
        exit_with(code, trouble)


def _once(answer: dict[str, Any]) -> None:
    """One screen without keys, for a pipe or a dumb terminal."""
    from supervisor.cli.top_view import LastAnswer, screen

    size = shutil.get_terminal_size()
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    drawn = screen(LastAnswer(answer, wall_s=time.time()), "", size.columns, size.lines, plain=plain)
    lines = [line.plain.rstrip() for line in drawn[:-1]]
    print("\n".join(lines).rstrip())


class _Client(threading.Thread):
    """Asks the daemon in the background, so that keys work while it does not answer. `news` is readable after each answer."""

    def __init__(self, runtime: Path, first: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._runtime = runtime
        self._commands: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self.news, self._news = os.pipe()
        self.answer: dict[str, Any] = first
        self.answered_s = self.sampled_s = time.monotonic()
        self.trouble, self.code = "", Exit.YES
        self.message, self.message_s = "", 0.0
        self.history: deque[dict[str, tuple[float, float]]] = deque(maxlen=600)  # ten minutes

    def send(self, command: str, **fields: Any) -> None:
        """Send a command to the daemon, then ask for its new status."""
        self._show(f"{command} …")
        self._commands.put((command, fields))
        self._commands.put(("status", {}))

    def run(self) -> None:
        """See Thread."""
        from supervisor.cli.top_view import samples

        while True:
            try:
                command, fields = self._commands.get(timeout=INTERVAL_S)
            except queue.Empty:
                command, fields = "status", {}
            answer = self._ask(command, **fields)
            if answer is not None and command == "status":
                if not self.history or time.monotonic() - self.sampled_s >= INTERVAL_S / 2:
                    self.history.append(samples(answer))
                    self.sampled_s = time.monotonic()
                self.answer, self.answered_s = answer, time.monotonic()
            elif answer is not None:
                self._show(str(answer.get("status", "")))
            os.write(self._news, b".")

    def _ask(self, name: str, **fields: Any) -> dict[str, Any] | None:
        try:
            answer = query(self._runtime, name, TIMEOUT_S, **fields)
        except NoAnswer as none:
            if name != "status" and none.code is Exit.NO:  # a refused command: the daemon itself is well
                self._show(str(none))
            else:
                self.trouble, self.code = str(none), none.code
            return None
        self.trouble, self.code = "", Exit.YES
        return answer

    def _show(self, text: str) -> None:
        self.message, self.message_s = text, time.monotonic()


def _show(runtime: Path, first: dict[str, Any]) -> tuple[Exit, str]:
    """Until `q`; returns how the last question to the daemon ended."""
    from rich.console import Group
    from rich.live import Live

    from supervisor.cli.top_view import LastAnswer, screen

    console = terminal()
    client = _Client(runtime, first)
    client.start()
    with _keys() as keyboard, Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            now_s = time.monotonic()
            last = LastAnswer(client.answer, now_s - client.answered_s, client.trouble, time.time(), list(client.history))
            message = client.message if now_s - client.message_s < MESSAGE_S else ""
            size, plain = console.size, console.options.ascii_only
            live.update(Group(*screen(last, message, size.width, size.height, plain=plain)), refresh=True)
            ready, _, _ = select.select([client.news, *keyboard], [], [], INTERVAL_S / 2)  # the size may have changed
            if client.news in ready:
                os.read(client.news, 4096)
            for fd in keyboard:
                if fd in ready and not _handle(os.read(fd, 64), client):
                    return client.code, client.trouble


def _handle(keys: bytes, client: _Client) -> bool:
    """Handle key presses; False: quit, or the terminal is gone."""
    for key in keys.decode(errors="replace").lower():
        if key in "q\x04":
            return False
        if key == "p":
            client.send("pause", until=None)
        elif key == "a":
            client.send("pause", until=None, after_task=True)
        elif key == "2":
            client.send("pause", until=None, for_s=TWO_HOURS_S)
        elif key == "r":
            client.send("resume")
    return bool(keys)


@contextlib.contextmanager
def _keys() -> Iterator[list[int]]:
    """The keyboard without echo and line buffering; an empty list without a terminal."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield []
        return
    fd = sys.stdin.fileno()
    kept = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield [fd]
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, kept)
