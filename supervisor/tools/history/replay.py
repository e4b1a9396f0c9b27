"""Replays of scripts and recorded journals through the decisions that the daemon uses. Nothing is executed.

Each file's first difference is shown with its place and with what the node saw. Exit codes: interface §4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from states.formatting import number
from states.guards import Verdict
from states.lifecycle import Lifecycle, Plan, blocked_by
from states.memory import State
from supervisor.config.yaml_reader import UnreadableFile, read
from supervisor.tools.history.difference import Difference, Report, effect_name, guard_lines
from supervisor.tools.history.replay_journal import Tape
from supervisor.tools.history.script import FREE, HELD, Expect, Script, ScriptError, Step, parse
from supervisor.tools.history.script_world import World

SCRIPTS: Final = (".yaml", ".yml")
JOURNAL: Final = ".jsonl"


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step led to. `row` is "" if none fired on its last tick; `effects` of all its ticks, a failed one with `!`."""

    step: Step
    before: State
    state: State
    row: str
    effects: tuple[str, ...]
    inhibitor: str
    blocked: tuple[Verdict, ...]
    plan: Plan


def play(script: Script) -> Iterator[StepResult]:
    """Run a script from DISABLED, one step after another."""
    world = World(script.inhibitor, script.enabled)
    lifecycle = Lifecycle(script.limits, script.steps[0].at_s)
    for step in script.steps:
        world.lay(step.see, step.at_s)
        before, effects, row = lifecycle.state, list[str](), ""
        for _ in range(step.ticks):
            plan = lifecycle.propose(world.look(step.at_s, step.stale))
            outcome = world.perform(plan, step.refuse)
            lifecycle.commit(plan, outcome)
            effects += [effect_name(r.effect, r.ok) for r in outcome.results]
            row = plan.row.id if plan.row is not None and not outcome.vetoed else ""
        after = world.look(step.at_s, step.stale)
        blocked = blocked_by(after, lifecycle.memory, lifecycle.limits)
        inhibitor = HELD if world.held else FREE
        yield StepResult(step, before, lifecycle.state, row, tuple(effects), inhibitor, blocked, plan)


def compare(expect: Expect, got: StepResult) -> tuple[str, str, str] | None:
    """(what, expected, got) of the first thing that came out otherwise; None: all as expected."""
    for what in ("row", "state", "effects", "inhibitor", "blocked_by"):
        wanted = getattr(expect, what)
        came = frozenset(v.name for v in got.blocked) if what == "blocked_by" else getattr(got, what)
        if wanted is not None and wanted != came:
            return what, _shown(wanted), _shown(came)
    return None


def _shown(value: Any) -> str:
    if isinstance(value, frozenset):
        value = tuple(sorted(value))
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value or "null")


def replay_script(path: Path) -> Report:
    file = str(path)
    try:
        text = read(Path(), file)
        if text is None:
            return Report(file, errors=(f"{file}: not found; name a script, a journal or a folder of them",))
        script = parse(text, file)
    except UnreadableFile as refused:
        return Report(file, errors=(str(refused.problem),))
    except ScriptError as error:
        return Report(file, errors=tuple(map(str, error.problems)))
    report = Report(file, script.title, script.covers, len(script.steps))
    for got in play(script):
        if got.step.expect is not None and (differs := compare(got.step.expect, got)):
            where = f"step {got.step.number} at {number(got.step.at_s)}s"
            return replace(report, difference=Difference(file, got.step.line, where, *differs, _seen(got)))
    return report


def _seen(got: StepResult) -> tuple[str, ...]:
    """What happened, in lines; the verdicts are those of the last tick."""
    state = f"{got.state} (before: {got.before})" if got.state is not got.before else str(got.state)
    planned = got.plan.row
    row = "none fired" if planned is None else f"{planned.id}: {planned.why}" + ("" if got.row else " (vetoed)")
    return (
        f"state          {state}",
        f"row            {row}",
        f"effects        {', '.join(got.effects) or 'none'}",
        f"inhibitor      {got.inhibitor}",
        *guard_lines(got.plan),
    )


def replay_files(paths: Iterable[Path | str]) -> list[Report]:
    """Every script and journal named; a folder by the scripts and journals in it, in order of their names."""
    reports: list[Report] = []
    tape = Tape()
    for path in map(Path, paths):
        try:
            found = _in_folder(path) if path.is_dir() else [path]
        except OSError as error:
            reports.append(Report(str(path), errors=(f"{path}: cannot be read ({error.strerror}); name a folder that can",)))
            continue
        if not found:
            reports.append(Report(str(path), errors=(f"{path}: no script (.yaml) and no journal (.jsonl) in this folder",)))
        reports += [tape.replay(p) if p.suffix == JOURNAL else replay_script(p) for p in found]
    return reports


def _in_folder(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (*SCRIPTS, JOURNAL) and not p.is_dir())


def exit_code(reports: Iterable[Report]) -> int:
    """0 all as expected, 1 something came out otherwise, 2 something could not be read (interface §4)."""
    return max((2 if r.errors else 0 if r.ok else 1 for r in reports), default=0)


def as_json(reports: Iterable[Report]) -> list[dict[str, Any]]:
    """One object a file, with stable keys."""
    return [{"ok": r.ok, **asdict(r)} for r in reports]


def answer(reports: Iterable[Report]) -> list[str]:
    """The lines for stdout: one for each file that could be read, and the block of its first difference."""
    return [line for report in reports for line in report.answer()]


def errors(reports: Iterable[Report]) -> list[str]:
    """The lines for stderr: why files could not be read."""
    return [line for report in reports for line in report.errors]
