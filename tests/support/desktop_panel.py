"""A tray and a service of messages of a test's own, on a real bus: they ask as a panel does, and click."""

from __future__ import annotations

import asyncio
from typing import Any

from dbus_fast import Message, Variant
from support.session_services import Service

from supervisor.sensors.session_agent.messages import NOTIFICATIONS, NOTIFICATIONS_PATH
from supervisor.sensors.session_agent.tray import ITEM, ITEM_PATH, MENU, MENU_PATH, WATCHER

PROPERTIES = "org.freedesktop.DBus.Properties"


class TrayHost(Service):
    """StatusNotifierWatcher and host in one. `signals`: what the icon has said since."""

    def __init__(self, address: str) -> None:
        super().__init__(address, WATCHER)
        self.item = ""
        self.signals: list[str] = []
        self.answers["RegisterStatusNotifierItem"] = self._register

    def _register(self, message: Message) -> tuple[str, list[Any]]:
        assert message.body == [ITEM_PATH]
        self.item = message.sender or ""
        return "", []

    async def start(self) -> TrayHost:
        await super().start()
        assert self.bus
        self.bus.add_message_handler(self._hear)
        for interface in (ITEM, MENU):
            await self._send("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "AddMatch", "s", f"interface='{interface}'")
        return self

    def _hear(self, message: Message) -> None:
        if message.interface in (ITEM, MENU) and message.sender == self.item:
            self.signals.append(message.member or "")

    async def _send(self, name: str, path: str, interface: str, member: str, signature: str = "", *body: Any) -> list[Any]:
        assert self.bus
        call = Message(destination=name, path=path, interface=interface, member=member, signature=signature, body=list(body))
        reply = await asyncio.wait_for(self.bus.call(call), 10)
        assert reply is not None
        if reply.error_name:
            raise ValueError(f"{reply.error_name}: {reply.body}")
        return list(reply.body)

    async def ask(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> list[Any]:
        return await self._send(self.item, path, interface, member, signature, *body)

    async def icon(self) -> dict[str, Any]:
        """All properties of the icon."""
        (found,) = await self.ask(ITEM_PATH, PROPERTIES, "GetAll", "s", ITEM)
        return {name: variant.value for name, variant in found.items()}

    async def menu(self) -> dict[str, tuple[int, bool]]:
        """The entries: their number, and whether they can be clicked."""
        _, (_, root, children) = await self.ask(MENU_PATH, MENU, "GetLayout", "iias", 0, -1, [])
        assert root["children-display"].value == "submenu"
        entries = [child.value for child in children]
        return {p["label"].value: (number, p["enabled"].value) for number, p, _ in entries if "label" in p}

    async def click(self, label: str) -> None:
        number, enabled = (await self.menu())[label]
        assert enabled, label
        await self.ask(MENU_PATH, MENU, "Event", "isvu", number, "clicked", Variant("i", 0), 0)


class MessageService(Service):
    """org.freedesktop.Notifications. `shown`: (title, text, buttons) of each message."""

    def __init__(self, address: str) -> None:
        super().__init__(address, NOTIFICATIONS)
        self.may_be_started = True
        self.shown: list[tuple[str, str, list[str]]] = []
        self.quiet = False
        self.answers["Notify"] = self._notify

    def _notify(self, message: Message) -> tuple[str, list[Any]]:
        name, _, _, title, text, buttons, hints, _ = message.body
        assert name == "rae-node"
        self.quiet = "suppress-sound" in hints
        self.shown.append((title, text, buttons[::2]))
        return "u", [len(self.shown)]

    @property
    def titles(self) -> list[str]:
        return [title for title, _, _ in self.shown]

    async def press(self, action: str) -> None:
        """A button of the last message."""
        await self.emit(NOTIFICATIONS_PATH, "ActionInvoked", "us", len(self.shown), action)
