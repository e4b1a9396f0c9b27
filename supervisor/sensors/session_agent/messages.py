"""Messages to the person (org.freedesktop.Notifications), and which of them the person has switched off for good."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from supervisor.linux.dbus import BusError, Signal, SystemBus, Variant
from supervisor.linux.small_files import read_plain, replace_plain

NOTIFICATIONS: Final = "org.freedesktop.Notifications"
NOTIFICATIONS_PATH: Final = "/org/freedesktop/Notifications"
NEVER: Final = "never"  # the action of each message that switches its kind off
NORMAL: Final = 1  # with low urgency GNOME shows no banner
START_S: Final = 30.0  # the bus may have to start the service first
MAX_OPEN: Final = 16
MARKUP: Final = str.maketrans("<>&", "()+")  # some services and trays read a text as markup


class Choices:
    """What the person wants to see, in a file of theirs. `off`: kinds of messages, and "icon"; `introduced`: the message of
    the first login has been shown. A file that cannot be read or written counts as empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._off: set[str] = set()
        self.introduced = False
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            known = json.loads(read_plain(path))
            self._off = {str(name) for name in known.get("off", ())}
            self.introduced = known.get("introduced") is True

    def wants(self, name: str) -> bool:
        return name not in self._off

    def switch_off(self, name: str) -> None:
        self._off.add(name)
        self._write()

    def note_introduced(self) -> None:
        self.introduced = True
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            text = json.dumps({"off": sorted(self._off), "introduced": self.introduced}, indent=2)
            replace_plain(self._path, f"{text}\n".encode())


class Messages:
    """Shows messages. `pressed` gets the kind of the message and the action of a button that the person has pressed; `came` is
    called when a service that shows messages has come. Make it before the bus starts."""

    def __init__(self, bus: SystemBus, pressed: Callable[[str, str], None], came: Callable[[], None]) -> None:
        self._bus, self._pressed, self._came = bus, pressed, came
        self._open: dict[int, str] = {}  # kind by the service's number
        bus.watch(NOTIFICATIONS, self._service_changed)
        bus.subscribe(NOTIFICATIONS, NOTIFICATIONS, "ActionInvoked", self._invoked)
        bus.subscribe(NOTIFICATIONS, NOTIFICATIONS, "NotificationClosed", self._closed)

    async def show(self, kind: str, title: str, text: str, actions: Mapping[str, str], icon: str) -> bool:
        """Show a message, without a sound; `actions`: labels of its buttons. False: nothing here shows messages."""
        hints = {
            "urgency": Variant("y", NORMAL), "suppress-sound": Variant("b", True), "category": Variant("s", "device"),
            "desktop-entry": Variant("s", "rae-node-pause"),
        }  # fmt: skip
        buttons = [part for action in actions.items() for part in action]
        try:
            (number,) = await self._bus.call(
                NOTIFICATIONS, NOTIFICATIONS_PATH, NOTIFICATIONS, "Notify",
                "rae-node", 0, icon, title, text.translate(MARKUP), buttons, hints, -1,
                signature="susssasa{sv}i", expect="u", timeout_s=START_S, may_start=True,
            )  # fmt: skip
        except BusError:
            return False
        self._open[number] = kind
        while len(self._open) > MAX_OPEN:
            self._open.pop(next(iter(self._open)))
        return True

    def _service_changed(self, owner: str) -> None:
        self._open.clear()
        if owner:
            self._came()

    def _invoked(self, signal: Signal) -> None:
        match signal.body:
            case [int(number), str(action)] if number in self._open:
                self._pressed(self._open[number], action)

    def _closed(self, signal: Signal) -> None:
        match signal.body:
            case [int(number), *_]:
                self._open.pop(number, None)
