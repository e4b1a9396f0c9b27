"""Waking this machine and others: what the unit is asked for, what goes over the wire."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.namespaces import namespace
from support.waiting import until

from supervisor.linux import wake
from supervisor.linux.wake import WakeAlarm

MAC = "02:00:5e:10:00:01"


@pytest.fixture
def unit(tmp_path: Path) -> socket.socket:
    """The socket that systemd would listen on."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "wake.sock"))
    listener.listen()
    listener.settimeout(10)
    return listener


def test_one_connection_carries_each_new_time_once(tmp_path: Path, unit: socket.socket) -> None:
    alarm = WakeAlarm(tmp_path / "wake.sock")
    alarm.set(None)
    assert (alarm.wanted, alarm.trouble) == (False, "")
    for at_s in (1000.4, 1001.0, 999.5, 5000.0):  # the second and third are the first, seen a moment later
        alarm.set(at_s)
    peer, _ = unit.accept()
    with peer:
        assert peer.recv(100) == b"1000\n5000\n"
        alarm.set(None)
        assert peer.recv(100) == b""


def test_a_unit_that_ended_is_asked_again_and_one_that_is_not_there_is_said(tmp_path: Path, unit: socket.socket) -> None:
    alarm = WakeAlarm(tmp_path / "wake.sock")
    alarm.set(1000.0)
    unit.accept()[0].close()
    alarm.set(1000.0)
    peer, _ = unit.accept()
    with peer:
        assert peer.recv(100) == b"1000\n"
        assert alarm.trouble == ""
        unit.close()
        (tmp_path / "wake.sock").unlink()
        peer.close()
        alarm.set(1000.0)
        assert "wake.sock gives no answer" in alarm.trouble
        alarm.set(None)
        assert alarm.trouble == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="the alarm needs CAP_WAKE_ALARM")
def test_the_units_program_arms_the_clock_for_as_long_as_it_is_connected() -> None:
    """The kernel itself shows the timer."""
    argv = [sys.executable, "-I", "-c", "import sys; from supervisor.linux.wake import main; sys.exit(main())"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as program:
        assert program.stdin
        program.stdin.write(b"4000000000\n")
        program.stdin.flush()

        def armed() -> bool:
            timers = [path.read_text() for path in Path(f"/proc/{program.pid}/fdinfo").iterdir()]
            return any("clockid: 8" in text and "it_value: (0, 0)" not in text for text in timers)

        until(armed, "the kernel's timer")
        program.stdin.close()
        assert program.wait(10) == 0


LISTEN = """
import socket
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
print("listens", flush=True)
while True:
    frame, (card, *_) = wire.recvfrom(2000)
    print(card, frame.hex(), flush=True)
"""


def test_the_packet_is_seen_on_the_wire_of_its_network_alone() -> None:
    with (
        namespace(cables=2) as apart,
        subprocess.Popen([*apart.prefix, sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True) as other_end,
    ):
        try:
            assert other_end.stdout
            assert other_end.stdout.readline() == "listens\n"
            network = ".".join([*apart.ours[1].split(".")[:3], "0/24"])
            assert network in {one["network"] for one in wake.addresses()}
            assert wake.send(MAC, "203.0.113.0/24") == 0
            assert wake.send(MAC, network) == 1
            magic = "ff" * 6 + MAC.replace(":", "") * 16
            card, frame = next(line for line in other_end.stdout if magic in line).split()
            assert (card, frame[:12]) == ("cable1", "ff" * 6)
        finally:
            other_end.kill()


@pytest.mark.parametrize(
    ("mac", "network"), [("", "10.0.0.0/8"), ("02:00:5e:10:00", "10.0.0.0/8"), (MAC, "x"), (MAC, "10.0.0.1/8")]
)
def test_what_is_no_card_or_no_network_is_refused(mac: str, network: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        wake.send(mac, network)


def test_what_can_wake_this_machine(tmp_path: Path) -> None:
    assert wake.able(tmp_path) == {"clock": False, "cards": []}
    for place, says in (("rtc/rtc0", "enabled\n"), ("net/eth0", "enabled\n"), ("net/wlan0", "disabled\n")):
        (power := tmp_path / "class" / place / "device/power").mkdir(parents=True)
        (power / "wakeup").write_text(says)
    assert wake.able(tmp_path) == {"clock": True, "cards": ["eth0"]}
