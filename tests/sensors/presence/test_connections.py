"""Which connections may be a remote login's, and when bytes last came over one of them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from supervisor.linux.sockets import Connection, Tcp
from supervisor.sensors.presence.connections import Connections

NOW_S = 5000.0


def connection(peer: str, port: int = 22, idle_s: float = 30.0) -> Connection:
    return Connection(port, ip_address(peer), idle_s, 0)


SSH = connection("10.0.0.5")
FRIEND = connection("10.0.0.6", idle_s=7.0)
OURS = connection("10.0.0.5", 40000, 1.0)  # made by this machine


@pytest.mark.parametrize(
    ("host", "found", "listening", "idle_s"),
    [
        pytest.param("10.0.0.5", [SSH, FRIEND], {22}, 30.0, id="from its host"),
        pytest.param("::ffff:10.0.0.5", [SSH], {22}, 30.0, id="the same host as IPv6 writes it"),
        pytest.param("10.0.0.5", [SSH, OURS], {22}, 30.0, id="not what this machine has asked of it"),
        pytest.param("10.0.0.5", [SSH, connection("10.0.0.5", 443, 2.0)], {22, 443}, 2.0, id="any of them may be it"),
        pytest.param("10.0.0.5", [SSH], set(), 30.0, id="a server that was stopped keeps its connections"),
        pytest.param("10.0.0.5", [FRIEND], {22}, None, id="none: not seen"),
        pytest.param("10.0.0.5", [], set(), None, id="none at all"),
        pytest.param("laptop.lan", [SSH, FRIEND, OURS], {22}, 7.0, id="a name: any that came in"),
        pytest.param("", [SSH], {22}, 30.0, id="no name"),
        pytest.param("", [OURS], {22}, None, id="no name, and none came in"),
    ],
)
def test_bytes_from_a_host(host: str, found: list[Connection], listening: set[int], idle_s: float | None) -> None:
    heard_s = Connections(lambda: Tcp(tuple(found), frozenset(listening))).heard_s(host, NOW_S)
    assert heard_s == (None if idle_s is None else NOW_S - idle_s)


def test_the_kernel_is_asked_once_a_second_and_its_refusal_is_no_connection() -> None:
    asked = 0

    def refuse() -> Tcp:
        nonlocal asked
        asked += 1
        raise OSError

    connections = Connections(refuse)
    for at_s in (NOW_S, NOW_S + 0.5, NOW_S + 0.9, NOW_S + 1.5):
        assert connections.heard_s("10.0.0.5", at_s) is None
    assert asked == 2
