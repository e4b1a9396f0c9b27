"""Sends journal lines to journald with their fields (`journalctl -u rae-node -o verbose`, or `RAE_ROW=user-returned`).

It speaks journald's native protocol, one datagram a line. The maintained libraries need libsystemd (1.6 MiB in the daemon),
and their send blocks the loop when journald hangs. Here such a line is dropped; the journal's own file has it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final

from supervisor.linux.text import escaped

SOCKET: Final = "/run/systemd/journal/socket"
IDENTIFIER: Final = "rae-node"
WARNING, INFO = 4, 6
MAX_FIELD: Final = 4096
# journald has its own clocks; observation, memory and limits are for replays.
_LEFT_OUT: Final = frozenset({"v", "time", "boot_s", "observation", "memory", "limits", "at_s"})
_VERDICT: Final = {True: "ok", False: "no", None: "unknown"}


class Journald:
    """Sends lines; `path` is journald's socket."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def send(self, text: str, entry: Mapping[str, Any]) -> bool:
        """Send a text with the fields of its journal entry. False: there is no journald."""
        warn = entry.get("ok") is False or "problem" in entry or "trouble" in entry
        fields = {"MESSAGE": text, "PRIORITY": WARNING if warn else INFO, "SYSLOG_IDENTIFIER": IDENTIFIER, **dict(_flat(entry))}
        try:
            self._socket.sendto(b"".join(_field(name, str(value)) for name, value in fields.items()), self._path)
        except BlockingIOError:
            return True  # journald hangs
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def of_service(environ: Mapping[str, str]) -> Journald | None:
    """journald, if our stderr goes to it (JOURNAL_STREAM, systemd.exec(5)); then nothing is written twice."""
    try:
        seen = os.fstat(2)
    except OSError:
        return None
    return Journald() if environ.get("JOURNAL_STREAM") == f"{seen.st_dev}:{seen.st_ino}" else None


def _flat(entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in entry.items():
        name = f"RAE_{key.upper()}"
        if key in _LEFT_OUT or value is None:
            continue
        if key == "guards":
            yield from ((f"RAE_GUARD_{v['name'].upper()}", _VERDICT[v["ok"]]) for v in value)
        elif isinstance(value, dict):
            yield from ((f"{name}_{part.upper()}", inner) for part, inner in value.items())
        elif isinstance(value, (list, tuple)):
            yield name, ",".join(map(str, value))
        else:
            yield name, value


def _field(name: str, value: str) -> bytes:
    """`NAME=value`: one line, which a terminal only shows."""
    return f"{name}={escaped(value, MAX_FIELD)}\n".encode()
