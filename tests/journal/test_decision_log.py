"""The journal: its lines, its days, its summary for people, and what happens when its folder fails."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from support.clock import ManualClock

from states.effects import Effect
from states.lifecycle import EffectResult, Lifecycle, Outcome
from states.limits import Limits
from states.memory import Memory, State
from states.observation import Automation, Cpu, Gpu, Host, Observation, Person, Reading, Task, TaskPhase
from supervisor.journal.daily_file import DayFile, day_of
from supervisor.journal.decision_log import ALIVE_EVERY_S, Journal, cause, files, read
from supervisor.tools.history.replay import replay_files

DAY_S = 86400.0
NOON_S = time.mktime((2026, 11, 24, 12, 0, 0, 0, 0, -1))
ID = "3880bb8d-0b6a-4b0b-9f55-3d2f6a1c0001"
RENDER = {"task": ID, "type": "render"}
FREE = {
    "automation": Automation(True), "person": Person(-1e6), "gpu": Gpu(4.0, 1.0), "cpu": Cpu(5.0), "host": Host(),
}


def seen(now_s: float, **changes: Any) -> Observation:
    """Everything is free, but for the changes; None is unknown."""
    values = FREE | changes
    readings = {
        name: Reading(values[name], "as planned" if values[name] is None else "", "test", now_s)
        for name in ("person", "gpu", "cpu", "host")
    }
    return Observation(now_s, values["automation"], **readings, task=values.get("task", Task()))


def file_of(wall_s: float) -> str:
    return f"decisions-{day_of(wall_s)}.jsonl"


def task(phase: TaskPhase) -> Task:
    return Task(phase, ID, "render")


RUNNING = Memory(State.RUNNING, 900.0, running_since_s=900.0, started_at_s=900.0)


@pytest.mark.parametrize(
    ("memory", "changes", "row", "reason"),
    [
        (RUNNING, {"automation": Automation(False, "paused by anna")}, "switched-off", "paused by anna"),
        (RUNNING, {"host": Host(False, True, "the lid is closed")}, "going-down", "the lid is closed"),
        (RUNNING, {"person": Person(1000.0, "user active on seat0")}, "user-returned", "user active on seat0"),
        (RUNNING, {"person": None}, "user-returned", "user unknown: as planned"),
        (RUNNING, {"gpu": Gpu(99.0, 1.0)}, "gpu-taken", "GPU at 99 %"),
        (RUNNING, {"cpu": Cpu(99.0), "host": None}, "cpu-taken", "CPU of others at 99 %"),
        (RUNNING, {"host": Host(False, reason="on battery")}, "host-unfit", "on battery"),
        (RUNNING, {"now_s": 900.0 + 10800}, "timed-out", f"render {ID} runs for 3 h, at most 3 h"),
        (Memory(State.READY), {"cpu": Cpu(99.0), "task": Task()}, "unsafe", "CPU of others at 99 %"),
        (Memory(State.IDLE_WAIT), {"task": Task()}, "safe", ""),
        (Memory(State.DISABLED), {"task": Task()}, "switched-on", ""),
        (Memory(State.READY), {"task": task(TaskPhase.CLAIMED)}, "task-claimed", ""),
        (RUNNING, {"task": task(TaskPhase.ENDED), "now_s": 900 + 1800.0}, "task-ended", ""),
    ],
)
def test_the_cause_is_the_verdict_that_fired_the_row(memory: Memory, changes: dict[str, Any], row: str, reason: str) -> None:
    now_s = changes.pop("now_s", 1000.0)
    observation = seen(now_s, **({"task": task(TaskPhase.RUNNING)} | changes))
    plan = Lifecycle(Limits(), memory=memory).propose(observation)
    assert plan.row is not None
    assert plan.row.id == row
    assert reason in cause(plan)
    assert bool(cause(plan)) is bool(reason)


def test_a_tick_is_an_intent_and_an_outcome_under_one_number(tmp_path: Path) -> None:
    clock, said = ManualClock(), list[str]()
    journal = Journal(tmp_path, clock, say=said.append)
    lifecycle = Lifecycle(Limits(), memory=RUNNING)
    plan = lifecycle.propose(seen(1000.0, person=Person(999.0, "user active on seat0"), task=task(TaskPhase.RUNNING)))
    journal.intent(plan)
    why = {Effect.STOP: "pid 7 lives"}
    outcome = Outcome(tuple(EffectResult(e, e not in why, why.get(e, ""), 0.002) for e in plan.effects))
    journal.outcome(plan, outcome, lifecycle.commit(plan, outcome))
    journal.close()
    (path,) = files([tmp_path])
    lines = [entry for _, entry in read(path)]
    assert [line["kind"] for line in lines] == ["decision", "effect", "effect", "effect", "effect"]
    assert {line["tick"] for line in lines} == {1}
    assert lines[0]["task"] == {"id": ID, "type": "render", "phase": "running"}
    assert lines[0]["from"] == "RUNNING"
    assert lines[-1]["state"] == "COOLDOWN"
    assert all(line["v"] == 1 and line["boot_s"] == clock.now for line in lines)
    assert said == [
        "RUNNING → COOLDOWN: user-returned (render 3880bb8d…): user active on seat0 1 s ago, away for 10 min required",
        "  stop FAILED in 2 ms: pid 7 lives",
        "  hand_back done in 2 ms",
        "  wipe done in 2 ms",
        "  release done in 2 ms",
    ]


def test_a_quiet_tick_says_nothing_but_a_sign_of_life_a_minute(tmp_path: Path) -> None:
    clock = ManualClock()
    journal = Journal(tmp_path, clock)
    for _ in range(10):
        plan = Lifecycle(Limits(), memory=Memory(State.IDLE_WAIT)).propose(seen(clock.now, cpu=Cpu(99.0)))
        journal.intent(plan)
        journal.outcome(plan, Outcome(), Memory(State.IDLE_WAIT))
        journal.alive("IDLE_WAIT", "CPU busy")
        clock.go(ALIVE_EVERY_S / 5)
    lines = [entry for path in files([tmp_path]) for _, entry in read(path)]
    assert [line["kind"] for line in lines] == ["alive", "alive"]


@pytest.mark.parametrize(
    ("kind", "fields", "summary"),
    [
        ("link", {"event": "delivered", **RENDER, "error": False}, "link: delivered render 3880bb8d…"),
        ("link", {"event": "delivered", **RENDER, "error": True}, "link: delivered render 3880bb8d… (failed)"),
        ("link", {"event": "reposted", **RENDER, "new_task": "a" * 36}, "link: reposted render 3880bb8d… as aaaaaaaa…"),
        ("link", {"event": "down", "reason": "refused", "url": "http://h", "dialect": "B"}, "link: down http://h: refused"),
        ("link", {"event": "up", "reason": "", "url": "http://h", "dialect": "B"}, "link: up http://h"),
        ("link", {"event": "undelivered", "task": ID, "reason": "stopped"}, "link: undelivered 3880bb8d…: stopped"),
        ("operator", {"word": "pause", "until": "until resumed"}, "operator: pause"),
        ("operator", {"word": "pause", "until": "2026-11-24T18:00:00Z"}, "operator: pause until 2026-11-24T18:00:00Z"),
        ("operator", {"word": "resume", "until": None, "trouble": "not kept"}, "operator: resume: not kept"),
        ("config", {"problem": "runtime.yaml:1:1: bad"}, "configuration refused: runtime.yaml:1:1: bad"),
        ("config", {"limits": {}}, None),
        ("stop", {"state": "DISABLED", "reason": "told to"}, "stopped: told to"),
        ("alive", {"state": "READY", "reason": "READY: safe"}, None),
    ],
)
def test_each_line_has_a_gist_for_people(tmp_path: Path, kind: str, fields: dict[str, Any], summary: str | None) -> None:
    said: list[str] = []
    Journal(tmp_path, ManualClock(), say=said.append).write(kind, **fields)
    assert said == ([summary] if summary else [])


def test_a_file_a_day_and_only_the_days_that_are_kept(tmp_path: Path) -> None:
    clock = ManualClock()
    journal = Journal(tmp_path, clock, keep_days=7)
    (tmp_path / "decisions-2020-01-01.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(10):
        journal.write("alive", state="READY", reason="")
        clock.go(DAY_S)
    kept = sorted(path.name for path in tmp_path.iterdir())
    last = time.localtime(clock.wall - DAY_S)
    assert len(kept) == 8
    assert kept[-1] == "notes.txt"
    assert kept[-2] == time.strftime("decisions-%Y-%m-%d.jsonl", last)
    assert all(oct((tmp_path / name).stat().st_mode)[-3:] in ("640", "644") for name in kept)


def test_the_first_line_of_a_day_says_what_was_carried_over_midnight(tmp_path: Path) -> None:
    clock = ManualClock()
    journal = Journal(tmp_path, clock, keep_days=7)
    memory = Memory(State.COOLDOWN, since_s=3.0, cooldown_from_s=3.0)
    journal.start("0", Limits(max_cpu_percent=33.0), memory)
    for _ in range(3):
        for _ in range(2):
            journal.write("alive", state="COOLDOWN", reason="")
        clock.go(DAY_S)
    lines = [[entry for _, entry in read(path)] for path in files([tmp_path])]
    assert ["carried" in line for line in lines[0]] == [False] * 4
    assert [["carried" in line for line in day] for day in lines[1:]] == [[True, False]] * 2
    assert lines[2][0]["carried"]["limits"]["max_cpu_percent"] == 33.0
    assert lines[2][0]["carried"]["memory"] == {**asdict(memory), "owed": []}


def test_after_days_off_the_newest_days_stay(tmp_path: Path) -> None:
    file = DayFile(tmp_path, "decisions", ".jsonl", 3)
    for days in (0, 1, 3, 30, 90, 150, 400):
        file.append(NOON_S + days * DAY_S, b"{}\n")
    assert len(list(tmp_path.iterdir())) == 6, "the clock may be wrong each time, so twice as many stay"
    file.append(NOON_S + 401 * DAY_S, b"{}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [file_of(NOON_S + days * DAY_S) for days in (150, 400, 401)]


@pytest.mark.parametrize(
    ("jumps", "lost"),
    [
        ([8], 0), ([40], 0), ([3650], 0), ([-20_000], 0), ([40, 8, 3650], 0), ([-20_000, 40, -9000, 700], 0),
        ([2], 1), ([2, 2, 2], 1), ([5, 40], 1),
    ],
)  # fmt: skip
def test_a_clock_that_is_wrong_for_a_moment_deletes_no_week(tmp_path: Path, jumps: list[int], lost: int) -> None:
    week = [NOON_S + day * DAY_S for day in range(7)]
    for at_s in week:
        DayFile(tmp_path, "decisions", ".jsonl", 7).append(at_s, b"{}\n")
    file = DayFile(tmp_path, "decisions", ".jsonl", 7)
    for days in jumps:
        file.append(week[-1] + days * DAY_S, b"{}\n")  # wrong
        file.append(week[-1] + 60, b"{}\n")  # right again
    left = {path.name for path in tmp_path.iterdir()}
    assert [file_of(at_s) for at_s in week if file_of(at_s) not in left] == [file_of(at_s) for at_s in week[:lost]]
    for day in range(1, 15):
        file.append(week[-1] + day * DAY_S, b"{}\n")
    ends = [file_of(week[-1] + day * DAY_S) for day in range(8, 15)]
    assert set(ends) <= {path.name for path in tmp_path.iterdir()}
    assert len(list(tmp_path.iterdir())) <= 7 + len(jumps), "nor does it keep logs for ever"


@pytest.mark.parametrize("jump_s", [-3600.0, 3 * 3600.0])
def test_a_wall_clock_that_jumps_changes_nothing_but_stamps(tmp_path: Path, jump_s: float) -> None:
    clock = ManualClock()
    journal = Journal(tmp_path, clock)
    journal.write("alive", state="READY", reason="")
    clock.wall += jump_s
    clock.now += 1
    journal.write("alive", state="READY", reason="")
    lines = [entry for path in files([tmp_path]) for _, entry in read(path)]
    assert sorted(line["boot_s"] for line in lines) == [1000.0, 1001.0]


def test_a_line_torn_by_a_power_cut_is_closed_and_left_out(tmp_path: Path) -> None:
    clock = ManualClock()
    Journal(tmp_path, clock).write("alive", state="READY", reason="")
    (path,) = tmp_path.iterdir()
    with path.open("a") as file:
        file.write('{"v": 1, "kind": "ali')
    Journal(tmp_path, clock).write("alive", state="READY", reason="2")
    assert [line["reason"] for _, line in read(path)] == ["", "2"]


def break_folder(folder: Path) -> None:
    """Where the folder was is a file, so that not even root writes into it."""
    folder.rename(folder.with_suffix(".away"))
    folder.write_text("")


def mend_folder(folder: Path) -> None:
    folder.unlink()
    folder.with_suffix(".away").rename(folder)


def test_a_folder_that_fails_is_told_and_followed_by_a_gap_that_replays(tmp_path: Path) -> None:
    clock, folder = ManualClock(), tmp_path / "logs"
    journal = Journal(folder, clock)
    lifecycle = Lifecycle(Limits(), memory=Memory(since_s=clock.now))
    journal.start("0", Limits(), lifecycle.memory)

    def tick(**changes: Any) -> None:
        plan = lifecycle.propose(seen(clock.now, **changes))
        journal.intent(plan)
        outcome = Outcome(tuple(EffectResult(e, True) for e in plan.effects))
        journal.outcome(plan, outcome, lifecycle.commit(plan, outcome))
        clock.go(1)

    tick()
    break_folder(folder)
    tick()
    assert f"decisions cannot be logged in {folder}" in journal.trouble
    tick(task=task(TaskPhase.CLAIMED))
    assert lifecycle.state is State.RUNNING
    mend_folder(folder)
    tick(task=task(TaskPhase.ENDED), cpu=Cpu(99.0))
    assert not journal.trouble
    clock.go(1000)
    tick()
    journal.close()
    (path,) = files([folder])
    lines = [entry for _, entry in read(path)]
    (gap,) = [line for line in lines if line["kind"] == "gap"]
    assert gap["lost"] == 4  # safe; task-claimed, and its two effects
    assert gap["memory"]["state"] == "RUNNING"
    (report,) = replay_files([path])
    assert report.ok, report


def test_a_link_in_the_files_place_is_not_followed(tmp_path: Path) -> None:
    clock = ManualClock()
    victim = tmp_path / "victim"
    logs = tmp_path / "logs"
    logs.mkdir()
    os.symlink(victim, logs / time.strftime("decisions-%Y-%m-%d.jsonl", time.localtime(clock.wall)))
    journal = Journal(logs, clock)
    journal.write("alive", state="READY", reason="")
    assert journal.trouble
    assert not victim.exists()


def test_lines_are_json_without_infinities(tmp_path: Path) -> None:
    clock = ManualClock()
    journal = Journal(tmp_path, clock)
    plan = Lifecycle(Limits(), memory=Memory(State.DISABLED)).propose(Observation(clock.now, Automation(True)))
    journal.intent(plan)
    (path,) = tmp_path.iterdir()
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_quiet_day_is_under_a_megabyte_and_tells_what_was_seen(tmp_path: Path) -> None:
    clock = ManualClock(wall=time.mktime((2027, 1, 15, 0, 0, 0, 0, 0, -1)))
    journal = Journal(tmp_path, clock)
    for _ in range(1440):
        look = seen(clock.now, person=Person(clock.now - 123.456789), gpu=Gpu(4.123456789, 1.987654321), cpu=Cpu(5.123456789))
        journal.alive("IDLE_WAIT", "IDLE_WAIT: user active on seat0, tty2 (X11) 2 min ago, 8 min to go", look, Limits())
        clock.go(ALIVE_EVERY_S)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 1_000_000
    lines = [entry for _, entry in read(path)]
    assert len(lines) == 1440
    assert lines[-1]["observation"]["user"] == {"idle": 123.457}
    assert lines[-1]["observation"]["cpu"] == 5.123


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", (2027, 3, 28), 23),
        ("Europe/Berlin", (2027, 10, 31), 25),
        ("America/Sao_Paulo", (2018, 11, 4), 23),  # midnight itself is skipped
        ("UTC", (2027, 6, 1), 24),
    ],
)
def test_days_turn_at_local_midnight_when_clocks_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str, day: tuple[int, int, int], hours: int
) -> None:
    if not Path("/usr/share/zoneinfo", zone).exists():
        pytest.skip(f"no time zone data for {zone}: install tzdata")
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        clock = ManualClock(wall=time.mktime((*day, 12, 0, 0, 0, 0, -1)) - DAY_S)
        journal = Journal(tmp_path, clock, keep_days=3)
        for _ in range(2 * 96):
            journal.write("alive", state="READY", reason="")
            clock.go(900)
        name = "decisions-{:04}-{:02}-{:02}.jsonl".format(*day)
        found = files([tmp_path])
        assert len(found) == 3
        whole = [entry for _, entry in read(tmp_path / name)]
        assert len(whole) == hours * 4
        assert all(line["time"].startswith(name[10:20]) for line in whole)
    finally:
        monkeypatch.undo()
        time.tzset()
