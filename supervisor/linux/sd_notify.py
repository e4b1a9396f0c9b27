"""Notifies systemd: READY, STATUS, WATCHDOG and others, through sdnotify on a socket that never blocks.

Without NOTIFY_SOCKET nothing is sent. A message that the socket does not take is counted. READY and the last status are sent
again with the next message; anything else would be useless when late. The loop feeds the watchdog after a whole tick; no
other thread does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Final

from sdnotify import SystemdNotifier

from supervisor.linux.text import one_line

MAX_STATUS: Final = 500
SPARE_S: Final = 5.0  # added to what an effect may take when systemd is asked for more time


class Notifier:
    """The connection to systemd. `environment`: with NOTIFY_SOCKET and WATCHDOG_USEC, the process's own by default."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.errors = 0
        self.last_error = ""
        self.enabled = bool(environment.get("NOTIFY_SOCKET"))
        self.watchdog_interval_s = _watchdog_interval_s(environment)
        self._notifier: SystemdNotifier | None = None
        self._status = ""
        self._unsent: dict[str, str] = {}  # READY and STATUS that were not sent yet, by key
        self._granted_s = 0.0  # what the effects of this tick may take
        self._stretched = False  # systemd was asked for a longer watchdog

    def ready(self, status: str = "") -> None:
        """The start, or a reload, is over."""
        self._unsent["READY"] = "1"
        self._send(status=status)

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent only when it has changed."""
        if one_line(text, MAX_STATUS) != self._status:
            self._send(status=text)

    def watchdog(self) -> None:
        """A whole tick is done."""
        lines = ["WATCHDOG=1"]
        if self._stretched and self.watchdog_interval_s is not None:
            lines.append(f"WATCHDOG_USEC={int(self.watchdog_interval_s * 2e6)}")
        self._granted_s, self._stretched = 0.0, False
        self._send(*lines)

    def trigger(self, why: str) -> None:
        """An invariant is broken: have systemd kill and restart this process, as if the watchdog had not been fed."""
        self._send("WATCHDOG=trigger", status=why)

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends it."""
        self._unsent.pop("READY", None)
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        self._unsent.pop("READY", None)
        self._send("STOPPING=1", status=status)

    def grant(self, seconds: float) -> None:
        """An effect begins that may take so many seconds: extend the start, stop and watchdog timeouts for it.

        The watchdog is stretched only if the effects of one tick could outlast it, and only by their limits, so that an effect
        that hangs is still found. After the tick it is as before.
        """
        self._granted_s += seconds
        lines = [f"EXTEND_TIMEOUT_USEC={int((seconds + SPARE_S) * 1e6)}"]
        if self.watchdog_interval_s is not None and self._granted_s + SPARE_S > self.watchdog_interval_s:
            self._stretched = True
            lines.append(f"WATCHDOG_USEC={int((self._granted_s + SPARE_S + self.watchdog_interval_s * 2) * 1e6)}")
        self._send(*lines)

    def errno(self, number: int, why: str = "") -> None:
        """Why the service fails, as errno(3) and as text."""
        self._send(f"ERRNO={number}", status=why)

    def bus_error(self, name: str) -> None:
        self._send(f"BUSERROR={one_line(name, MAX_STATUS)}")

    def close(self) -> None:
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None

    def _send(self, *lines: str, status: str = "") -> None:
        if status:
            self._unsent["STATUS"] = self._status = one_line(status, MAX_STATUS)
        if not self.enabled:
            self._unsent.clear()
            return
        text = "\n".join([*lines, *(f"{key}={value}" for key, value in self._unsent.items())])
        try:
            if self._notifier is None:
                self._notifier = SystemdNotifier(debug=True)  # debug: it raises errors, which we count
                self._notifier.socket.setblocking(False)
            # sdnotify encodes to Latin-1, systemd reads UTF-8: this way the bytes stay as they are.
            self._notifier.notify(text.encode(errors="replace").decode("latin-1"))
        except OSError as error:
            self.errors += 1
            self.last_error = error.strerror or str(error)
            if not isinstance(error, BlockingIOError):
                self.close()  # the other end is gone: connect again for the next message
        else:
            self._unsent.clear()


def _watchdog_interval_s(environment: Mapping[str, str]) -> float | None:
    """Half of the time that systemd allows between two signs of life, in seconds; None: it does not watch this process."""
    text, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(text) / 2e6
