"""Recorded journals judged again: what the daemon's own journal writes comes out the same, and a change is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from states.lifecycle import Lifecycle
from states.limits import Limits
from states.memory import Memory
from states.observation import (
    NEVER,
    Automation,
    Cpu,
    Gpu,
    Host,
    Link,
    Observation,
    Person,
    Reading,
    Task,
    TaskPhase,
)
from supervisor.journal.codec import observation_of, see_of
from supervisor.journal.decision_log import Journal
from supervisor.tools.history.replay import answer, errors, exit_code, replay_files
from supervisor.tools.history.script import Script, parse
from supervisor.tools.history.script_world import World

FOLDER = Path(__file__).parents[2] / "replays"
PATHS = sorted(FOLDER.glob("*.yaml"))
BOOT_S = 12_345.678901


class Clock:
    """A clock that the test moves."""

    def __init__(self, wall_s: float = 1_790_000_000.0) -> None:
        self.at_s = BOOT_S
        self._wall_s = wall_s

    def now_s(self) -> float:
        return self.at_s

    def wall_s(self) -> float:
        return self._wall_s


def record(script: Script, folder: Path, clock: Clock) -> Path:
    """A script as the daemon would have lived and written it; the journal's path."""
    journal = Journal(folder, clock)
    world = World(script.inhibitor, script.enabled)
    lifecycle = Lifecycle(script.limits, BOOT_S)
    journal.start("0.0.0", script.limits, lifecycle.memory)
    for step in script.steps:
        clock.at_s = BOOT_S + step.at_s
        world.lay(step.see, clock.at_s)
        for _ in range(step.ticks):
            plan = lifecycle.propose(world.look(clock.at_s, step.stale))
            journal.intent(plan)
            outcome = world.perform(plan, step.refuse)
            journal.outcome(plan, outcome, lifecycle.commit(plan, outcome))
    journal.close()
    (path,) = folder.glob("decisions-*.jsonl")
    return path


@pytest.fixture
def day(tmp_path: Path) -> Path:
    """The journal of one task that the person's return cut short, and of a stop that failed at first."""
    return record(parse((FOLDER / "everything-refused.yaml").read_text(), "s"), tmp_path, Clock())


