"""The world of a script: what was seen stays until it changes, effects are done or refused, and the task moves by itself.

Interface §5: `start` makes the task running; `stop` ends the process; `settle` and `hand_back` end the claim, which
leaves `none`, or `asked` after `task-settled`; a refused `start` is a task that failed. Nothing is executed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
    """Sensors, task and inhibitor as a script describes them. `inhibitor` False: there is none to take (host.inhibitor)."""

    def __init__(self, inhibitor: bool = True, enabled: bool = True) -> None:
        self.held = False
        self._inhibitor = inhibitor
        self._enabled = enabled
        self._seen = dict(NOTHING_SEEN)
        self._last_sign_s: float | None = None
        self._asks_again = False  # task-settled asked for another task, and its settle has not succeeded yet

    def lay(self, see: Mapping[str, Any], at_s: float) -> None:
        """Lay what a step sees at `at_s` (seconds) over what was seen before. The last sign keeps its time."""
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
            # Leaving RUNNING cancels the question for another task, before the claim ends.
            self._asks_again = plan.row.id == "task-settled"
        results: list[EffectResult] = []
        todo = list(plan.effects)
        while todo:
            effect = todo.pop(0)
            ok = effect not in refuse or (not self._inhibitor and effect in (Effect.INHIBIT, Effect.RELEASE))
            results.append(EffectResult(effect, ok, "" if ok else "refused by the script"))
            if ok:
                self._do(effect)
            elif effect is Effect.START:
                self._seen["task"] = TaskPhase.FAILED.value
            elif effect in VETOING:
                todo = list(plan.after_veto)
        return Outcome(tuple(results))

    def _do(self, effect: Effect) -> None:
        """What an effect changes. A script has no work dir, and its task runs no further than the script says."""
        if effect is Effect.INHIBIT:
            self.held = self._inhibitor
        elif effect is Effect.RELEASE:
            self.held = False
        elif effect is Effect.START:
            self._seen["task"] = TaskPhase.RUNNING.value
        elif effect is Effect.STOP and self._seen["task"] == TaskPhase.RUNNING:  # a claim may be over before its process is
            self._seen["task"] = TaskPhase.ENDED.value
        elif effect in (Effect.SETTLE, Effect.HAND_BACK):
            self._seen["task"] = (TaskPhase.ASKED if self._asks_again else TaskPhase.NONE).value
            self._asks_again = False
