"""Working hours, and correct settings with which the node can never become READY (interface §4)."""

from __future__ import annotations

import calendar
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import ManualClock
from support.running import NodeFolder
from support.stories import zone

from supervisor.config.feasibility import never_ready
from supervisor.config.load import load
from supervisor.config.schedule import in_hours, opens_at_s
from supervisor.config.schema import Work
from supervisor.sensors.sensor_set import SensorSet

CONFIG = Path(__file__).parents[2] / "config"
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
H = 3600.0


def local(day: str, clock: str) -> time.struct_time:
    """A local time in the week of Monday, 2 November 2026."""
    number = DAYS.index(day)
    form = "%Y-%m-%d %H:%M:%S" if clock.count(":") == 2 else "%Y-%m-%d %H:%M"
    return time.strptime(f"2026-11-{2 + number:02d} {clock}", form)


HOURS = [
    # hours, days, now, open, seconds until that changes
    ([], DAYS, ("mon", "12:00"), True, math.inf),
    (["00:00-24:00"], DAYS, ("sun", "23:59:59"), True, math.inf),
    (["00:00-12:00", "12:00-24:00"], DAYS, ("wed", "11:00"), True, math.inf),
    (["22:00-06:00"], DAYS, ("mon", "21:59:30"), False, 30.0),
    (["22:00-06:00"], DAYS, ("mon", "22:00"), True, 8 * H),
    (["22:00-06:00"], DAYS, ("tue", "05:59"), True, 60.0),
    (["22:00-06:00"], DAYS, ("tue", "06:00"), False, 16 * H),
    (["22:00-06:00"], ["fri"], ("sat", "05:00"), True, 1 * H),
    (["22:00-06:00"], ["fri"], ("fri", "05:00"), False, 17 * H),
    (["22:00-06:00"], ["sun"], ("mon", "01:00"), True, 5 * H),
    (["22:00-06:00"], ["sun"], ("mon", "06:00"), False, 6 * 24 * H + 16 * H),
    (["08:00-10:00", "09:00-12:00"], DAYS, ("mon", "09:30"), True, 2.5 * H),
    (["08:00-10:00", "11:00-12:00"], DAYS, ("mon", "10:00"), False, 1 * H),
    (["20:00-24:00", "00:00-06:00"], DAYS, ("mon", "21:00"), True, 9 * H),
    (["20:00-24:00", "00:00-06:00"], ["mon"], ("mon", "21:00"), True, 3 * H),
    ([], ["sat", "sun"], ("fri", "23:00"), False, 1 * H),
    ([], ["sat", "sun"], ("sat", "00:00"), True, 48 * H),
    ([], ["mon"], ("mon", "23:59:59"), True, 1.0),
    ([], ["mon"], ("tue", "00:00"), False, 6 * 24 * H),
    (["10:00-10:00"], DAYS, ("mon", "10:00"), False, math.inf),
    ([], [], ("mon", "10:00"), False, math.inf),
]


@pytest.mark.parametrize(("hours", "days", "now", "is_open", "change_s"), HOURS)
def test_working_hours(hours: list[str], days: list[str], now: tuple[str, str], is_open: bool, change_s: float) -> None:
    """A window past midnight belongs to the day on which it begins."""
    assert in_hours(Work(hours=hours, days=days), local(*now)) == (is_open, change_s)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hours", "days", "now", "opens_in_s"),
    [
        (["22:00-06:00"], DAYS, ("mon", "21:00"), 1 * H),
        (["22:00-06:00"], DAYS, ("mon", "23:00"), 23 * H),  # it is open: the next one
        (["22:00-06:00"], ["fri"], ("fri", "23:00"), 7 * 24 * H - 1 * H),
        ([], DAYS, ("mon", "10:00"), None),
        (["10:00-10:00"], DAYS, ("mon", "10:00"), None),
    ],
)
def test_the_next_window_opens(
    hours: list[str], days: list[str], now: tuple[str, str], opens_in_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    wall_s = float(calendar.timegm(local(*now)))
    opens_s = opens_at_s(Work(hours=hours, days=days), wall_s)  # type: ignore[arg-type]
    assert (None if opens_s is None else opens_s - wall_s) == opens_in_s
    monkeypatch.undo()
    time.tzset()


def test_a_machine_that_travels_works_by_the_hours_of_where_it_is(tmp_path: Path) -> None:
    """Noon in UTC is nine at night in Japan; a process asks for its zone once only, if nobody makes it ask again."""
    folder = NodeFolder.make(tmp_path / "n", node={"work": {"hours": ["11:00-13:00"]}})
    clock = ManualClock(wall=1_800_014_400.0)  # 15 January 2027, 12:00 UTC

    def reason() -> str:
        host = SensorSet(load(folder.path), clock).host.host(clock.now_s()).value
        return host.reason if host is not None else "unknown"

    with zone("UTC0"):
        assert "work.hours" not in reason()
        os.environ["TZ"] = "JST-9"
        assert "outside work.hours, opens in 14 h" in reason()


CLOCK = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda t: f"{t[0]:02d}:{t[1]:02d}")


