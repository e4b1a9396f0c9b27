"""What one session says about its person: the policy as a table, and what must hold for every session there can be."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.login1 import MANAGER, session

from states.observation import NEVER
from supervisor.linux.dbus import BusError
from supervisor.sensors.presence.agent_reports import Proof
from supervisor.sensors.presence.session_policy import LID_CLOSED, NOT_PEOPLE, Session, judge, lid_reason

NOW_S, OFFSET_S, IDLE_S, CREATED_S = 5000.0, 1000.0, 3000.0, 1001.0
IDLE = {"IdleHint": True, "IdleSinceHintMonotonic": int((IDLE_S - OFFSET_S) * 1e6)}
AWAY = {**IDLE, "LockedHint": True}
BACK = {"Active": False, "State": "online"}
TTY = {"Type": "tty", "TTY": "pts/3", "Seat": ("", "/")}
NONE = NEVER
UNKNOWN = "graphical session 3 of anna on seat0, idle time unknown"
SOURCE = "ext-idle-notify-v1 on wayland-1"
GONE = Proof(SOURCE, False, 4000.0, "")
HERE = Proof(SOURCE, True, NOW_S, "")
BLIND = Proof(why="wayland-0 offers nothing")


def read(**changes: Any) -> Session:
    return Session.read("/p", session(**changes), NOW_S, OFFSET_S)


@pytest.mark.parametrize(
    ("changes", "strict", "present", "last_sign_s"),
    [
        pytest.param({}, False, f"{UNKNOWN}: install the session agent (", None, id="wayland in the foreground"),
        pytest.param({"Type": "x11"}, False, "graphical session 3", None, id="x11 in the foreground"),
        pytest.param({"Type": "holo"}, False, "graphical session 3", None, id="an unknown type is graphical"),
        pytest.param(IDLE, False, "(idle, but not locked)", None, id="IdleHint alone proves nothing"),
        pytest.param({"LockedHint": True}, False, "(locked, but not idle)", None, id="locked is not away"),
        pytest.param(AWAY, False, "", IDLE_S, id="idle and locked: away since IdleSince"),
        pytest.param(AWAY, True, "presence.strict", None, id="strict: any active graphical session is a person"),
        pytest.param({**AWAY, "IdleSinceHintMonotonic": 0}, False, "locked", None, id="away, but not since when"),
        pytest.param({**AWAY, **BACK}, False, "", IDLE_S, id="background and idle"),
        pytest.param({**IDLE, **BACK}, False, "", IDLE_S, id="the background is a second source"),
        pytest.param(BACK, False, "", CREATED_S, id="background, not idle: its login"),
        pytest.param(BACK, True, "", CREATED_S, id="strict counts the foreground only"),
        pytest.param({"State": "closing"}, True, "", NONE, id="a session that was left"),
        pytest.param({"Seat": ("", "/"), "Remote": True}, False, "from afar, idle time unknown", None, id="remote"),
        pytest.param({"Seat": ("", "/")}, False, "of anna without a seat, idle time unknown", None, id="no seat at all"),
        pytest.param({"RemoteHost": "10.0.0.5"}, False, "from 10.0.0.5", None, id="a remote host is named"),
        pytest.param(TTY, False, "", CREATED_S, id="terminal: its login"),
        pytest.param({**TTY, **IDLE}, False, "", IDLE_S, id="terminal: what logind read from it"),
        pytest.param({**TTY, "IdleSinceHintMonotonic": 1}, False, "", CREATED_S, id="terminal older than its login"),
        pytest.param({**TTY, "IdleSinceHintMonotonic": 2**64 - 1}, False, "", NOW_S, id="a time to come is now"),
        pytest.param({"Type": "unspecified"}, True, "", CREATED_S, id="no type: as a terminal"),
        pytest.param({"Class": "user-early"}, False, "graphical session 3", None, id="user-early is a person"),
        pytest.param({"Class": "novel"}, False, "graphical session 3", None, id="a class that we do not know is one"),
        *(
            pytest.param({"Class": kind}, True, "", NONE, id=f"{kind} is not a person")
            for kind in (*NOT_PEOPLE, "manager-early", "background-light")
        ),
    ],
)
def test_policy(changes: dict[str, Any], strict: bool, present: str, last_sign_s: float | None) -> None:
    verdict = judge(read(**changes), strict=strict)
    assert bool(verdict.present) == bool(present)
    assert present in verdict.present
    if last_sign_s is not None:
        assert verdict.last_sign_at_s == last_sign_s
        assert verdict.sign or verdict.note


@pytest.mark.parametrize(
    ("changes", "proof", "strict", "present", "last_sign_s"),
    [
        pytest.param({}, GONE, False, "", 4000.0, id="the agent proves that nobody is there"),
        pytest.param({}, HERE, False, f"graphical session 3 of anna active on seat0 ({SOURCE})", None, id="or that one is"),
        pytest.param({}, BLIND, False, f"{UNKNOWN}: wayland-0 offers nothing", None, id="or says what it lacks"),
        pytest.param({}, GONE, True, "nobody there by its agent, but presence.strict is true", None, id="strict"),
        pytest.param(AWAY, HERE, False, f"active on seat0 ({SOURCE})", None, id="the agent is nearer than the hints"),
        pytest.param(AWAY, GONE, False, "", 4000.0, id="both away: the later sign"),
        pytest.param(AWAY, Proof(SOURCE, False, 2000.0, ""), False, "", IDLE_S, id="both away: the later sign, the hint's"),
        pytest.param(AWAY, BLIND, False, "", IDLE_S, id="hints alone serve as before"),
        pytest.param(BACK, GONE, False, "", 4000.0, id="background: what its agent says"),
        pytest.param(BACK, HERE, False, f"active on seat0 ({SOURCE})", None, id="used, though in the background"),
        pytest.param(TTY, HERE, False, f"session 3 of anna active on pts/3 ({SOURCE})", None, id="a compositor from a tty"),
        pytest.param({}, Proof(SOURCE, False, 0.0, ""), False, "", CREATED_S, id="idle for longer than it exists: its login"),
        pytest.param({"Class": "greeter"}, HERE, False, "", NONE, id="a greeter is nobody"),
    ],
)
def test_policy_with_an_agent(
    changes: dict[str, Any], proof: Proof, strict: bool, present: str, last_sign_s: float | None
) -> None:
    verdict = judge(read(**changes), proof, strict=strict)
    assert bool(verdict.present) == bool(present)
    assert present in verdict.present
    if last_sign_s is not None:
        assert verdict.last_sign_at_s == last_sign_s


@pytest.mark.parametrize(
    ("changes", "sign"),
    [(TTY, "anna logged in on pts/3"), ({**TTY, **IDLE}, "user active on pts/3"), (AWAY, "user active on seat0")],
)
def test_the_text_of_a_sign(changes: dict[str, Any], sign: str) -> None:
    assert judge(read(**changes)).sign == sign


SESSIONS = st.builds(
    Session,
    id=st.just("3"), path=st.just("/p"), uid=st.just(1000), user=st.just("anna"), seat=st.sampled_from(["", "seat0"]),
    type=st.sampled_from(["x11", "wayland", "mir", "tty", "web", "unspecified", "new"]),
    kind=st.sampled_from(["user", "user-early", "new", *NOT_PEOPLE, "manager-early", "background-light"]),
    state=st.sampled_from(["opening", "online", "active", "closing"]), active=st.booleans(), remote=st.booleans(),
    host=st.just(""), tty=st.just(""), idle=st.booleans(), locked=st.booleans(),
    created_s=st.sampled_from([NEVER, 1.0, 7.0]), idle_since_s=st.sampled_from([NEVER, 0.5, 3.0, 9.0]),
)  # fmt: skip


@given(SESSIONS, st.booleans())
def test_a_foreground_is_a_person_unless_both_hints_say_otherwise(seen: Session, strict: bool) -> None:
    present = judge(seen, strict=strict).present
    foreground = seen.counts and seen.graphical and seen.active
    proven = seen.idle and seen.locked and seen.idle_since_s != NEVER
    assert bool(present) == (foreground and (strict or not proven))


@given(SESSIONS)
def test_strict_never_says_less(seen: Session) -> None:
    assert judge(seen, strict=True).present or not judge(seen).present


@given(SESSIONS)
def test_a_person_always_leaves_a_time_that_is_known(seen: Session) -> None:
    verdict = judge(seen)
    if seen.counts and not verdict.present:
        assert verdict.last_sign_at_s >= seen.created_s
        assert verdict.sign
    if not seen.counts:
        assert verdict == dataclasses.replace(verdict, present="", last_sign_at_s=NEVER, sign="")
        assert verdict.note


@pytest.mark.parametrize("name", sorted(session()))
def test_what_is_missing_or_odd_is_an_error_not_a_guess(name: str) -> None:
    lacking = session()
    del lacking[name]
    with pytest.raises(BusError, match=r"this node does not know \("):
        Session.read("/p", lacking, NOW_S, OFFSET_S)
    with pytest.raises(BusError, match=r"this node does not know \("):
        Session.read("/p", session(**{name: 3.5}), NOW_S, OFFSET_S)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"LidClosed": False}, ""),
        ({}, LID_CLOSED),
        ({"Docked": True}, ""),
        ({"Docked": True, "HandleLidSwitchDocked": "suspend"}, LID_CLOSED),
        ({"HandleLidSwitch": "ignore"}, ""),
        ({"HandleLidSwitch": "lock"}, ""),
        ({"HandleLidSwitch": "hibernate", "OnExternalPower": False}, LID_CLOSED),
        ({"HandleLidSwitchExternalPower": "ignore"}, ""),
        ({"HandleLidSwitchExternalPower": "ignore", "OnExternalPower": False}, LID_CLOSED),
    ],
)
def test_a_closed_lid_is_going_down_unless_logind_ignores_it(changes: dict[str, Any], reason: str) -> None:
    assert lid_reason({**MANAGER, "LidClosed": True, **changes}) == reason


def test_no_lid_known_is_no_lid() -> None:
    assert lid_reason({}) == ""
