"""What session agents say, and when it is believed: owner, age, form; and what a silent or lying one can do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import ManualClock

from states.observation import NEVER
from supervisor.config.schema import PresenceSettings
from supervisor.sensors.presence.agent_reports import INSTALL_AGENT, MAX_SESSIONS, AgentReports, Blind, Proof, SessionOwners

ANNA, BERT = 1000, 1001
SOURCE = "XSync IDLETIME of display :0"


class World:
    """A desktop sensor, and a logind in which session 3 is anna's and session 5 bert's."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.owners = SessionOwners({"3": (ANNA, "anna"), "5": (BERT, "bert")})
        self.reports = AgentReports(self.clock, PresenceSettings(), self.owners, 60.0)
        self.woken = 0
        self.reports._wake = self.wake

    def wake(self) -> None:
        self.woken += 1

    def hear(self, uid: int = ANNA, **fields: Any) -> None:
        self.reports.receive(uid, {"sessions": [report()], "terminals": None} | fields)

    def proof(self, session: str = "3", uid: int = ANNA) -> Proof:
        return self.reports.proof(session, uid, self.clock.now_s())

    @property
    def now(self) -> Any:
        return self.reports.latest(self.clock.now_s())


def report(**changes: Any) -> dict[str, Any]:
    return {"id": "3", "source": SOURCE, "idle": 42.5, "inhibitors": [], "why": ""} | changes


def test_an_idle_desktop_is_a_proof_and_ages() -> None:
    world = World()
    assert world.proof() == Proof(why=INSTALL_AGENT)
    world.hear()
    assert world.proof() == Proof(SOURCE, False, 957.5, "")
    world.clock.now += 60.0
    assert world.proof() == Proof(SOURCE, False, 957.5, "")
    world.clock.now += 0.5
    assert "has been silent for 60 s (systemctl --user restart" in world.proof().why
    world.hear(sessions=[report(idle=103.0)])
    assert world.proof().source


def test_an_active_one_is_a_person() -> None:
    world = World()
    world.hear(sessions=[report(idle="active")])
    assert world.proof() == Proof(SOURCE, True, 1000.0, "")


def test_an_unproven_one_says_what_it_lacks() -> None:
    world = World()
    world.hear(sessions=[report(source="", idle="active", why="wayland-0 offers nothing")])
    said = "wayland-0 offers nothing (journalctl --user -u rae-node-session)"
    assert world.proof() == Proof(why=said, blind=Blind.UNREADABLE)
    world.hear(sessions=[report(source="", idle="active", why="wayland-0 offers nothing", hung=True)])
    assert world.proof() == Proof(why=said, blind=Blind.HUNG)
    world.hear(sessions=[])
    restart = "the session agent sees nothing of it (systemctl --user restart rae-node-session)"
    assert world.proof() == Proof(why=restart, blind=Blind.NO_DISPLAY)


def test_a_display_is_a_sessions_or_speaks_for_itself() -> None:
    world = World()

    def says(display: str, uid: int = ANNA) -> Proof | None:
        return world.reports.display_proof(display, uid, world.clock.now)

    assert says(":7") == Proof(why=INSTALL_AGENT)
    world.hear(sessions=[report(displays=[":1", "wayland-0"])], others=[report(id=":7", displays=[":7"])])
    assert (says(":1"), says("wayland-0")) == (None, None), "the session's proof speaks for them"
    assert says(":7") == Proof(SOURCE, False, 957.5, "")
    assert says(":8") == Proof(
        why="the session agent sees nothing of it (systemctl --user restart rae-node-session)", blind=Blind.NO_DISPLAY
    )
    assert world.reports.other_displays() == [(":7", ANNA)]
    world.hear(uid=BERT, sessions=[report(displays=[":1"])])  # session 3 is anna's
    assert says(":1", BERT) is not None
    other = World()
    other.reports.restore(world.reports.snapshot()["desktop"])
    assert other.reports.display_proof(":7", ANNA, other.clock.now) == Proof(SOURCE, False, 957.5, "")
    world.clock.now += 61.0
    assert "has been silent for 61 s" in getattr(says(":1"), "why", ""), "an old report counts nothing to a session"


