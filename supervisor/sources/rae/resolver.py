"""Resolver to addresses, in a thread that nobody waits for: a resolver may be silent for half a minute, and neither the loop's
worker threads, which other readings need, nor the end of the node may depend on it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading


class Resolver:
    """Looks names up, each once at a time: who asks meanwhile gets the same answer."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Future[list[str] | OSError]] = {}

    async def addresses(self, host: str) -> list[str]:
        """The IP addresses of a host, in the order to try them; of an address itself.

        Raises:
            OSError: the name cannot be resolved.
        """
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(host)
            return [host]
        asked = self._asked.get(host)
        if asked is None or asked.done():
            asked = asyncio.get_running_loop().create_future()
            try:
                threading.Thread(target=_look_up, args=(host, asked), name=f"resolves {host}", daemon=True).start()
            except RuntimeError:
                raise OSError("no thread is to be had") from None
            self._asked[host] = asked
        found = await asyncio.shield(asked)
        if isinstance(found, OSError):
            raise found
        return found


def _look_up(host: str, asked: asyncio.Future[list[str] | OSError]) -> None:
    found: list[str] | OSError
    try:
        # each once; a link-local one with its zone cannot stand in a URL
        told = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        found = [a for a in dict.fromkeys(str(entry[4][0]) for entry in told) if "%" not in a]
        if not found:
            found = socket.gaierror(socket.EAI_NONAME, "no address that can be used")
    except (OSError, UnicodeError) as error:
        found = error if isinstance(error, OSError) else socket.gaierror(socket.EAI_NONAME, "not a name")
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
        asked.get_loop().call_soon_threadsafe(lambda: None if asked.done() else asked.set_result(found))
