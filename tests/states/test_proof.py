"""The proof by exhaustion: every reachable state under every sign and every failure, and every one-step combination."""

from __future__ import annotations

import itertools
from collections import defaultdict, deque
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.depth import DEEP, examples
from support.model import AUTOMATION, HOSTS, PINNED, VALUES, Signs, Step, World, check, events, observe, step

from states.effects import OWED, Effect
from states.lifecycle import decide
from states.memory import State
from states.observation import TaskPhase

# user, gpu and cpu play one part each in one row of RUNNING and together in `safe`, `unsafe`: cpu is varied beside
# proven ones, the others in full.
SIGNS = [
    Signs(u, g, "ok", h, a) for u, g, h, a in itertools.product(VALUES, VALUES, HOSTS, AUTOMATION)
] + [Signs("ok", "ok", c, h, a) for c, h, a in itertools.product(("no", "unknown"), HOSTS, AUTOMATION)]
SIGNS += [Signs(gpu=PINNED), Signs(user="no", gpu=PINNED), Signs(cpu="no", gpu=PINNED)]
SIGNS += [Signs(gpu="held", automation=a) for a in AUTOMATION] + [Signs(user="no", gpu="held")]

# For long histories, where only the class of a sign matters: one of each.
FEW_SIGNS = [Signs(automation=a) for a in AUTOMATION] + [
    Signs(user="no"),
    Signs(user="unknown"),
    Signs(gpu="no"),
    Signs(gpu="held"),
    Signs(gpu=PINNED),
    Signs(user="no", gpu=PINNED),
    Signs(cpu="unknown"),
    Signs(host="no"),
    Signs(host="going-down"),
    Signs(user="no", automation="off"),
]


def failures(world: World, signs: Signs) -> list[frozenset[Effect]]:
    """Sets of effects of this tick's plan that may fail together, the hand-back after a veto included: every one in the
    whole proof, else none, each alone and all."""
    planned = dict.fromkeys(step(world, signs).plan.effects)
    if Effect.INHIBIT in planned:
        planned[Effect.HAND_BACK] = None
    names = list(planned)
    sizes = range(len(names) + 1) if DEEP else sorted({0, 1, len(names)} & set(range(len(names) + 1)))
    return [frozenset(c) for n in sizes for c in itertools.combinations(names, n)]


@pytest.fixture(scope="module")
def reached() -> tuple[dict[World, set[World]], int]:
    """Every world that any history can lead to, with its successors; each step's invariants are checked on the way."""
    edges: dict[World, set[World]] = {}
    todo, steps = deque([World(), World(holding=True)]), 0
    while todo:
        settled = todo.popleft()
        if settled in edges:
            continue
        edges[settled] = set()
        for world in events(settled):
            for signs in FEW_SIGNS:
                for failing in failures(world, signs):
                    taken = step(world, signs, failing)
                    check(taken)
                    steps += 1
                    edges[settled].add(taken.after)
                    if taken.after not in edges:
                        todo.append(taken.after)
    return edges, steps


def test_every_history_keeps_every_invariant(reached: tuple[dict[World, set[World]], int]) -> None:
    edges, steps = reached
    assert {w.state for w in edges} == set(State)
    assert {w.phase for w in edges} == set(TaskPhase)
    assert len(edges) > 100
    assert steps > 10_000


@pytest.mark.parametrize("goal", list(State))
def test_no_state_is_a_trap(reached: tuple[dict[World, set[World]], int], goal: State) -> None:
    edges, _ = reached
    backward: dict[World, set[World]] = defaultdict(set)
    for world, successors in edges.items():
        for successor in successors:
            backward[successor].add(world)
    seen = {w for w in edges if w.state is goal}
    todo = deque(seen)
    while todo:
        for world in backward[todo.popleft()] - seen:
            seen.add(world)
            todo.append(world)
    assert set(edges) - seen == set()


