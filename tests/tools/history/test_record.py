"""A span cut out of a journal is a script that passes, whatever the span (R17)."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from support.clock import ManualClock

from states.lifecycle import Lifecycle
from states.memory import Memory
from supervisor.cli.record import record
from supervisor.journal.decision_log import Journal
from supervisor.tools.history.record import RecordError, cut
from supervisor.tools.history.replay import replay_files
from supervisor.tools.history.script import parse
from supervisor.tools.history.script_world import World

FOLDER = Path(__file__).parents[2] / "replays"
NAMES = sorted(p.name for p in FOLDER.glob("*.yaml"))


def lived(name: str, folder: Path) -> tuple[float, list[float]]:
    """Write the journal of a script; (the wall time of 0 s, the times of its steps)."""
    script = parse((FOLDER / name).read_text(), name)
    clock = ManualClock(now=5000.25)
    zero_s, wall_s = clock.now, clock.wall
    journal, world = Journal(folder, clock), World(script.inhibitor, script.enabled)
    lifecycle = Lifecycle(script.limits, clock.now)
    journal.start("0", script.limits, lifecycle.memory)
    for step in script.steps:
        clock.go(zero_s + step.at_s - clock.now)
        world.lay(step.see, clock.now)
        for _ in range(step.ticks):
            plan = lifecycle.propose(world.look(clock.now, step.stale))
            journal.intent(plan)
            outcome = world.perform(plan, step.refuse)
            journal.outcome(plan, outcome, lifecycle.commit(plan, outcome))
    journal.close()
    return wall_s, [step.at_s for step in script.steps]


def at(wall_s: float) -> datetime:
    return datetime.fromtimestamp(int(wall_s), UTC)


@pytest.mark.parametrize("name", NAMES)
def test_every_span_from_every_step_passes(tmp_path: Path, name: str) -> None:
    zero_s, steps = lived(name, tmp_path / "logs")
    cuts = 0
    for begin_s in sorted(set(steps)):
        try:
            text, covers = cut([tmp_path / "logs"], at(zero_s + begin_s), at(zero_s + steps[-1] + 1))
        except RecordError as error:
            if "no decision" in str(error):
                continue
            raise
        assert "; it ends at" not in covers
        (tmp_path / "cut.yaml").write_text(text)
        (report,) = replay_files([tmp_path / "cut.yaml"])
        assert report.ok, report
        cuts += 1
    assert cuts


def test_an_empty_span_says_what_to_do(tmp_path: Path) -> None:
    zero_s, _ = lived(NAMES[0], tmp_path / "logs")
    with pytest.raises(RecordError, match="name a wider span"):
        cut([tmp_path / "logs"], at(zero_s - 900), at(zero_s - 800))


@pytest.mark.parametrize(
    ("begin", "end", "says"),
    [
        ("soon", "2026-10-05", "--from: found 'soon', allowed: a time such as"),
        ("0001-01-01T00:00:00+05:00", "2026-10-05", "--from: found '0001-01-01T00:00:00+05:00', allowed: a time such as"),
        ("2026-10-06", "2026-10-05", "--to: found '2026-10-05', allowed: a time after --from"),
    ],
)
def test_times_that_make_no_span_are_refused_before_any_journal_is_read(
    begin: str, end: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as exit_:
        record(begin, end, Path("/nowhere/x.yaml"), [Path("/nowhere")])
    assert exit_.value.exit_code == 2
    assert capsys.readouterr().err.startswith(says)


def test_a_kept_day_is_cut_without_the_days_before(tmp_path: Path) -> None:
    """Seven days are kept, a node runs for months: the day's first line says what was carried over midnight."""
    zero_s, steps = lived("on-hold.yaml", tmp_path / "logs")
    (path,) = (tmp_path / "logs").glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    limits = next(line["limits"] for line in lines if line["kind"] == "config")
    lines = [line for line in lines if line["kind"] not in ("start", "config")]
    lines[0]["carried"] = {"memory": asdict(Memory(since_s=lines[0]["boot_s"])), "limits": limits}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text, _ = cut([path], at(zero_s), at(zero_s + steps[-1] + 1))
    assert "work.hold_sec: 30" in text
    del lines[0]["carried"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RecordError, match="follows a start"):
        cut([path], at(zero_s), at(zero_s + steps[-1] + 1))


@pytest.mark.parametrize(
    "change",
    [
        {"observation": "x"}, {"observation": None}, {"task": "x"}, {"at_s": 10**400}, {"time": 3}, {"time": "2026-10-05"},
        {"row": "\ud800"},
    ],
)  # fmt: skip
def test_a_line_of_another_form_is_refused_with_its_place(tmp_path: Path, change: dict[str, object]) -> None:
    zero_s, steps = lived("timed-out.yaml", tmp_path / "logs")
    (path,) = (tmp_path / "logs").glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    next(line for line in reversed(lines) if line["kind"] == "decision").update(change)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RecordError, match="is not of the journal's form"):
        cut([path], at(zero_s), at(zero_s + steps[-1] + 1))


@pytest.mark.parametrize("field", ["row", "observation", "at_s", "time"])
def test_a_line_that_lacks_something_is_refused_with_its_place(tmp_path: Path, field: str) -> None:
    zero_s, steps = lived("timed-out.yaml", tmp_path / "logs")
    (path,) = (tmp_path / "logs").glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del next(line for line in reversed(lines) if line["kind"] == "decision")[field]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RecordError, match="is not of the journal's form"):
        cut([path], at(zero_s), at(zero_s + steps[-1] + 1))