@pytest.mark.parametrize("excepted", ["uid", "terminal"])
def test_what_node_yaml_takes_for_no_person_is_no_sign(excepted: str) -> None:
    world = World()
    if excepted == "uid":
        world.owners.ignored_uids = {ANNA}
    else:
        world.owners.ignored_terminals = frozenset({"pts/3"})
    world.hear(terminals={"age_s": 1.0, "on": "pts/3"}, sessions=[report(inhibitors=["Film"])])
    assert bool(world.now.present) == (excepted == "terminal")
    world.hear(sessions=[])
    assert world.now.sign == ("" if excepted == "uid" else "idle blocked by Film of anna (session 3) until just now")
    world.hear(uid=BERT, terminals={"age_s": 1.0, "on": ""})
    assert world.now.sign.endswith("may have typed: the kernel dropped events of terminals") or excepted == "terminal"


def test_nobody_is_believed_about_the_session_of_another() -> None:
    world = World()
    world.hear(uid=BERT)  # of anna's session 3
    assert world.proof() == Proof(why=INSTALL_AGENT)
    assert world.proof(uid=BERT) != Proof(why=INSTALL_AGENT)  # it is his word for session 3, which logind says is anna's
    assert world.reports.details()["idle sources"] == ["session 3: uid 1001 reports it, but does not own it: not counted"]
    world.hear(uid=BERT, sessions=[report(inhibitors=["Film"])])
    assert world.now.present == ""


def test_who_has_no_session_has_not_typed() -> None:
    world = World()
    world.hear(uid=4242, terminals={"age_s": 1.0, "on": "pts/3"})
    assert world.now.last_sign_at_s == NEVER
    world.owners.by_session["7"] = (4242, "carl")
    assert (world.now.last_sign_at_s, world.now.sign) == (999.0, "carl active on pts/3")


def test_a_film_is_a_person_until_it_ends() -> None:
    world = World()
    world.hear(sessions=[report(inhibitors=["Film", "Call"])])
    assert world.now.present == "idle blocked by Film, Call of anna (session 3)"
    world.hear()
    assert world.now.present == ""
    assert (world.now.last_sign_at_s, world.now.sign[-14:]) == (1000.0, "until just now")
    world.hear(sessions=[report(inhibitors=["Film"])])
    world.clock.now += 61
    assert world.now.present == ""  # but its session is active then, since nothing is proven


@pytest.mark.parametrize("holder", ["", " ", "\x1b"])
def test_a_film_whose_player_has_no_name_is_a_person_too(holder: str) -> None:
    world = World()
    world.hear(sessions=[report(inhibitors=[holder])])
    assert world.now.present == "idle blocked by an unnamed program of anna (session 3)"


def test_a_holder_that_node_yaml_excepts_is_shown_and_does_not_count() -> None:
    """As with logind's locks (T7): the same list of names, each with its age."""
    world = World()
    world.reports._settings = PresenceSettings(ignore_inhibitors=["Film"])
    world.hear(sessions=[report(inhibitors=["Film"])])
    assert world.now.present == ""
    world.clock.now += 50.0
    world.hear(sessions=[report(inhibitors=["Film", "Call"])])
    assert world.now.present == "idle blocked by Call of anna (session 3)"
    world.clock.now += 20.0
    blocked = "idle blocked by {} of anna (session 3), for {} s at least ({})"
    assert world.reports.details()["idle sources"][1:3] == [
        blocked.format("Film", 70, "not counted: presence.ignore_inhibitors"),
        blocked.format("Call", 20, "presence.ignore_inhibitors"),
    ]
    other = World()
    other.reports.restore(world.reports.snapshot()["desktop"])
    assert blocked.format("Film", 70, "presence.ignore_inhibitors") in other.reports.details()["idle sources"]
    world.hear(sessions=[report(inhibitors=["Film"])])
    assert (world.now.present, world.now.sign) == ("", "idle blocked by Call of anna (session 3) until just now")
    world.clock.now += 1.0
    world.hear()
    assert world.now.last_sign_at_s == world.clock.now - 1.0  # what does not count is no sign when it ends either


def test_without_any_agent_it_is_no_source() -> None:
    world = World()
    assert (world.now.sign, world.now.quality) == ("no source: no session agent has reported", "unknown")
    world.hear()
    assert (world.now.last_sign_at_s, world.now.quality) == (NEVER, "event")


