"""The timeline: sums that can be checked by hand, days of every kind, and lines that cannot be read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support import stories, weeks
from support.clock import ManualClock
from support.stories import KINDS, ZONE

from states.limits import Limits
from states.memory import State
from states.observation import Automation, Cpu, Gpu, Host, Observation, Person, Reading
from supervisor.journal.decision_log import Journal
from supervisor.linux.clock import iso
from supervisor.tools.history.svg_to_png import rasterise
from supervisor.tools.history.timeline.endings import ending_of
from supervisor.tools.history.timeline.html import page
from supervisor.tools.history.timeline.reader import TimelineError, load
from supervisor.tools.history.timeline.spans import GAP, PersonState, Timeline
from supervisor.tools.history.timeline.sums import summary
from supervisor.tools.history.timeline.svg import picture
from supervisor.tools.history.timeline.terminal import lines
from supervisor.tools.history.timeline.words import day_lines, hours, kept_rows, quick, span_text, summary_rows

CLI = (sys.executable, "-m", "supervisor.cli.main", "timeline")
UTC_DAY = 1_799_971_200.0  # 2027-01-15T00:00:00Z


@pytest.fixture(autouse=True)
def local_time() -> Iterator[None]:
    with stories.zone():
        yield


class Diary:
    """Journal lines as a node writes them, at times of the test's choice."""

    def __init__(self, folder: Path, wall: float = UTC_DAY + 9 * 3600) -> None:
        self.clock = ManualClock(10_000.0, wall)
        self.journal = Journal(folder, self.clock, keep_days=10_000)
        self.folder = folder

    def go(self, seconds: float) -> Diary:
        self.clock.go(seconds)
        return self

    def boot(self) -> Diary:
        """The machine was off."""
        self.clock.now = 50.0
        return self

    def alive(self, state: str, idle_s: float | None = 5.0, seconds: float = 60.0, reason: str = "", **see: float) -> Diary:
        """Signs of life for so long, one a minute, the last at its end; idle time grows."""
        for _ in range(round(seconds / 60)):
            self.clock.go(60)
            now_s = self.clock.now
            person = None if idle_s is None else Person(now_s - idle_s)
            values = (person, Gpu(see.get("gpu", 2), see.get("vram", 1)), Cpu(see.get("cpu", 3)), Host())
            readings = (Reading(v, "" if v is not None else "?", "t", now_s) for v in values)
            self.journal._last_line_s = float("-inf")
            self.journal.alive(state, f"{state}: {reason}", Observation(now_s, Automation(True), *readings), Limits())
        return self

    def write(self, kind: str, **fields: Any) -> Diary:
        self.journal.write(kind, **fields)
        return self

    def start(self) -> Diary:
        self.write("start", version="9", pid=1, memory={"cooldown_from_s": None})
        self.journal.config(Limits(), "")
        return self

    def decide(self, tick: int, source: str, row: str, to: str, *effects: str, **more: Any) -> Diary:
        """A decision and its effects; `took_s` for each."""
        task = {"id": "3880bb8d-0b6a", "type": "render", "phase": "running"}
        seen = {"user": {"idle": more.get("idle", 700.0)}, "gpu": "absent", "cpu": 1.0}
        after = {} if effects else {"state": to}
        self.write("decision", tick=tick, **{"from": source}, row=row, reason=more.get("reason", ""), to=to,
                   effects=list(effects), guards=[], task=task, observation=seen, at_s=self.clock.now, **after)  # fmt: skip
        for n, effect in enumerate(effects):
            last = {"state": to} if n == len(effects) - 1 else {}
            detail = more.get("detail", "") if effect in ("settle", "hand_back") else ""
            self.write("effect", tick=tick, effect=effect, ok=True, detail=detail, took_s=0.1, **last)
        return self

    def timeline(self, days: int = 7) -> Timeline:
        self.journal.close()
        return load([self.folder], days)


