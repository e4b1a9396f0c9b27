"""The scripts of tests/replays through the function that `rae-node replay` calls, and what they cover (R17)."""

from __future__ import annotations

from pathlib import Path

import pytest

from states.effects import Effect
from states.memory import State
from states.table import ROWS, WAITS_FOR
from supervisor.tools.history.replay import exit_code, play, replay_files
from supervisor.tools.history.script import Script, parse

FOLDER = Path(__file__).parents[2] / "replays"
PATHS = sorted(FOLDER.glob("*.yaml"))
# What replays can show; the others need a real system or a file.
SHOWN = {"R2", "R3", "R4", "R6", "R7", "R8", "R9", "R10", "R11", "R12", "R13", "R15", "R19", "R20", "R21", "R23"}


def scripts() -> list[Script]:
    return [parse(path.read_text(), path.name) for path in PATHS]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_replay(path: Path) -> None:
    (report,) = replay_files([path])
    assert report.ok, "\n".join([*report.errors, *report.answer()])


def test_the_folder_is_one_argument() -> None:
    reports = replay_files([FOLDER])
    assert [report.path for report in reports] == [str(path) for path in PATHS]
    assert exit_code(reports) == 0


def test_every_row_is_fired_and_asked_for() -> None:
    fired = {got.row for script in scripts() for got in play(script)}
    asked = {step.expect.row for script in scripts() for step in script.steps if step.expect}
    every = {row.id for row in ROWS}
    assert every <= fired
    assert every <= asked


def test_every_row_is_fired_from_each_of_its_states() -> None:
    fired = {(got.row, got.before) for script in scripts() for got in play(script) if got.step.ticks == 1}
    assert {(row.id, state) for row in ROWS for state in row.sources} <= fired


def test_every_effect_is_seen_to_succeed_and_to_fail() -> None:
    seen = {effect for script in scripts() for got in play(script) for effect in got.effects}
    assert {str(effect) for effect in Effect} | {f"{effect}!" for effect in Effect} <= seen


def test_every_guard_that_a_state_waits_for_is_seen_to_block_it() -> None:
    seen = {(got.state, verdict.name) for script in scripts() for got in play(script) for verdict in got.blocked}
    waits = {(state, guard.name) for state, guards in WAITS_FOR.items() for guard in guards}
    # READY and RUNNING are left in the very tick in which one of theirs fails; IDLE_WAIT is entered with the task gone.
    kept = {pair for pair in waits if pair[0] not in (State.READY, State.RUNNING)} - {(State.IDLE_WAIT, "task_gone")}
    assert kept <= seen


def test_every_requirement_that_a_script_can_show_is_covered() -> None:
    assert {requirement for script in scripts() for requirement in script.covers} == SHOWN


def test_titles_are_sentences_and_tell_scripts_apart() -> None:
    titles = [script.title for script in scripts()]
    assert len(set(titles)) == len(titles)
    for title in titles:
        assert title[0].isupper()
        assert len(title.split()) >= 5
        assert not title.endswith(".")


def test_there_are_enough() -> None:
    assert len(PATHS) >= 28
