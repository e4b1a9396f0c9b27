"""The system bus, the only file that knows dbus-fast: calls with a deadline, signals, and a bus that comes back.

A call ends in an answer of the signature that was expected, or in BusError with the reason in words; it never hangs.
When the bus dies, a new connection is made, with back-off, and every subscription and watched name with it. Signals
count only from the current owner of the name they were subscribed for: anybody on the machine may send us one.
Descriptors are closed on exec, and those that come too late to be wanted are closed at once: a lock that nobody holds
on to would keep the machine awake (R15).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dbus_fast import BusType, Message, MessageFlag, MessageType, Variant
from dbus_fast.aio import MessageBus
from dbus_fast.errors import DBusFastError

from supervisor.linux.text import one_line

BUS: Final = "org.freedesktop.DBus"
BUS_PATH: Final = "/org/freedesktop/DBus"
PROPERTIES: Final = "org.freedesktop.DBus.Properties"
LOGIN1: Final = "org.freedesktop.login1"
LOGIN1_PATH: Final = "/org/freedesktop/login1"
LOGIN1_MANAGER: Final = "org.freedesktop.login1.Manager"
CALL_TIMEOUT_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 1.5
BACKOFF_S: Final = (0.1, 10.0)
REFUSED: Final = (
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
)
_FAILURES: Final = (DBusFastError, OSError, EOFError, ValueError, TypeError, TimeoutError)
_ABSENT: Final = (f"{BUS}.Error.ServiceUnknown", f"{BUS}.Error.NameHasNoOwner")
_Answer = tuple[Message, list[int]]  # a reply, and its descriptors
_NAMES: Final = {LOGIN1: "logind", BUS: "the system bus"}


class BusError(Exception):
    """A call that came to nothing; the text is the reason in words, `name` the D-Bus error's name, if any."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason)
        self.name = name


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that came from the service it was subscribed for."""

    path: str
    interface: str
    member: str
    body: list[Any]


@dataclass(frozen=True, slots=True)
class _Subscription:
    sender: str
    interface: str
    member: str
    handler: Callable[[Signal], None]

    @property
    def rule(self) -> str:
        member = f",member='{self.member}'" if self.member else ""
        return f"type='signal',sender='{self.sender}',interface='{self.interface}'{member}"


class _Connection(MessageBus):
    """MessageBus loses the future of a write that fails at once, and asyncio then logs its traceback: here it is looked
    at, whatever becomes of it."""

    def send(self, msg: Message) -> asyncio.Future[Any]:  # type: ignore[override]
        msg.serial = msg.serial or self.next_serial()
        sent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        sent.add_done_callback(_look_at)
        if self._writer is None:
            raise OSError("not connected")
        self._writer.schedule_write(msg, sent)
        return sent


class SystemBus:
    """The connection to the system bus, shared by all who need it. `address`: None takes DBUS_SYSTEM_BUS_ADDRESS, else
    the usual place. Watches and subscriptions are made before `start`. `name`: what it is called in words; the session
    agent uses another bus."""

    def __init__(
        self, address: str | None = None, *, backoff_s: tuple[float, float] = BACKOFF_S, name: str = "system bus"
    ) -> None:
        self._address, self._name = address, name
        self._backoff_s = backoff_s
        self._bus: _Connection | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._owners: dict[str, str] = {}
        self._watches: list[tuple[str, Callable[[str], None]]] = []
        self._subscriptions: list[_Subscription] = []
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        self.error = f"the {name} has not been asked for yet"

    @property
    def connected(self) -> bool:
        """A connection is there; `error` says why not."""
        return self._bus is not None

    def owner(self, name: str) -> str:
        """Unique name of the owner of a watched name; empty when nobody owns it or the bus is away."""
        return self._owners.get(name, "") if self._bus else ""

    def watch(self, name: str, on_owner: Callable[[str], None]) -> None:
        """Call `on_owner` in the loop's thread with the owner of `name`: at each connection, at each change ("": it
        went away), and with "" when the bus goes."""
        assert self._keeper is None, "watches are made before start"
        self._watches.append((name, on_owner))

    def subscribe(self, sender: str, interface: str, member: str, handler: Callable[[Signal], None]) -> None:
        """Call `handler` for each such signal of the service `sender`; an empty `member` takes the whole interface."""
        assert self._keeper is None, "subscriptions are made before start"
        self._subscriptions.append(_Subscription(sender, interface, member, handler))

    async def start(self) -> None:
        """Connect, and keep connected from now on; returns after the first attempt, whatever came of it."""
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        await self._tried.wait()

    async def stop(self) -> None:
        """Disconnect for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        *body: Any,
        signature: str = "",
        expect: str = "",
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> list[Any]:
        """Call a method; the answer's body, whose signature is `expect`. A descriptor stands in it as itself, and is
        the caller's to close.

        Raises:
            BusError: no bus, no answer within `timeout_s` seconds, an error, or another signature.
        """
        if self._bus is None:
            raise BusError(self.error)
        return await self._call(
            self._bus, destination, path, interface, member, *body, signature=signature, expect=expect,
            timeout_s=timeout_s,
        )

    async def properties(self, destination: str, path: str, interface: str) -> dict[str, Any]:
        """All properties of an interface, out of their variants.

        Raises:
            BusError: as `call`.
        """
        (found,) = await self.call(
            destination, path, PROPERTIES, "GetAll", interface, signature="s", expect="a{sv}"
        )
        return plain(found)

    async def _call(
        self, bus: _Connection, destination: str, path: str, interface: str, member: str, *body: Any,
        signature: str = "", expect: str = "", timeout_s: float = CALL_TIMEOUT_S,
    ) -> list[Any]:
        name = _NAMES.get(destination, destination)
        message = Message(
            destination=destination, path=path, interface=interface, member=member, signature=signature,
            body=list(body), flags=MessageFlag.NO_AUTOSTART, serial=bus.next_serial(),
        )
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting[message.serial] = answer
        try:
            async with asyncio.timeout(timeout_s):
                bus.send(message).add_done_callback(lambda sent: _pass_failure(sent, answer))
                reply, fds = await answer
            if reply.message_type is MessageType.ERROR:
                raise BusError(_words(name, member, reply), reply.error_name or "")
            if reply.signature != expect:
                raise BusError(f"{name} answered {member} with {reply.signature or 'nothing'!r}, not with {expect!r}")
            if expect != "h":
                return list(reply.body)
            return [fds.pop(reply.body[0])]
        except TimeoutError as error:
            raise BusError(f"{name} did not answer {member} within {timeout_s:g} s") from error
        except IndexError as error:
            raise BusError(f"{name} answered {member} without the descriptor it speaks of") from error
        except _FAILURES as error:
            raise BusError(f"the {self._name} went away during {member} ({_why(error)})") from error
        finally:
            del self._waiting[message.serial]
            answer.cancel()
            if not answer.cancelled() and answer.exception() is None:
                _close_all(answer.result()[1])  # what has not been handed on

    async def _keep(self) -> None:
        first, last = self._backoff_s
        delay = first
        try:
            while True:
                bus = None
                try:
                    bus = await self._connect()
                except (BusError, *_FAILURES) as error:
                    self.error = f"no {self._name} ({_why(error)}): start dbus"
                    self._tried.set()
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, last)
                    continue
                delay = first
                self._bus, self.error = bus, ""
                self._tell()
                self._tried.set()
                await _end(bus)
                self._gone(f"the {self._name} went away: see systemctl status dbus")
        finally:
            if self._bus is not None:
                self._bus.disconnect()
                await _end(self._bus, CONNECT_TIMEOUT_S)
            self._gone(f"the node has let go of the {self._name}")
            self._tried.set()

    async def _connect(self) -> _Connection:
        self._owners.clear()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            bus = _Connection(bus_address=self._address, bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
            await bus.connect()
            try:
                bus.add_message_handler(self._receive)
                senders = dict.fromkeys([n for n, _ in self._watches] + [s.sender for s in self._subscriptions])
                for name in senders:
                    rule = f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{name}'"
                    await self._call(bus, BUS, BUS_PATH, BUS, "AddMatch", rule, signature="s")
                for rule in dict.fromkeys(s.rule for s in self._subscriptions):
                    await self._call(bus, BUS, BUS_PATH, BUS, "AddMatch", rule, signature="s")
                for name in senders:
                    owner = ""
                    try:
                        (owner,) = await self._call(
                            bus, BUS, BUS_PATH, BUS, "GetNameOwner", name, signature="s", expect="s"
                        )
                    except BusError as error:
                        if error.name not in _ABSENT:
                            raise
                    self._owners.setdefault(name, owner)  # a change that came meanwhile is newer than this answer
            except BaseException:
                bus.disconnect()
                raise
        return bus

    def _gone(self, reason: str) -> None:
        was_connected, self._bus, self.error = self._bus is not None, None, reason
        self._owners.clear()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(EOFError("it closed the connection"))
        if was_connected:
            self._tell()

    def _tell(self, only: str = "") -> None:
        for name, on_owner in self._watches:
            if not only or name == only:
                on_owner(self.owner(name))

    def _receive(self, message: Message) -> None:
        """Every message that comes in, before dbus-fast looks at it."""
        fds = list(message.unix_fds)  # a copy: dbus-fast lets a message without any share its list with the next one
        for fd in fds:
            os.set_inheritable(fd, False)  # a task must not inherit a lock
        if message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR):
            answer = self._waiting.get(message.reply_serial)
            if answer is not None and not answer.done():
                answer.set_result((message, fds))
                return
        _close_all(fds)  # nobody waits for them
        if message.message_type is not MessageType.SIGNAL:
            return
        if message.sender == BUS:
            if message.member == "NameOwnerChanged" and message.signature == "sss":
                name, _, owner = message.body
                self._owners[name] = owner
                if self._bus is not None:
                    self._tell(name)
            return
        for wanted in self._subscriptions:
            if (
                message.interface == wanted.interface
                and wanted.member in ("", message.member)
                and message.sender == self._owners.get(wanted.sender, "")
            ):
                wanted.handler(Signal(message.path or "", message.interface, message.member or "", list(message.body)))


