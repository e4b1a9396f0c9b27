"""Recorded journals (interface §6) judged again: does today's node decide what was decided then?

Each decision's observation is judged with the limits in force at that time. The recorded outcomes of its effects go to
`commit`. Row, effects and states are compared. A `start` line begins again in DISABLED, with the cooldown that the daemon
remembered; a `gap` line says what the node remembered after lines were lost. The journal of the next day continues the
day before, so a folder of journals is one story. Where that day is missing, the first line's `carried` takes its place.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from states.formatting import number
from states.lifecycle import Lifecycle, Outcome, Plan
from states.limits import Limits
from supervisor.tools.history.difference import Difference, Report, effect_name, guard_lines
from supervisor.tools.history.recorded import Begin, Config, Decision, Done, JournalReader, Record, Unreadable


class _Differs(Exception):
    """Today's node decides otherwise."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference


class Tape:
    """Replays journals one after another; the files of one folder continue each other."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._limits = Limits()
        self._forget()

    def _forget(self) -> None:
        self._reader = JournalReader()
        self._lifecycle: Lifecycle | None = None
        self._plan: Plan | None = None  # what the lifecycle proposes for the decision whose effects are being read

    def replay(self, path: Path) -> Report:
        """One journal, up to its first difference."""
        if path.parent != self._folder:
            self._folder, self._limits = path.parent, Limits()
            self._forget()
        file = str(path)
        judged = passed = 0
        try:
            for record in self._reader.read(path):
                self._take(record)
                if isinstance(record, Decision):
                    judged += self._lifecycle is not None
                    passed += self._lifecycle is None
        except OSError as error:
            return Report(file, errors=(f"{path}: cannot be read ({error.strerror}); name a journal that can",))
        except Unreadable as error:
            return Report(file, errors=(str(error),))
        except _Differs as differs:
            self._forget()
            return Report(file, title="recorded decisions", steps=judged, difference=differs.difference)
        if not self._reader.lines:
            return Report(file, errors=(f"{path}:1:1: found no line of a decision journal; name a decisions-*.jsonl",))
        if passed and not judged:
            why = "found no start line, so what the node remembered is not known; name the journal of the day before as well"
            return Report(file, errors=(f"{path}:1:1: {why}",))
        title = "recorded decisions" + (f"; {passed} before the first start not judged" if passed else "")
        return Report(file, title=title, steps=judged)

    def _take(self, record: Record) -> None:
        match record:
            case Begin() if record.kind != "carried" or self._lifecycle is None:
                self._limits = record.limits or self._limits
                self._lifecycle, self._plan = Lifecycle(self._limits, memory=record.memory), None
            case Config():
                self._limits = record.limits
                if self._lifecycle is not None:
                    self._lifecycle.limits = record.limits
            case Decision() if self._lifecycle is not None:
                self._plan = self._judged(record, self._lifecycle)
            case Done() if self._lifecycle is not None and self._plan is not None:
                results, state = record.decision.results, record.decision.state
                self._lifecycle.commit(self._plan, Outcome(tuple(results)))
                self._plan = None
                if state:
                    done = ", ".join(effect_name(r.effect, r.ok) for r in results) or "none"
                    self._compare(record.decision, "state", state, str(self._lifecycle.state), (f"effects        {done}",))

    def _judged(self, decision: Decision, lifecycle: Lifecycle) -> Plan:
        was = decision.entry
        self._compare(decision, "from", was.get("from"), str(lifecycle.state), ())
        plan = lifecycle.propose(decision.observation)
        self._compare(decision, "row", was.get("row"), None if plan.row is None else plan.row.id, guard_lines(plan))
        if "effects" in was:
            self._compare(decision, "effects", was["effects"], [str(e) for e in plan.effects], guard_lines(plan))
        return plan

    def _compare(self, decision: Decision, what: str, was: Any, now: Any, seen: Iterable[str]) -> None:
        if was != now:
            where = f"tick {decision.entry.get('tick', '?')} at {number(decision.observation.now_s)}s"
            raise _Differs(Difference(decision.file, decision.line, where, what, _shown(was), _shown(now), tuple(seen)))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)
