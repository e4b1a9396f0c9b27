"""What keeps a desktop from idling: each interface as a service of ours, held and let go, hung, refused, mirrored."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from dbus_fast import BusType, Message, MessageFlag, MessageType, Variant
from dbus_fast.aio import MessageBus
from support.session_services import Service, beside
from support.waiting import eventually

from supervisor.linux.dbus import BusError, Inhibition
from supervisor.sensors.session_agent import inhibitors as idle_bus
from supervisor.sensors.session_agent.inhibitors import (
    GAMEMODE,
    GAMEMODE_PATH,
    GNOME,
    GNOME_PATH,
    KDE,
    KDE_PATH,
    PLAYER,
    PLAYER_PATH,
    PLAYING,
    POWER,
    POWER_INHIBIT,
    POWER_PATH,
    SAVER,
    UNKNOWN,
    UNNAMED,
)
from supervisor.sensors.session_agent.session_bus import BusIdle


@pytest.mark.parametrize(
    ("name", "member", "film", "none", "emit"),
    [
        pytest.param(
            GNOME, "GetInhibitors", ("ao", [["/i/1"]]), ("ao", [[]]), (GNOME_PATH, "InhibitorAdded", "o", "/i/1"), id="GNOME"
        ),
        pytest.param(
            KDE, "HasInhibition", ("b", [True]), ("b", [False]), (KDE_PATH, "InhibitionsChanged", "a(ss)as", [], []), id="KDE"
        ),
    ],
)  # fmt: skip
def test_who_does_not_tell_of_inhibitors_may_have_some(
    name: str, member: str, film: Any, none: Any, emit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session manager that hangs: what it said before counts, and it is asked again."""
    monkeypatch.setattr(idle_bus, "ANSWER_S", 0.1)
    monkeypatch.setattr(idle_bus, "AGAIN_S", 0.1)

    async def story(address: str, source: BusIdle) -> None:
        service = Service(address, name)
        service.answers = {
            member: None, "GetAppId": ("s", ["film"]), "GetFlags": ("u", [8]), "ListInhibitions": ("a(ss)", [[["film", ""]]]),
        }  # fmt: skip
        await service.start()
        await eventually(lambda: source.inhibitors == (UNKNOWN,), "doubt")
        service.answers[member] = film
        await eventually(lambda: source.inhibitors == ("film",), "the film, asked for again")
        service.answers[member] = None
        asked = len(service.asked)
        await service.emit(*emit)
        await eventually(lambda: len(service.asked) > asked + 2, "three questions in vain")
        assert source.inhibitors == ("film",)
        service.answers[member] = none
        await eventually(lambda: source.inhibitors == (), "its end")
        await service.stop()

    beside(tmp_path, story)


@pytest.mark.parametrize(("name", "member"), [(GNOME, "GetInhibitors"), (KDE, "HasInhibition"), (KDE, "ListInhibitions")])
@pytest.mark.parametrize(
    ("error", "held"),
    [
        pytest.param("AccessDenied", (UNKNOWN,), id="refused"),
        pytest.param("Failed", (UNKNOWN,), id="failed"),
        pytest.param("UnknownMethod", (), id="there is no such list"),
    ],
)
def test_a_list_that_is_refused_is_no_empty_one(
    name: str, member: str, error: str, held: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle_bus, "AGAIN_S", 0.1)

    async def story(address: str, source: BusIdle) -> None:
        service = Service(address, name)
        service.answers = {"HasInhibition": ("b", [True]), member: f"org.freedesktop.DBus.Error.{error}"}
        await service.start()
        await eventually(lambda: member in service.asked and not source._inhibitors._asking, "the answer")
        assert source.inhibitors == ((UNKNOWN,) if member == "ListInhibitions" else held)  # that there is one is known
        await service.stop()

    beside(tmp_path, story)


def test_inhibitors_of_gnome_with_their_holders(tmp_path: Path) -> None:
    async def story(address: str, source: BusIdle) -> None:
        gnome = Service(address, GNOME)
        held = {"/i/1": ("org.example.Film", 8), "/i/2": ("org.example.Burner", 4)}
        gnome.answers = {
            "GetInhibitors": lambda _: ("ao", [list(held)]),
            "GetAppId": lambda m: ("s", [held[m.path][0]]),
            "GetFlags": lambda m: ("u", [held[m.path][1]]),
        }
        await gnome.start()
        await eventually(lambda: source.inhibitors == ("org.example.Film",), "the film, which was there before")
        del held["/i/1"]
        await gnome.emit(GNOME_PATH, "InhibitorRemoved", "o", "/i/1")
        await eventually(lambda: source.inhibitors == (), "its end")
        held["/i/3"] = ("org.example.Call", 12)
        await gnome.emit(GNOME_PATH, "InhibitorAdded", "o", "/i/3")
        await eventually(lambda: source.inhibitors == ("org.example.Call",), "a call")
        await gnome.stop()
        await eventually(lambda: source.inhibitors == (), "the end of the session manager")

    beside(tmp_path, story)


