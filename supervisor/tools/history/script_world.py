"""The world of a script: what was seen holds until it changes, effects are done or refused, the task moves by itself.

Interface §5: `start` makes the task running; `stop` ends the process; `settle` and `hand_back` end the claim, which
leaves `none`, or `asked` after `task-settled`; a refused `start` is a task that failed. Nothing is executed (R17).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from states.effects import VETOING, Effect
from states.lifecycle import EffectResult, Outcome, Plan
from states.memory import State
from states.observation import Observation, TaskPhase
from supervisor.journal.codec import UNKNOWN, observation_of

NOTHING_SEEN: Mapping[str, Any] = {
    "automation": "off",
    "user": UNKNOWN,
    "gpu": UNKNOWN,
    "cpu": UNKNOWN,
    "host": UNKNOWN,
    "task": "none",
    "link": "up",
}


class World:
    """Sensors, task and inhibitor as a script tells them. `inhibitor` False: there is none to take (host.inhibitor)."""

    def __init__(self, inhibitor: bool = True, enabled: bool = True) -> None:
        self.held = False
        self._inhibitor = inhibitor
        self._enabled = enabled
        self._seen = dict(NOTHING_SEEN)
        self._last_sign_s: float | None = None
        self._asks_again = False  # task-settled asked for another task, and its settle has not succeeded yet

    def lay(self, see: Mapping[str, Any], at_s: float) -> None:
        """Lay what a step sees at `at_s` (seconds) over what was seen before. The last sign stays where it was in time."""
        self._seen |= see
        if "user" in see:
            user = see["user"]
            self._last_sign_s = None if user == UNKNOWN else at_s - user["idle"]

    def look(self, at_s: float, stale: Collection[str] = ()) -> Observation:
        """What there is to see at `at_s` (seconds); the readings in `stale` are too old to prove anything."""
        user = UNKNOWN if self._last_sign_s is None else {"idle": at_s - self._last_sign_s}
        automation = self._seen["automation"] if self._enabled else "off"
        see = {**self._seen, "user": user, "automation": automation, "stale": list(stale)}
        return observation_of(see, at_s, source="script")

    def perform(self, plan: Plan, refuse: Collection[Effect]) -> Outcome:
        """Do what is planned; the effects in `refuse` fail, and a failed entry effect replaces the rest."""
        if plan.row is not None and plan.memory.state is State.RUNNING:
            # Leaving RUNNING cancels the question for another task, before the claim is dealt with.
            self._asks_again = plan.row.id == "task-settled"
        results: list[EffectResult] = []
        todo = list(plan.effects)
        while todo:
            effect = todo.pop(0)
            ok = effect not in refuse or (not self._inhibitor and effect in (Effect.INHIBIT, Effect.RELEASE))
            results.append(EffectResult(effect, ok, "" if ok else "refused by the script"))
            if ok:
                _DONE[effect](self)
            elif effect is Effect.START:
                self._task(TaskPhase.FAILED)
            elif effect in VETOING:
                todo = list(plan.after_veto)
        return Outcome(tuple(results))

    def _task(self, phase: TaskPhase) -> None:
        self._seen["task"] = phase.value

    def _inhibit(self) -> None:
        self.held = self._inhibitor

    def _release(self) -> None:
        self.held = False

    def _start(self) -> None:
        self._task(TaskPhase.RUNNING)

    def _stop(self) -> None:
        if self._seen["task"] == TaskPhase.RUNNING:  # a claim that ended before its process did is over already
            self._task(TaskPhase.ENDED)

    def _end_claim(self) -> None:
        self._task(TaskPhase.ASKED if self._asks_again else TaskPhase.NONE)
        self._asks_again = False

    def _nothing(self) -> None:
        """There is no work dir in a script, and its task runs only as far as it says."""


_DONE: Mapping[Effect, Callable[[World], None]] = {
    Effect.INHIBIT: World._inhibit,
    Effect.START: World._start,
    Effect.FREEZE: World._nothing,
    Effect.THAW: World._nothing,
    Effect.STOP: World._stop,
    Effect.SETTLE: World._end_claim,
    Effect.HAND_BACK: World._end_claim,
    Effect.WIPE: World._nothing,
    Effect.RELEASE: World._release,
}
