"""What the person who sits at this machine sees of the node: an icon with a menu, and a few messages.

Only for a user with a graphical session at a seat. The daemon's news change it, and the person. One timer runs, once, after a
first login, so it costs no wake-ups while nothing changes. Nothing here can delay a report: it may lag, or fail, and the node
yields all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from states.formatting import elapsed
from supervisor.linux.control_socket import DaemonDown, DaemonUnresponsive, ask
from supervisor.linux.dbus import BusError, Signal, SystemBus, Variant
from supervisor.linux.text import one_line
from supervisor.sensors.session_agent.messages import MARKUP, NEVER, Choices, Messages
from supervisor.sensors.session_agent.source import boot_s
from supervisor.sensors.session_agent.tray import Entry, Face, Tray

NAME: Final = "Lending this computer"
SAVERS: Final = {
    "org.freedesktop.ScreenSaver", "org.gnome.ScreenSaver", "org.cinnamon.ScreenSaver", "org.mate.ScreenSaver",
    "org.xfce.ScreenSaver",
}  # fmt: skip
BACKOFF_S: Final = (1.0, 300.0)
LOGIN_S: Final = 120.0  # so long after a login or an unlock the person may be told what this is
SETTLE_S: Final = 20.0  # and not sooner: the desktop still starts, and the bus might start another one's service of messages
LEAST_LENT_S: Final = 60.0  # less is not worth a message
PAUSE_S: Final = 7200.0
MORNING_H: Final = 8
MAX_TEXT: Final = 80
PAGE: Final = (
    'page=$XDG_RUNTIME_DIR/rae-node-week.html; "$1" -I -m supervisor.cli.main timeline --days 7 --out "$page" && '
    'exec xdg-open "$page"'
)
# Kinds of messages, as the file of choices names them.
ICON, LOGIN, WELCOME, ANSWER = "icon", "login", "welcome", "answer"


@dataclass(frozen=True, slots=True)
class View:
    """The daemon's news (`supervisor/daemon/desk_view.py`). Seconds of CLOCK_BOOTTIME; `paused_until`: of the epoch."""

    state: str
    since_s: float
    task: str
    paused: bool
    paused_by: str
    paused_until: float | None
    last_task: bool
    lent_to: str
    began_s: float
    tasks: int
    lent_s: float
    lent_from_s: float | None

    @classmethod
    def of(cls, news: dict[str, Any]) -> View:
        """Raises ValueError: the daemon is another version."""
        try:
            view = cls(**{field.name: news[field.name] for field in fields(cls)})
            numbers = (view.since_s, view.began_s, view.lent_s, view.tasks, view.lent_from_s or 0.0, view.paused_until or 0.0)
            texts = (view.state, view.task, view.paused_by, view.lent_to)
        except (KeyError, TypeError) as error:
            raise ValueError("news of another form") from error
        if not all(isinstance(n, int | float) for n in numbers) or not all(isinstance(text, str) for text in texts):
            raise ValueError("news of another form")
        return view

    @property
    def lent(self) -> bool:
        return self.state == "RUNNING"

    @property
    def held(self) -> bool:
        """The pause has begun, or the fleet's or the person's pause follows the task in hand."""
        return self.paused and not self.last_task

    def lent_total_s(self, now_s: float) -> float:
        """All time lent since the daemon started."""
        return self.lent_s + (now_s - self.lent_from_s if self.lent_from_s is not None else 0.0)