def change(path: Path, how: Callable[[list[dict[str, Any]]], Any]) -> tuple[int, str]:
    """Change the journal's lines; (exit code, what is said)."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    how(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    reports = replay_files([path])
    return exit_code(reports), "\n".join([*answer(reports), *errors(reports)])


def decisions(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == "decision"]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_what_the_journal_wrote_comes_out_the_same(path: Path, tmp_path: Path) -> None:
    written = record(parse(path.read_text(), path.name), tmp_path, Clock())
    (report,) = replay_files([written])
    assert report.ok, "\n".join([*report.answer(), *report.errors])
    assert report.steps == len(decisions([json.loads(line) for line in written.read_text().splitlines()]))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda d: d[3].update(row="gpu-taken"), "row: expected gpu-taken, got user-returned"),
        (lambda d: d[3].update(row=None), "row: expected null, got user-returned"),
        (lambda d: d[2]["observation"].update(user="unknown"), "row: expected task-claimed, got unsafe"),
        (lambda d: d[2]["observation"].update(stale=["gpu"]), "row: expected task-claimed, got unsafe"),
        (lambda d: d[3].update(effects=["stop"]), "effects: expected [stop], got [stop, hand_back, wipe, release]"),
        (lambda d: d[3].update({"from": "READY"}), "from: expected READY, got RUNNING"),
        (lambda d: d[0].update(state="READY"), "state: expected READY, got IDLE_WAIT"),
    ],
)
def test_another_decision_is_a_difference_with_its_place(day: Path, how: Callable[[Any], Any], said: str) -> None:
    code, text = change(day, lambda lines: how(decisions(lines)))
    assert code == 1
    assert said in text
    assert f"{day}:" in text
    assert text.count("expected") == 1


def test_other_limits_are_a_difference(day: Path) -> None:
    def stricter(lines: list[dict[str, Any]]) -> None:
        next(line for line in lines if line["kind"] == "config")["limits"]["max_cpu_percent"] = 4.0

    code, text = change(day, stricter)
    assert code == 1
    assert "row: expected safe, got null" in text
    assert "CPU of others at 5 %, limit 4 %" in text


def test_the_state_after_comes_from_the_last_effect(day: Path) -> None:
    def other(lines: list[dict[str, Any]]) -> None:
        last = next(line for line in lines if line["kind"] == "effect" and "state" in line)
        last["state"] = "READY"

    code, text = change(day, other)
    assert code == 1
    assert "state: expected READY, got RUNNING" in text


def test_a_failed_inhibitor_is_fed_back(tmp_path: Path) -> None:
    path = record(parse((FOLDER / "inhibitor-refused.yaml").read_text(), "s"), tmp_path, Clock())

    def granted(lines: list[dict[str, Any]]) -> None:
        next(line for line in lines if line.get("effect") == "inhibit")["ok"] = True

    code, text = change(path, granted)
    assert code == 1
    assert "state: expected READY, got RUNNING" in text


def test_a_torn_last_line_and_unknown_kinds_are_left_out(day: Path) -> None:
    code, _ = change(day, lambda lines: lines.insert(3, {"v": 1, "kind": "weather", "boot_s": 1.0}))
    assert code == 0
    with day.open("a") as file:
        file.write('{"v": 1, "kind": "decision", "ti')
    assert exit_code(replay_files([day])) == 0


def test_a_tick_that_a_crash_tore_ends_with_the_next_life(day: Path) -> None:
    def crash(lines: list[dict[str, Any]]) -> None:
        returned = lines.index(decisions(lines)[3])
        del lines[returned + 2 :]  # the decision and its first effect were written, then the machine was gone
        lines.append({"v": 1, "kind": "start", "boot_s": 3.0, "memory": {"cooldown_from_s": None}})
        first = decisions(lines)[0]
        lines.append(first | {"at_s": 4.0, "boot_s": 4.0})

    code, text = change(day, crash)
    assert code == 0, text


def test_the_cooldown_that_a_new_life_remembers_counts(day: Path) -> None:
    def restart(remembers: float | None) -> Callable[[list[dict[str, Any]]], None]:
        def how(lines: list[dict[str, Any]]) -> None:
            on, safe = decisions(lines)[:2]
            del lines[2:]
            lines[0]["memory"] = {"cooldown_from_s": remembers}
            lines.extend([on, safe])

        return how

    text = day.read_text()
    assert change(day, restart(None))[0] == 0
    day.write_text(text)
    code, said = change(day, restart(BOOT_S - 1.0))
    assert code == 1
    assert "row: expected safe, got null" in said
    assert "cooling down" in said


def test_the_next_day_goes_on_with_the_life_of_the_day_before(day: Path) -> None:
    lines = day.read_text().splitlines(keepends=True)
    half = next(n for n, line in enumerate(lines) if '"row": "user-returned"' in line)
    first, second = day.parent / "decisions-2026-09-21.jsonl", day.parent / "decisions-2026-09-22.jsonl"
    day.unlink()
    first.write_text("".join(lines[:half]))
    second.write_text("".join(lines[half:]))
    assert exit_code(replay_files([day.parent])) == 0
    reports = replay_files([second])
    assert exit_code(reports) == 2
    assert "no start line" in errors(reports)[0]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_a_day_whose_day_before_is_deleted_is_judged_all_the_same(path: Path, tmp_path: Path) -> None:
    """Seven days are kept, a node runs for months: each day's first line says what was carried over midnight."""
    script = parse(path.read_text(), path.name)

    class Midnights(Clock):
        """A day ends at every look at the clock, also between a decision and its effects."""

        def wall_s(self) -> float:
            self._wall_s += 3 * 3600.0
            return self._wall_s

    journal, world, clock = Journal(tmp_path, Midnights(), 10_000), World(script.inhibitor, script.enabled), Clock()
    lifecycle = Lifecycle(script.limits, BOOT_S)
    journal.start("0.0.0", script.limits, lifecycle.memory)
    for step in script.steps:
        clock.at_s = BOOT_S + step.at_s
        world.lay(step.see, clock.at_s)
        for _ in range(step.ticks):
            plan = lifecycle.propose(world.look(clock.at_s, step.stale))
            journal.intent(plan)
            outcome = world.perform(plan, step.refuse)
            journal.outcome(plan, outcome, lifecycle.commit(plan, outcome))
    journal.close()
    days = sorted(tmp_path.glob("decisions-*.jsonl"))
    assert len(days) > 1 or len(script.steps) < 4
    assert exit_code(replay_files([tmp_path])) == 0
    judged = 0
    for day in days[1:]:
        (report,) = replay_files([day])
        assert report.ok, "\n".join([*report.answer(), *report.errors])
        judged += report.steps
    assert judged or len(days) < 2 or len(script.steps) < 4


