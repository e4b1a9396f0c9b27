"""The simulated people are worth testing against: the same every time, like people, and lived by the real loop."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import weeks
from support.stories import KINDS, at, zone

from supervisor.journal.decision_log import files, read
from supervisor.tools.history.replay import replay_files

pytestmark = pytest.mark.deep


@pytest.fixture(autouse=True)
def local_time() -> Iterator[None]:
    with zone():
        yield


def entries(folder: Path) -> list[dict[str, Any]]:
    return [entry for path in files([folder]) for _, entry in read(path)]


def hours_by_clock(folder: Path, state: str, days: range) -> dict[int, int]:
    """Hour of the day → on how many of these days a sign of life in it had this state."""
    seen: dict[int, set[str]] = defaultdict(set)
    for entry in entries(folder):
        day, hour = entry["time"][:10], int(entry["time"][11:13])
        if entry["kind"] == "alive" and entry["state"] == state:
            seen[hour].add(day)
    wanted = {"-".join((f"{y:04}", f"{m:02}", f"{d:02}")) for y, m, d in _dates(days)}
    return {hour: len(seen[hour] & wanted) for hour in range(24)}


def _dates(days: range) -> list[tuple[int, int, int]]:
    import time

    return [time.localtime(at(day, 12))[:3] for day in days]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_lines(tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        weeks.live(kind, 1, tmp_path / name)
    assert [p.read_bytes() for p in files([tmp_path / "a"])] == [p.read_bytes() for p in files([tmp_path / "b"])]
    weeks.live(kind, 1, tmp_path / "c", seed=2)
    assert entries(tmp_path / "a") != entries(tmp_path / "c")


@pytest.mark.parametrize("kind", KINDS)
def test_today_s_rules_decide_what_the_month_says(kind: str) -> None:
    reports = list(replay_files(files([weeks.lived(kind)])))
    assert all(report.ok for report in reports), [r for r in reports if not r.ok][:1]
    assert sum(report.steps for report in reports) > 34 * weeks.DAYS


def test_each_kind_works_when_its_person_is_away() -> None:
    weekdays = range(5)
    office = hours_by_clock(weeks.lived("office"), "RUNNING", weekdays)
    gamer = hours_by_clock(weeks.lived("gamer"), "RUNNING", weekdays)
    nobody = hours_by_clock(weeks.lived("nobody"), "RUNNING", weekdays)
    assert office[2] == 5
    assert office[10] <= 2
    assert gamer[16] == 5
    assert gamer[22] == 0
    assert min(nobody.values()) >= 3


def test_power_cuts_pauses_and_restarts_are_there() -> None:
    lines = entries(weeks.lived("nobody"))
    starts = [n for n, e in enumerate(lines) if e["kind"] == "start"]
    assert len(starts) == 2
    assert lines[starts[1] - 1]["kind"] != "stop"  # nothing was closed
    torn = [p for p in files([weeks.lived("nobody")]) if '"time": "20\n' in p.read_text()]
    assert len(torn) == 1
    assert any(e["kind"] == "operator" for e in lines)
    office = entries(weeks.lived("office"))
    stops = [e for e in office if e["kind"] == "stop"]
    assert stops[0]["reason"] == "the machine is shut down"
    for before, after in itertools.pairwise(e["boot_s"] for e in office if e["kind"] == "start"):
        assert before == after == 40.0