@pytest.mark.parametrize(
    ("locks", "holders"),
    [pytest.param(40, ("film",), id="a film among many"), pytest.param(300, (UNKNOWN,), id="more than are looked at")],
)
def test_many_other_locks_of_gnome_hide_no_film(locks: int, holders: tuple[str, ...], tmp_path: Path) -> None:
    """A program that never gives its locks on suspend up, say; they come in no order."""

    async def story(address: str, source: BusIdle) -> None:
        gnome = Service(address, GNOME)
        film = f"/i/{locks}"
        gnome.answers = {
            "GetInhibitors": ("ao", [[f"/i/{number + 1}" for number in range(locks)]]),
            "GetAppId": ("s", ["film"]),
            "GetFlags": lambda m: ("u", [8 if m.path == film else 4]),
        }
        await gnome.start()
        await eventually(lambda: source.inhibitors == holders, "the film")
        await gnome.stop()

    beside(tmp_path, story)


def test_a_game_that_gamemode_knows_and_gamemode_is_never_started(tmp_path: Path) -> None:
    """T31: the bus would start it for each caller."""

    async def story(address: str, source: BusIdle) -> None:
        gamemode = Service(address, GAMEMODE)
        games = {"ClientCount": Variant("i", 1)}
        gamemode.answers = {"GetAll": lambda _: ("a{sv}", [games])}
        await gamemode.start()
        await eventually(lambda: source.inhibitors == (PLAYING,), "the game")
        games["ClientCount"] = Variant("i", 0)
        await gamemode.emit(GAMEMODE_PATH, "GameUnregistered", "io", 7, "/g/7")
        await eventually(lambda: source.inhibitors == (), "its end")
        games["ClientCount"] = Variant("i", 2)
        await gamemode.emit(GAMEMODE_PATH, "GameRegistered", "io", 8, "/g/8")
        await eventually(lambda: source.inhibitors == (PLAYING,), "two more")
        del games["ClientCount"]
        asked = len(gamemode.asked)
        await gamemode.emit(GAMEMODE_PATH, "GameUnregistered", "io", 8, "/g/8")
        await eventually(lambda: len(gamemode.asked) > asked, "the question")
        assert source.inhibitors == (PLAYING,)  # it does not say how many any more: unknown is not idle
        await gamemode.stop()
        await eventually(lambda: source.inhibitors == (), "the end of gamemode")

    beside(tmp_path, story)


