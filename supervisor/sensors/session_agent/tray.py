"""An icon in the desktop's tray (StatusNotifierItem) with a menu (com.canonical.dbusmenu), on the user's own bus.

Every value is sent when a tray asks for it, and a signal only when something has changed. A tray that comes later, or starts
again, is registered at once; where there is none, nothing is done.

Sources: freedesktop.org, Status Notifier Item; com.canonical.dbusmenu, version 3, as Plasma, Xfce, MATE and Cinnamon read them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from supervisor.linux.dbus import PROPERTIES, BusError, Call, SystemBus, Variant

WATCHER: Final = "org.kde.StatusNotifierWatcher"
WATCHER_PATH: Final = "/StatusNotifierWatcher"
ITEM: Final = "org.kde.StatusNotifierItem"
ITEM_PATH: Final = "/StatusNotifierItem"
MENU: Final = "com.canonical.dbusmenu"
MENU_PATH: Final = "/MenuBar"
ROOT: Final = 0  # the menu's own id; an entry's id is its place in it, from 1
NO_PIXMAP: Final[list[Any]] = []


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the menu. Without `label` a separator; `action` goes to the receiver of clicks; empty: it is only read."""

    label: str = ""
    action: str = ""
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Face:
    """What the tray shows. `icon`: a themed name; empty: nothing is shown. `text`: the tooltip below its title."""

    icon: str = ""
    title: str = ""
    text: str = ""
    menu: tuple[Entry, ...] = ()