def test_a_task_from_start_to_the_person_s_return(tmp_path: Path) -> None:
    diary = Diary(tmp_path).start()
    diary.decide(1, "DISABLED", "switched-on", "IDLE_WAIT").alive("IDLE_WAIT", 30, 600, "user active on seat0, 9 min to go")
    diary.decide(2, "IDLE_WAIT", "safe", "READY").go(1).decide(3, "READY", "task-claimed", "RUNNING", "inhibit", "start")
    diary.alive("RUNNING", 700, 1200).go(0.5)
    diary.decide(4, "RUNNING", "user-returned", "COOLDOWN", "stop", "hand_back", "wipe", "release", idle=0.01,
                 reason="user active on seat0", detail="the person came back")  # fmt: skip
    diary.alive("COOLDOWN", 1, 300)
    timeline = diary.timeline()
    assert [(s.state, s.end - s.begin) for s in timeline.spans] == [
        ("IDLE_WAIT", 600), ("READY", 1), ("RUNNING", 1200.5), ("COOLDOWN", 300),
    ]  # fmt: skip
    (task,) = timeline.tasks
    assert (task.outcome, task.row, task.why, task.end - task.begin) == (
        "handed back", "user-returned", "user active on seat0", 1200.5,
    )  # fmt: skip
    assert task.reaction_s == pytest.approx(0.11)
    text = span_text(timeline.spans[0])
    assert "reason: user active on seat0" in text
    assert "until safe: nobody is there" in text
    s = summary(timeline)
    assert (s.preempted, s.done, s.gap_h) == (1, 0, 0)
    assert s.given_h == pytest.approx(1200.5 / 3600)
    assert dict(summary_rows(timeline))["Person back → task gone"] == "median 110 ms, worst 110 ms, 1 time"


def test_a_task_that_ends_by_itself(tmp_path: Path) -> None:
    diary = Diary(tmp_path).start().decide(1, "READY", "task-claimed", "RUNNING", "inhibit", "start")
    diary.alive("RUNNING", 700, 600).decide(2, "RUNNING", "task-settled", "RUNNING", "settle", "wipe", detail="succeeded")
    diary.decide(3, "RUNNING", "next-task", "RUNNING", "start").alive("RUNNING", 700, 300)
    diary.decide(4, "RUNNING", "task-ended", "COOLDOWN", "settle", "wipe", "release", detail="failed: exit status 3")
    timeline = diary.alive("COOLDOWN", 700, 60).timeline()
    assert [(t.outcome, t.why, t.end - t.begin) for t in timeline.tasks] == [
        ("done", "", 600), ("failed", "exit status 3", 300),
    ]  # fmt: skip
    assert [s.state for s in timeline.spans] == ["RUNNING", "COOLDOWN"]


@pytest.mark.parametrize(
    ("entry", "kind", "error"),
    [
        ({"effect": "settle", "ending": {"kind": "succeeded", "vram": "free"}, "detail": "x"}, "succeeded", ""),
        ({"effect": "settle", "ending": {"kind": "timed_out", "error": "too long"}, "detail": "y"}, "timed_out", "too long"),
        ({"effect": "settle", "detail": "succeeded"}, "succeeded", ""),
        ({"effect": "settle", "detail": "succeeded, VRAM free after 12 ms"}, "succeeded", ""),
        ({"effect": "settle", "detail": "failed: succeeded, or so it says"}, "failed", "succeeded, or so it says"),
        ({"effect": "settle", "detail": "the GPU was needed"}, "handed_back", "the GPU was needed"),
        ({"effect": "hand_back", "detail": "settled in place of that, failed: limit: disk"}, "failed", "limit: disk"),
        ({"effect": "hand_back", "detail": "the person came back"}, "handed_back", "the person came back"),
    ],
)
def test_endings_of_today_and_of_old_journals(entry: dict[str, Any], kind: str, error: str) -> None:
    assert ending_of(entry) == (kind, error)