def test_a_gamemode_that_is_busy_for_once_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs its scripts before it answers anybody (here it takes as long as a call may); no signal reports its end."""
    monkeypatch.setattr(idle_bus, "AGAIN_S", 0.1)

    async def story(address: str, source: BusIdle) -> None:
        gamemode = Service(address, GAMEMODE)
        gamemode.answers = {"GetAll": None}
        await gamemode.start()
        await eventually(lambda: source.inhibitors == (PLAYING,), "doubt")
        gamemode.answers = {"GetAll": ("a{sv}", [{"ClientCount": Variant("i", 0)}])}
        await eventually(lambda: source.inhibitors == (), "nobody plays")
        await gamemode.stop()

    beside(tmp_path, story)


def test_inhibitions_of_kde_with_their_holders_and_no_reason(tmp_path: Path) -> None:
    async def story(address: str, source: BusIdle) -> None:
        kde = Service(address, KDE)
        kde.answers = {"HasInhibition": ("b", [True]), "ListInhibitions": ("a(ss)", [[["firefox", "a secret title"]]])}
        await kde.start()
        await eventually(lambda: source.inhibitors == ("firefox",), "the film")
        kde.answers["HasInhibition"] = ("b", [False])
        await kde.emit(KDE_PATH, "InhibitionsChanged", "a(ss)as", [], ["firefox"])
        await eventually(lambda: source.inhibitors == (), "its end")
        await kde.stop()

    beside(tmp_path, story)


FILM = ("firefox", "a secret title")
OWN = ("rae-node", "a task runs (pid 7)")
BURN = ("k3b", "burning")
TALK = ("impress", "a talk")


def lock(holder: tuple[str, str], what: str) -> Inhibition:
    return Inhibition(what, *holder, "block", 1000, 77)


class PowerDevil(Service):
    """KDE's agent. `held`: what each holder holds. `kinds`: it tells them, as from Plasma 6.5 on."""

    def __init__(self, address: str, kinds: bool) -> None:
        super().__init__(address, KDE)
        self.held: dict[tuple[str, str], str] = {}
        self.answers = {
            "HasInhibition": lambda m: ("b", [m.body == [4] and any("idle" in what for what in self.held.values())]),
            "ListInhibitions": lambda _: ("a(ss)", [[list(holder) for holder in self.held]]),
        }
        if kinds:
            active = lambda: [[what, *holder, "block", 0] for holder, what in self.held.items()]  # noqa: E731
            self.answers = {"Get": lambda _: ("v", [Variant("a(ssssu)", active())])}
        else:
            self.answers["Get"] = "org.freedesktop.DBus.Error.InvalidArgs"

    async def hold(self, held: dict[tuple[str, str], str]) -> None:
        self.held = held
        asked = len(self.asked)
        if "HasInhibition" in self.answers:
            await self.emit(KDE_PATH, "InhibitionsChanged", "a(ss)as", [], [])
        else:
            changed = [KDE, {"ActiveInhibitions": Variant("a(ssssu)", [])}, []]
            await self.signal(KDE_PATH, "org.freedesktop.DBus.Properties", "PropertiesChanged", "sa{sv}as", *changed)
        await eventually(lambda: len(self.asked) > asked, "the question")


# What KDE lists after what it listed before, what logind lists, and who counts.
MIRRORS = [
    pytest.param([], {OWN: "sleep:idle"}, [lock(OWN, "sleep"), lock(OWN, "idle")], (), id="the node's own"),
    pytest.param([], {OWN: "sleep:idle"}, [], (), id="the node's own, a moment after it was let go"),
    pytest.param([], {TALK: "idle"}, [lock(TALK, "idle")], (), id="another's, which logind tells"),
    pytest.param([{TALK: "idle"}], {TALK: "idle"}, [], ("impress",), id="KDE's own of the same name"),
    pytest.param([], {OWN: "idle", FILM: "idle"}, [lock(OWN, "idle")], ("firefox",), id="a film beside it"),
    pytest.param([{BURN: "sleep"}], {BURN: "sleep", OWN: "sleep:idle"}, [lock(OWN, "idle")], (), id="no screen is held"),
    pytest.param([{BURN: "sleep"}], {BURN: "sleep", FILM: "idle"}, [], ("firefox",), id="a film beside it and a burner"),
    pytest.param([{BURN: "sleep"}], {BURN: "sleep:idle"}, [], ("k3b",), id="a burner that now holds the screen"),
    pytest.param([{BURN: "sleep"}], {BURN: "sleep"}, [], (), id="a burner alone"),
]


@pytest.mark.parametrize("kinds", [False, True], ids=["names", "kinds"])
@pytest.mark.parametrize(("before", "now", "logind", "counted"), MIRRORS)
def test_kde_lists_logind_s_locks_too_and_who_holds_no_screen(
    before: list[dict[tuple[str, str], str]],
    now: dict[tuple[str, str], str],
    logind: list[Inhibition],
    counted: tuple[str, ...],
    kinds: bool,
    tmp_path: Path,
) -> None:
    """KDE takes up each lock of logind's, also the node's own, under its holder's name."""

    async def locks() -> list[Inhibition]:
        return logind

    async def story(address: str, source: BusIdle) -> None:
        kde = PowerDevil(address, kinds)
        await kde.start()
        for held in before:
            await kde.hold(held)
            await eventually(lambda: not source._inhibitors._asking, "the answer")
        await kde.hold(now)
        await eventually(lambda: not source._inhibitors._asking, "the answer")
        assert source.inhibitors == counted
        await kde.hold({})
        await eventually(lambda: source.inhibitors == (), "its end")
        await kde.stop()

    beside(tmp_path, story, locks=locks)


