"""What would have happened: sums that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.clock import ManualClock

from states.limits import Limits
from states.observation import Automation, Cpu, Gpu, Host, Observation, Person, Reading
from supervisor.journal import Journal
from supervisor.offline.whatif import WhatIfError, live, load

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
        (10, 1000, 50 + 50, 0, 1),  # one task until 60, another from 70
        (30, 1000, 30 + 30, 0, 1),
        (90, 1000, 0, 0, 0),
        (10, 20, 20 + 20 + 20 + 20, 4, 0),  # 10-30, rest, 40-60; 70-90, rest, 100-120
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
