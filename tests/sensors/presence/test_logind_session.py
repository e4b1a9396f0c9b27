"""What one session says about its person: the policy as a table, and what must hold for every session there can be."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.login1 import MANAGER, session

from states.observation import NEVER
from supervisor.config.schema import PresenceSettings
from supervisor.linux.dbus import BusError
from supervisor.linux.proc import Name
from supervisor.sensors.presence.agent_reports import Blind, Proof
from supervisor.sensors.presence.logind_session import LOGIN_SCREENS
from supervisor.sensors.presence.session_policy import LID_CLOSED, NO_PROOF, NO_WAY, Session, Way, exception, judge, lid_reason

NOW_S, OFFSET_S, IDLE_S, CREATED_S = 5000.0, 1000.0, 3000.0, 1001.0
IDLE = {"IdleHint": True, "IdleSinceHintMonotonic": int((IDLE_S - OFFSET_S) * 1e6)}
AWAY = {**IDLE, "LockedHint": True}
BACK = {"Active": False, "State": "online"}
TTY = {"Type": "tty", "TTY": "pts/3", "Seat": ("", "/")}
NONE = NEVER
UNKNOWN = "graphical session 3 of anna on seat0, idle time unknown"
SOURCE = "ext-idle-notify-v1 on wayland-1"
NOBODY = (*LOGIN_SCREENS, "none", "background", "manager", "manager-early", "background-light")
SSH = {**TTY, "TTY": "", "Remote": True, "RemoteHost": "10.0.0.5"}
LOST = "end it (loginctl terminate-session 3), or except it (presence.ignore_users"
GONE = Proof(SOURCE, False, 4000.0, "")
HERE = Proof(SOURCE, True, NOW_S, "")
BLIND = Proof(why="wayland-0 offers nothing", blind=Blind.UNREADABLE)
HUNG = Proof(why="display :0 does not answer", blind=Blind.HUNG)
UNSEEN = Way(terminal=False)


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
        pytest.param({"Type": "unspecified", "TTY": "pts/3"}, True, "", CREATED_S, id="no type: as a terminal"),
        pytest.param({"Class": "user-early"}, False, "graphical session 3", None, id="user-early is a person"),
        pytest.param({"Class": "novel"}, False, "graphical session 3", None, id="a class that we do not know is one"),
        *(
            pytest.param({"Class": kind}, True, "", NONE, id=f"{kind} is not a person")
            for kind in NOBODY
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
        pytest.param({}, HUNG, False, f"{UNKNOWN}: display :0 does not answer", None, id="or that it hangs"),
        pytest.param(AWAY, HUNG, False, "display :0 does not answer", None, id="what hangs is unknown, whatever the hints say"),
        pytest.param(BACK, HUNG, False, "display :0 does not answer", None, id="in the background too: a greeter locks it"),
        pytest.param(BACK, BLIND, False, "", CREATED_S, id="the foreground of its seat is another's"),
        pytest.param(TTY, BLIND, False, "session 3 of anna on pts/3, idle time unknown: wayland-0", None, id="startx"),
        pytest.param(TTY, GONE, False, "", 4000.0, id="startx, seen through its display"),
        pytest.param({"Class": "greeter"}, HERE, False, "login screen, session 3 of anna active on", None, id="a touch there"),
        pytest.param({"Class": "greeter"}, GONE, False, "", 4000.0, id="a login screen that nobody touches"),
        pytest.param({"Class": "lock-screen"}, HUNG, False, "display :0 does not answer", None, id="a login screen that hangs"),
        pytest.param({"Class": "greeter"}, BLIND, False, "", NONE, id="a login screen needs no source"),
        pytest.param({"Class": "background"}, HERE, False, "", NONE, id="a job is nobody"),
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
    ("changes", "proof", "way", "present", "last_sign_s"),
    [
        pytest.param(TTY, NO_PROOF, NO_WAY, "", CREATED_S, id="a terminal that is watched"),
        pytest.param(TTY, NO_PROOF, UNSEEN, f"its terminal cannot be seen: {LOST})", None, id="a terminal that is not"),
        pytest.param(SSH, NO_PROOF, Way(heard_s=4500.0), "", 4500.0, id="ssh -T: bytes came"),
        pytest.param(SSH, NO_PROOF, Way(heard_s=500.0), "", CREATED_S, id="ssh -T: no bytes since its login"),
        pytest.param(SSH, NO_PROOF, NO_WAY, f"is not found: {LOST} or presence.ignore_hosts)", None, id="no connection"),
        pytest.param(SSH, GONE, NO_WAY, "connection is not found", None, id="a display in it is no connection"),
        pytest.param(SSH, GONE, Way(heard_s=4500.0), "", 4500.0, id="the later of both"),
        pytest.param(SSH, HERE, Way(heard_s=500.0), f"active from 10.0.0.5 ({SOURCE})", None, id="X2Go: its display"),
        pytest.param({**SSH, "Type": "web"}, NO_PROOF, Way(heard_s=4500.0), "", 4500.0, id="a web console"),
        pytest.param({"Type": "tty", "Seat": ("", "/")}, NO_PROOF, NO_WAY, "without a display that is seen", None, id="none"),
        pytest.param({"Type": "unspecified", "Seat": ("", "/")}, GONE, NO_WAY, "", 4000.0, id="VNC from a shell, seen"),
        pytest.param({"Type": "unspecified"}, BLIND, NO_WAY, "wayland-0 offers nothing", None, id="VNC from a shell, not seen"),
    ],
)
def test_each_session_has_a_source_or_counts_as_somebody(
    changes: dict[str, Any], proof: Proof, way: Way, present: str, last_sign_s: float | None
) -> None:
    """R3. Type says little: what the session has, decides."""
    verdict = judge(read(**changes), proof, way)
    assert bool(verdict.present) == bool(present)
    assert present in verdict.present
    if last_sign_s is not None:
        assert verdict.last_sign_at_s == last_sign_s


def test_a_session_that_runs_an_excepted_program_alone() -> None:
    """As a backup's does; with a shell beside it, it is somebody's."""
    rsync, shell, sshd = Name("rsync"), Name("bash"), Name("sshd")
    settings = PresenceSettings(ignore_commands=["rsync"])
    assert exception(read(**SSH), sshd, [rsync, rsync], settings) == "presence.ignore_commands"
    for programs in ([], [shell], [rsync, shell]):
        assert exception(read(**SSH), sshd, programs, settings) == ""


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({}, ""),
        ({"ignore_users": ["bert"], "ignore_hosts": ["10.0.1.*"], "ignore_commands": ["cron"], "ignore_units": ["ci-*"]}, ""),
        ({"ignore_users": ["anna"]}, "presence.ignore_users"),
        ({"ignore_hosts": ["10.0.0.5"]}, "presence.ignore_hosts"),
        ({"ignore_hosts": ["10.0.0.*"]}, "presence.ignore_hosts"),
        ({"ignore_commands": ["sshd"]}, "presence.ignore_commands"),
        ({"ignore_units": ["session-*.scope"]}, "presence.ignore_units"),
    ],
)
def test_who_is_no_person_by_node_yaml(settings: dict[str, list[str]], setting: str) -> None:
    seen = read(**SSH)
    leader = Name("sshd", "/usr/sbin/sshd", "/user.slice/user-1000.slice/session-3.scope")
    assert exception(seen, leader, [], PresenceSettings(**settings)) == setting
    left_out = dataclasses.replace(seen, ignored=setting)
    assert left_out.counts is (setting == "")
    for proof in (NO_PROOF, HERE, HUNG, GONE):
        if setting:
            assert judge(left_out, proof).note == f"not counted: {setting}"
            assert judge(left_out, proof).present == judge(left_out, proof).sign == ""


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
    kind=st.sampled_from(["user", "user-early", "new", *NOBODY]),
    state=st.sampled_from(["opening", "online", "active", "closing"]), active=st.booleans(), remote=st.booleans(),
    host=st.just(""), tty=st.sampled_from(["", "pts/3"]), idle=st.booleans(), locked=st.booleans(),
    created_s=st.sampled_from([NEVER, 1.0, 7.0]), idle_since_s=st.sampled_from([NEVER, 0.5, 3.0, 9.0]),
)  # fmt: skip
PROOFS = st.sampled_from([NO_PROOF, GONE, HERE, BLIND, HUNG])
WAYS = st.builds(Way, terminal=st.booleans(), heard_s=st.sampled_from([None, 2.0]))


@given(SESSIONS, PROOFS, WAYS, st.booleans())
def test_who_is_not_seen_is_there(seen: Session, proof: Proof, way: Way, strict: bool) -> None:
    present = judge(seen, proof, way, strict=strict).present
    if not seen.counts:
        assert not present or seen.kind in LOGIN_SCREENS
        return
    hints = seen.idle and seen.locked and seen.idle_since_s != NEVER
    if proof.blind is Blind.HUNG:
        proven = False
    elif seen.graphical:
        proven = not seen.active or ((bool(proof.source) or hints) and not strict)
    elif proof.blind is Blind.UNREADABLE:
        proven = False
    elif seen.tty:
        proven = way.terminal
    else:
        proven = way.heard_s is not None if seen.remote else bool(proof.source)
    assert bool(present) == (proof.active or not proven)


@given(SESSIONS)
def test_strict_never_says_less(seen: Session) -> None:
    assert judge(seen, strict=True).present or not judge(seen).present


@given(SESSIONS)
def test_a_person_always_leaves_a_time_that_is_known(seen: Session) -> None:
    verdict = judge(seen)  # without an agent
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