@pytest.mark.parametrize(
    ("lines_between", "why"),
    [
        (lambda d: d.write("stop", state="DISABLED", reason="SIGTERM").go(7200).start(), "node not running: SIGTERM"),
        (lambda d: d.go(7200).start(), "no record: the node ended without notice"),
        (lambda d: d.go(7200), "no record: asleep, or hung"),
        (lambda d: d.go(7200).boot().start(), "no record: the machine went off without notice"),
        (lambda d: d.go(7200).write("gap", lost=9, why="disk full", memory={}), "9 lines lost: disk full"),
    ],
)
def test_silence_is_a_gap_that_says_what_is_known(tmp_path: Path, lines_between: Any, why: str) -> None:
    diary = Diary(tmp_path).start().alive("IDLE_WAIT", 5, 600)
    timeline = (lines_between(diary) or diary).alive("IDLE_WAIT", 5, 600).timeline()
    (gap,) = [s for s in timeline.spans if s.state == GAP]
    assert gap.why == why
    assert gap.end - gap.begin == pytest.approx(7200, abs=61)
    assert not [p for p in timeline.person if p.begin < gap.end - 1 and p.end > gap.begin + 1]
    inside = [p for p in timeline.points if gap.begin < p.at < gap.end]
    assert all(p.cpu is None for p in inside)


def test_a_task_in_hand_when_the_power_goes_is_lost(tmp_path: Path) -> None:
    diary = Diary(tmp_path).start().decide(1, "READY", "task-claimed", "RUNNING", "inhibit", "start").alive("RUNNING", 700, 600)
    (task,) = diary.go(3600).boot().start().alive("IDLE_WAIT", 5, 60).timeline().tasks
    assert (task.outcome, task.end - task.begin) == ("lost", 600)


def test_the_person_ages_between_two_looks(tmp_path: Path) -> None:
    diary = Diary(tmp_path).start().alive("IDLE_WAIT", 5, 300)
    for idle_s in range(60, 1500, 60):
        diary.alive("IDLE_WAIT", idle_s + 5.0)
    timeline = diary.alive("IDLE_WAIT", None, 180).timeline()
    kinds = [(p.state, p.end - p.begin) for p in timeline.person]
    assert [kind for kind, _ in kinds] == list(PersonState)
    assert kinds[1][1] == pytest.approx(600 - 95)


