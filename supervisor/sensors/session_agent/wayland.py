"""Idle time of a Wayland compositor: ext-idle-notify-v1, otherwise org_kde_kwin_idle, spoken over the socket.

What "idled" proves: while an inhibitor (a film) is up, version 1 and kwin_idle send nothing at all, with some compositors
not even "resumed". So only "idled" means away, and only while a new notification, requested at each proof, idles too.
Version 2 has input notifications, which no inhibitor stops. They distinguish the person from the film, and the difference
between both kinds of notifications is the inhibitor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from supervisor.linux.bounded import wait_for_event
from supervisor.sensors.session_agent.socket_source import SocketSource, peer_pid
from supervisor.sensors.session_agent.source import ANSWER_S, NAMELESS, QUIET_S, Absent, Gone, Idle, Lacking, boot_s

DISPLAY_ID: Final = 1
REGISTRY_ID: Final = 2
MAX_MESSAGE: Final = 4096  # the protocol's own limit
PROOF_S: Final = 0.3  # how long a new notification waits before it idles
INHIBITED_AFTER_S: Final = 0.5  # input is idle, and the other notification still is not
EXT: Final = "ext_idle_notifier_v1"
KWIN: Final = "org_kde_kwin_idle"
SEAT: Final = "wl_seat"


@dataclass(slots=True)
class _Notification:
    """A notification of one seat. `input_only`: no inhibitor stops it. `proof`: set by "idled"; only of one for a proof."""

    seat: int
    timeout_s: float
    input_only: bool
    proof: asyncio.Event | None = None
    idle_since_s: float | None = None


class WaylandIdle(SocketSource):
    """One compositor's socket, such as $XDG_RUNTIME_DIR/wayland-0. `pid` is the compositor's."""

    _timer: asyncio.TimerHandle | None = None

    def __init__(self, path: Path, quiet_s: float = QUIET_S) -> None:
        self._path = path
        super().__init__(path.name, quiet_s)

    def _reset(self) -> None:
        super()._reset()
        self._cancel_timer()
        self._globals: dict[int, tuple[str, int]] = {}  # interface and version by name
        self._next, self._free = REGISTRY_ID + 1, list[int]()
        self._syncs: dict[int, asyncio.Future[None]] = {}
        self._notes: dict[int, _Notification] = {}
        self._seats: dict[int, int] = {}  # object id by global name
        self._notifier, self._protocol, self._version = 0, "", 0
        self._inhibited = False

    @property
    def reading(self) -> Idle | None:
        """Idle when every seat is, by its best notification."""
        if not self._ready:
            return None
        what = "input notifications of " if self._has_input else ""
        name = "ext-idle-notify-v1" if self._protocol == EXT else self._protocol
        source = f"{what}{name} on {self._label}"
        since_s: float | None = None
        best = [n for n in self._notes.values() if n.proof is None and n.input_only == self._has_input]
        if best and all(n.idle_since_s is not None for n in best):
            since_s = max(n.idle_since_s or 0.0 for n in best)
        return Idle(source, since_s, (NAMELESS,) if self._inhibited else (), self.pid)

    @property
    def _has_input(self) -> bool:
        return self._version > 1

    async def _connect(self) -> asyncio.StreamReader:
        try:
            reader, self._writer = await asyncio.open_unix_connection(self._path, limit=2 * MAX_MESSAGE)
            self._note_peer()
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise Absent(f"{self._label}: no compositor ({error.strerror})") from error
        except OSError as error:
            raise Gone(f"{self._label} refuses us ({error.strerror})") from error
        return reader

    async def _begin(self) -> None:
        self._request(DISPLAY_ID, 1, _u32(REGISTRY_ID))
        await self._round_trip()  # now all globals are known
        found = {interface: (name, version) for name, (interface, version) in self._globals.items()}
        if SEAT not in found:
            raise Lacking(f"{self._label} has no seat, so it sees nobody")
        if EXT in found:
            self._protocol, self._version = EXT, min(2, found[EXT][1])
        elif KWIN in found:
            self._protocol, self._version = KWIN, 1
        else:
            raise Lacking(f"{self._label} offers neither ext-idle-notify-v1 nor {KWIN}")
        self._notifier = self._bind(found[self._protocol][0], self._protocol, self._version)
        for name, (interface, _) in self._globals.items():
            if interface == SEAT:
                self._add_seat(name)
        await self._round_trip()  # a protocol error would have arrived by now

    def _add_seat(self, name: int) -> None:
        self._seats[name] = seat = self._bind(name, SEAT, 1)
        for input_only in {False, self._has_input}:
            self._notify(_Notification(seat, self._quiet_s, input_only))

    def _notify(self, note: _Notification) -> int:
        number = self._new_id()
        self._notes[number] = note
        timeout = _u32(int(note.timeout_s * 1000))
        if self._protocol == KWIN:
            self._request(self._notifier, 0, _u32(number) + _u32(note.seat) + timeout)
        else:
            self._request(self._notifier, 2 if note.input_only else 1, _u32(number) + timeout + _u32(note.seat))
        return number

    async def _round_trip(self) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = self._new_id()
        self._syncs[number] = done
        self._request(DISPLAY_ID, 0, _u32(number))
        await self._answered(done)

    async def prove(self) -> None:
        """A new notification must idle too; otherwise an inhibitor is up, or the compositor has forgotten us."""
        await self._round_trip()
        wrong = False
        for number, note in list(self._notes.items()):
            if note.idle_since_s is None or note.proof is not None or note.input_only != self._has_input:
                continue
            done = asyncio.Event()
            proof = self._notify(_Notification(note.seat, PROOF_S, note.input_only, done))
            await wait_for_event(done, ANSWER_S)
            self._destroy(proof)
            if not done.is_set() and number in self._notes and note.idle_since_s is not None:
                wrong = True
                self._destroy(number)  # it may stay in "idled" forever: a new one idles when that is true
                self._notify(_Notification(note.seat, self._quiet_s, note.input_only))
        if wrong:
            self._report()

    # --- the protocol

    def _new_id(self) -> int:
        if self._free:
            return self._free.pop()
        self._next += 1
        return self._next - 1

    def _bind(self, name: int, interface: str, version: int) -> int:
        number = self._new_id()
        self._request(REGISTRY_ID, 0, _u32(name) + _text(interface) + _u32(version) + _u32(number))
        return number

    def _destroy(self, number: int) -> None:
        if self._notes.pop(number, None) is not None:
            self._request(number, 0)

    def _request(self, target: int, opcode: int, body: bytes = b"") -> None:
        self._send(struct.pack("=IHH", target, opcode, 8 + len(body)) + body)

    async def _take(self, reader: asyncio.StreamReader) -> None:
        source, opcode, size = struct.unpack("=IHH", await reader.readexactly(8))
        if not 8 <= size <= MAX_MESSAGE:
            raise struct.error("a message of such a length")
        self._event(source, opcode, await reader.readexactly(size - 8))

    def _event(self, source: int, opcode: int, body: bytes) -> None:
        if source == DISPLAY_ID:
            (number,) = struct.unpack_from("=I", body)
            if opcode == 0:
                raise Gone(f"{self._label} refuses {self._protocol or 'us'}")
            if REGISTRY_ID < number < self._next and number not in self._free:
                self._free.append(number)
        elif source == REGISTRY_ID:
            (name,) = struct.unpack_from("=I", body)
            if opcode == 0:
                (length,) = struct.unpack_from("=I", body, 4)
                interface = body[8 : 8 + length - 1].decode()
                self._globals[name] = (interface, struct.unpack_from("=I", body, 8 + (length + 3) // 4 * 4)[0])
                if interface == SEAT and self._notifier:
                    self._add_seat(name)
                    self._report()
            else:
                self._globals.pop(name, None)
                if (seat := self._seats.pop(name, None)) is not None:
                    for number in [n for n, note in self._notes.items() if note.seat == seat]:
                        self._destroy(number)
                    if not self._seats:
                        raise Gone(f"{self._label} has no seat any more")
                    self._report()
        elif (done := self._syncs.pop(source, None)) is not None:
            done.set_result(None)
        elif (note := self._notes.get(source)) is not None and opcode in (0, 1):
            self._notified(note, opcode == 0)

    def _notified(self, note: _Notification, idled: bool) -> None:
        if note.proof is not None:
            if idled:
                note.proof.set()
            return
        note.idle_since_s = boot_s() - note.timeout_s if idled else None
        self._compare()
        self._report()

    def _compare(self, sure: bool = False) -> None:
        """With version 2: when input is idle and the other notification is not, an inhibitor is up."""
        self._cancel_timer()
        known = [n for n in self._notes.values() if n.proof is None]
        unlike = any(
            n.idle_since_s is not None and other.idle_since_s is None
            for n in known if n.input_only
            for other in known if other.seat == n.seat and not other.input_only
        )  # fmt: skip
        if unlike and not sure and not self._inhibited:
            self._timer = asyncio.get_running_loop().call_later(INHIBITED_AFTER_S, self._look_again)
        else:
            self._inhibited = unlike

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_again(self) -> None:
        self._compare(sure=True)
        self._report()


def sockets(runtime: Path) -> Iterator[Path]:
    """Sockets of compositors in a runtime folder."""
    with contextlib.suppress(OSError):
        for entry in sorted(os.listdir(runtime)):
            if entry.startswith("wayland-") and not entry.endswith(".lock"):
                yield runtime / entry


def compositor(path: Path) -> int:
    """The process that listens at a compositor's socket; 0: not known."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as asker:
        asker.setblocking(False)
        asker.connect(str(path))
        return peer_pid(asker)
    return 0


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _text(text: str) -> bytes:
    raw = text.encode() + b"\0"
    return _u32(len(raw)) + raw + b"\0" * (-len(raw) % 4)