@given(
    hours=st.lists(st.tuples(CLOCK, CLOCK).map("-".join), max_size=4),
    days=st.sets(st.sampled_from(DAYS)),
    minute=st.integers(0, 7 * 24 * 60 - 1),
)
def test_the_hours_agree_with_a_minute_by_minute_look(hours: list[str], days: set[str], minute: int) -> None:
    """Nothing changes before the returned time, and at that time it does."""
    week = 7 * 24 * 60
    grid = [False] * week
    for number, day in enumerate(DAYS):
        for text in (hours or ["00:00-24:00"]) if day in days else []:
            start, end = (int(t[:2]) * 60 + int(t[3:]) for t in text.split("-"))
            for m in range(start, end + (1440 if end < start else 0)):
                grid[(number * 1440 + m) % week] = True
    now = local(DAYS[minute // 1440], f"{minute % 1440 // 60:02d}:{minute % 60:02d}")
    is_open, change_s = in_hours(Work(hours=hours, days=sorted(days)), now)  # type: ignore[arg-type]
    assert is_open == grid[minute]
    ahead = next((n for n in range(1, week + 1) if grid[(minute + n) % week] != grid[minute]), None)
    assert change_s == (math.inf if ahead is None else ahead * 60)


def _config(folder: Path, runtime: tuple[str, str] | None, node: str) -> list[str]:
    text = (CONFIG / "runtime.yaml").read_text()
    if runtime:
        assert runtime[0] in text
        text = text.replace(*runtime)
    (folder / "runtime.yaml").write_text(text)
    (folder / "node.yaml").write_text(node)
    config = load(folder)
    return never_ready(config.runtime, config.node)


NEVER = [
    (("enabled: true", "enabled: false"), "", "runtime.yaml: automation.enabled is false"),
    (("max_cpu_percent: 80", "max_cpu_percent: 1.9"), "", "runtime.yaml: safety.max_cpu_percent is 1.9"),
    (("max_gpu_percent: 90", "max_gpu_percent: 1"), "", "runtime.yaml: safety.max_gpu_percent is 1"),
    (("max_vram_gb: 14", "max_vram_gb: 0.05"), "", "runtime.yaml: safety.max_vram_gb is 0.05"),
    (None, "presence: {sessions: false, terminals: false}", "node.yaml: presence.sessions is false"),
    (None, "host: {max_temperature_c: 20}", "node.yaml: host.max_temperature_c is 20"),
    (None, "host: {min_memory_gb: 4096}", "node.yaml: host.min_memory_gb is 4096"),
    (None, "work: {days: []}", "node.yaml: work.days is empty"),
    (None, "work: {hours: ['10:00-10:00']}", "node.yaml: work.hours is 10:00-10:00"),
]


@pytest.mark.parametrize(("runtime", "node", "start"), NEVER, ids=[start for _, _, start in NEVER])
def test_settings_that_never_reach_ready(tmp_path: Path, runtime: tuple[str, str] | None, node: str, start: str) -> None:
    """One line, which names the file, the setting and its value, and says what to do."""
    (line,) = _config(tmp_path, runtime, node)
    assert line.startswith(start + ": ")
    assert "\n" not in line


@pytest.mark.parametrize(
    ("runtime", "node"),
    [
        (("detect_active_user: true", "detect_active_user: false"), "presence: {sessions: false, terminals: false}"),
        (None, "presence: {sessions: false}"),
        (None, "presence: {sessions: false, terminals: false, input: required}"),
        (None, "work: {hours: ['10:00-10:00', '23:59-00:00'], days: [sun]}"),
        (("max_vram_gb: 14", "max_vram_gb: 0.1"), ""),
    ],
)
def test_settings_that_can(tmp_path: Path, runtime: tuple[str, str] | None, node: str) -> None:
    """What looks narrow but is enough."""
    assert _config(tmp_path, runtime, node) == []


MISSING = "node.yaml: tasks.gone.argv: /nowhere/at/all: no such program here, or it may not be run; each such task fails"
CHECKS = [
    # node.yaml, exit code, sound, reachable, the one reason's start, a note
    ({}, 0, True, True, "", ""),
    ({"tasks": {"gone": {"argv": ["/nowhere/at/all"]}}}, 0, True, True, "", MISSING),
    ({"gpu": {"presence": "required"}}, 1, True, False, "node.yaml: gpu.presence is required: this machine has none", ""),
    ({"gpu": {"presence": "maybe"}}, 2, False, False, "node.yaml:", ""),
    ({"work": {"days": []}}, 1, True, False, "node.yaml: work.days is empty", ""),
]


@pytest.mark.slow
@pytest.mark.parametrize(("node", "code", "sound", "reachable", "reason", "note"), CHECKS)
def test_config_check_answers_in_json_whatever_is_wrong(
    tmp_path: Path, node: dict[str, Any], code: int, sound: bool, reachable: bool, reason: str, note: str
) -> None:
    if "required" in str(node) and (list(Path("/dev").glob("nvidia[0-9]*")) or list(Path("/dev/dri").glob("render*"))):
        pytest.skip("this machine has a GPU")
    done = NodeFolder.make(tmp_path, node=node).cli("config", "check", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["sound"], answer["reachable"]) == (code, sound, reachable)
    assert [text[: len(reason)] for text in answer["reasons"]] == ([reason] if reason else [])
    assert note in ("", *answer["notes"])
    assert done.stderr == ("" if sound else f"{answer['reasons'][0]}\n")


@pytest.mark.slow
def test_config_check_says_that_no_task_type_can_run(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    folder.put("node.yaml", "gpu: {presence: none}\ntasks: {gone: {argv: [/nowhere/at/all]}}\n")
    done = folder.cli("config", "check")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[1:] == [
        "  node.yaml: tasks: no task type's program can be run here; install them, or correct argv", f"  note: {MISSING}",
    ]  # fmt: skip