class Tray:
    """The icon. `clicked` gets the action of an entry, or "activate" for a click on the icon. Make it before the bus starts."""

    def __init__(self, bus: SystemBus, name: str, clicked: Callable[[str], None]) -> None:
        self._bus, self._name, self._clicked = bus, name, clicked
        self._face = Face()
        self._revision = 1
        self._registering: asyncio.Task[None] | None = None
        bus.serve(ITEM_PATH, self._item)
        bus.serve(MENU_PATH, self._menu)
        bus.watch(WATCHER, self._watcher_changed)

    @property
    def shown(self) -> bool:
        """There is a tray, and the icon is in it."""
        return bool(self._bus.owner(WATCHER) and self._face.icon)

    def show(self, face: Face) -> None:
        """Show this from now on."""
        old, self._face = self._face, face
        if not self._bus.owner(WATCHER):
            return
        if old.icon != face.icon:
            self._bus.emit(ITEM_PATH, ITEM, "NewIcon")
        if bool(old.icon) != bool(face.icon):
            self._bus.emit(ITEM_PATH, ITEM, "NewStatus", "s", self._status)
        if (old.title, old.text) != (face.title, face.text):
            self._bus.emit(ITEM_PATH, ITEM, "NewToolTip")
            self._bus.emit(ITEM_PATH, ITEM, "NewTitle")
        if old.menu != face.menu:
            self._revision += 1
            self._bus.emit(MENU_PATH, MENU, "LayoutUpdated", "ui", self._revision, ROOT)

    def _watcher_changed(self, owner: str) -> None:
        if self._registering is not None:
            self._registering.cancel()
        self._registering = asyncio.ensure_future(self._register()) if owner else None

    async def _register(self) -> None:
        with contextlib.suppress(BusError):  # a tray that refuses us has no icon of ours
            await self._bus.call(
                WATCHER, WATCHER_PATH, WATCHER, "RegisterStatusNotifierItem", ITEM_PATH, signature="s", timeout_s=60.0
            )

    @property
    def _status(self) -> str:
        return "Active" if self._face.icon else "Passive"

    # --- the icon

    def _item(self, call: Call) -> tuple[str, list[Any]] | None:
        if call.interface == PROPERTIES:
            return _properties(call, self._item_properties())
        if call.interface != ITEM or call.member not in ("Activate", "Scroll", "ProvideXdgActivationToken"):
            return None
        if call.member == "Activate":  # MATE's tray opens the menu by the right button alone
            self._clicked("activate")
        return "", []

    def _item_properties(self) -> dict[str, Variant]:
        face = self._face
        texts = {
            "Category": "SystemServices", "Id": "rae-node", "Title": self._name, "Status": self._status, "IconName": face.icon,
            "OverlayIconName": "", "AttentionIconName": "", "AttentionMovieName": "", "IconThemePath": "",
        }  # fmt: skip
        pixmaps = ("IconPixmap", "OverlayIconPixmap", "AttentionIconPixmap")
        return {
            **{name: Variant("s", text) for name, text in texts.items()},
            **{name: Variant("a(iiay)", NO_PIXMAP) for name in pixmaps},
            "WindowId": Variant("i", 0),
            "ItemIsMenu": Variant("b", True),
            "Menu": Variant("o", MENU_PATH),
            "ToolTip": Variant("(sa(iiay)ss)", [face.icon, NO_PIXMAP, face.title, face.text]),
        }

    # --- the menu

    def _menu(self, call: Call) -> tuple[str, list[Any]] | None:
        if call.interface == PROPERTIES:
            return _properties(call, {
                "Version": Variant("u", 3), "TextDirection": Variant("s", "ltr"), "Status": Variant("s", "normal"),
                "IconThemePath": Variant("as", []),
            })  # fmt: skip
        if call.interface != MENU:
            return None
        match call.member, call.signature, call.body:
            case "GetLayout", "iias", [parent, depth, _]:
                return "u(ia{sv}av)", [self._revision, self._layout(parent, depth)]
            case "GetGroupProperties", "aias", [ids, _]:
                known = [ROOT, *range(1, len(self._face.menu) + 1)]
                return "a(ia{sv})", [[[i, self._entry_properties(i)] for i in known if not ids or i in ids]]
            case "GetProperty", "is", [number, name]:
                if (found := self._entry_properties(number).get(name)) is None:
                    raise ValueError(f"no property {name}")
                return "v", [found]
            case "Event", "isvu", [number, kind, _, _]:
                self._event(number, kind)
                return "", []
            case "EventGroup", "a(isvu)", [events]:
                for number, kind, _, _ in events:
                    self._event(number, kind)
                return "ai", [[]]
            case "AboutToShow", "i", _:
                return "b", [False]
            case "AboutToShowGroup", "ai", _:
                return "aiai", [[], []]
        return None

    def _layout(self, number: int, depth: int) -> list[Any]:
        children = range(1, len(self._face.menu) + 1) if number == ROOT and depth else ()
        return [number, self._entry_properties(number), [Variant("(ia{sv}av)", self._layout(i, 0)) for i in children]]

    def _entry_properties(self, number: int) -> dict[str, Variant]:
        if number == ROOT:
            return {"children-display": Variant("s", "submenu")}
        if not 0 < number <= len(self._face.menu):
            raise ValueError(f"no entry {number}")
        entry = self._face.menu[number - 1]
        if not entry.label:
            return {"type": Variant("s", "separator")}
        label = entry.label.replace("_", "__")  # one underscore marks a key
        return {"label": Variant("s", label), "enabled": Variant("b", entry.enabled and bool(entry.action))}

    def _event(self, number: int, kind: str) -> None:
        if kind == "clicked" and 0 < number <= len(self._face.menu):
            entry = self._face.menu[number - 1]
            if entry.enabled and entry.action:
                self._clicked(entry.action)


def _properties(call: Call, values: dict[str, Variant]) -> tuple[str, list[Any]] | None:
    """The answer to org.freedesktop.DBus.Properties."""
    match call.member, call.signature, call.body:
        case "GetAll", "s", _:
            return "a{sv}", [values]
        case "Get", "ss", [_, name]:
            if name not in values:
                raise ValueError(f"no property {name}")
            return "v", [values[name]]
    return None