async def _end(bus: _Connection, timeout_s: float | None = None) -> None:
    """Wait until the connection is over, for whatever reason; a cancel ends the waiting and leaves its future alone."""
    over = asyncio.ensure_future(bus.wait_for_disconnect())  # type: ignore[no-untyped-call]
    over.add_done_callback(_look_at)
    await asyncio.wait([over], timeout=timeout_s)


def _look_at(done: asyncio.Future[Any]) -> BaseException | None:
    """The error of a future; asyncio logs, with a traceback, those that nobody looked at."""
    return None if done.cancelled() else done.exception()


def _pass_failure(sent: asyncio.Future[Any], answer: asyncio.Future[_Answer]) -> None:
    if (error := _look_at(sent)) is not None and not answer.done():
        answer.set_exception(error)


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def plain(values: dict[str, Variant]) -> dict[str, Any]:
    """Properties out of their variants."""
    return {name: value.value for name, value in values.items()}


def _words(name: str, member: str, reply: Message) -> str:
    text = one_line(str(reply.body[0]), 200) if reply.body else ""
    if reply.error_name in _ABSENT:
        return f"{name} is not running"
    if reply.error_name in REFUSED:
        return f"{name} refuses {member} to this user"
    if reply.error_name == f"{BUS}.Error.NoReply":
        return f"{name} went away during {member}"
    return f"{name} refuses {member}: {text or reply.error_name}"


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@dataclass(slots=True)
class Lock:
    """A lock of logind's, held as long as its descriptor is open."""

    what: str
    fd: int = -1

    def close(self) -> None:
        """Give it up; once is enough, more does no harm."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


async def inhibit(bus: SystemBus, what: str, who: str, why: str, mode: str) -> Lock:
    """Take one lock of one kind (T24: never two kinds in one call), `mode` block or delay.

    Raises:
        BusError: refused, or nobody to ask.
    """
    (fd,) = await bus.call(
        LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "Inhibit", what, who, why, mode, signature="ssss", expect="h"
    )
    return Lock(what, fd)


@dataclass(frozen=True, slots=True)
class Inhibition:
    """A lock that somebody holds, as logind lists it."""

    what: str
    who: str
    why: str
    mode: str
    uid: int
    pid: int

    @property
    def kinds(self) -> list[str]:
        """The kinds that it locks: sleep, idle, shutdown, handle-lid-switch and others."""
        return self.what.split(":")

    @property
    def blocks(self) -> bool:
        """It blocks (also "block-weak" of systemd 257), rather than delays."""
        return self.mode.startswith("block")


async def inhibitions(bus: SystemBus) -> list[Inhibition]:
    """All locks that logind lists.

    Raises:
        BusError: nobody to ask.
    """
    (found,) = await bus.call(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "ListInhibitors", expect="a(ssssuu)")
    return [Inhibition(*entry) for entry in found]