class Desk:
    """Shows it. `socket`: the daemon's; `address`: of the user's bus; `choices`: the file with what the person wants to see."""

    def __init__(self, socket: Path, address: str, choices: Path, log: Callable[[str], None] = lambda _: None) -> None:
        self._socket, self._address, self._log = socket, address, log
        self._choices = Choices(choices)
        self._view: View | None = None
        self._panel: _Panel | None = None
        self._present = False
        self._saver_on = False
        self._arrived_s = 0.0  # when the person logged in or came back
        self._before: View | None = None  # the last view while the person was there and nothing was lent
        self._came_back = False
        self._tasks: set[asyncio.Task[object]] = set()
        self._introducing = False
        self._settled: asyncio.TimerHandle | None = None
        self._unlocked = False

    # --- what happens

    def seat(self, seated: bool, unlocked: bool) -> None:
        """The user has a graphical session at a seat; it is in the foreground and not locked."""
        if seated and self._panel is None:
            self._panel = _Panel(self._address, self._clicked, self._pressed, self._consider, self._saver)
            self._show()
        elif not seated and self._panel is not None:
            self._do(self._panel.stop())
            self._panel = None
            self._saver_on = False
        self._unlocked = seated and unlocked
        self._set_present()

    def news(self, news: dict[str, Any] | None) -> None:
        """The daemon's news; None: there is no daemon."""
        try:
            self._view = None if news is None else View.of(news)
        except ValueError as error:
            self._log(str(error))
            self._view = None
        self._show()
        self._consider()

    async def stop(self) -> None:
        if self._settled is not None:
            self._settled.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._panel is not None:
            await self._panel.stop()

    def _saver(self, signal: Signal) -> None:
        if signal.body and isinstance(signal.body[0], bool):
            self._saver_on = signal.body[0]
            self._set_present()

    def _set_present(self) -> None:
        present = self._unlocked and not self._saver_on
        if present and not self._present:
            self._arrived_s = boot_s()
            self._came_back = self._before is not None
            if not self._choices.introduced:
                self._settled = asyncio.get_running_loop().call_later(SETTLE_S, self._consider)
        self._present = present
        self._consider()

    def _do(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the icon

    def _show(self) -> None:
        if self._panel is not None:
            self._panel.tray.show(face(self._view) if self._view is not None and self._choices.wants(ICON) else Face())

    def _clicked(self, action: str) -> None:
        self._do(self._act(action))

    async def _act(self, action: str) -> None:
        match action:
            case "hide":
                self._choices.switch_off(ICON)
                self._show()
            case "page":
                await self._open_page()
            case "activate" if self._view is not None:  # a tray that opens no menu at a click
                button = {"resume": "Resume"} if self._view.paused else {"pause-2h": "Pause for 2 hours"}
                await self._message(ANSWER, NAME, _text(self._view), button)
            case "resume":
                await self._command("resume")
            case "pause-2h":
                await self._command("pause", for_s=PAUSE_S)
            case "pause-morning":
                await self._command("pause", until=next_morning(time.time()))
            case "pause-after":
                await self._command("pause", until=None, after_task=True)

    async def _command(self, name: str, **more: Any) -> None:
        """Pause or resume. The icon shows that it worked; without one, and where it is refused, a message does."""
        try:
            answer = await asyncio.to_thread(ask, self._socket.parent, name, **more)
        except (DaemonDown, DaemonUnresponsive) as error:
            answer = {"ok": False, "error": str(error)}
        if answer.get("ok") and self._panel is not None and self._panel.tray.shown:
            return
        title = {"pause": "Not lent", "resume": "Lent again while you are away"}[name]
        if not answer.get("ok"):
            title = f"Could not {name}"
        await self._message(ANSWER, title, one_line(str(answer.get("status") or answer.get("error")), 200))

    async def _open_page(self) -> None:
        """The last week, in the browser. The user's manager starts it: what this service may not do, a browser must."""
        if (view := self._view) is not None:
            done = f"{_lent(view.tasks, view.lent_total_s(boot_s()))} since {_clock(view.began_s)}."
            await self._message(ANSWER, "What it did", f"{done} The page of the week opens for those who may read the journal.")
        if self._panel is not None:
            await self._panel.run("sh", "-c", PAGE, "rae-node", sys.executable)

    # --- messages

    def _pressed(self, kind: str, action: str) -> None:
        if action == NEVER:
            self._choices.switch_off(kind)
        else:
            self._clicked(action)

    def _consider(self) -> None:
        """Show what is due: only to a person who has just come, never to one who works."""
        view = self._view
        if view is None or not self._present:
            return
        here_s = boot_s() - self._arrived_s
        if self._came_back and not view.lent:
            self._came_back = False
            if here_s < LOGIN_S:
                self._welcome(view)
        elif not (self._choices.introduced or self._introducing or view.state == "DISABLED") and SETTLE_S <= here_s < LOGIN_S:
            self._introducing = True
            self._do(self._introduce(view))
        if not view.lent:
            self._before = view

    def _welcome(self, view: View) -> None:
        before = self._before
        if before is None or not self._choices.wants(WELCOME):
            return
        same = before.began_s == view.began_s  # otherwise the daemon has started anew, and counts from zero
        tasks, lent_s = view.tasks - same * before.tasks, view.lent_s - same * before.lent_s
        if lent_s >= LEAST_LENT_S:
            text = f"{_lent(tasks, lent_s)}. Nothing is running now."
            self._do(self._message(WELCOME, "While you were away", text))

    async def _introduce(self, view: View) -> None:
        to = f" to {_name(view.lent_to)}" if view.lent_to else ""
        by_icon = self._panel is not None and self._panel.tray.shown
        text = (
            f"While nobody uses it, it is lent{to}; when you return, it is yours at once. To know when, it notes the times of "
            f"keys, mouse and logins, never which keys. To pause: {'the icon' if by_icon else 'the entry'} "
            f"“{NAME if by_icon else 'Stop lending this computer'}”."
        )
        try:
            if not self._choices.wants(LOGIN) or await self._message(LOGIN, "This computer is lent", text):
                self._choices.note_introduced()
        finally:
            self._introducing = False

    async def _message(self, kind: str, title: str, text: str, buttons: Mapping[str, str] | None = None) -> bool:
        if (panel := self._panel) is None or not self._choices.wants(kind):
            return False
        if kind != ANSWER:
            pause = {} if panel.tray.shown else {"pause-2h": "Pause for 2 hours"}
            buttons = {**pause, NEVER: "Do not show this again"}
        return await panel.messages.show(kind, title, text, buttons or {}, "rae-node")


class _Panel:
    """The connection to the user's bus while somebody sits there."""

    def __init__(
        self,
        address: str,
        clicked: Callable[[str], None],
        pressed: Callable[[str, str], None],
        came: Callable[[], None],
        saver: Callable[[Signal], None],
    ) -> None:
        self._bus = SystemBus(address, backoff_s=BACKOFF_S, name="session bus")
        self.tray = Tray(self._bus, NAME, clicked)
        self.messages = Messages(self._bus, pressed, came)
        for name in sorted(SAVERS):
            self._bus.subscribe(name, name, "ActiveChanged", saver)
        self._runs = 0
        self._starting = asyncio.ensure_future(self._bus.start())

    async def stop(self) -> None:
        self._starting.cancel()
        await asyncio.gather(self._starting, return_exceptions=True)
        await self._bus.stop()

    async def run(self, *argv: str) -> None:
        """Start a program as the user's manager starts programs: outside of this service."""
        self._runs += 1
        name, path = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
        start = [f"/bin/{argv[0]}", list(argv), False]
        properties = [
            ["Description", Variant("s", "What rae-node did")], ["ExecStart", Variant("a(sasb)", [start])],
            ["CollectMode", Variant("s", "inactive-or-failed")],
        ]  # fmt: skip
        unit = f"rae-node-page-{boot_s():.0f}-{self._runs}.service"
        with contextlib.suppress(BusError):
            await self._bus.call(
                name, path, f"{name}.Manager", "StartTransientUnit", unit, "fail", properties, [],
                signature="ssa(sv)a(sa(sv))", expect="o",
            )  # fmt: skip


# --- texts


def face(view: View) -> Face:
    """The icon, its text and its menu."""
    icon = "rae-node-paused" if view.held else "rae-node-lent" if view.lent else "rae-node-yours"
    text = _text(view)
    menu = (
        Entry(text),
        Entry(),
        Entry("Pause for 2 hours", "pause-2h"),
        Entry(f"Pause until tomorrow {MORNING_H}:00", "pause-morning"),
        Entry("Pause after this task", "pause-after", view.lent and not view.paused),
        Entry("Resume", "resume", view.paused),
        Entry(),
        Entry("What did it do?", "page"),
        Entry("Do not show this icon again", "hide"),
    )
    return Face(icon, NAME, text, menu)


def _text(view: View) -> str:
    since = _clock(view.since_s)
    if view.held:
        end = f"until {_day_and_time(view.paused_until)}" if view.paused_until is not None else "until somebody resumes it"
        by = f" by {_name(view.paused_by)}" if view.paused_by else ""
        return f"Paused{by}, {end}"
    match view.state:
        case "RUNNING":
            what = f" works on {_name(view.task)}," if view.task else ""
            last = "; then it pauses" if view.last_task else "; stops when you return"
            return f"Lent:{what} since {since}{last}"
        case "READY":
            return f"Yours; nobody is here, so it may be lent, since {since}"
        case "DISABLED":
            return f"Yours; lending is switched off, since {since}"
    return f"Yours; nothing is running, since {since}"


def _name(text: str) -> str:
    return one_line(text, MAX_TEXT).translate(MARKUP)


def _lent(tasks: int, lent_s: float) -> str:
    return f"{tasks} {'task' if tasks == 1 else 'tasks'}, {elapsed(lent_s)}"


def _clock(at_s: float) -> str:
    """A time of CLOCK_BOOTTIME on the wall clock."""
    return _day_and_time(time.time() - boot_s() + at_s)


def _day_and_time(wall_s: float) -> str:
    then, now = time.localtime(wall_s), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%a %H:%M", then)


def next_morning(wall_s: float) -> float:
    """Tomorrow at 8:00 on the local clock, in seconds since the epoch."""
    local = time.localtime(wall_s)
    return time.mktime((local.tm_year, local.tm_mon, local.tm_mday + 1, MORNING_H, 0, 0, 0, 0, -1))
