"""What would have happened: sums that can be checked by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support import weeks
from support.clock import ManualClock
from support.depth import DEEP

from states.limits import Limits
from states.observation import Automation, Cpu, Gpu, Host, Observation, Person, Reading
from supervisor.journal.decision_log import Journal
from supervisor.tools.history.timeline.reader import load as load_timeline
from supervisor.tools.history.timeline.sums import summary
from supervisor.tools.history.whatif import WhatIfError, live, load
from supervisor.tools.history.whatif_svg import _round_up

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


@pytest.mark.parametrize("change", [{"observation": "x"}, {"observation": []}, {"at_s": 10**400}, {"at_s": None}])
def test_a_line_of_another_form_is_refused_with_its_place(evening: Path, change: dict[str, object]) -> None:
    (path,) = evening.iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    next(line for line in reversed(lines) if "observation" in line).update(change)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(WhatIfError, match="is not of the journal's form"):
        load([evening])


def test_limits_are_carried_over_midnight(evening: Path) -> None:
    (path,) = evening.iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if line["kind"] not in ("start", "config")]
    lines[0]["carried"] = {"memory": {}, "limits": {"idle_required_s": 77.0}}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert load([evening]).limits.idle_required_s == 77.0


CHANGES = [
    ("office", "safety.idle_required_minutes", 3, {"idle_required_s": 180.0}),
    ("office", "safety.idle_required_minutes", 25, {"idle_required_s": 1500.0}),
    ("gamer", "safety.cooldown_minutes", 2, {"cooldown_s": 120.0}),
    ("gamer", "work.run_minutes", 0, {"run_s": 0.0}),
    ("nobody", "safety.max_cpu_percent", 90, {"max_cpu_percent": 90.0}),
    ("nobody", "safety.idle_required_minutes", 10, {}),
]


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "value", "limits"), CHANGES if DEEP else CHANGES[1:5:3] + CHANGES[2:3])
def test_the_answer_is_what_living_the_month_again_gives(
    tmp_path: Path, kind: str, name: str, value: float, limits: dict[str, float]
) -> None:
    """A span is lived as shipped and asked what `name` would have meant; then it is lived with it."""
    days = 30 if DEEP else 4
    past = load([weeks.lived(kind, days, TASK_S)])
    asked = live(past, replace(past.limits, **limits), TASK_S)
    with weeks.zone():
        weeks.live(kind, days, tmp_path, changes={name: value}, endless_s=TASK_S)
        lived = summary(load_timeline([tmp_path], 31))
    print(
        f"{kind} {name}={value}: worked {asked.hours_worked:.2f} h asked, {lived.states_h['RUNNING']:.2f} h lived; "
        f"done {asked.tasks_done}, {lived.done}; handed back {asked.tasks_preempted}, {lived.preempted}; "
        f"person met {asked.person_met}, {len(lived.reactions_s)}"
    )
    assert asked.hours_worked == pytest.approx(lived.states_h["RUNNING"], rel=0.002)
    assert asked.tasks_done == pytest.approx(lived.done, abs=3)
    assert asked.tasks_preempted == pytest.approx(lived.preempted, abs=8)
    assert asked.person_met == pytest.approx(len(lived.reactions_s), abs=5)


def test_a_task_needs_a_way_to_the_control_node(evening: Path) -> None:
    (path,) = evening.iterdir()
    path.write_text(path.read_text().replace('"link": "up"', '"link": "down"'))
    result = live(load([evening]), SHORT, 1200.0)
    assert (result.hours_worked, result.tasks_done) == (0, 0)
    assert result.hours_ready > 1.5


# --- the command and its pictures


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "supervisor.cli.main", "whatif", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "80"})


def test_a_sweep_is_a_table_and_a_plot(evening: Path) -> None:
    done = cli(str(evening), "--sweep", "idle_required_minutes=10..50:20", "--task-minutes", "1000")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    bars = {line.split()[0]: line.count("█") for line in lines[lines.index("hours worked") : lines.index("person met")] if line}
    assert [float(line.split()[2]) for line in lines[1:4]] == pytest.approx([99.5 / 60, 59.5 / 60, 19.5 / 60], abs=0.01)
    assert bars["idle_required_minutes=10"] > bars["idle_required_minutes=30"] > bars["idle_required_minutes=50"]
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("words", [("--sweep", "cooldown_minutes=0..30:10"), ("--set", "safety.idle_required_minutes=30")])
def test_the_picture(evening: Path, tmp_path: Path, words: tuple[str, str]) -> None:
    for name, head in (("a.svg", b"<svg "), ("a.png", b"\x89PNG")):
        done = cli(str(evening), *words, "--out", str(tmp_path / name))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (tmp_path / name).read_bytes().startswith(head)
    root = ElementTree.fromstring((tmp_path / "a.svg").read_text())
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "Times a person was met" in texts
    assert ("as it was" in texts) is (words[0] == "--sweep")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x.pdf"], "allowed: a name that ends in .svg or .png"),
        (["--out", "/no/such/x.svg"], "cannot be written"),
        (["--sweep", "idle_required_minutes=2"], "allowed: NAME=FROM..TO[:STEP]"),
        (["--sweep", "nothing=2..3"], "is no setting that whatif knows"),
        (["--set", "idle_required_minutes=0"], "found 0, allowed: a number > 0"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(evening: Path, words: list[str], said: str) -> None:
    done = cli(str(evening), *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("value", "top"), [(0, 4), (1, 1), (3.9, 4), (4.1, 6), (99, 100), (101, 120), (336, 400)])
def test_an_axis_ends_at_an_easy_number(value: float, top: float) -> None:
    assert _round_up(value) == pytest.approx(top)
