"""A span cut out of a journal is a script that passes, whatever the span (R17)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.clock import ManualClock

from states.lifecycle import Lifecycle
from supervisor.journal import Journal
from supervisor.offline.record import RecordError, cut
from supervisor.offline.replay import replay_files
from supervisor.offline.script import parse
from supervisor.offline.world import World

FOLDER = Path(__file__).parents[1] / "replays"
NAMES = sorted(p.name for p in FOLDER.glob("*.yaml"))


def lived(name: str, folder: Path) -> tuple[float, list[float]]:
    """Write the journal of a script; (the wall time of 0 s, the times of its steps)."""
    script = parse((FOLDER / name).read_text(), name)
    clock = ManualClock(now=5000.25)
    zero_s, wall_s = clock.now, clock.wall
    journal, world, mind = Journal(folder, clock), World(script.inhibitor, script.enabled), Lifecycle(script.limits, clock.now)
    journal.start("0", script.limits, mind.memory)
    for step in script.steps:
        clock.go(zero_s + step.at_s - clock.now)
        world.lay(step.see, clock.now)
        for _ in range(step.ticks):
            plan = mind.propose(world.look(clock.now, step.stale))
            journal.intent(plan)
            outcome = world.perform(plan, step.refuse)
            journal.outcome(plan, outcome, mind.commit(plan, outcome))
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
            text, note = cut([tmp_path / "logs"], at(zero_s + begin_s), at(zero_s + steps[-1] + 1))
        except RecordError as error:
            if "no decision" in str(error):
                continue
            raise
        assert not note
        (tmp_path / "cut.yaml").write_text(text)
        (report,) = replay_files([tmp_path / "cut.yaml"])
        assert report.ok, report
        cuts += 1
    assert cuts


def test_an_empty_span_says_what_to_do(tmp_path: Path) -> None:
    zero_s, _ = lived(NAMES[0], tmp_path / "logs")
    with pytest.raises(RecordError, match="name a wider span"):
        cut([tmp_path / "logs"], at(zero_s - 900), at(zero_s - 800))
