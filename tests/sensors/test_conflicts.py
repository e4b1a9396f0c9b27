"""Sources of presence that contradict each other: found, resolved to "present", reported once at each end, never flapping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.login1 import session

from states.guards import cpu_free, gpu_free, user_away
from states.lifecycle import Lifecycle
from states.limits import Limits
from states.memory import Memory
from states.observation import NEVER, NO_TASK, Automation, Cpu, Gpu, Host, Reading
from supervisor.sensors.base import Away, Presence, PresenceSensor, Quality, Touch
from supervisor.sensors.conflicts import LASTS_S, SLACK_S
from supervisor.sensors.observer import Observer
from supervisor.sensors.presence.agent_reports import Proof
from supervisor.sensors.presence.session_policy import Session, away

NOW_S = 100_000.0
LIMITS = Limits()
REQUIRED_S = LIMITS.idle_required_s
IDLE_SINCE_S = NOW_S - 3600.0
DESKTOP = "nobody at graphical session 3 of anna"
AGENT = "session agent (Mutter idle monitor)"


class World:
    """An observer over sensors under the control of the test."""

    def __init__(self, settle_s: float = 0.0) -> None:
        self.reports: dict[str, Presence] = {}
        self.cpu, self.gpu = 5.0, Gpu(4.0, 1.0)
        host, now = Reading(Host(), "", "host", NOW_S), self
        self.observer = Observer(
            [], lambda s: Reading(now.gpu, "", "NVML", s), lambda s: Reading(Cpu(now.cpu), "", "CPU times", s),
            lambda s: replace(host, read_at_s=s), settle_s=settle_s,
        )  # fmt: skip
        self.news: list[str] = []

    def says(self, source: str, **fields: Any) -> None:
        self.reports[source] = Presence(source, NOW_S, **fields)

    def look(self, at_s: float = NOW_S) -> Any:
        self.observer.presence = tuple(_Scripted(replace(r, read_at_s=at_s)) for r in self.reports.values())
        seen = self.observer.look(at_s, LIMITS, Automation(True), NO_TASK)
        self.news += self.observer.news()
        return seen


class _Scripted(PresenceSensor):
    def __init__(self, report: Presence) -> None:
        self.name, self.report = report.source, report

    def latest(self, now_s: float) -> Presence:
        return self.report


def claim(**changes: Any) -> Away:
    return replace(Away(AGENT, DESKTOP, IDLE_SINCE_S), **changes)


def idle_desktop(world: World, **changes: Any) -> None:
    world.says("logind", last_sign_at_s=IDLE_SINCE_S, sign="user active on seat0", away=(claim(**changes),))


def test_a_terminal_beside_an_idle_desktop_is_present_and_reported_once_at_each_end() -> None:
    world = World()
    idle_desktop(world)
    world.says("terminals", last_sign_at_s=NOW_S - 4, sign="user active on pts/3", hands=True)
    seen = world.look()
    assert (seen.person.value.last_sign_at_s, seen.person.value.sign) == (NOW_S - 4, "user active on pts/3")
    assert user_away.judge(seen, Memory(), LIMITS) is False
    assert world.news == []  # it may be over in a moment
    assert world.observer.due_s(NOW_S) == LASTS_S
    for later_s in (1.0, LASTS_S, 5.0, 28.0, 60.0):
        world.look(NOW_S + later_s)
    assert world.news == [
        f"contradiction: {AGENT} says {DESKTOP} for 1 h, but terminals says user active on pts/3 6 s ago; "
        "somebody is taken to be there"
    ]
    assert world.observer.contradictions(NOW_S + 60) != []
    assert world.observer.due_s(NOW_S + 60) is None
    world.look(NOW_S - 4 + REQUIRED_S)
    assert world.news[1:] == [f"contradiction over: {AGENT} says {DESKTOP}: not against others any more"]
    assert world.observer.contradictions(NOW_S + 600) == []


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"last_sign_at_s": NOW_S - 60, "sign": "a key", "hands": True}, "other says a key 60 s ago"),
        ({"present": "somebody", "hands": True}, "other says somebody now"),
        ({"last_sign_at_s": IDLE_SINCE_S + SLACK_S, "sign": "an 8-s step", "hands": True}, ""),
        ({"last_sign_at_s": IDLE_SINCE_S - 60, "sign": "before", "hands": True}, ""),
        ({"last_sign_at_s": NOW_S - REQUIRED_S, "sign": "long ago", "hands": True}, ""),
        ({"last_sign_at_s": NOW_S - 60, "sign": "bert logged in", "hands": False}, ""),
        ({"last_sign_at_s": NOW_S - 60, "sign": "cannot tell", "hands": True, "error": "blind"}, ""),
        ({"last_sign_at_s": NEVER, "hands": True}, ""),
    ],
)
def test_what_contradicts_an_idle_desktop(other: dict[str, Any], text: str) -> None:
    world = World()
    idle_desktop(world)
    world.says("other", **other)
    world.look()
    found = world.observer.contradictions(NOW_S)
    assert len(found) == bool(text)
    assert text in "".join(found)


def test_a_game_contradicts_and_a_person_who_is_not_watched_for_does_not() -> None:
    world = World()
    idle_desktop(world)
    world.gpu = Gpu(50.0, 4.0, 1, foreign_names=("game (pid 7)",))
    world.look()
    assert "NVML says GPU used by game (pid 7) now" in world.observer.contradictions(NOW_S)[0]
    world.observer.look(NOW_S, Limits(detect_active_user=False), Automation(True), NO_TASK)
    assert world.observer.contradictions(NOW_S) == []


@pytest.mark.parametrize(
    ("hints", "proof", "claims"),
    [
        pytest.param({}, Proof(), [], id="nobody says away"),
        pytest.param({}, Proof("Mutter", False, 4000.0, ""), [("session agent (Mutter)", 4000.0, "")], id="agent"),
        pytest.param({"IdleHint": True}, Proof("Mutter", True, 5000.0, ""), [("logind", 3000.0, "session agent (Mutter)")],
                     id="logind says idle, the agent a key just now"),
        pytest.param({"IdleHint": True}, Proof("Mutter", False, 2999.0, ""),
                     [("logind", 3000.0, ""), ("session agent (Mutter)", 2999.0, "")], id="both say away"),
        pytest.param({"IdleHint": False}, Proof("Mutter", False, 2000.0, ""), [("session agent (Mutter)", 2000.0, "logind")],
                     id="the agent says away, the hint went off since"),
        pytest.param({"Type": "tty", "IdleHint": True}, Proof("", True), [], id="a terminal's hint is its age"),
        pytest.param({"State": "closing", "IdleHint": True}, Proof(), [], id="a session that was left"),
        pytest.param({"Class": "greeter", "IdleHint": True}, Proof(), [], id="no person's"),
    ],
)
def test_who_says_away_of_a_session(hints: dict[str, Any], proof: Proof, claims: list[tuple[str, float, str]]) -> None:
    changes = {"IdleSinceHintMonotonic": 3_000_000_000 if "IdleHint" in hints else 0} | hints
    seen = Session.read("/p", session(**changes), 5000.0, 0.0)
    assert [(a.source, a.since_s, a.denied.source if a.denied else "") for a in away(seen, proof, 5000.0)] == claims


def test_logind_and_the_agent_of_one_session() -> None:
    world = World()
    denied = Touch(NOW_S - 1, AGENT, "user active on seat0")
    world.says("logind", present="session 3 active", away=(claim(source="logind", denied=denied),))
    world.look()
    assert world.observer.contradictions(NOW_S) == [
        f"logind says {DESKTOP} for 1 h, but {AGENT} says user active on seat0 1 s ago"
    ]


@given(st.lists(st.tuples(st.floats(0.05, 30.0), st.booleans()), max_size=60))
def test_sources_that_come_and_go_are_reported_no_more_often_than_they_last(story: list[tuple[float, bool]]) -> None:
    """Each line that begins one follows at least LASTS_S of contradiction, and each is ended once at most."""
    world, at_s = World(), NOW_S
    for step_s, there in story:
        at_s += step_s
        idle_desktop(world, since_s=at_s - 3600 if there else at_s)
        world.says("terminals", last_sign_at_s=at_s, sign="user active on pts/3", hands=True)
        world.look(at_s)
    begun = [line for line in world.news if line.startswith("contradiction:")]
    ended = [line for line in world.news if line.startswith("contradiction over:")]
    assert len(begun) <= 1 + (at_s - NOW_S) / LASTS_S
    assert len(ended) in (len(begun), len(begun) - 1)


# --- coming and going


def free(seen: Any) -> tuple[Any, Any]:
    return cpu_free.judge(seen, Memory(), LIMITS), gpu_free.judge(seen, Memory(), LIMITS)


def test_too_much_counts_at_once_and_as_gone_only_when_it_has_settled() -> None:
    world = World(settle_s=10.0)
    assert free(world.look()) == (True, True)
    world.cpu, world.gpu = 90.0, Gpu(95.0, 1.0)
    assert free(world.look(NOW_S + 1)) == (False, False)
    assert world.observer.due_s(NOW_S + 1) is None  # too high even now: nothing to wait for
    world.cpu, world.gpu = 5.0, Gpu(4.0, 1.0)
    seen = world.look(NOW_S + 2)
    assert free(seen) == (False, False)
    assert (seen.cpu.value.percent, seen.cpu.source) == (90.0, "CPU times, highest of the last seconds")
    assert world.observer.due_s(NOW_S + 2) == 9.0
    assert free(world.look(NOW_S + 11)) == (True, True)
    assert world.observer.due_s(NOW_S + 11) is None


def test_what_is_foreign_or_unknown_is_never_held() -> None:
    world = World(settle_s=10.0)
    world.gpu = Gpu(95.0, 1.0, 1)
    world.look()
    world.gpu = Gpu(5.0, 1.0, 0)
    assert world.look(NOW_S + 1).gpu.value.foreign == 0
    world.observer.gpu = lambda s: Reading(None, "hangs", "NVML", s)
    assert world.look(NOW_S + 2).gpu.error == "hangs"
    assert World().look().cpu.source == "CPU times"


LOADS = st.floats(0, 100) | st.sampled_from([80.0, 80.1, 90.0, 90.1, float("nan")])
SETTLE_S = st.floats(0.5, 30.0)


@given(SETTLE_S, st.lists(st.tuples(st.floats(0.01, 20.0), LOADS, LOADS, st.floats(0, 20)), max_size=80))
def test_a_load_that_swings_switches_no_more_often_than_it_settles(
    settle_s: float, story: list[tuple[float, float, float, float]]
) -> None:
    """In a span of T seconds at most 1 + T / settle_s changes to "free", whatever the readings do; and none is late to
    "taken"."""
    world, at_s = World(settle_s), NOW_S
    was: tuple[Any, Any] = (None, None)
    turns = [0, 0]
    for step_s, cpu, gpu, vram in story:
        at_s += step_s
        world.cpu, world.gpu = cpu, Gpu(gpu, vram)
        now = free(world.look(at_s))
        if not cpu <= LIMITS.max_cpu_percent:
            assert now[0] is not True
        if not (gpu <= LIMITS.max_gpu_percent and vram <= LIMITS.max_vram_gb):
            assert now[1] is not True
        for index in (0, 1):
            turns[index] += was[index] is False and now[index] is True
        was = now
    assert max(turns) <= 1 + (at_s - NOW_S) / settle_s


@given(SETTLE_S, st.lists(st.tuples(st.floats(0.01, 20.0), LOADS), max_size=80))
def test_the_machine_itself_does_not_flap(settle_s: float, story: list[tuple[float, float]]) -> None:
    """The very table: a CPU load that swings as it likes leads out of READY no more often than once a `settle_s`; and a
    loop that also wakes when it is due is never kept busy by it."""
    world, at_s = World(settle_s), NOW_S
    world.says("terminals", last_sign_at_s=NOW_S - 2 * REQUIRED_S, sign="user active on pts/3", hands=True)
    lifecycle, left, ticks = Lifecycle(LIMITS, NOW_S), 0, 0
    for step_s, cpu in story:
        world.cpu, next_s = cpu, at_s + step_s
        while at_s <= next_s:
            plan = lifecycle.propose(world.look(at_s))
            lifecycle.commit(plan)
            left, ticks = left + (plan.row is not None and plan.row.id == "unsafe"), ticks + 1
            due_s = None if plan.row else world.observer.due_s(at_s)
            at_s += 0.01 if plan.row else step_s if due_s is None else max(0.01, due_s)
    assert left <= 1 + (at_s - NOW_S) / settle_s
    assert ticks <= 10 + 6 * len(story)


# --- every source, for people


def test_who_asks_takes_no_event_away_from_the_loop() -> None:
    """A look reads devices empty; one made for `why` would keep their first key from waking the loop."""
    world, looks = World(), 0

    class Counted(PresenceSensor):
        name = "input"

        def latest(self, now_s: float) -> Presence:
            nonlocal looks
            looks += 1
            return Presence("input", now_s)

    world.observer.presence = (Counted(),)
    assert [source.source for source in world.observer.sources(NOW_S)] == ["gpu processes"]
    world.observer.look(NOW_S, LIMITS, Automation(True), NO_TASK)
    for later_s in (0.0, 1.0, 60.0):
        assert [s.source for s in world.observer.sources(NOW_S + later_s)] == ["input", "gpu processes"]
        world.observer.contradictions(NOW_S + later_s)
    assert looks == 1


def test_every_source_is_listed_with_reading_time_and_quality() -> None:
    world = World()
    world.says("logind", present="graphical session 3", quality=Quality.INFERRED)
    world.says("terminals", last_sign_at_s=NOW_S - 125, sign="user active on pts/3", quality=Quality.POLLED)
    world.says("input", last_sign_at_s=NOW_S, error="no input device can be read")
    world.look()
    sources = world.observer.sources(NOW_S + 7)
    assert [(s.source, s.present, s.quality, s.line()) for s in sources] == [
        ("logind", True, "inferred", "graphical session 3 (inferred, read 7 s ago)"),
        ("terminals", False, "polled", "user active on pts/3, 2 min ago (polled, read 7 s ago)"),
        ("input", None, "unknown", "no input device can be read (unknown, read 7 s ago)"),
        ("gpu processes", False, "polled", "none that is not RAE's (polled, read 7 s ago)"),
    ]
    assert sources[1].as_dict() == {
        "source": "terminals", "reading": "user active on pts/3", "present": False, "idle_s": 132.0, "age_s": 7.0,
        "quality": "polled", "details": [], "line": sources[1].line(),
    }
