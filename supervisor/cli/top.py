"""`rae-node top`."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from supervisor.cli.common import ConfigOption, Exit, NoAnswer, ask_daemon, exit_with, query, runtime_folder

EVERY_S: Final = 1.0
PATIENCE_S: Final = 3.0
SAID_S: Final = 6.0  # how long the answer to a key stays
HOURS: Final = 7200.0


def top(config: ConfigOption = None) -> None:
    """Watch the node live, and pause it by a key.

    State, guards with their bars, task, link, last decisions. Keys: `p` pauses, `a` after the task in hand,
    `2` for two hours, `r` resumes, `q` quits. A bar shows how much of its limit a reading has reached. Without a terminal
    it is shown once; `rae-node status --watch` goes on.

    Exit 3: the daemon is not running. Exit 4: it does not answer, or is another version.
    """
    first = ask_daemon(config, "status")
    if not (sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"):
        _once(first)
        return
    code, trouble = _show(runtime_folder(config), first)
    if code is not Exit.YES:
        exit_with(code, trouble)


def _once(answer: dict[str, Any]) -> None:
    """One screen without keys, for a pipe or a terminal that cannot be drawn on."""
    from supervisor.cli.top_view import Seen, screen

    size = shutil.get_terminal_size()
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    lines = [line.plain.rstrip() for line in screen(Seen(answer), "", size.columns, size.lines, plain=plain)[:-1]]
    print("\n".join(lines).rstrip())


class _Asker(threading.Thread):
    """Asks the daemon in the background, so that keys work while it is silent. What it hears it tells by a byte."""

    def __init__(self, runtime: Path, first: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._runtime = runtime
        self._words: list[tuple[str, dict[str, Any]]] = []
        self._wanted = threading.Event()
        self.news, self._news = os.pipe()
        self.answer: dict[str, Any] = first
        self.answered_s = time.monotonic()
        self.trouble, self.code = "", Exit.YES
        self.message, self.message_s = "", 0.0

    def say(self, word: str, **fields: Any) -> None:
        """Say a word to the daemon, soon."""
        self._words.append((word, fields))
        self._tell(f"{word} …")
        self._wanted.set()

    def run(self) -> None:
        """See Thread."""
        while True:
            while self._words:
                word, fields = self._words.pop(0)
                answer = self._ask(word, **fields)
                if answer is not None:
                    self._tell(str(answer.get("status", "")))
            if (answer := self._ask("status")) is not None:
                self.answer, self.answered_s = answer, time.monotonic()
            os.write(self._news, b".")
            self._wanted.wait(EVERY_S)
            self._wanted.clear()

    def _ask(self, name: str, **fields: Any) -> dict[str, Any] | None:
        try:
            answer = query(self._runtime, name, PATIENCE_S, **fields)
        except NoAnswer as none:
            if name != "status" and none.code is Exit.NO:  # a word that is refused: the daemon is well
                self._tell(str(none))
            else:
                self.trouble, self.code = str(none), none.code
            return None
        self.trouble, self.code = "", Exit.YES
        return answer

    def _tell(self, text: str) -> None:
        self.message, self.message_s = text, time.monotonic()


def _show(runtime: Path, first: dict[str, Any]) -> tuple[Exit, str]:
    """Until `q`; how the last try to reach the daemon went."""
    from rich.console import Console, Group
    from rich.live import Live

    from supervisor.cli.top_view import Seen, screen

    console = Console(highlight=False)
    asker = _Asker(runtime, first)
    asker.start()
    with _keys() as keyboard, Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            now_s = time.monotonic()
            seen = Seen(asker.answer, now_s - asker.answered_s, asker.trouble)
            message = asker.message if now_s - asker.message_s < SAID_S else ""
            size, plain = console.size, console.options.ascii_only
            live.update(Group(*screen(seen, message, size.width, size.height, plain=plain)), refresh=True)
            ready, _, _ = select.select([asker.news, *keyboard], [], [], EVERY_S / 2)  # the size may have changed
            if asker.news in ready:
                os.read(asker.news, 4096)
            for fd in keyboard:
                if fd in ready and not _obey(os.read(fd, 64), asker):
                    return asker.code, asker.trouble


def _obey(keys: bytes, asker: _Asker) -> bool:
    """Do as the keys say; False: to quit, or the terminal is gone."""
    for key in keys.decode(errors="replace").lower():
        if key in "q\x04":
            return False
        if key == "p":
            asker.say("pause", until=None)
        elif key == "a":
            asker.say("pause", until=None, after_task=True)
        elif key == "2":
            asker.say("pause", until=time.time() + HOURS)
        elif key == "r":
            asker.say("resume")
    return bool(keys)


@contextlib.contextmanager
def _keys() -> Iterator[list[int]]:
    """The keyboard, key by key and without an echo, where there is one."""
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
