"""The system bus, the only file that knows dbus-fast: calls with a deadline, signals, objects of ours, and reconnection.

A call ends with an answer of the expected signature or with BusError; it never hangs. When the bus dies, this connects again,
with back-off, and renews every subscription and watched name. A signal counts only if it comes from the current owner of the
subscribed name, because every program may send us signals. Received descriptors are closed on exec, and closed at once if
nobody waits for them: a forgotten lock would keep the machine awake.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from dbus_fast import BusType, Message, MessageFlag, MessageType
from dbus_fast import Variant as Variant  # for those who serve objects
from dbus_fast.aio import MessageBus
from dbus_fast.errors import DBusFastError

from supervisor.linux.text import error_text, one_line

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
OTHER_FORM: Final = f"{BUS}.Error.InvalidSignature"
ANY: Final = ".*"  # the end of a watched name that stands for all names below it
_FAILURES: Final = (DBusFastError, OSError, EOFError, ValueError, TypeError, TimeoutError)
_ABSENT: Final = (f"{BUS}.Error.ServiceUnknown", f"{BUS}.Error.NameHasNoOwner")
# A method of ours: gets a call, returns the answer's signature and body; None: there is no such method.
Serve = Callable[["Call"], tuple[str, list[Any]] | None]
_Answer = tuple[Message, list[int]]  # a reply, and its descriptors
_NAMES: Final = {LOGIN1: "logind", BUS: "the system bus"}


class BusError(Exception):
    """A call that failed; the text is the reason, `name` the D-Bus error's name, if any."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(reason)
        self.name = name


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal from the subscribed service."""

    path: str
    interface: str
    member: str
    body: list[Any]


@dataclass(frozen=True, slots=True)
class _Subscription:
    sender: str
    interface: str
    member: str
    path: str
    handler: Callable[[Signal], None]

    @property
    def rule(self) -> str:
        keys = {"interface": self.interface, "member": self.member, "path": self.path}
        if not self.sender.endswith(ANY):  # a rule cannot name a namespace of senders
            keys["sender"] = self.sender
        return ",".join(["type='signal'", *(f"{key}='{value}'" for key, value in keys.items() if value)])


class _Connection(MessageBus):
    """MessageBus ignores the future of a write that fails at once, and asyncio then logs a traceback; this one reads it."""

    def send(self, msg: Message) -> asyncio.Future[Any]:  # type: ignore[override]
        msg.serial = msg.serial or self.next_serial()  # dbus-fast sends answers of its own, without one
        sent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        sent.add_done_callback(_read_error)
        if self._writer is None:
            raise OSError("not connected")
        self._writer.schedule_write(msg, sent)
        return sent


class SystemBus:
    """A shared connection to the system bus. Make all watches and subscriptions before `start`.

    Args:
        address: None means DBUS_SYSTEM_BUS_ADDRESS, or else the default address.
        backoff_s: the first and the longest pause before the next attempt to connect.
        name: how messages call it; the session agent uses another bus.
    """

    def __init__(
        self, address: str | None = None, *, backoff_s: tuple[float, float] = BACKOFF_S, name: str = "system bus"
    ) -> None:
        self._address, self._name = address, name
        self._backoff_s = backoff_s
        self._bus: _Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._owners: dict[str, str] = {}
        self._watches: list[tuple[str, Callable[[str], None]]] = []
        self._subscriptions: list[_Subscription] = []
        self._waiting: dict[int, asyncio.Future[_Answer]] = {}
        self._ends: dict[str, Callable[[], None]] = {}
        self._objects: dict[str, Serve] = {}
        self.error = f"the {name} has not been asked for yet"

    def owner(self, name: str) -> str:
        """The unique name of a watched name's owner; empty without an owner or without a bus."""
        return self._owners.get(name, "") if self._bus else ""

    def names(self, space: str) -> list[str]:
        """The names below a watched namespace (`org.mpris.MediaPlayer2.*`) that have an owner now."""
        return sorted(name for name, owner in self._owners.items() if owner and _is_in(name, space)) if self._bus else []

    def watch(self, name: str, on_owner: Callable[[str], None]) -> None:
        """Call `on_owner` with the owner of `name` at each connection, at each change, and with "" when there is none. For a
        namespace (`org.mpris.MediaPlayer2.*`), at each change of a name below it; `names` lists them."""
        assert self._task is None, "watches are made before start"
        self._watches.append((name, on_owner))

    def subscribe(
        self, sender: str, interface: str, member: str, handler: Callable[[Signal], None], *, path: str = ""
    ) -> None:
        """Call `handler` for each such signal of the service `sender`, or of a namespace; an empty `member` means the whole
        interface, an empty `path` every object."""
        assert self._task is None, "subscriptions are made before start"
        self._subscriptions.append(_Subscription(sender, interface, member, path, handler))

    def serve(self, path: str, answer: Serve) -> None:
        """Answer calls to an object of ours. A ValueError of `answer` is an error's text for the caller."""
        self._objects[path] = answer

    def emit(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> None:
        """Send a signal of an object of ours, if there is a bus."""
        if self._bus is not None:
            with contextlib.suppress(OSError):
                self._bus.send(Message.new_signal(path, interface, member, signature, list(body)))

    async def watch_end(self, owner: str, on_end: Callable[[], None]) -> None:
        """Call `on_end` once, when the connection `owner` has left the bus, or this one has. At any time.

        Raises:
            BusError: as `call`.
        """
        known = owner in self._ends
        self._ends[owner] = on_end
        if known:
            return
        await self.call(BUS, BUS_PATH, BUS, "AddMatch", _end_rule(owner), signature="s")
        (there,) = await self.call(BUS, BUS_PATH, BUS, "NameHasOwner", owner, signature="s", expect="b")
        if not there:
            self._ended(owner)

    def _ended(self, owner: str) -> None:
        if (on_end := self._ends.pop(owner, None)) is not None:
            on_end()
            if self._bus is not None:
                with contextlib.suppress(OSError):
                    self._bus.send(_bus_call("RemoveMatch", _end_rule(owner)))

    async def start(self) -> None:
        """Connect, and reconnect from now on; returns after the first attempt, successful or not."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await self._tried.wait()

    async def stop(self) -> None:
        """Disconnect for good."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

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
        may_start: bool = False,
    ) -> list[Any]:
        """Call a method; returns the answer's body, whose signature is `expect`. The caller closes a descriptor in it.
        `may_start`: the bus may start the service.

        Raises:
            BusError: no bus, no answer within `timeout_s` seconds, an error, or another signature.
        """
        if self._bus is None:
            raise BusError(self.error)
        message = Message(
            destination=destination, path=path, interface=interface, member=member, signature=signature,
            body=list(body), flags=MessageFlag.NONE if may_start else MessageFlag.NO_AUTOSTART,
        )  # fmt: skip
        return await self._send(self._bus, message, expect, timeout_s)

    async def properties(self, destination: str, path: str, interface: str) -> dict[str, Any]:
        """The values of all properties of an interface.

        Raises:
            BusError: as `call`.
        """
        (found,) = await self.call(destination, path, PROPERTIES, "GetAll", interface, signature="s", expect="a{sv}")
        return {name: variant.value for name, variant in found.items()}

    async def _send(self, bus: _Connection, message: Message, expect: str = "", timeout_s: float = CALL_TIMEOUT_S) -> list[Any]:
        name, member = _NAMES.get(message.destination or "", message.destination or ""), message.member or ""
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        message.serial = bus.next_serial()
        self._waiting[message.serial] = answer
        try:
            async with asyncio.timeout(timeout_s):
                bus.send(message).add_done_callback(lambda sent: _pass_error(sent, answer))
                reply, fds = await answer
            if reply.message_type is MessageType.ERROR:
                raise BusError(_refusal(name, member, reply), reply.error_name or "")
            if reply.signature != expect:
                reason = f"{name} answered {member} with {reply.signature or 'nothing'!r}, not with {expect!r}"
                raise BusError(reason, OTHER_FORM)
            if expect != "h":
                return list(reply.body)
            return [fds.pop(reply.body[0])]
        except TimeoutError as error:
            raise BusError(f"{name} did not answer {member} within {timeout_s:g} s") from error
        except IndexError as error:
            raise BusError(f"{name} answered {member} without the descriptor that it names") from error
        except _FAILURES as error:
            raise BusError(f"the {self._name} went away during {member} ({_describe(error)})") from error
        finally:
            del self._waiting[message.serial]
            answer.cancel()
            if not answer.cancelled() and answer.exception() is None:
                _close_all(answer.result()[1])  # descriptors that the caller does not get

    async def _run(self) -> None:
        first, last = self._backoff_s
        delay = first
        try:
            while True:
                try:
                    bus = await self._connect()
                except (BusError, *_FAILURES) as error:
                    self.error = f"no {self._name} ({_describe(error)}): start dbus"
                    self._tried.set()
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, last)
                    continue
                delay = first
                self._bus, self.error = bus, ""
                self._notify()
                self._tried.set()
                await _disconnected(bus)
                self._disconnect(f"the {self._name} went away: see systemctl status dbus")
        finally:
            if self._bus is not None:
                self._bus.disconnect()
                await _disconnected(self._bus, CONNECT_TIMEOUT_S)
            self._disconnect(f"the node has disconnected from the {self._name}")
            self._tried.set()

    async def _connect(self) -> _Connection:
        self._owners.clear()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            bus = _Connection(bus_address=self._address, bus_type=BusType.SYSTEM, negotiate_unix_fd=True)
            await bus.connect()
            try:
                bus.add_message_handler(self._receive)
                senders = dict.fromkeys([n for n, _ in self._watches] + [s.sender for s in self._subscriptions])
                owner_changed = f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged'"
                keys = {name: "arg0namespace" if name.endswith(ANY) else "arg0" for name in senders}
                rules = [f"{owner_changed},{key}='{name.removesuffix(ANY)}'" for name, key in keys.items()]
                for rule in dict.fromkeys(rules + [s.rule for s in self._subscriptions]):
                    await self._send(bus, _bus_call("AddMatch", rule))
                if any(name.endswith(ANY) for name in senders):
                    (there,) = await self._send(bus, _bus_call("ListNames"), "as")
                    senders |= dict.fromkeys(name for name in there if any(_is_in(name, space) for space in senders))
                for name in (name for name in senders if not name.endswith(ANY)):
                    owner = ""
                    try:
                        (owner,) = await self._send(bus, _bus_call("GetNameOwner", name), "s")
                    except BusError as error:
                        if error.name not in _ABSENT:
                            raise
                    self._owners.setdefault(name, owner)  # a change that came meanwhile is newer than this answer
            except BaseException:
                bus.disconnect()
                raise
        return bus

    def _disconnect(self, reason: str) -> None:
        was_connected, self._bus, self.error = self._bus is not None, None, reason
        self._owners.clear()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(EOFError("it closed the connection"))
        for owner in list(self._ends):
            self._ended(owner)
        if was_connected:
            self._notify()

    def _notify(self, only: str = "") -> None:
        for name, on_owner in self._watches:
            if not only or name == only or _is_in(only, name):
                on_owner(self.owner(only or name))

    def _receive(self, message: Message) -> Message | bool:
        """Gets every incoming message before dbus-fast handles it. Returns the answer to a call; True: none is to be sent."""
        fds = list(message.unix_fds)  # a copy: in dbus-fast a message without descriptors shares its list with the next one
        for fd in fds:
            os.set_inheritable(fd, False)  # a task must not inherit a lock
        if message.message_type in (MessageType.METHOD_RETURN, MessageType.ERROR):
            answer = self._waiting.get(message.reply_serial)
            if answer is not None and not answer.done():
                answer.set_result((message, fds))
                return False
        _close_all(fds)  # nobody waits for them
        if message.message_type is MessageType.METHOD_CALL and (serve := self._objects.get(message.path or "")) is not None:
            return _served(serve, message)
        if message.message_type is not MessageType.SIGNAL:
            return False
        if message.sender == BUS:
            if message.member == "NameOwnerChanged" and message.signature == "sss":
                name, _, owner = message.body
                if not owner:
                    self._ended(name)
                self._owners[name] = owner
                if self._bus is not None:
                    self._notify(name)
            return False
        for wanted in self._subscriptions:
            if (
                message.interface == wanted.interface
                and wanted.member in ("", message.member)
                and wanted.path in ("", message.path)
                and self._is_from(message.sender or "", wanted.sender)
            ):
                wanted.handler(Signal(message.path or "", message.interface, message.member or "", list(message.body)))
        return False

    def _is_from(self, owner: str, sender: str) -> bool:
        """Whether the connection owns the subscribed name, or one below it."""
        if not sender.endswith(ANY):
            return owner == self._owners.get(sender, "")
        return any(at == owner and _is_in(name, sender) for name, at in self._owners.items())


