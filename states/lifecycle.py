"""The table on a `transitions.Machine`. `propose` is pure and decides everything; only `commit` moves the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from transitions import Machine

from states.effects import AFTER_VETO, ELSEWHERE, GO_ON, HOLD, LEAVE, OWED, VETOING, Effect
from states.guards import GUARDS, Verdict
from states.limits import Limits
from states.memory import USED_UP, Memory, State
from states.observation import NO_TASK, Observation, TaskPhase
from states.table import BY_STATE, ROWS, WAITS_FOR, Row

_CLAIM_ENDERS: Final = (Effect.SETTLE, Effect.HAND_BACK)
_NOTHING: Final[tuple[Effect, ...]] = ()


@dataclass(frozen=True, slots=True)
class EffectResult:
    """How one effect went. `error`: why it failed. `took_s`: seconds. `report`: what the performer reports, by type."""

    effect: Effect
    ok: bool
    error: str = ""
    took_s: float = 0.0
    report: object = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the performer did, in order."""

    results: tuple[EffectResult, ...] = ()

    @property
    def vetoed(self) -> bool:
        """An entry effect failed, so the row does not fire."""
        return any(r.effect in VETOING and not r.ok for r in self.results)


NOTHING_DONE: Final = Outcome()


class Plan:
    """What one tick decided: the row that fires (None: none), and the effects that follow, in order.

    Not changed once made. `effects` are performed in order; when one of `VETOING` fails, `after_veto` replaces the rest.
    `guards()` makes the texts of all verdicts, only when somebody reads them.
    """

    __slots__ = ("effects", "limits", "memory", "observation", "row")

    def __init__(
        self, row: Row | None, effects: tuple[Effect, ...], observation: Observation, memory: Memory, limits: Limits
    ) -> None:
        self.row = row
        self.effects = effects
        self.observation = observation
        self.memory = memory
        self.limits = limits

    @property
    def quiet(self) -> bool:
        """Nothing fires and nothing is to be done."""
        return self.row is None and not self.effects

    @property
    def after_veto(self) -> tuple[Effect, ...]:
        """What is done instead of the rest, when the entry effect fails."""
        return AFTER_VETO

    def guards(self) -> tuple[Verdict, ...]:
        """Every verdict of this tick with its text, from the values that were judged."""
        return verdicts(self.observation, self.memory, self.limits)


def verdicts(observation: Observation, memory: Memory, limits: Limits) -> tuple[Verdict, ...]:
    """Every guard's verdict, with its text, in their order."""
    return tuple(guard.explain(observation, memory, limits) for guard in GUARDS)


def blocked_by(observation: Observation, memory: Memory, limits: Limits) -> tuple[Verdict, ...]:
    """The guards that are not ok among those that the state waits for."""
    return tuple(
        guard.explain(observation, memory, limits)
        for guard in WAITS_FOR[memory.state]
        if guard.judge(observation, memory, limits) is not True
    )


def decide(observation: Observation, memory: Memory, limits: Limits) -> Row | None:
    """The first row of this state whose conditions all hold. A guard that is not True never counts as proven."""
    for row in BY_STATE[memory.state]:
        for judges, wanted in row.tests:
            proven = True
            for judge in judges:
                if judge(observation, memory, limits) is not True:
                    proven = False
                    break
            if proven is not wanted:
                break
        else:
            return row
    return None


def effects_of(row: Row | None, observation: Observation, memory: Memory) -> tuple[Effect, ...]:
    """The effects: first what is owed, then those of the row. A claim that cannot be started goes back."""
    phase = observation.task.phase
    own: tuple[Effect, ...]
    if row is not None and memory.state is State.RUNNING:
        own = LEAVE[phase] if row.effects is None else row.effects
    elif row is not None and row.effects:
        own = row.effects
    elif memory.state is State.RUNNING:
        own = _NOTHING
    else:
        own = ELSEWHERE.get(phase, _NOTHING)
    owed = memory.owed
    if not owed:
        return own
    if Effect.SETTLE in owed or Effect.HAND_BACK in owed:
        # The claim is settled or handed back exactly once, and that is owed already.
        own = tuple(e for e in own if e not in _CLAIM_ENDERS)
    if memory.state is not State.RUNNING and phase is TaskPhase.RUNNING and Effect.STOP in owed:
        own = _NOTHING  # the stop of this task was planned before; only what failed is left
    return owed + own