def test_limits_are_carried_over_midnight_too(day: Path) -> None:
    def cut(limits: dict[str, Any]) -> Callable[[list[dict[str, Any]]], None]:
        def how(lines: list[dict[str, Any]]) -> None:
            config = next(line for line in lines if line["kind"] == "config")
            del lines[: lines.index(decisions(lines)[0])]
            memory = {"state": "DISABLED", "since_s": BOOT_S}
            lines[0] |= {"carried": {"memory": memory, "limits": config["limits"] | limits}}

        return how

    text = day.read_text()
    assert change(day, cut({})) == (0, f"ok    {day}: recorded decisions (6 steps)")
    day.write_text(text)
    assert "CPU of others at 5 %, limit 4 %" in change(day, cut({"max_cpu_percent": 4.0}))[1]
    for carried in (3, {}, {"memory": {}, "limits": {"mood": 1}}, {"limits": {}}):
        day.write_text(text)
        code, said = change(day, lambda lines, c=carried: (lines.pop(0), lines[0].update(carried=c)))  # type: ignore[misc]
        assert code == 2, said
        assert f"{day}:1:1: " in said


def test_a_gap_says_what_the_node_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's journal could not write for a while; what came after is judged all the same."""
    real, lost = Journal._put, {"n": 0}

    def put(self: Journal, wall_s: float, line: dict[str, Any]) -> None:
        lost["n"] += 1
        if 6 <= lost["n"] <= 8:
            raise OSError(28, "No space left on device")
        real(self, wall_s, line)

    monkeypatch.setattr(Journal, "_put", put)
    path = record(parse((FOLDER / "everything-refused.yaml").read_text(), "s"), tmp_path, Clock())
    assert '"kind": "gap"' in path.read_text()
    (report,) = replay_files([path])
    assert report.ok, "\n".join([*report.answer(), *report.errors])
    assert report.steps >= 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "found no line of a decision journal"),
        (b"hello\n", "found no line of a decision journal"),
        (b'{"v": 2, "kind": "start"}\n', "found no line of a decision journal"),
        (b'{"v": 1, "kind": "start"}\n', "boot_s: Expected `float`, got `null`"),
        (b'{"v": 1, "kind": "start", "boot_s": 1' + b"0" * 400 + b"}\n", "boot_s: Number out of range"),
        (b'{"v": 1, "kind": "start", "boot_s": NaN}\n', "boot_s: Expected `float` >= "),
        (b'{"v": 1, "kind": "start", "boot_s": 1, "memory": {"cooldown_from_s": "x"}}\n', "memory: Expected `float | null`"),
        (b'{"v": 1, "kind": "config", "limits": {"mood": 1}}\n', "limits: found"),
        (b'{"v": 1, "kind": "config", "limits": {"run_s": "x"}}\n', "limits: Expected `float`, got `str`"),
        (b'{"v": 1, "kind": "gap", "memory": 3}\n', "memory: Expected `object`"),
        (b'{"v": 1, "kind": "start", "boot_s": 1}\n{"v": 1, "kind": "decision", "boot_s": 2}\n', "observation: Expected"),
        (
            b'{"v": 1, "kind": "start", "boot_s": 1}\n{"v": 1, "kind": "decision", "boot_s": 2, "observation": {}}\n',
            ":2:1: observation: automation is missing",
        ),
    ],
)
def test_what_is_no_journal_is_exit_2_and_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "decisions-2026-09-21.jsonl"
    path.write_bytes(content)
    reports = replay_files([path])
    assert exit_code(reports) == 2
    assert said in errors(reports)[0]
    assert errors(reports)[0].startswith(str(path))


