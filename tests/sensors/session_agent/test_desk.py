"""What the person at the desk sees: the agent with a real bus, a tray and a service of messages of ours, and a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support.desktop_panel import MessageService, TrayHost
from support.login1 import FakeLogin1, PrivateBus, session
from support.waiting import eventually

from supervisor.linux.control_socket import Broadcast, ControlServer, Peer
from supervisor.sensors.session_agent import desk
from supervisor.sensors.session_agent.agent import Agent
from supervisor.sensors.session_agent.desk import View, face, next_morning
from supervisor.sensors.session_agent.source import boot_s
from supervisor.sensors.session_agent.tray import ITEM, ITEM_PATH

S3 = "/org/freedesktop/login1/session/_33"
INTRODUCED = {"off": [], "introduced": True}
HELLO, BACK = "This computer is lent", "While you were away"


def news(**changes: Any) -> dict[str, Any]:
    return {
        "state": "IDLE_WAIT", "since_s": boot_s(), "task": "", "paused": False, "paused_by": "", "paused_until": None,
        "last_task": False, "lent_to": "rae.example", "began_s": 5.0, "tasks": 0, "lent_s": 0.0, "lent_from_s": None,
    } | changes  # fmt: skip


LENT = news(state="RUNNING", task="render", tasks=1, lent_from_s=0.0)
OVER = news(state="COOLDOWN", tasks=3, lent_s=7200.0)
PAUSED = news(state="DISABLED", paused=True, paused_by="anna")


class Receiver:
    def receive(self, message: dict[str, Any]) -> None:
        pass

    def closed(self) -> None:
        pass


class Room:
    """The desk, and what the daemon has been asked for."""

    def __init__(self, folder: Path, address: str, login1: FakeLogin1) -> None:
        self.folder, self.address, self.login1 = folder, address, login1
        self.choices = folder / "config/desk.json"
        self.broadcast = Broadcast()
        self.asked: list[dict[str, Any]] = []
        self.refuses = ""
        self.streams = 0
        self.tray = TrayHost(address)
        self.messages = MessageService(address)
        handlers = {"pause": self._command, "resume": self._command}
        self.server = ControlServer(
            folder / "node/control.sock", handlers, frozenset(), {"presence": self._stream}, broadcast=self.broadcast
        )

    def _stream(self, uid: int, hang_up: Callable[[], None]) -> tuple[Receiver, dict[str, Any]]:
        self.streams += 1
        return Receiver(), {"every_s": 600.0}

    def _command(self, request: dict[str, Any], peer: Peer) -> dict[str, Any]:
        self.asked.append(request)
        if self.refuses:
            raise ValueError(self.refuses)
        return {"status": "paused until 20:00"}

    async def icon_is(self, name: str) -> None:
        for _ in range(100):
            if self.tray.item and (icon := await self.tray.icon())["IconName"] == name:
                assert icon["Status"] == ("Active" if name else "Passive")
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"the icon is {icon if self.tray.item else 'not registered'}")

    async def lock(self, locked: bool) -> None:
        """The person leaves or comes back, and the agent has seen it."""
        before = self.login1.calls.count("ListSessions")
        await self.login1.change(S3, LockedHint=locked)
        await eventually(lambda: self.login1.calls.count("ListSessions") > before, "a look")
        await asyncio.sleep(0.05)


Story = Callable[[Room], Awaitable[None]]


def play(
    story: Story, choices: dict[str, Any] | None = None, *, tray: bool = True, messages: bool = True, **changes: Any
) -> None:
    async def run(folder: Path) -> None:
        (folder / "run").mkdir()
        (folder / "X11").mkdir()
        with PrivateBus(folder) as bus:
            login1 = await FakeLogin1(bus.address).start()
            login1.sessions[S3] = session(**{"User": (os.getuid(), "/u"), **changes})
            room = Room(folder, bus.address, login1)
            if choices is not None:
                room.choices.parent.mkdir()
                room.choices.write_text(json.dumps(choices))
            for wanted, service in ((tray, room.tray), (messages, room.messages)):
                if wanted:
                    await service.start()
            await room.server.start()
            agent = asyncio.ensure_future(Agent(
                folder / "node/control.sock", bus_address=bus.address, session_bus=bus.address, runtime=folder / "run",
                x_folder=folder / "X11", choices=room.choices,
            ).run())  # fmt: skip
            try:
                await eventually(lambda: room.streams, "a report")
                await asyncio.wait_for(story(room), 60)
            finally:
                agent.cancel()
                await asyncio.gather(agent, return_exceptions=True)
                await room.server.stop()
                for wanted, service in ((tray, room.tray), (messages, room.messages)):
                    if wanted and service.bus is not None and service.bus.connected:
                        await service.stop()
                await login1.stop()

    folder = Path(tempfile.mkdtemp(prefix="desk-"))
    try:
        asyncio.run(run(folder))
    finally:
        shutil.rmtree(folder)


def test_the_icon_its_text_and_its_menu_follow_the_state() -> None:
    async def story(room: Room) -> None:
        for view, name, text, pause_after, resume in (
            (news(), "rae-node-yours", "Yours; nothing is running", False, False),
            (LENT, "rae-node-lent", "Lent: works on render, since", True, False),
            (LENT | {"paused": True, "last_task": True}, "rae-node-lent", "then it pauses", False, True),
            (PAUSED, "rae-node-paused", "Paused by anna, until somebody resumes it", False, True),
        ):
            room.broadcast.announce(view)
            await room.icon_is(name)
            icon, menu = await room.tray.icon(), await room.tray.menu()
            assert text in icon["ToolTip"][3]
            assert menu[icon["ToolTip"][3]][1] is False
            assert (menu["Pause after this task"][1], menu["Resume"][1]) == (pause_after, resume)
        assert {"NewIcon", "NewToolTip", "LayoutUpdated"} <= set(room.tray.signals)
        # Nothing is sent while nothing changes.
        room.tray.signals.clear()
        room.broadcast.announce(PAUSED)
        await asyncio.sleep(0.2)
        assert room.tray.signals == []

    play(story, INTRODUCED)


@pytest.mark.parametrize(
    ("label", "asked"),
    [
        ("Pause for 2 hours", {"ask": "pause", "for_s": 7200.0}),
        ("Pause until tomorrow 8:00", {"ask": "pause", "until": next_morning(time.time())}),
        ("Pause after this task", {"ask": "pause", "until": None, "after_task": True}),
        ("Resume", {"ask": "resume"}),
    ],
)
def test_a_click_is_a_command_and_a_refusal_is_shown(label: str, asked: dict[str, Any]) -> None:
    async def story(room: Room) -> None:
        room.broadcast.announce(PAUSED if label == "Resume" else LENT)
        await room.icon_is("rae-node-paused" if label == "Resume" else "rae-node-lent")
        await room.tray.click(label)
        await eventually(lambda: room.asked, "a command")
        assert room.asked == [{"v": 1, **asked}]
        await asyncio.sleep(0.1)
        assert room.messages.shown == []  # the icon shows it
        room.refuses = "the operator has paused the node; it stays paused"
        await room.tray.click(label)
        await eventually(lambda: room.messages.shown, "the refusal")
        assert room.messages.shown[0][0].startswith("Could not ")
        assert room.messages.shown[0][1] == room.refuses

    play(story, INTRODUCED)


def test_a_click_on_the_icon_itself_says_what_the_node_does() -> None:
    async def story(room: Room) -> None:
        room.broadcast.announce(LENT)
        await room.icon_is("rae-node-lent")
        await room.tray.ask(ITEM_PATH, ITEM, "Activate", "ii", 0, 0)
        await eventually(lambda: room.messages.shown, "an answer")
        assert room.messages.shown[0][1:] == ((await room.tray.icon())["ToolTip"][3], ["pause-2h"])
        await room.messages.press("pause-2h")
        await eventually(lambda: room.asked, "a command")

    play(story, INTRODUCED)


def test_an_icon_that_is_not_wanted_stays_away_for_good() -> None:
    async def story(room: Room) -> None:
        room.broadcast.announce(news())
        await room.icon_is("rae-node-yours")
        await room.tray.click("Do not show this icon again")
        await room.icon_is("")
        assert json.loads(room.choices.read_text())["off"] == ["icon"]
        room.broadcast.announce(LENT)
        await room.icon_is("")

    play(story, INTRODUCED)


def test_a_tray_that_starts_again_and_a_node_that_ends() -> None:
    async def story(room: Room) -> None:
        room.broadcast.announce(news())
        await room.icon_is("rae-node-yours")
        await room.tray.stop()
        room.tray = await TrayHost(room.address).start()
        await room.icon_is("rae-node-yours")
        await room.server.stop()
        await room.icon_is("")
        await room.tray.stop()

    play(story, INTRODUCED)


def test_one_message_at_the_first_unlock_after_lending() -> None:
    async def story(room: Room) -> None:
        room.broadcast.announce(news())
        await room.icon_is("rae-node-yours")
        room.broadcast.announce(LENT)  # it began before the screen was locked
        await room.lock(True)
        await room.lock(False)
        assert room.messages.shown == []  # it still stops
        room.broadcast.announce(OVER)
        await eventually(lambda: room.messages.shown, "the message")
        await room.lock(True)
        await room.lock(False)
        room.broadcast.announce(OVER | {"state": "IDLE_WAIT"})
        await asyncio.sleep(0.2)
        assert room.messages.shown == [(BACK, "3 tasks, 2 h. Nothing is running now.", ["never"])]
        await room.messages.press("never")
        await eventually(lambda: "welcome" in room.choices.read_text(), "the choice")
        await room.lock(True)
        room.broadcast.announce(OVER | {"tasks": 9, "lent_s": 19999.0})
        await room.lock(False)
        await asyncio.sleep(0.2)
        assert room.messages.titles == [BACK]

    play(story, INTRODUCED)


def test_no_message_while_a_person_works() -> None:
    async def story(room: Room) -> None:
        for view in (news(), LENT, OVER, PAUSED, news(), LENT, OVER):
            room.broadcast.announce(view)
            await asyncio.sleep(0.05)
        assert room.messages.shown == []

    play(story, INTRODUCED)


def test_one_message_at_the_first_login_without_a_tray_it_has_a_button_to_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "SETTLE_S", 0.1)

    async def story(room: Room) -> None:
        room.broadcast.announce(news())
        await asyncio.sleep(0.2)
        assert not room.choices.exists()  # nothing can show it yet
        await room.messages.start()
        await eventually(lambda: room.choices.exists(), "the message")
        ((title, text, buttons),) = room.messages.shown
        assert room.messages.quiet
        assert (title, buttons) == (HELLO, ["pause-2h", "never"])
        assert "lent to rae.example" in text
        await room.messages.press("pause-2h")
        await eventually(lambda: len(room.messages.shown) == 2, "the answer")
        assert room.asked == [{"v": 1, "ask": "pause", "for_s": 7200.0}]
        assert room.messages.shown[1] == ("Not lent", "paused until 20:00", [])
        await room.lock(True)
        await room.lock(False)
        await asyncio.sleep(0.1)
        assert room.messages.titles == [HELLO, "Not lent"]
        await room.messages.stop()

    play(story, tray=False, messages=False)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"Seat": ("", "/"), "Type": "x11", "Display": ":9"},
        {"Remote": True, "Type": "x11", "Display": ":9"},
        {"Type": "tty", "TTY": "tty2"},
        {"Class": "greeter"},
        {"User": (4711, "/u")},
    ],
    ids=["no-seat", "remote", "console", "login-screen", "another-user"],
)
def test_nothing_is_shown_to_users_who_do_not_sit_at_the_machine(elsewhere: dict[str, Any]) -> None:
    async def story(room: Room) -> None:
        room.broadcast.announce(news())
        await asyncio.sleep(0.2)
        assert (room.tray.item, room.messages.shown) == ("", [])

    play(story, **elsewhere)


def test_a_broken_file_of_choices_and_news_of_another_version_do_no_harm() -> None:
    async def story(room: Room) -> None:
        room.broadcast.announce({"state": "RUNNING"})
        await asyncio.sleep(0.1)
        room.broadcast.announce(news(tasks="many"))
        await room.icon_is("")
        room.broadcast.announce(LENT)
        await room.icon_is("rae-node-lent")
        assert room.streams == 1

    play(story, {"off": 3, "introduced": 5})


def test_hostile_names_stay_one_short_line() -> None:
    shown = face(View.of(news(state="RUNNING", task="<b>a_b</b>\x1b[31m\n" * 50, lent_from_s=1.0)))
    assert shown.text.isprintable()
    assert "<" not in shown.text
    assert len(shown.text) < 160
