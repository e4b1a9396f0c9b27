"""Resolves host names in threads that nobody waits for: a resolver may be silent for half a minute."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket

from supervisor.linux.bounded import in_thread


class Resolver:
    """Looks each name up once at a time; who asks meanwhile gets the same answer."""

    def __init__(self) -> None:
        self._lookups: dict[str, asyncio.Future[list[str]]] = {}

    async def addresses(self, host: str) -> list[str]:
        """The IP addresses of a host, in the order to try them; of an address, itself.

        Raises:
            OSError: the name cannot be resolved.
        """
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            return [host]
        lookup = self._lookups.get(host)
        if lookup is None or lookup.done():
            lookup = self._lookups[host] = in_thread(_look_up, host)
            lookup.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait any more
        return await asyncio.shield(lookup)


def _look_up(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, "not a name") from None
    # each address once; a link-local one with its zone cannot stand in a URL
    addresses = [a for a in dict.fromkeys(str(entry[4][0]) for entry in found) if "%" not in a]
    if not addresses:
        raise socket.gaierror(socket.EAI_NONAME, "no address that can be used")
    return addresses