def _is_in(name: str, space: str) -> bool:
    return space.endswith(ANY) and name.startswith(space[:-1])


@dataclass(frozen=True, slots=True)
class Call:
    """A method call, to an object of ours or between two other programs."""

    sender: str
    interface: str
    member: str
    body: list[Any]
    signature: str = ""


def _served(serve: Serve, message: Message) -> Message | bool:
    """The answer of an object of ours."""
    call = Call(message.sender or "", message.interface or "", message.member or "", list(message.body), message.signature)
    try:
        found = serve(call)
    except ValueError as error:
        answer = Message.new_error(message, f"{BUS}.Error.InvalidArgs", one_line(str(error), 200))
    else:
        if found is None:
            answer = Message.new_error(message, f"{BUS}.Error.UnknownMethod", f"no method {call.member} here")
        else:
            answer = Message.new_method_return(message, found[0], found[1])
    return True if message.flags & MessageFlag.NO_REPLY_EXPECTED else answer


async def monitor_calls(address: str, rules: list[str], handler: Callable[[Call], None]) -> None:
    """Call `handler` for each method call between other programs that matches a rule. Returns when the bus goes away.

    Raises:
        BusError: the bus does not allow it, or there is none.
    """
    bus = _Connection(bus_address=address, bus_type=BusType.SYSTEM)

    def receive(message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        handler(Call(message.sender or "", message.interface or "", message.member or "", list(message.body)))
        return True  # it is another program's to answer

    become = Message(
        destination=BUS, path=BUS_PATH, interface=f"{BUS}.Monitoring", member="BecomeMonitor", signature="asu", body=[rules, 0]
    )
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await bus.connect()
            bus.add_message_handler(receive)
            reply = await bus.call(become)
        if reply is not None and reply.message_type is MessageType.ERROR:
            raise BusError(_refusal("the bus", "BecomeMonitor", reply), reply.error_name or "")
        await _disconnected(bus)
    except _FAILURES as error:
        raise BusError(f"no bus ({_describe(error)})") from error
    finally:
        bus.disconnect()


async def _disconnected(bus: _Connection, timeout_s: float | None = None) -> None:
    """Wait until the connection is over, at most `timeout_s` seconds."""
    over = asyncio.ensure_future(bus.wait_for_disconnect())  # type: ignore[no-untyped-call]
    over.add_done_callback(_read_error)
    await asyncio.wait([over], timeout=timeout_s)


def _end_rule(owner: str) -> str:
    return f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{owner}'"


def _bus_call(member: str, *argument: str) -> Message:
    signature = "s" * len(argument)
    return Message(destination=BUS, path=BUS_PATH, interface=BUS, member=member, signature=signature, body=list(argument))


def _read_error(done: asyncio.Future[Any]) -> BaseException | None:
    """The error of a future; asyncio logs a traceback for each error that nobody reads."""
    return None if done.cancelled() else done.exception()


def _pass_error(sent: asyncio.Future[Any], answer: asyncio.Future[_Answer]) -> None:
    if (error := _read_error(sent)) is not None and not answer.done():
        answer.set_exception(error)


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _refusal(name: str, member: str, reply: Message) -> str:
    text = one_line(str(reply.body[0]), 200) if reply.body else ""
    if reply.error_name in _ABSENT:
        return f"{name} is not running"
    if reply.error_name in REFUSED:
        return f"{name} refuses {member} to this user"
    if reply.error_name == f"{BUS}.Error.NoReply":
        return f"{name} went away during {member}"
    return f"{name} refuses {member}: {text or reply.error_name}"


def _describe(error: Exception) -> str:
    return "no answer" if isinstance(error, TimeoutError) else error_text(error)


@dataclass(slots=True)
class Lock:
    """An inhibitor lock of logind; it ends when its descriptor is closed."""

    what: str
    fd: int = -1

    def close(self) -> None:
        """Release it; may be called more than once."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


async def inhibit(bus: SystemBus, what: str, who: str, why: str, mode: str) -> Lock:
    """Take a lock of one kind, because logind may grant one kind and refuse another; `mode` is block or delay.

    Raises:
        BusError: as `SystemBus.call`.
    """
    (fd,) = await bus.call(
        LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "Inhibit", what, who, why, mode, signature="ssss", expect="h"
    )
    return Lock(what, fd)


@dataclass(frozen=True, slots=True)
class Inhibition:
    """An inhibitor lock as logind lists it."""

    what: str
    who: str
    why: str
    mode: str
    uid: int
    pid: int

    def blocks(self, kind: str) -> bool:
        """Whether it blocks this (sleep, idle, shutdown, …) rather than delays it; systemd 257 also has "block-weak"."""
        return self.mode.startswith("block") and kind in self.what.split(":")


async def inhibitions(bus: SystemBus) -> list[Inhibition]:
    """All locks that logind lists.

    Raises:
        BusError: as `SystemBus.call`.
    """
    (found,) = await bus.call(LOGIN1, LOGIN1_PATH, LOGIN1_MANAGER, "ListInhibitors", expect="a(ssssuu)")
    return [Inhibition(*entry) for entry in found]
