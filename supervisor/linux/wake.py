"""Waking a machine that sleeps: an alarm of the real-time clock for this one, Wake-on-LAN for another in its network.

The kernel sets the clock's alarm when it suspends, for the first timer of CLOCK_REALTIME_ALARM; nothing of it outlives the
process that has the timer. That needs CAP_WAKE_ALARM, which the node has not. So an installed node asks a unit that has nothing
else (deploy/rae-wake@.service): a line with the time arms its timer, the end of the connection ends it. `main` is what runs
there; it uses the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from supervisor.linux.small_files import read_small

if TYPE_CHECKING:
    from ipaddress import IPv4Network

SOCKET: Final = Path("/run/rae-wake.sock")
CLOCK_REALTIME_ALARM: Final = 8
TFD_TIMER_ABSTIME: Final = 1
LINE_BYTES: Final = 64
CLOSE_S: Final = 2.0  # two times that are so close are the same alarm
PORT: Final = 9  # discard; a card looks at the content alone
MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
ABLE: Final = "enabled"


class WakeAlarm:
    """The alarm of this machine's node, through the unit."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._at_s: float | None = None

    def set(self, at_s: float | None) -> None:
        """Wake the machine at this time (seconds since the epoch); None: not at all. Quick; a failure is in `trouble`."""
        if at_s is None:
            self.close()
        elif self._at_s is None or abs(at_s - self._at_s) > CLOSE_S or self._ended():
            self._send(at_s)

    @property
    def wanted(self) -> bool:
        """An alarm is set, or should be."""
        return self._at_s is not None

    @property
    def trouble(self) -> str:
        """Why no alarm is set though one is wanted; empty: it is set, or none is wanted."""
        if self._at_s is None or self._socket is not None:
            return ""
        return f"this machine is not woken for work.hours: {self._path} gives no answer (`rae-node doctor` says more)"

    def _send(self, at_s: float) -> None:
        self._at_s = at_s
        try:
            if self._socket is None or self._ended():
                self._drop()
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                self._socket.connect(str(self._path))
            self._socket.send(f"{at_s:.0f}\n".encode())
        except OSError:
            self._drop()

    def _ended(self) -> bool:
        """The unit has ended, or never was."""
        if self._socket is None:
            return True
        try:
            return self._socket.recv(1) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def close(self) -> None:
        """No alarm."""
        self._drop()
        self._at_s = None


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval_s", ctypes.c_long), ("interval_ns", ctypes.c_long), ("s", ctypes.c_long), ("ns", ctypes.c_long))


def main() -> int:
    """The unit's program: arms the timer for the last line that came. Ends with the connection; 1: it may not, or no clock."""
    libc = ctypes.CDLL(None, use_errno=True)
    timer = libc.timerfd_create(CLOCK_REALTIME_ALARM, 0)
    for line in iter(lambda: sys.stdin.buffer.readline(LINE_BYTES), b""):
        when = _Itimerspec(0, 0, int(line), 0)
        if timer < 0 or libc.timerfd_settime(timer, TFD_TIMER_ABSTIME, ctypes.byref(when), None) < 0:
            sys.stderr.write(f"no alarm can be set: {os.strerror(ctypes.get_errno())}\n")
            return 1
    return 0


# --- Wake-on-LAN


def addresses() -> list[dict[str, str]]:
    """Each card of this machine that has an IPv4 address: `mac`, and the `network` in which it hears."""
    import psutil

    found = []
    for name, of_card in psutil.net_if_addrs().items():
        macs = [one.address.lower() for one in of_card if one.family == psutil.AF_LINK]
        if name == "lo" or not macs or not MAC.fullmatch(macs[0]):
            continue
        networks = (_network(one) for one in of_card if one.family == socket.AF_INET and one.netmask)
        found += [{"mac": macs[0], "network": str(network)} for network in networks]
    return found


def _network(address: Any) -> IPv4Network:
    from ipaddress import IPv4Interface

    return IPv4Interface(f"{address.address}/{address.netmask}").network


def send(mac: str, network: str) -> int:
    """Send the packet that wakes the card `mac`, from each address of this machine in `network`; from how many.

    Raises:
        ValueError: that is no card or no network.
        OSError: it cannot be sent.
    """
    from ipaddress import IPv4Network

    import psutil

    if not MAC.fullmatch(mac):
        raise ValueError("no hardware address")
    wanted, sent = IPv4Network(network), 0
    packet = b"\xff" * 6 + bytes.fromhex(mac.replace(":", "")) * 16
    for of_card in psutil.net_if_addrs().values():
        for one in of_card:
            if one.family == socket.AF_INET and one.netmask and _network(one) == wanted:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                    out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                    out.bind((one.address, 0))
                    out.sendto(packet, (str(wanted.broadcast_address), PORT))
                sent += 1
    return sent


def able(sys_root: Path = Path("/sys")) -> Mapping[str, Any]:
    """What can wake this machine, by the kernel: `clock` True or False, `cards` by name."""

    def enabled(path: Path) -> bool:
        return read_small(str(path)) == ABLE

    clocks = any(enabled(clock / "device/power/wakeup") for clock in (sys_root / "class/rtc").glob("rtc*"))
    cards = [card.name for card in (sys_root / "class/net").glob("*") if enabled(card / "device/power/wakeup")]
    return {"clock": clocks, "cards": sorted(cards)}