@pytest.mark.parametrize(
    "line",
    [
        '{"v": 1, "kind": "alive", "time": "2027-01-15T1',
        '{"v": 2, "kind": "alive", "time": "2027-01-15T12:00:00+00:00", "boot_s": 1}',
        '{"v": 1, "kind": "decision", "time": "2027-01-15T12:00:00+00:00", "boot_s": 1}',
        '{"v": 1, "kind": "effect", "time": "2027-01-15T12:00:00+00:00", "boot_s": 1, "tick": {}}',
        '{"v": 1, "kind": "alive", "time": "noon", "boot_s": 1}',
        '{"v": 1, "kind": "alive", "time": "2027-01-15T12:00:00+00:00", "boot_s": []}',
        '{"v": 1, "kind": "config", "time": "2027-01-15T12:00:00+00:00", "boot_s": 1, "limits": {"cooldown_s": "x"}}',
        '{"v": 1, "kind": "alive", "time": "2027-01-15T12:00:00+00:00", "boot_s": 1, "state": "READY", "observation":'
        ' {"user": {"idle": "x"}, "gpu": {"percent": NaN}, "cpu": 1e999}}',
        '{"v": 1, "kind": "aliens", "time": "2027-01-15T12:00:00+00:00", "boot_s": 1}',
        "[]", "null", "\x00\x00\x00", "{}",
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_left_out(tmp_path: Path, line: str) -> None:
    diary = Diary(tmp_path, UTC_DAY + 11.5 * 3600).start().alive("IDLE_WAIT", 5, 1800)
    (path,) = tmp_path.iterdir()
    with path.open("a") as file:
        file.write(line + "\n")
    timeline = diary.alive("IDLE_WAIT", 5, 1800).timeline()
    assert summary(timeline).states_h["IDLE_WAIT"] == pytest.approx(1.0, abs=0.04)
    assert timeline.left_out + ("aliens" in line) + ("NaN" in line) == 1
    assert "IDLE_WAIT" in page(timeline)
    picture(timeline)


def test_what_the_journal_says_is_never_markup(tmp_path: Path) -> None:
    evil = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\x00\x1b[31m'
    diary = Diary(tmp_path).start().alive("IDLE_WAIT", 5, 600, reason=evil)
    diary.write("operator", word=evil).write("config", problem=evil)
    diary.alive(f'"{evil}', 5, 6000).decide(1, "IDLE_WAIT", evil, "READY", reason=evil).alive("READY", 5, 600)
    timeline = diary.timeline()
    tags: list[tuple[str, list[tuple[str, str | None]]]] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, attrs))

    Parser().feed(page(timeline))
    assert [tag for tag, _ in tags].count("script") == 3
    assert not [a for _, attrs in tags for a, _ in attrs if a.startswith("on")]
    assert not [a for tag, attrs in tags for a, _ in attrs if tag == "img"]
    ElementTree.fromstring(picture(timeline))
    assert all("\x1b" not in line.plain for line in lines(timeline, 80))


@pytest.mark.parametrize(
    ("zone", "start", "hours_of_days"),
    [
        (ZONE, 1_792_792_800, [24, 25, 24]),  # 2026-10-23T22:00:00Z: clocks go back on the 25th
        (ZONE, 1_774_652_400, [24, 23, 24]),  # 2026-03-27T23:00:00Z: forward on the 29th
        ("EET-2EEST,M4.5.5/0,M10.5.4/24", 1_776_895_200, [24, 23, 24]),  # midnight itself is skipped
        ("UTC0", 1_792_800_000, [24, 24, 24]),
    ],
)
def test_days_are_the_clock_s(tmp_path: Path, zone: str, start: int, hours_of_days: list[int]) -> None:
    with stories.zone(zone):
        timeline = Diary(tmp_path, start + 60).start().alive("IDLE_WAIT", 5, 71 * 3600).timeline(7)
        days = timeline.days()
        assert [round((b - a) / 3600) for a, b in days][:3] == hours_of_days
        assert all(a[1] == b[0] for a, b in pairwise(days))
        parts = [summary(timeline.between(*day)) for day in days]
        assert sum(p.recorded_h for p in parts) == pytest.approx(summary(timeline).recorded_h)
        page(timeline)


def test_only_the_last_days(tmp_path: Path) -> None:
    diary = Diary(tmp_path).start()
    for _ in range(5):
        diary.alive("IDLE_WAIT", 5, 600).go(86400 - 600)
    timeline = diary.alive("IDLE_WAIT", 5, 600).timeline(2)
    assert len(timeline.days()) == 2
    assert timeline.spans[0].state == GAP


@pytest.mark.deep
@pytest.mark.parametrize("kind", KINDS)
def test_a_month_adds_up_and_is_drawn(kind: str) -> None:
    logs = weeks.lived(kind)
    timeline = load([logs], 31)
    drawn = (page(timeline), picture(timeline), rasterise(picture(timeline, dark=False), 1.5))
    assert all(drawn)
    s = summary(timeline)
    whole_h = (timeline.end - timeline.begin) / 3600
    assert s.recorded_h + s.gap_h == pytest.approx(whole_h, abs=0.01)
    assert sum(s.states_h.values()) == pytest.approx(s.recorded_h)
    assert s.given_h == pytest.approx(s.states_h["RUNNING"], rel=0.01)
    assert s.here_h + s.away_h == pytest.approx(s.recorded_h, rel=0.01)
    settled = handed_back = 0
    for path in sorted(weeks.lived(kind).iterdir()):
        text = path.read_text()
        settled += len(re.findall(r'"effect": "settle", "ok": true', text))
        handed_back += len(re.findall(r'"effect": "hand_back", "ok": true', text))
    assert s.done + s.failed == settled
    assert s.preempted <= handed_back  # some were never started
    assert s.reactions_s
    assert max(s.reactions_s) < 1


def test_the_picture_shows_every_state_and_gap() -> None:
    timeline = load([weeks.lived("nobody")], 31)
    drawn = picture(timeline)
    assert set(re.findall(r'fill="url\(#p-([A-Z_]+)\)"', drawn)) == {*map(str, State), GAP}
    ElementTree.fromstring(drawn)
    bare = picture(load([weeks.lived("office")], 1), dark=False)
    assert "prefers-color-scheme" not in bare


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_terminal_s_band_fits_its_width(width: int) -> None:
    timeline = load([weeks.lived("office")], 3)
    band = [line.plain for line in lines(timeline, width)]
    days = [line for line in band if re.match(r"\w{3} \d", line) and "given" not in line]
    assert len(days) == 3
    assert all(len(line) <= width for line in days)
    assert "█" in days[0]
    assert "─" in days[1]  # a Monday


@pytest.mark.parametrize(
    ("value", "text"), [(0.004, "4 ms"), (0.9994, "999 ms"), (2.04, "2.0 s"), (99.9, "99.9 s"), (300, "5 min")]
)
def test_reactions_for_people(value: float, text: str) -> None:
    assert quick(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.5, "30 min"), (23.5, "23 h 30 min"), (328.2, "328 h")])
