"""A year of 45-second ticks through the real mind, beside a bare `transitions` machine with one conditional trigger a tick.

    python tests/bench/replay.py [--ticks N]

Prints `name  ours  baseline  ratio  target  ok|short`; exit 1 when short. Each side gets the same stream of
observations, made inside its own timed loop; the sides are run in turn and the quickest of five rounds counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from transitions import Machine

from states.lifecycle import EffectResult, Lifecycle, Outcome
from states.limits import Limits
from states.observation import Automation, Cpu, Gpu, Host, Observation, Person, Reading, Task, TaskPhase

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support.bench import Row, verdict

TICK_S = 45.0
YEAR = int(365.25 * 86400 / TICK_S)
LIMITS = Limits(cooldown_s=90.0, run_s=90.0)
ON, HERE = Automation(True), Person(0.0)
CLAIMED, RUNNING, ENDED = (Task(phase, "t", "work") for phase in (TaskPhase.CLAIMED, TaskPhase.RUNNING, TaskPhase.ENDED))


def quiet(ticks: int) -> Iterator[Observation]:
    """The person sits at the machine: nothing fires, and every tick has a sign a moment ago."""
    gpu, cpu, host = Gpu(4, 1), Cpu(5), Host()
    for n in range(ticks):
        now_s = n * TICK_S
        yield Observation(
            now_s,
            ON,
            Reading(Person(now_s - 3.0), "", "bench", now_s),
            Reading(gpu, "", "bench", now_s),
            Reading(cpu, "", "bench", now_s),
            Reading(host, "", "bench", now_s),
        )


def mixed(ticks: int) -> Iterator[Observation]:
    """About one tick in 20 fires a row: the person leaves, a task comes, runs, ends; the machine cools down."""
    gpu, cpu, host = Gpu(4, 1), Cpu(5), Host()
    none = Observation(0.0).task
    for n in range(ticks):
        now_s, turn = n * TICK_S, n % 100
        away_s = 3.0 if turn < 50 else 700.0
        task = CLAIMED if turn == 60 else RUNNING if 60 < turn < 75 else ENDED if turn == 75 else none
        yield Observation(
            now_s,
            ON,
            Reading(Person(now_s - away_s), "", "bench", now_s),
            Reading(gpu, "", "bench", now_s),
            Reading(cpu, "", "bench", now_s),
            Reading(host, "", "bench", now_s),
            task,
        )


def ours(stream: Callable[[int], Iterator[Observation]], ticks: int) -> tuple[float, int]:
    """(seconds, rows fired) of the real mind."""
    mind, fired = Lifecycle(LIMITS), 0
    propose, commit = mind.propose, mind.commit
    began = time.perf_counter()
    for observation in stream(ticks):
        plan = propose(observation)
        if plan.quiet:
            commit(plan)
        else:
            commit(plan, Outcome(tuple(EffectResult(e, True) for e in plan.effects)))
            fired += plan.row is not None
    return time.perf_counter() - began, fired


class Bare:
    """The least that a `transitions` machine can do a tick: one trigger, one condition."""

    def __init__(self, fires: bool) -> None:
        self.observation = Observation(0.0)
        self.count = 0
        self.every = 20 if fires else 0
        self.machine = Machine(self, states=["A", "B"], initial="A", auto_transitions=False)
        self.machine.add_transition("tick", ["A", "B"], "B", conditions=[self.may])

    def may(self) -> bool:
        """Fires as often as ours does."""
        self.count += 1
        return self.every != 0 and self.count % self.every == 0


def baseline(stream: Callable[[int], Iterator[Observation]], ticks: int, fires: bool) -> tuple[float, int]:
    """(seconds, transitions) of the bare machine over the same stream."""
    bare, fired = Bare(fires), 0
    tick = bare.tick  # type: ignore[attr-defined]
    began = time.perf_counter()
    for observation in stream(ticks):
        bare.observation = observation
        fired += tick()
    return time.perf_counter() - began, fired


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ticks", type=int, default=YEAR, help="ticks a run; default: a year of them")
    ticks = parser.parse_args().ticks
    rounds = 5
    part = max(1, ticks // rounds)
    rows = []
    for name, stream, target in (("quiet ticks", quiet, 1.5), ("one row in 20", mixed, 0.8)):
        mine: list[float] = []
        theirs: list[float] = []
        fired = 0
        for _ in range(rounds):
            seconds, count = ours(stream, part)
            mine.append(seconds)
            fired += count
            theirs.append(baseline(stream, part, stream is mixed)[0])
        rows.append(Row(f"{name}, a second", part / min(mine), part / min(theirs), target, note=f"{fired} rows fired"))
        rows.append(Row(f"{name}: a year, s", sum(mine) * YEAR / (part * rounds), None, None))
    return verdict("bare conditional `transitions` trigger", rows)


if __name__ == "__main__":
    sys.exit(main())