# --- the vocabulary

LIMITS = Limits()
finite = st.floats(-1e9, 1e9, allow_nan=False)


def readings(value: st.SearchStrategy[Any]) -> st.SearchStrategy[Reading[Any]]:
    at = st.sampled_from([BOOT_S, BOOT_S - 29.9, BOOT_S - 1000.0, NEVER])
    return st.builds(Reading, st.one_of(st.none(), value), st.just("e"), st.just("s"), at)


any_float = st.floats(allow_nan=True, allow_infinity=True)
observations = st.builds(
    Observation,
    st.just(BOOT_S),
    st.builds(Automation, st.booleans()),
    readings(st.builds(Person, st.one_of(any_float, st.just(NEVER)))),
    readings(st.builds(Gpu, any_float, any_float, st.integers(0, 9), st.booleans())),
    readings(st.builds(Cpu, any_float)),
    readings(st.builds(Host, st.booleans(), st.booleans(), st.text(max_size=5))),
    st.builds(Task, st.sampled_from(TaskPhase), st.just("i"), st.just("t")),
    st.sampled_from(Link),
)


@given(observations)
def test_every_observation_can_be_said_and_is_judged_the_same(observation: Observation) -> None:
    see = json.loads(json.dumps(see_of(observation, LIMITS), allow_nan=False))
    again = observation_of(see, observation.now_s, "i", "t")
    for state in Memory().state.__class__:
        memory = Memory(state, running_since_s=BOOT_S, started_at_s=BOOT_S, cooldown_from_s=0.0)
        one, two = Lifecycle(LIMITS, memory=memory).propose(observation), Lifecycle(LIMITS, memory=memory).propose(again)
        assert (one.row, one.effects) == (two.row, two.effects)
    assert see_of(again, LIMITS) == see or "stale" in see


words = st.sampled_from(["automation", "user", "gpu", "cpu", "host", "task", "link", "stale", "idle", "unfit", "percent"])
scalars = st.one_of(st.none(), st.booleans(), st.floats(), st.text(max_size=5))
anything = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(words, inner))


@given(anything)
def test_anything_else_is_refused_with_a_reason(value: Any) -> None:
    see = value if isinstance(value, dict) else {"automation": value}
    with pytest.raises(ValueError, match=r"."):
        observation_of(see, 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("automation", True), ("user", "active"), ("user", {"idle": True}), ("user", {"idle": float("nan")}),
        ("user", {"idle": float("inf")}), ("user", {"idle": 10**400}), ("gpu", {"percent": 1}), ("gpu", 3), ("cpu", "5"),
        ("host", "unfit"), ("host", {"unfit": 3}), ("task", "waiting"), ("link", None), ("stale", "user"), ("stale", ["task"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_by_name(name: str, value: Any) -> None:
    see = see_of(Observation(0.0), LIMITS)
    observation_of(see, 0.0)
    with pytest.raises(ValueError, match=name):
        observation_of(see | {name: value}, 0.0)