class _Holder:
    """The model of the library's machine."""

    state: State


class Lifecycle:
    """The node's state, memory and limits. `propose` decides, `commit` moves; nothing else does."""

    def __init__(self, limits: Limits, now_s: float = 0.0, memory: Memory | None = None) -> None:
        self.limits = limits
        self.memory = memory or Memory(since_s=now_s)
        self._holder = _Holder()
        self._machine = Machine(
            self._holder, states=State, initial=self.memory.state, auto_transitions=False, send_event=False
        )
        for row in ROWS:
            self._machine.add_transition(row.id, list(row.sources), row.to)

    @property
    def state(self) -> State:
        """Where the node is."""
        return self.memory.state

    @property
    def machine(self) -> Any:
        """The library's machine, for the diagram and for the test that compares it with ROWS."""
        return self._machine

    def propose(self, observation: Observation) -> Plan:
        """Decide one tick. Pure: the same observation, memory and limits give the same plan."""
        memory = self.memory
        row = decide(observation, memory, self.limits)
        if row is None and not memory.owed and observation.task is NO_TASK:
            return Plan(None, _NOTHING, observation, memory, self.limits)
        return Plan(row, effects_of(row, observation, memory), observation, memory, self.limits)

    def commit(self, plan: Plan, outcome: Outcome = NOTHING_DONE) -> Memory:
        """Move the machine as planned, unless the outcome vetoes; remember what is owed.

        Raises:
            transitions.MachineError: the plan is not of this state.
            ValueError: the plan was made from another memory than today's.
        """
        if plan.row is None and not plan.effects:
            phase = plan.observation.task.phase
            if phase is TaskPhase.RUNNING and self.memory.started_at_s is None and self.memory.state is State.RUNNING:
                self.memory = replace(self.memory, started_at_s=plan.observation.now_s)
            return self.memory
        if plan.memory is not self.memory:
            raise ValueError("a plan is committed once, before the next is proposed")
        now_s, before = plan.observation.now_s, self.memory
        row = None if outcome.vetoed else plan.row
        owed = _still_owed(before.owed, plan, outcome)
        done = {r.effect for r in outcome.results if r.ok}
        if row is not None:
            self._holder.trigger(row.id)  # type: ignore[attr-defined]
        state = self._holder.state
        if state is State.RUNNING and Effect.INHIBIT in done:
            owed = tuple(e for e in owed if e is not Effect.RELEASE)
        veto = next((r.error or "refused" for r in outcome.results if r.effect in VETOING and not r.ok), "")
        changes: dict[str, Any] = {"owed": owed, "veto": veto or ("" if row is not None else before.veto)}
        if row is not None:
            changes |= {"state": state, "last_row": row.id}
            if state is not before.state:
                changes["since_s"] = now_s
                if state is State.RUNNING:
                    changes["running_since_s"] = now_s
                if before.state is State.RUNNING:
                    changes |= {"running_since_s": None, "started_at_s": None, "hold_from_s": None, "cooldown_from_s": now_s}
            elif row.effects == HOLD:
                changes["hold_from_s"] = now_s if Effect.FREEZE in done else USED_UP
            elif row.effects == GO_ON:
                changes["hold_from_s"] = None
            elif state is State.RUNNING:
                changes |= {"started_at_s": None, "hold_from_s": None}
        if Effect.START in done and state is State.RUNNING:
            changes["started_at_s"] = now_s
        self.memory = replace(before, **changes)
        return self.memory


def _still_owed(owed: tuple[Effect, ...], plan: Plan, outcome: Outcome) -> tuple[Effect, ...]:
    """What failed, or was planned and never tried, stays owed until it succeeds."""
    left = set(owed)
    tried = [r.effect for r in outcome.results]
    for result in outcome.results:
        if result.ok:
            left.discard(result.effect)
        elif result.effect in OWED:
            left.add(result.effect)
    if not outcome.vetoed:
        left.update(e for e in plan.effects if e in OWED and e not in tried)
    return tuple(e for e in OWED if e in left)