def test_what_was_logind_s_stays_so_until_kde_drops_it(tmp_path: Path) -> None:
    logind = [lock(TALK, "idle")]

    async def locks() -> list[Inhibition]:
        return logind

    async def story(address: str, source: BusIdle) -> None:
        kde = PowerDevil(address, kinds=False)
        await kde.start()
        await kde.hold({TALK: "idle"})
        await eventually(lambda: source._inhibitors._mirrored and not source._inhibitors._asking, "the mirror")
        logind.clear()
        await kde.hold({TALK: "idle"})
        await eventually(lambda: not source._inhibitors._asking, "the answer")
        assert source.inhibitors == ()
        await kde.hold({})
        await kde.hold({TALK: "idle"})
        await eventually(lambda: source.inhibitors == ("impress",), "a new one, which logind does not list")
        await kde.stop()

    beside(tmp_path, story, locks=locks)


def test_without_logind_only_the_node_s_own_is_known_for_a_mirror(tmp_path: Path) -> None:
    async def locks() -> list[Inhibition]:
        raise BusError("logind does not answer")

    async def story(address: str, source: BusIdle) -> None:
        kde = PowerDevil(address, kinds=True)
        await kde.start()
        await kde.hold({OWN: "idle", TALK: "idle"})
        await eventually(lambda: source.inhibitors == ("impress",), "the talk")
        await kde.stop()

    beside(tmp_path, story, locks=locks)


def test_a_power_manager_lists_its_holders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Xfce's. KDE answers there too, for who only blocks sleep: it is not asked."""
    monkeypatch.setattr(idle_bus, "AGAIN_S", 0.1)

    async def story(address: str, source: BusIdle) -> None:
        power, held = Service(address, POWER), ["filmplayer"]
        power.answers = {"HasInhibit": lambda _: ("b", [bool(held)]), "GetInhibitors": lambda _: ("as", [held])}
        await power.start()
        await eventually(lambda: source.inhibitors == ("filmplayer",), "the film")
        held[:] = ["", "rae-node"]
        await power.signal(POWER_PATH, POWER_INHIBIT, "InhibitorsListChanged", "b", True)
        await eventually(lambda: source.inhibitors == (UNNAMED,), "a program without a name; the node's own counts nowhere")
        power.answers["GetInhibitors"] = "org.freedesktop.DBus.Error.UnknownMethod"
        await power.signal(POWER_PATH, POWER_INHIBIT, "HasInhibitChanged", "b", True)
        await eventually(lambda: source.inhibitors == (UNKNOWN,), "a manager that does not list")
        power.answers["HasInhibit"] = None
        held.clear()
        await power.signal(POWER_PATH, POWER_INHIBIT, "HasInhibitChanged", "b", False)
        await eventually(lambda: power.asked[-1] == "HasInhibit", "a question in vain")
        assert source.inhibitors == (UNKNOWN,)
        power.answers["HasInhibit"] = ("b", [True])
        await eventually(lambda: source.inhibitors == (UNKNOWN,), "asked again", 20)
        kde = PowerDevil(address, kinds=True)
        await kde.start()
        await eventually(lambda: "Get" in kde.asked, "KDE")
        await power.signal(POWER_PATH, POWER_INHIBIT, "HasInhibitChanged", "b", True)
        await eventually(lambda: source.inhibitors == (), "KDE has told")
        await kde.stop()
        await power.stop()

    beside(tmp_path, story)


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("vlc", "vlc"), ("", UNNAMED), ('Application="Film"; Since="1970"; Reason="a secret title";', "Film"),
        ('Reason="a secret title"', UNNAMED), ('Application=""; Reason="x"', UNNAMED),
    ],
)  # fmt: skip
def test_a_screen_saver_that_lists_is_believed_without_its_reasons(entry: str, name: str, tmp_path: Path) -> None:
    async def story(address: str, source: BusIdle) -> None:
        saver = Service(address, "org.mate.ScreenSaver")
        saver.answers["GetInhibitors"] = lambda _: ("as", [[entry]])
        await saver.start()
        await eventually(lambda: source.inhibitors == (name,), "the film")
        saver.answers["GetInhibitors"] = ("as", [[]])
        await source.prove_inhibitors()
        assert source.inhibitors == (), "asked with each proof, for it has no signal"
        await saver.stop()

    beside(tmp_path, story)