def test_hours_for_people(value: float, text: str) -> None:
    assert hours(value) == text


def test_journals_without_a_span_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TimelineError, match="name journals"):
        load([tmp_path], 7)


# --- the command


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *words], capture_output=True, text=True, timeout=60)


def test_the_command_draws_every_form(tmp_path: Path) -> None:
    logs = str(weeks.lived("office"))
    shown = cli(logs, "--days", "2")
    assert shown.returncode == 0, shown.stderr
    assert "Given to tasks" in shown.stdout
    assert "\x1b" not in shown.stdout
    for name, head in (("week.html", b"<!doctype html>"), ("week.svg", b"<svg "), ("week.PNG", b"\x89PNG")):
        done = cli(logs, "--out", str(tmp_path / name))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (tmp_path / name).read_bytes().startswith(head)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{empty}"], "no line shows what a node did"),
        (["{empty}/none"], "none: No such file or directory"),
        (["{logs}", "--out", "{empty}/week.pdf"], "allowed: a name that ends in .html, .svg or .png"),
        (["{logs}", "--out", "{empty}/no/week.html"], "cannot be written: No such file or directory"),
        (["{logs}", "--days", "0"], "--days"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(tmp_path: Path, words: list[str], said: str) -> None:
    done = cli(*(w.format(empty=tmp_path, logs=weeks.lived("office")) for w in words))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_readings_of_the_page_are_the_journal_s() -> None:
    timeline = load([weeks.lived("gamer")], 3)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page(timeline))
    assert found
    data = json.loads(found[1])
    assert len(data["at"]) == len(data["cpu"]) == len(data["gpu"]) == len(data["vram"]) == len(timeline.points)
    assert max(v for v in data["vram"] if v is not None) > 4
    assert data["limits"]["vram"][-1][1] == 14


def test_what_kept_it_from_working_adds_up(tmp_path: Path) -> None:
    """A cause holds from the line that shows it to the next one, and not over a silence."""
    free = {"automation": "on", "user": {"idle": 9999.0}, "gpu": {"percent": 1.0, "vram_gb": 0.5, "foreign": 0}, "cpu": 3.0,
            "host": "fit", "task": "none", "link": "up"}  # fmt: skip
    lines = [
        ("IDLE_WAIT", {**free, "user": {"idle": 0.0}}, 60), ("IDLE_WAIT", {**free, "user": {"idle": 60.0}, "cpu": 99.0}, 60),
        ("READY", free, 60), ("READY", {**free, "link": "down"}, 60), ("COOLDOWN", free, 60), ("DISABLED", free, 600),
        ("RUNNING", free, 60), ("RUNNING", free, 60),
    ]  # fmt: skip
    at, text = 1_800_000_000.0, ""
    for state, seen, lasts in lines:
        entry = {"v": 1, "time": iso(at), "boot_s": at - 1.7e9, "kind": "alive", "state": state, "reason": ""}
        text += json.dumps({**entry, "observation": seen}) + "\n"
        at += lasts
    path = tmp_path / "decisions-2027-01-15.jsonl"
    path.write_text(text)
    shown = load([path], 3)
    spent_s = {str(cause): round(spent_h * 3600) for cause, spent_h in summary(shown).kept_h.items()}
    assert spent_s == {"the person": 120, "the CPU": 60, "no task to do": 60, "no link": 60, "rest after work": 60}
    assert kept_rows(shown)[0] == (
        "the person", "2 min", "safety.idle_required_minutes", "rae-node whatif --set safety.idle_required_minutes=5",
    )  # fmt: skip
    assert [line.partition(": ")[2] for line in day_lines(shown, 100)] == ["IDLE_WAIT, kept by the person 2 min, the CPU 60 s",
                                                                         "READY, kept by no task to do 60 s, no link 60 s",
                                                                         "no record: asleep, or hung"]
