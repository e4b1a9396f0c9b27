"""The only file that knows sock_diag: which sockets listen, and since when nothing came over a TCP connection.

Every user may ask the kernel (`ss -ti` does the same), and nothing wakes up for it. An answer is complete or an OSError.
The kernel answers for one network namespace: programs in others, such as most containers, are not in it.

Sources: sock_diag(7); linux/inet_diag.h, linux/unix_diag.h, linux/tcp.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

SOCK_DIAG: Final = 4
UNIX_SOCKETS, TCP_SOCKETS = 20, 18  # kinds of requests; the older one is for all families of TCP at once
REQUEST_DUMP: Final = 0x301
HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length, type
ERROR, DONE = 2, 3
ESTABLISHED, LISTEN = 1, 10
UNIX_REQUEST: Final = struct.Struct("=BBHIIIII")  # family, protocol, states, inode, what to show, cookie
UNIX_MESSAGE: Final = 16
SHOW_NAME, SHOW_UID = 0x01, 0x40
UNIX_NAME, UNIX_UID = 0, 7  # attributes of the answer
TCP_REQUEST: Final = struct.Struct("=3xB48xII")  # extensions, no socket in particular, states, no end
INET_MESSAGE: Final = 72
INET_INFO, INET_CGROUP = 2, 21  # attributes of the answer
LAST_DATA_RECEIVED: Final = 52  # in struct tcp_info, milliseconds
ANSWER_S: Final = 1.0
MAX_ANSWER: Final = 1 << 16


class Listener(NamedTuple):
    """A unix socket that listens. `path`: abstract ones begin with "@". `uid`: who made it; -1: the kernel does not say."""

    path: str
    uid: int


class Connection(NamedTuple):
    """An established TCP connection. `idle_s`: since data last came from the other end. `cgroup`: the id of the control group
    of who made it, 0 where the kernel does not say; a server's connection has that of its listening socket."""

    port: int
    peer: IPv4Address | IPv6Address
    idle_s: float
    cgroup: int


class Tcp(NamedTuple):
    """All established connections, and the ports on which somebody listens."""

    connections: tuple[Connection, ...]
    listening: frozenset[int]

    @property
    def incoming(self) -> list[Connection]:
        """The connections that others have made to this machine."""
        return [connection for connection in self.connections if connection.port in self.listening]


def unix_listeners() -> list[Listener]:
    """All unix sockets that listen.

    Raises:
        OSError: the kernel does not tell.
    """
    request = UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, 1 << LISTEN, 0, SHOW_NAME | SHOW_UID, 0, 0)
    found = []
    for message in _dump(UNIX_SOCKETS, request):
        attributes = dict(_attributes(message, UNIX_MESSAGE))
        name = attributes.get(UNIX_NAME, b"")
        path = ("@" + name[1:].decode(errors="replace")) if name[:1] == b"\0" else name.split(b"\0")[0].decode(errors="replace")
        uid = attributes.get(UNIX_UID, b"")
        found.append(Listener(path, struct.unpack("=I", uid)[0] if len(uid) == 4 else -1))
    return found


def tcp() -> Tcp:
    """All TCP sockets that are connected or listen.

    Raises:
        OSError: the kernel does not tell.
    """
    connections, listening = [], set()
    request = TCP_REQUEST.pack(1 << (INET_INFO - 1), 1 << ESTABLISHED | 1 << LISTEN, 0)
    for message in _dump(TCP_SOCKETS, request):
        state, port = message[1], struct.unpack_from(">H", message, 4)[0]
        if state == LISTEN:
            listening.add(port)
            continue
        attributes = dict(_attributes(message, INET_MESSAGE))
        info, cgroup = attributes.get(INET_INFO, b""), attributes.get(INET_CGROUP, b"")
        if len(info) < LAST_DATA_RECEIVED + 4:
            continue
        raw = message[24:28] if message[0] == socket.AF_INET else message[24:40]
        (idle_ms,) = struct.unpack_from("=I", info, LAST_DATA_RECEIVED)
        group = struct.unpack("=Q", cgroup)[0] if len(cgroup) == 8 else 0
        connections.append(Connection(port, plain_address(raw), idle_ms / 1000, group))
    return Tcp(tuple(connections), frozenset(listening))


def plain_address(address: bytes | str) -> IPv4Address | IPv6Address:
    """An address without its zone; an IPv4 address that travels in IPv6 as what it is.

    Raises:
        ValueError: it is no address.
    """
    found = ip_address(address.partition("%")[0] if isinstance(address, str) else address)
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _dump(kind_asked: int, request: bytes) -> Iterator[bytes]:
    """What the kernel answers to a request, message by message, without their headers."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, SOCK_DIAG) as kernel:
        kernel.settimeout(ANSWER_S)
        kernel.send(HEADER.pack(HEADER.size + len(request), kind_asked, REQUEST_DUMP, 1, 0) + request)
        while True:
            answer, at = kernel.recv(MAX_ANSWER), 0
            while at + HEADER.size <= len(answer):
                length, kind, *_ = HEADER.unpack_from(answer, at)
                if kind == DONE:
                    return
                if kind == ERROR or length < HEADER.size:
                    code = -struct.unpack_from("=i", answer, at + HEADER.size)[0] if kind == ERROR else 0
                    raise OSError(code, "the kernel does not list its sockets (modprobe unix_diag tcp_diag)")
                yield answer[at + HEADER.size : at + length]
                at += (length + 3) & ~3


def _attributes(message: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + ATTRIBUTE.size <= len(message):
        length, kind = ATTRIBUTE.unpack_from(message, at)
        if length < ATTRIBUTE.size:
            return
        yield kind, message[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