class Media(Service):
    """A media player."""

    def __init__(self, address: str, status: str = "Paused") -> None:
        super().__init__(address, "org.mpris.MediaPlayer2.firefox.instance_1_7")
        self.status = status
        self.answers["Get"] = lambda _: ("v", [Variant("s", self.status)])

    async def play(self, status: str) -> None:
        self.status = status
        changed = [PLAYER, {"PlaybackStatus": Variant("s", status)}, []]
        await self.signal(PLAYER_PATH, "org.freedesktop.DBus.Properties", "PropertiesChanged", "sa{sv}as", *changed)


def test_a_player_counts_where_nobody_lists_the_screen_s_holders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """light-locker answers for the screen saver, and lists nobody. Where a list is asked, music is not a person."""
    monkeypatch.setattr(idle_bus, "ANSWER_S", 0.1)
    monkeypatch.setattr(idle_bus, "AGAIN_S", 0.1)

    async def story(address: str, source: BusIdle) -> None:
        player, locker, power = Media(address, "Playing"), Service(address, SAVER), Service(address, POWER)
        power.answers = {"HasInhibit": ("b", [False])}
        await player.start()
        await eventually(lambda: source.inhibitors == ("firefox",), "no list at all: a film, as far as is known")
        await power.start()
        await eventually(lambda: source.inhibitors == (), "a power manager, which lists")
        locker.answers["GetInhibitors"] = ("as", [[]])
        await locker.start()
        await eventually(lambda: source.inhibitors == ("firefox",), "a locker whose list is always empty")
        await player.play("Paused")
        await eventually(lambda: source.inhibitors == (), "a pause")
        await player.play("Playing")
        await eventually(lambda: source.inhibitors == ("firefox",), "the film goes on")
        player.answers["Get"] = None
        asked = len(player.asked)
        await player.play("Stopped")
        await eventually(lambda: len(player.asked) > asked + 2, "a player that hangs is asked again")
        assert source.inhibitors == ("firefox",)
        await player.stop()
        await eventually(lambda: source.inhibitors == (), "its end")
        await locker.stop()
        await power.stop()

    beside(tmp_path, story)


def test_a_saver_that_passes_its_holders_on_leaves_players_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GNOME's settings daemon answers for the screen saver, and tells the session manager."""
    program = Path("/proc/self/comm").read_text()[:4]
    monkeypatch.setattr(idle_bus, "FORWARDERS", (program,))

    async def story(address: str, source: BusIdle) -> None:
        gnome, proxy, player = Service(address, GNOME), Service(address, SAVER), Media(address, "Playing")
        gnome.answers["GetInhibitors"] = ("ao", [[]])
        for service in (gnome, proxy, player):
            await service.start()
        await eventually(lambda: source._inhibitors._saver_forwards and not source._inhibitors._asking, "the answers")
        assert source.inhibitors == ()
        await proxy.stop()
        await gnome.stop()
        await eventually(lambda: source.inhibitors == ("firefox",), "nobody lists any more")
        await player.stop()

    beside(tmp_path, story)


async def call(bus: MessageBus, member: str, signature: str, *body: Any, name: str = SAVER, interface: str = SAVER) -> None:
    path = "/" + interface.replace(".", "/")
    reply = await bus.call(
        Message(
            destination=name, path=path, interface=interface, member=member, signature=signature, body=list(body),
            flags=MessageFlag.NO_AUTOSTART,
        )
    )  # fmt: skip
    assert reply is not None
    assert reply.message_type is MessageType.METHOD_RETURN, "the monitor answers nobody"


def test_who_inhibits_a_saver_that_lists_nobody_is_seen_by_the_calls(tmp_path: Path) -> None:
    async def story(address: str, source: BusIdle) -> None:
        locker = Service(address, SAVER)
        locker.answers = {"Inhibit": ("u", [7]), "UnInhibit": ("", [])}
        await locker.start()
        await eventually(lambda: source._inhibitors._watching_calls, "the watch")
        film = await MessageBus(bus_address=address, bus_type=BusType.SYSTEM).connect()

        async def seen() -> None:  # the watch may begin a moment later
            while source.inhibitors != ("filmplayer",):
                await call(film, "Inhibit", "ss", "filmplayer", "a secret title")
                await asyncio.sleep(0.05)
                if source.inhibitors != ("filmplayer",):
                    await call(film, "UnInhibit", "u", 7)

        await asyncio.wait_for(seen(), 20)
        await call(film, "Inhibit", "ss", "filmplayer", "another title")
        await call(film, "UnInhibit", "u", 7)
        await source.prove_inhibitors()
        assert source.inhibitors == ("filmplayer",), "one of two is held still"
        await call(film, "UnInhibit", "u", 7)
        await eventually(lambda: source.inhibitors == (), "its end")
        await call(film, "Inhibit", "ss", "", "a secret title")
        await eventually(lambda: source.inhibitors == (UNNAMED,), "a program without a name")
        film.disconnect()
        await asyncio.gather(film.wait_for_disconnect(), return_exceptions=True)

        await eventually(lambda: source.inhibitors == (), "a program that ended without a word")
        assert not source._bus._ends
        await locker.stop()
        await eventually(lambda: source._inhibitors._watching_calls is None, "nothing is watched without need")

    beside(tmp_path, story)


