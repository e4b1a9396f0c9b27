"""What systemd gets: on a socket of ours, also a full or dead one, and in a box with a real systemd."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.sysbox import SysBox
from support.waiting import until

from supervisor.linux.sd_notify import Notifier


class Listener:
    """systemd's end of the line."""

    def __init__(self, path: str | bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Everything sent since the last time."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@rae-test-{os.getpid()}"
    line = Listener(name.replace("@", "\0"))
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    yield line
    line.socket.close()


@pytest.fixture
def notifier(listener: Listener) -> Iterator[Notifier]:
    line = Notifier()
    yield line
    line.close()


def test_the_messages(listener: Listener, notifier: Notifier) -> None:
    assert notifier.enabled
    notifier.ready("IDLE_WAIT: user active on seat0, 7 min to go")
    assert listener.heard() == ["READY=1\nSTATUS=IDLE_WAIT: user active on seat0, 7 min to go"]
    notifier.watchdog()
    notifier.errno(5)
    notifier.grant(15)
    assert listener.heard() == ["WATCHDOG=1", "ERRNO=5", "EXTEND_TIMEOUT_USEC=20000000"]
    notifier.stopping("stopping")
    assert listener.heard() == ["STOPPING=1\nSTATUS=stopping"]
    assert (notifier.errors, notifier.last_error) == (0, "")


def test_refusals_name_what_refused(listener: Listener, notifier: Notifier) -> None:
    notifier.errno(16, "another rae-node runs")
    notifier.bus_error("org.freedesktop.DBus.Error.AccessDenied")
    notifier.trigger("a fault of the node itself: a task lives in READY")
    assert listener.heard() == [
        "ERRNO=16\nSTATUS=another rae-node runs",
        "BUSERROR=org.freedesktop.DBus.Error.AccessDenied",
        "WATCHDOG=trigger\nSTATUS=a fault of the node itself: a task lives in READY",
    ]


def test_the_watchdog_waits_for_effects_that_outlast_it_and_no_longer(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    notifier = Notifier()
    notifier.grant(5)
    notifier.grant(70)  # with what was granted before, more than half of what the watchdog allows
    notifier.watchdog()
    notifier.grant(5)
    notifier.watchdog()
    assert listener.heard() == [
        "EXTEND_TIMEOUT_USEC=10000000",
        "EXTEND_TIMEOUT_USEC=75000000\nWATCHDOG_USEC=110000000",
        "WATCHDOG=1\nWATCHDOG_USEC=30000000",
        "EXTEND_TIMEOUT_USEC=10000000",
        "WATCHDOG=1",
    ]
    notifier.close()


def test_a_status_is_sent_when_it_changes_only(listener: Listener, notifier: Notifier) -> None:
    for text in ("READY: a", "READY: a", "READY:   a\n", "READY: b"):
        notifier.status(text)
    assert listener.heard() == ["STATUS=READY: a", "STATUS=READY: b"]


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("a\nWATCHDOG=1", "a WATCHDOG=1"),
        ("für Zoë ☕", "für Zoë ☕"),
        ("a\udcffb", "a b"),
        ("x" * 10_000, "x" * 499 + "…"),
    ],
)
def test_a_status_is_one_line_of_utf8(listener: Listener, notifier: Notifier, text: str, sent: str) -> None:
    notifier.status(text)
    assert listener.heard() == [f"STATUS={sent}"]


def test_reloading_tells_the_time_and_ready_ends_it(listener: Listener, notifier: Notifier) -> None:
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    (message,) = listener.heard()
    match = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", message)
    assert match
    assert before <= int(match[1]) <= time.monotonic_ns() // 1000
    notifier.ready()
    assert listener.heard() == ["READY=1"]


