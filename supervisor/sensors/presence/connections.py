"""Remote logins without a terminal (`ssh -T`, sftp, an editor's server): the bytes that come over their connection are the
person's. No event comes with them, so each look asks the kernel, at most once a second.

Which connection belongs to which login only root may know. So all connections count that may be it: those that come from the
session's host to a port on which this machine listens. Too many of them make the last sign later, never earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from supervisor.linux.sockets import Connection, Tcp, plain_address, tcp

ASK_S: Final = 1.0


class Connections:
    """The machine's TCP connections. `ask`: asks the kernel."""

    def __init__(self, ask: Callable[[], Tcp] = tcp) -> None:
        self._ask = ask
        self._seen: Tcp | None = None
        self._asked_s = float("-inf")

    def heard_s(self, host: str, now_s: float) -> float | None:
        """When bytes last came from a host to a server of this machine (seconds of CLOCK_BOOTTIME); None: there is no such
        connection. Without a host, or with a name in place of an address, from anywhere."""
        try:
            address = plain_address(host)
        except ValueError:
            return last_heard_s(self.incoming(now_s), self._asked_s)
        every = self._tcp(now_s).connections
        incoming = [connection for connection in self.incoming(now_s) if connection.peer == address]
        # A server that has stopped to listen keeps its connections.
        return last_heard_s(incoming or [connection for connection in every if connection.peer == address], self._asked_s)

    def incoming(self, now_s: float) -> list[Connection]:
        """The connections that others have made to this machine."""
        return self._tcp(now_s).incoming

    def _tcp(self, now_s: float) -> Tcp:
        if self._seen is None or not 0 <= now_s - self._asked_s < ASK_S:
            try:
                self._seen = self._ask()
            except OSError:
                self._seen = Tcp((), frozenset())  # without a connection a login counts as somebody
            self._asked_s = now_s
        return self._seen


def last_heard_s(connections: Iterable[Connection], asked_s: float) -> float | None:
    """When bytes last came over one of them, which the kernel said at `asked_s`; None: there are none."""
    idle_s = min((connection.idle_s for connection in connections), default=None)
    return None if idle_s is None else asked_s - idle_s