def test_typing_outlives_the_agent_and_only_news_wakes() -> None:
    world = World()
    hung_up: list[int] = []

    def hang_up() -> None:
        hung_up.append(1)

    connection, answer = world.reports.connect(ANNA, hang_up)
    assert answer == {"every_s": 40.0}
    connection.receive({"sessions": [report()], "terminals": {"age_s": 3, "on": "pts/1"}})
    assert (world.woken, world.now.sign, world.now.last_sign_at_s) == (1, "anna active on pts/1", 997.0)
    world.clock.now += 40.0
    connection.receive({"sessions": [report(idle=82.5)], "terminals": {"age_s": 43, "on": "pts/1"}})
    assert world.woken == 1
    connection.receive({"sessions": [report(idle="active")], "terminals": {"age_s": 43, "on": "pts/1"}})
    assert world.woken == 2
    connection.closed()
    assert (world.woken, world.proof()) == (3, Proof(why=INSTALL_AGENT))
    assert world.now.last_sign_at_s == 997.0


def test_the_newest_agent_of_a_user_is_the_one_that_counts() -> None:
    world = World()
    old, _ = world.reports.connect(ANNA, lambda: None)
    old.receive({"sessions": [report()]})
    new, _ = world.reports.connect(ANNA, lambda: None)
    new.receive({"sessions": [report(idle="active")]})
    old.closed()
    assert world.proof().active
    new.closed()
    assert world.proof() == Proof(why=INSTALL_AGENT)


ODD = [
    {"sessions": None}, {"sessions": {}}, {"sessions": [None]}, {"sessions": [report()] * (MAX_SESSIONS + 1)},
    {"sessions": [report(idle=-1)]}, {"sessions": [report(idle="away")]}, {"sessions": [report(idle=True)]},
    {"sessions": [report(idle=float("nan"))]}, {"sessions": [report(idle=float("inf"))]}, {"sessions": [report(idle=10**400)]},
    {"sessions": [report(idle=None)]}, {"sessions": [report(id=3)]}, {"sessions": [report(source=None)]},
    {"sessions": [report(inhibitors="Film")]}, {"sessions": [report(inhibitors=[1])]}, {"terminals": 3},
    {"terminals": {"age_s": "now", "on": ""}}, {"terminals": {"age_s": 1.0}},
]  # fmt: skip


@pytest.mark.parametrize("fields", ODD, ids=range(len(ODD)))
def test_what_makes_no_sense_changes_nothing(fields: dict[str, Any]) -> None:
    world = World()
    world.hear()
    before = world.reports.snapshot()
    with pytest.raises(ValueError, match=" "):
        world.hear(**fields)
    assert world.reports.snapshot() == before


def test_texts_of_others_fit_one_line() -> None:
    world = World()
    world.hear(sessions=[report(inhibitors=["a\nb\x1b[31m" + "x" * 500])], terminals={"age_s": 1, "on": "pts/3\n"})
    assert world.now.present.startswith("idle blocked by a b xxx")
    assert len(world.now.present) < 200
    assert all(line.isprintable() for line in world.reports.details()["idle sources"])


AGES = st.floats(0, 1e6)


@given(st.lists(st.tuples(st.one_of(st.just("active"), AGES), st.floats(0, 30)), max_size=8), AGES)
def test_a_proof_never_says_more_than_the_last_report(story: list[tuple[Any, float]], later_s: float) -> None:
    """Whatever came before: idle only if the last report said so and is young, and never since later than it said."""
    world = World()
    last: tuple[Any, float] | None = None
    for idle, pause_s in story:
        world.hear(sessions=[report(idle=idle)])
        last = (idle, world.clock.now)
        world.clock.now += pause_s
    world.clock.now += later_s
    proof = world.proof()
    fresh = last is not None and world.clock.now - last[1] <= 60.0
    assert bool(proof.source) == fresh
    if last and fresh:
        assert proof.active == (last[0] == "active")
        if not proof.active:
            assert proof.idle_since_s == pytest.approx(last[1] - last[0])


def test_a_snapshot_is_the_same_elsewhere_and_as_old() -> None:
    world, other = World(), World()
    world.hear(terminals={"age_s": 2.0, "on": "pts/1"})
    world.hear(uid=BERT, sessions=[report(id="5", idle="active", inhibitors=["Film"])])
    world.clock.now += 10.0
    other.clock.now = 5000.0
    other.reports.restore(world.reports.snapshot()["desktop"])
    assert other.proof().idle_since_s == pytest.approx(5000.0 - 52.5)
    assert other.proof("5", BERT).active
    assert other.now.last_sign_at_s == pytest.approx(4988.0)
    assert other.now.present == "idle blocked by Film of bert (session 5)"
    other.clock.now += 51.0
    assert other.proof().source == ""
    for odd in (None, {}, [None], [{}], [{"age_s": 1.0, "uid": "x", "sessions": []}]):
        with pytest.raises(ValueError, match=" "):
            other.reports.restore(odd)