def test_a_full_socket_blocks_nobody_and_what_matters_is_sent_again(listener: Listener, notifier: Notifier) -> None:
    begun = time.monotonic()
    while not notifier.errors:
        notifier.watchdog()
    notifier.ready("READY: a")
    notifier.status("READY: b")
    notifier.watchdog()
    assert time.monotonic() - begun < 20
    assert notifier.errors == 4
    assert notifier.last_error == "Resource temporarily unavailable"
    assert set(listener.heard()) == {"WATCHDOG=1"}
    notifier.watchdog()
    assert listener.heard() == ["WATCHDOG=1\nREADY=1\nSTATUS=READY: b"]
    notifier.watchdog()
    assert listener.heard() == ["WATCHDOG=1"]


def test_a_dead_socket_is_counted_and_a_new_one_found(listener: Listener, notifier: Notifier) -> None:
    notifier.watchdog()
    name = listener.socket.getsockname()
    listener.socket.close()
    notifier.ready()
    notifier.watchdog()
    assert (notifier.errors, notifier.last_error) == (2, "Connection refused")
    if isinstance(name, str):
        os.unlink(name)
        notifier.watchdog()
        assert (notifier.errors, notifier.last_error) == (3, "No such file or directory")
    second = Listener(name)
    notifier.watchdog()
    assert second.heard() == ["WATCHDOG=1\nREADY=1"]
    second.socket.close()


@pytest.mark.parametrize(("value", "failing"), [(None, False), ("", False), ("/nowhere/notify", True)])
def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, value: str | None, failing: bool) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    notifier = Notifier()
    assert notifier.enabled == bool(value)
    for say in (notifier.ready, notifier.watchdog, notifier.reloading, notifier.stopping, notifier.close):
        say()
    notifier.status("a")
    assert bool(notifier.errors) == failing


def test_an_empty_environment_tells_nobody(listener: Listener) -> None:
    Notifier({}).ready()
    assert listener.heard() == []


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_half_of_what_the_watchdog_allows(environment: dict[str, str], interval_s: float | None) -> None:
    assert Notifier(environment).watchdog_interval_s == interval_s


UNIT = """[Service]
Type=notify
ExecStart={python} -m support.notify_probe /mnt/share/orders
Environment=PYTHONPATH={path} PYTHONDONTWRITEBYTECODE=1
WatchdogSec=3
WatchdogSignal=SIGKILL
Restart=always
RestartSec=50ms
"""


def test_a_real_systemd_hears_it(box: SysBox) -> None:
    orders = box.share / "orders"
    orders.write_text("")
    unit = UNIT.format(python=box.python, path=box.env["PYTHONPATH"])
    box.run("tee", "/run/systemd/system/probe.service", stdin=unit)

    def show(name: str) -> str:
        return box.show("probe", name)[name]

    def order(*lines: str) -> None:
        with orders.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    try:
        box.run("systemctl", "daemon-reload")
        box.run("systemctl", "start", "probe")  # returns when READY=1 was heard
        assert box.show("probe", "ActiveState", "StatusText") == {
            "ActiveState": "active", "StatusText": "READY: nothing to do",
        }
        order("status IDLE_WAIT: user active on séat0")
        until(lambda: show("StatusText") == "IDLE_WAIT: user active on séat0", "the status")
        fed = show("WatchdogTimestampMonotonic")
        until(lambda: show("WatchdogTimestampMonotonic") != fed, "the watchdog fed")
        order("reload")
        until(lambda: show("StatusText") == "READY: read again", "the reload over")
        assert show("ActiveState") == "active"
        orders.write_text("starve\n" * 3 + "starve\n")  # longer than what was read: these are new
        until(lambda: show("NRestarts") != "0", "the watchdog's bite")
        orders.write_text("")
        until(lambda: show("ActiveState") == "active", "the restart")
        box.run("systemctl", "stop", "probe")
    finally:
        box.run("systemctl", "stop", "probe", check=False)
        box.run("rm", "-f", "/run/systemd/system/probe.service")
        box.run("systemctl", "daemon-reload")
