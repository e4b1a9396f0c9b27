"""Telling systemd how the node is: READY, STATUS, WATCHDOG and their kin, by sdnotify on a socket that never blocks.

Without NOTIFY_SOCKET nothing is sent. What a full or dead socket does not take is counted; READY and the last status
are sent again with the next word, everything else is worth nothing when it is late. The watchdog is fed by the loop
after a whole tick (R5), never by a thread of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Final

from sdnotify import SystemdNotifier

from supervisor.linux.text import one_line

MAX_STATUS: Final = 500
SPARE_S: Final = 5.0  # between what an effect may take and what systemd is asked for


class Notifier:
    """The line to systemd. `environment`: the process's; an empty one says nothing to anybody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._line: SystemdNotifier | None = None
        self.errors = 0
        self.last_error = ""
        self._status = ""
        self._owed: dict[str, str] = {}  # READY and STATUS that did not get through, by key
        self.enabled = bool(environment.get("NOTIFY_SOCKET"))  # systemd, or who plays its part, wants to hear
        self.watchdog_interval_s = _watchdog_interval_s(environment)
        self._granted_s = 0.0  # what the effects of this tick may take
        self._stretched = False  # systemd was asked for a longer watchdog

    def ready(self, status: str = "") -> None:
        """The start, or a reload, is over."""
        self._owed["READY"] = "1"
        if status:
            self._owed["STATUS"] = self._status = one_line(status, MAX_STATUS)
        self._send()

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent only when it changed."""
        line = one_line(text, MAX_STATUS)
        if line != self._status:
            self._owed["STATUS"] = self._status = line
            self._send()

    def watchdog(self) -> None:
        """A whole tick is done."""
        lines = ["WATCHDOG=1"]
        if self._stretched and self.watchdog_interval_s is not None:
            lines.append(f"WATCHDOG_USEC={int(self.watchdog_interval_s * 2e6)}")
        self._granted_s, self._stretched = 0.0, False
        self._send(*lines)

    def trigger(self, why: str) -> None:
        """What must always hold does not: be killed and started anew, as if the watchdog had not been fed."""
        self._owed["STATUS"] = self._status = one_line(why, MAX_STATUS)
        self._send("WATCHDOG=trigger")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends it."""
        self._owed.pop("READY", None)
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        """The node is on its way out."""
        self._owed.pop("READY", None)
        if status:
            self._owed["STATUS"] = self._status = one_line(status, MAX_STATUS)
        self._send("STOPPING=1")

    def grant(self, seconds: float) -> None:
        """An effect begins that may take so many seconds: neither start or stop nor the watchdog may cut it short.

        The watchdog is stretched only where the effects of one tick could outlast it, by what each of them may take at
        most, so that one that hangs is still found; after the tick it is as it was.
        """
        self._granted_s += seconds
        lines = [f"EXTEND_TIMEOUT_USEC={int((seconds + SPARE_S) * 1e6)}"]
        if self.watchdog_interval_s is not None and self._granted_s + SPARE_S > self.watchdog_interval_s:
            self._stretched = True
            lines.append(f"WATCHDOG_USEC={int((self._granted_s + SPARE_S + self.watchdog_interval_s * 2) * 1e6)}")
        self._send(*lines)

    def errno(self, number: int, why: str = "") -> None:
        """What makes the service fail, as errno(3), and in words."""
        if why:
            self._owed["STATUS"] = self._status = one_line(why, MAX_STATUS)
        self._send(f"ERRNO={number}")

    def bus_error(self, name: str) -> None:
        """What D-Bus refused, by the error's name."""
        self._send(f"BUSERROR={name}")

    def close(self) -> None:
        """Let go of the socket."""
        if self._line is not None:
            self._line.socket.close()
            self._line = None

    def _send(self, *lines: str) -> None:
        if not self.enabled:
            self._owed.clear()
            return
        text = "\n".join([*lines, *(f"{key}={value}" for key, value in self._owed.items())])
        try:
            if self._line is None:
                self._line = SystemdNotifier(debug=True)  # debug: errors are raised, and counted here
                self._line.socket.setblocking(False)
            # sdnotify encodes to Latin-1, systemd reads UTF-8: so the bytes pass through as they are.
            self._line.notify(text.encode(errors="replace").decode("latin-1"))
        except BlockingIOError as error:
            self._failed(error)
        except OSError as error:
            self._failed(error)
            self.close()  # the other end is gone: look for it anew with the next word
        else:
            self._owed.clear()

    def _failed(self, error: OSError) -> None:
        self.errors += 1
        self.last_error = error.strerror or str(error)


def _watchdog_interval_s(environment: Mapping[str, str]) -> float | None:
    """Half of what systemd allows between two signs of life, in seconds; None: it does not watch this process."""
    text, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(text) / 2e6
