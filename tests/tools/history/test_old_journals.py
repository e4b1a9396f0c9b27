"""Journals that version 0.1.0 recorded: today's node decides the same, and the timeline's sums stay.

`expected.json` holds the sums of that version's own timeline, but for the tasks that ended well on a GPU: their ending was
the sentence `succeeded, VRAM free after 1398 ms`, and that version counted them as failed. `vram-*` hold such tasks;
`limits` five tasks that failed, one by its timeout; `alarm-stays`, `demo` and `two-tasks` tasks that were handed back;
`false-alarm` and `crash-on-hold` tasks that were frozen for a while; `gpu-quota` one that was paused over and over. These
were written by real daemons, `office` and `power-cut` by simulated ones; their guards and most signs of life are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from support import stories

from supervisor.tools.history.replay import answer, replay_files
from supervisor.tools.history.timeline.reader import load
from supervisor.tools.history.timeline.sums import summary

FOLDER: Final = Path(__file__).parents[2] / "replays/journals-0.1.0"
EXPECTED: Final[dict[str, dict[str, Any]]] = json.loads((FOLDER / "expected.json").read_text())


@pytest.fixture(autouse=True)
def local_time() -> Iterator[None]:
    with stories.zone():
        yield


def test_every_journal_has_its_sums() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.is_dir()} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_it_replays_without_a_difference(name: str) -> None:
    reports = replay_files([FOLDER / name])
    assert all(report.ok for report in reports), "\n".join(answer(reports))
    assert sum(report.steps for report in reports) == EXPECTED[name]["decisions"]


def test_scripts_that_it_cut_out_replay_too() -> None:
    reports = replay_files(sorted(FOLDER.glob("*.yaml")))
    assert [report.ok for report in reports] == [True, True], "\n".join(answer(reports))


@pytest.mark.parametrize("name", EXPECTED)
def test_its_timeline_has_the_same_sums(name: str) -> None:
    timeline = load([FOLDER / name], 7)
    s, expected = summary(timeline), EXPECTED[name]
    assert {state: round(hours * 3600, 1) for state, hours in s.states_h.items()} == expected["states_s"]
    for sum_h, wanted in ((s.gap_h, "unrecorded_s"), (s.given_h, "given_s"), (s.here_h, "here_s"), (s.away_h, "away_s")):
        assert round(sum_h * 3600, 1) == expected[wanted], wanted
    assert (s.done, s.failed, s.lost, s.handed_back) == tuple(expected[k] for k in ("done", "failed", "lost", "handed_back"))
    assert [round(reaction_s * 1000) for reaction_s in s.reactions_s] == expected["reactions_ms"]
    assert timeline.left_out == expected["left_out"]
    if expected["tasks"] is not None:
        assert [[t.type, t.outcome, t.row, t.why] for t in timeline.tasks] == expected["tasks"]
