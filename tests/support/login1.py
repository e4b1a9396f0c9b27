"""A private dbus-daemon, and a logind of ours on it for what the real one will not do: errors, odd answers, silence."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from supervisor.linux.dbus import LOGIN1, LOGIN1_MANAGER, LOGIN1_PATH, PROPERTIES

SESSION = "org.freedesktop.login1.Session"
CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""


class PrivateBus:
    """A dbus-daemon of our own; `start` and `kill` as often as one likes, at the same address."""

    def __init__(self, folder: Path) -> None:
        self._config = folder / "bus.conf"
        self._socket = folder / "bus"
        self._config.write_text(CONFIG.format(path=self._socket))
        self.address = f"unix:path={self._socket}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> PrivateBus:
        if self._process is not None:
            return self
        self._process = subprocess.Popen(
            ["dbus-daemon", "--nofork", "--nopidfile", "--print-address", f"--config-file={self._config}"],
            stdout=subprocess.PIPE, text=True,
        )
        assert self._process.stdout
        assert self._process.stdout.readline(), "dbus-daemon did not start"
        return self

    def kill(self) -> None:
        """As a crash."""
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None
            self._socket.unlink(missing_ok=True)

    __enter__ = start

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def session(**changes: Any) -> dict[str, Any]:
    """Properties of a session: anna's, graphical, in the foreground of seat0; `changes` by property name."""
    return {
        "Id": "3", "User": (1000, "/org/freedesktop/login1/user/_1000"), "Name": "anna",
        "TimestampMonotonic": 1_000_000,
        "Seat": ("seat0", "/org/freedesktop/login1/seat/seat0"), "TTY": "", "Remote": False, "RemoteHost": "",
        "Type": "wayland", "Class": "user", "Active": True, "State": "active", "IdleHint": False,
        "IdleSinceHintMonotonic": 0, "LockedHint": False, "Display": "", "Leader": 0,
    } | changes


SIGNATURES = {"Leader": "u", "User": "(uo)", "Seat": "(so)", "TimestampMonotonic": "t", "IdleSinceHintMonotonic": "t"}
MANAGER: dict[str, Any] = {
    "BlockInhibited": "", "PreparingForSleep": False, "PreparingForShutdown": False, "LidClosed": False,
    "Docked": False, "OnExternalPower": True, "HandleLidSwitch": "suspend", "HandleLidSwitchExternalPower": "",
    "HandleLidSwitchDocked": "ignore",
}


def variants(values: dict[str, Any]) -> dict[str, Variant]:
    """Properties as they travel."""
    return {
        name: Variant(SIGNATURES.get(name) or ("b" if isinstance(value, bool) else "s"), value)
        for name, value in values.items()
    }


class FakeLogin1:
    """logind's interface, with a hand on every answer. `replies[member]` replaces an answer: a D-Bus error name, or
    (signature, body); `delays[member]` holds it back for seconds; `others` are locks of other programs."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._bus: MessageBus | None = None
        self._late: set[asyncio.Task[None]] = set()
        self.manager = dict(MANAGER)
        self.sessions: dict[str, dict[str, Any]] = {}
        self.replies: dict[str, str | tuple[str, list[Any]]] = {}
        self.delays: dict[str, float] = {}
        self.refused_kinds: set[str] = set()
        self.others: list[list[Any]] = []
        self._given: list[tuple[list[Any], int]] = []  # as listed, and the reading end of the lock's pipe
        self.calls: list[str] = []

    async def start(self) -> FakeLogin1:
        self._bus = await MessageBus(
            bus_address=self._address, bus_type=BusType.SYSTEM, negotiate_unix_fd=True
        ).connect()
        self._bus.add_message_handler(self._receive)
        await self._bus.request_name(LOGIN1)
        return self

    async def stop(self) -> None:
        """Go away, as a crash does."""
        for task in self._late:
            task.cancel()
        if self._bus:
            self._bus.disconnect()
            await asyncio.gather(self._bus.wait_for_disconnect(), return_exceptions=True)
        for _, fd in self._given:
            os.close(fd)
        self._given.clear()

    async def emit(self, path: str, interface: str, member: str, signature: str, *body: Any) -> None:
        """Send a signal to all."""
        assert self._bus
        await self._bus.send(Message.new_signal(path, interface, member, signature, list(body)))

    async def change(self, path: str, **changes: Any) -> None:
        """Change properties of a session and say so."""
        self.sessions[path] |= changes
        await self.emit(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", SESSION, variants(changes), [])

    async def prepare(self, what: str, begin: bool) -> None:
        """PrepareForSleep or PrepareForShutdown."""
        self.manager[f"PreparingFor{what}"] = begin
        await self.emit(LOGIN1_PATH, LOGIN1_MANAGER, f"PrepareFor{what}", "b", begin)

    def lock(self, what: str, who: str, mode: str = "block", uid: int = 1000, pid: int = 4242) -> None:
        """Another program takes a lock."""
        self.others.append([what, who, "why", mode, uid, pid])
        self.manager["BlockInhibited"] = what

    def locks(self) -> list[list[Any]]:
        """The locks that were handed out and are still held, as logind lists them."""
        return [entry for entry, fd in self._given if _open(fd)]

    def _receive(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        member = message.member or ""
        self.calls.append(member)
        reply = self._answer(message, member)
        if (delay := self.delays.get(member)) or reply.unix_fds:
            task = asyncio.get_running_loop().create_task(self._send(reply, delay or 0.0))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            return True
        return reply

    async def _send(self, reply: Message, delay_s: float) -> None:
        try:
            await asyncio.sleep(delay_s)
            assert self._bus
            await self._bus.send(reply)
        finally:
            for fd in reply.unix_fds:  # who was sent it has one of its own
                os.close(fd)

    def _answer(self, message: Message, member: str) -> Message:
        if planned := self.replies.get(member):
            if isinstance(planned, str):
                return Message.new_error(message, planned, "as planned")
            return Message.new_method_return(message, *planned)
        path = message.path or ""
        if member == "ListSessions":
            listed = [[s["Id"], s["User"][0], s["Name"], s["Seat"][0], p] for p, s in self.sessions.items()]
            return Message.new_method_return(message, "a(susso)", [listed])
        if member == "ListInhibitors":
            return Message.new_method_return(message, "a(ssssuu)", [self.others + self.locks()])
        if member == "GetAll" and path == LOGIN1_PATH:
            return Message.new_method_return(message, "a{sv}", [variants(self.manager)])
        if member == "GetAll" and path in self.sessions:
            return Message.new_method_return(message, "a{sv}", [variants(self.sessions[path])])
        if member == "Inhibit" and message.body[0] in self.refused_kinds:
            return Message.new_error(message, "org.freedesktop.DBus.Error.AccessDenied", "as planned")
        if member == "Inhibit":
            ours, theirs = os.pipe()
            self._given.append(([*message.body, os.geteuid(), os.getpid()], ours))
            return Message.new_method_return(message, "h", [0], unix_fds=[theirs])
        return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownObject", "no such object")


def _open(fd: int) -> bool:
    """Somebody holds the writing end."""
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 1) != b""
    except BlockingIOError:
        return True