def test_a_power_manager_without_signals_is_asked_when_somebody_calls_it(tmp_path: Path) -> None:
    """Xfce's lists its holders, and sends no signal when they change."""

    async def story(address: str, source: BusIdle) -> None:
        power, held = Service(address, POWER), list[str]()

        def inhibit(message: Message) -> tuple[str, list[Any]]:
            held.append(message.body[0])
            return "u", [7]

        def let_go(_: Message) -> tuple[str, list[Any]]:
            held.clear()
            return "", []

        power.answers = {"Inhibit": inhibit, "UnInhibit": let_go, "GetInhibitors": lambda _: ("as", [held])}
        power.answers["HasInhibit"] = lambda _: ("b", [bool(held)])
        await power.start()
        await eventually(lambda: source._inhibitors._watching_calls, "the watch")
        film = await MessageBus(bus_address=address, bus_type=BusType.SYSTEM).connect()
        where = {"name": POWER, "interface": POWER_INHIBIT}

        async def seen() -> None:  # the watch may begin a moment later
            while source.inhibitors != ("filmplayer",):
                held.clear()
                await call(film, "Inhibit", "ss", "filmplayer", "a secret title", **where)
                await asyncio.sleep(0.05)

        await asyncio.wait_for(seen(), 20)
        await call(film, "UnInhibit", "u", 7, **where)
        await eventually(lambda: source.inhibitors == (), "its end")
        await call(film, "Inhibit", "ss", "filmplayer", "a secret title", **where)
        await eventually(lambda: source.inhibitors == ("filmplayer",), "another film")
        held.clear()  # as the power manager does when its caller leaves
        film.disconnect()
        await asyncio.gather(film.wait_for_disconnect(), return_exceptions=True)
        await eventually(lambda: source.inhibitors == (), "a program that ended without a word")
        await power.stop()

    beside(tmp_path, story)


def test_who_blocks_sleep_alone_while_the_node_s_own_lock_is_mirrored_is_no_film(tmp_path: Path) -> None:
    """Before Plasma 6.5 KDE does not say what a holder holds; the call that it made does."""

    async def story(address: str, source: BusIdle) -> None:
        kde, power = PowerDevil(address, kinds=False), Service(address, POWER)
        power.answers = {"Inhibit": ("u", [7]), "UnInhibit": ("", [])}
        await kde.start()
        await power.start()
        await eventually(lambda: source._inhibitors._watching_calls, "the watch")
        await kde.hold({OWN: "sleep:idle"})
        loads, where = await MessageBus(bus_address=address, bus_type=BusType.SYSTEM).connect(), {
            "name": POWER, "interface": POWER_INHIBIT,
        }  # fmt: skip
        calls = source._inhibitors._calls

        async def seen() -> None:  # the watch may begin a moment later
            while not calls.held(POWER_INHIBIT):
                await call(loads, "Inhibit", "ss", *BURN, **where)
                await asyncio.sleep(0.05)

        await asyncio.wait_for(seen(), 20)
        await kde.hold({OWN: "sleep:idle", BURN: "sleep"})
        await eventually(lambda: not source._inhibitors._asking, "the answer")
        assert source.inhibitors == ()
        await kde.hold({OWN: "sleep:idle", BURN: "sleep", FILM: "idle"})
        await eventually(lambda: source.inhibitors == ("firefox",), "a film")
        await kde.hold({OWN: "sleep:idle", BURN: "sleep"})
        await eventually(lambda: source.inhibitors == (), "its end")
        await call(loads, "UnInhibit", "u", 7, **where)
        await eventually(lambda: source.inhibitors == ("k3b",), "it holds something else by now")
        loads.disconnect()
        await asyncio.gather(loads.wait_for_disconnect(), return_exceptions=True)
        await kde.stop()
        await power.stop()

    beside(tmp_path, story)