def test_a_process_outside_running_is_always_one_that_would_not_die(reached: tuple[dict[World, set[World]], int]) -> None:
    survivors = [w for w in reached[0] if w.alive and w.state is not State.RUNNING]
    assert survivors, "the failure of a stop was never explored"
    assert all(Effect.STOP in w.owed and w.state in (State.COOLDOWN, State.DISABLED) for w in survivors)


def combinations() -> list[World]:
    """Every combination of the mind's own memory and the task's phase, reachable or not."""
    out = []
    owed_sets = [tuple(c) for n in range(len(OWED) + 1) for c in itertools.combinations(OWED, n)]
    for state, phase, owed in itertools.product(State, TaskPhase, owed_sets):
        alive = phase is TaskPhase.RUNNING or Effect.STOP in owed
        claim = phase not in (TaskPhase.NONE, TaskPhase.ASKED)
        held = state is State.RUNNING or Effect.RELEASE in owed
        times = (
            itertools.product((None,), (False, True), (False, True) if alive else (False,))
            if state is State.RUNNING
            else itertools.product((None, True, False), (False,), (False,))
        )
        for r, o, d in times:
            world = World(state, phase, owed, alive, held, claim, False, r, o, d)
            out.append(world)
            if state is State.RUNNING and phase is TaskPhase.RUNNING:
                out += [replace(world, holding=True, hold=hold, frozen=bool(hold)) for hold in (None, True, False)]
    return out


def test_every_combination_of_one_tick() -> None:
    """State × guards × claim × phase × poll in flight × automation × what is owed: what one tick may decide."""
    count = 0
    for world in combinations():
        memory = world.memory()
        for signs in SIGNS:
            o = observe(signs, world.phase)
            row = decide(o, memory, world.limits)
            count += 1
            to = world.state if row is None else row.to
            if signs.automation != "on":
                assert to is State.DISABLED, "from every state DISABLED is one tick away"
            if to in (State.READY, State.RUNNING) and (row is not None or world.state is State.READY):
                assert signs.safe or (row is not None and row.id == "on-hold"), f"{to} without proof: {signs}"
            held = to is State.RUNNING and world.holding and world.hold is not False and signs.host == "ok"
            if held and not signs.safe:
                assert world.hold or (row is not None and row.id == "on-hold" and signs.perhaps), "a hold begins by freezing"
            elif world.state is State.RUNNING and not signs.safe:
                assert to in (State.COOLDOWN, State.DISABLED), "what is not proven safe stops the task at once"
            if world.resting and to is State.READY:
                assert world.state is State.READY, "the cooldown is not skipped"
            if Effect.STOP in world.owed and world.state in (State.COOLDOWN, State.DISABLED, State.IDLE_WAIT):
                assert to in (world.state, State.DISABLED), "a task that would not die keeps the node where it is"
            if signs.gpu == "held" and world.state in (State.COOLDOWN, State.DISABLED):
                assert to in (world.state, State.DISABLED), "VRAM that is still held keeps the node where it is"
            if row is not None and row.id in ("task-claimed", "next-task"):
                assert world.phase is TaskPhase.CLAIMED
                assert not {Effect.SETTLE, Effect.HAND_BACK} & set(world.owed), "what goes back is not started"
    assert count > 100_000


class Histories(RuleBasedStateMachine):
    """Long random histories with everything at once: signs, failures, answers, exits, time."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(holding=True)
        self.last: Step | None = None

    @rule(signs=st.sampled_from(SIGNS), failing=st.frozensets(st.sampled_from(list(Effect)), max_size=3))
    def tick(self, signs: Signs, failing: frozenset[Effect]) -> None:
        self.last = step(self.world, signs, failing)
        self.world = self.last.after

    @rule()
    def a_quiet_safe_tick(self) -> None:
        self.tick(Signs(), frozenset())

    @precondition(lambda self: len(events(self.world)) > 1)
    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        self.world = data.draw(st.sampled_from(events(self.world)))

    @invariant()
    def holds(self) -> None:
        if self.last is not None:
            check(self.last)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=examples(300, 30), stateful_step_count=60, deadline=None)
