"""The kernel's lists of sockets, asked for real ones of ours."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from support.waiting import until

from supervisor.linux import sockets
from supervisor.linux.sockets import Listener, plain_address, tcp, unix_listeners


@contextlib.contextmanager
def connected(address: str) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """A client, a server's end, and the server's port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    dual = address == "::"
    with socket.create_server((address, 0), family=family, dualstack_ipv6=dual) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1" if dual else address, port)) as client, server.accept()[0] as end:
            yield client, end, port


@pytest.mark.parametrize(("address", "peer"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")])
def test_an_incoming_connection_and_since_when_nothing_came_over_it(address: str, peer: str) -> None:
    with connected(address) as (client, end, port):
        found = [connection for connection in tcp().incoming if connection.port == port]
        assert [connection.peer for connection in found] == [ip_address(peer)]
        client.sendall(b"x")
        end.recv(1)
        sent_s = time.monotonic()
        end.sendall(b"an answer is no sign of the other end")
        until(lambda: time.monotonic() - sent_s > 0.3, "some rest")
        (quiet,) = [connection for connection in tcp().incoming if connection.port == port]
        assert 0.25 <= quiet.idle_s <= time.monotonic() - sent_s + 0.1
        client.sendall(b"x")
        until(lambda: next(c for c in tcp().incoming if c.port == port).idle_s < quiet.idle_s, "a byte")
    assert port not in tcp().listening


def test_unix_sockets_that_listen(tmp_path: Path) -> None:
    path, abstract = str(tmp_path / "socket"), f"rae-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as hidden, socket.socket(socket.AF_UNIX) as idle:
        named.bind(path)
        named.listen()
        hidden.bind(f"\0{abstract}")
        hidden.listen()
        idle.bind(f"{path}-that-does-not-listen")
        found = unix_listeners()
    mine = [listener for listener in found if str(tmp_path) in listener.path or abstract in listener.path]
    assert sorted(mine) == sorted([Listener(path, os.getuid()), Listener(f"@{abstract}", os.getuid())])
    assert path not in [listener.path for listener in unix_listeners()]


def test_a_kernel_that_does_not_tell_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "UNIX_SOCKETS", 999)
    with pytest.raises(OSError, match=r"the kernel does not list its sockets \(modprobe"):
        unix_listeners()


@pytest.mark.parametrize(
    ("text", "plain"), [("10.0.0.5", "10.0.0.5"), ("::ffff:10.0.0.5", "10.0.0.5"), ("fe80::1%eth0", "fe80::1"), ("::1", "::1")]
)
def test_addresses_are_compared_without_their_clothes(text: str, plain: str) -> None:
    assert str(plain_address(text)) == plain
    with pytest.raises(ValueError, match="does not appear to be"):
        plain_address("laptop.lan")
