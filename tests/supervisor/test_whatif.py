"""What would have happened: sums that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support import weeks
from support.clock import ManualClock

from states.limits import Limits
from states.observation import Automation, Cpu, Gpu, Host, Observation, Person, Reading
from supervisor.journal import Journal
from supervisor.offline import timeline
from supervisor.offline.whatif import WhatIfError, live, load

TASK_S = 1200.0
SHORT = Limits(cooldown_s=600, run_s=0)


@pytest.fixture
def evening(tmp_path: Path) -> Path:
    """Two hours: the person leaves at 0, comes back after 60 minutes, and is gone at once."""
    clock = ManualClock(now=10_000.0)
    journal, sign_s = Journal(tmp_path, clock), clock.now
    journal.write("start", version="0", pid=1, memory={"cooldown_from_s": None})
    journal.config(SHORT, "")
    for minute in range(121):
        if minute == 60:
            sign_s = clock.now
        at_s = clock.now
        readings = (Reading(v, "", "t", at_s) for v in (Person(sign_s), Gpu(1, 1), Cpu(1), Host()))
        journal._last_line_s = float("-inf")
        journal.alive("IDLE_WAIT", "", Observation(at_s, Automation(True), *readings), SHORT)
        clock.go(60)
    journal.close()
    return tmp_path


@pytest.mark.parametrize(
    ("idle_minutes", "task_minutes", "worked_minutes", "done", "met"),
    [
        # a sign of life at 60 tells of a sign since 59: taken to have come half-way
        (10, 1000, 49.5 + 50, 0, 1),  # one task until 59.5, another from 70
        (30, 1000, 29.5 + 30, 0, 1),
        (90, 1000, 0, 0, 0),
        (10, 15, 15 + 15 + 15 + 15, 4, 0),  # 10-25, rest, 35-50; 70-85, rest, 95-110
    ],
)
def test_sums_by_hand(
    evening: Path, idle_minutes: int, task_minutes: int, worked_minutes: int, done: int, met: int
) -> None:
    past = load([evening])
    assert past.limits == SHORT
    result = live(past, replace(past.limits, idle_required_s=idle_minutes * 60.0), task_minutes * 60.0)
    assert result.hours_worked * 60 == pytest.approx(worked_minutes, abs=0.1)
    assert (result.tasks_done, result.person_met, result.tasks_preempted) == (done, met, met)


def test_nothing_seen_is_said(tmp_path: Path) -> None:
    with pytest.raises(WhatIfError, match="name journals"):
        load([tmp_path])


CHANGES = [
    ("office", "safety.idle_required_minutes", 3, {"idle_required_s": 180.0}),
    ("office", "safety.idle_required_minutes", 25, {"idle_required_s": 1500.0}),
    ("gamer", "safety.cooldown_minutes", 2, {"cooldown_s": 120.0}),
    ("gamer", "work.run_minutes", 0, {"run_s": 0.0}),
    ("nobody", "safety.max_cpu_percent", 90, {"max_cpu_percent": 90.0}),
    ("nobody", "safety.idle_required_minutes", 10, {}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "value", "limits"), CHANGES)
def test_the_answer_is_what_living_the_month_again_gives(
    tmp_path: Path, kind: str, name: str, value: float, limits: dict[str, float]
) -> None:
    """A month is lived as shipped and asked what `name` would have meant; then it is lived with it."""
    past = load([weeks.lived(kind, 30, TASK_S)])
    told = live(past, replace(past.limits, **limits), TASK_S)
    with weeks.zone():
        weeks.live(kind, 30, tmp_path, changes={name: value}, endless_s=TASK_S)
        lived = timeline.load([tmp_path], 31).summary()
    print(
        f"{kind} {name}={value}: worked {told.hours_worked:.2f} h told, {lived.states_h['RUNNING']:.2f} h lived; "
        f"done {told.tasks_done}, {lived.done}; handed back {told.tasks_preempted}, {lived.preempted}; "
        f"person met {told.person_met}, {len(lived.reactions_s)}"
    )
    assert told.hours_worked == pytest.approx(lived.states_h["RUNNING"], rel=0.002)
    assert told.tasks_done == pytest.approx(lived.done, abs=3)
    assert told.tasks_preempted == pytest.approx(lived.preempted, abs=8)
    assert told.person_met == pytest.approx(len(lived.reactions_s), abs=5)


def test_a_task_needs_a_way_to_the_control_node(evening: Path) -> None:
    (path,) = evening.iterdir()
    path.write_text(path.read_text().replace('"link": "up"', '"link": "down"'))
    result = live(load([evening]), SHORT, 1200.0)
    assert (result.hours_worked, result.tasks_done) == (0, 0)
    assert result.hours_ready > 1.5
