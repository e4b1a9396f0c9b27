"""Recorded journals through today's mind (R16, R17, interface §6): would it decide now what was decided then?

Each decision's observation is judged anew with the limits that were in force, the recorded outcomes of its effects are
handed to `commit`, and row, effects and states are compared. A `start` line begins a new life of the daemon: DISABLED,
with the cooldown that it remembered; a `gap` line says what it remembered after lines were lost. A journal of the next
day goes on with the life of the day before, so a folder of them is one story; where that day is missing, the first line
says what was `carried` over midnight. What a power cut tore is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec

from states.effects import Effect
from states.lifecycle import EffectResult, Lifecycle, Outcome, Plan
from states.limits import Limits
from states.memory import Memory
from states.words import number
from supervisor.journal import decision_log as journal
from supervisor.journal.codec import observation_of
from supervisor.tools.history.difference import Difference, Report, effect_words, guard_lines


class _Unreadable(Exception):
    """A line is not of the journal's form; the text says why."""


class _Differs(Exception):
    """Today's mind decides otherwise."""

    def __init__(self, difference: Difference) -> None:
        super().__init__(str(difference))
        self.difference = difference


@dataclass(slots=True)
class _Tick:
    """A decision that waits for its effect lines: the intent came first, each effect after it."""

    file: str
    line: int
    where: str
    plan: Plan
    results: list[EffectResult] = field(default_factory=list)
    state: str = ""  # the state after, once a line said it


class Tape:
    """Plays journals one after another; keeps the node's life from file to file of one folder."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._mind: Lifecycle | None = None
        self._limits = Limits()
        self._tick: _Tick | None = None
        self._file = ""

    def replay(self, path: Path) -> Report:
        """One journal, up to its first difference."""
        if path.parent != self._folder:
            self._folder, self._mind, self._limits, self._tick = path.parent, None, Limits(), None
        self._file = str(path)
        judged = passed = lines = line = 0
        if path.exists() and not path.is_file():
            return Report(self._file, errors=(f"{path}: is no regular file; name a journal, decisions-*.jsonl",))
        try:
            for line, entry in journal.read(path):
                lines += 1
                kind = entry["kind"]
                if self._mind is None and "carried" in entry:
                    self._carry(entry["carried"])
                if kind == "effect":
                    self._effect(entry)
                elif kind == "gap":
                    self._go_on(entry)
                elif kind in ("decision", "start", "config"):
                    self._close()
                    if kind == "start":
                        self._begin(entry)
                    elif kind == "config":
                        self._configure(entry)
                    elif self._mind is None:
                        passed += 1
                    else:
                        self._decision(line, entry)
                        judged += 1
            if self._tick is not None and self._tick.state:  # else its effects are in the journal of the next day
                self._close()
        except OSError as error:
            return Report(self._file, errors=(f"{path}: cannot be read ({error.strerror}); name a journal that can",))
        except _Unreadable as error:
            return Report(self._file, errors=(f"{path}:{line}:1: {error}",))
        except _Differs as differs:
            self._mind = self._tick = None
            return Report(self._file, title="recorded decisions", steps=judged, difference=differs.difference)
        if not lines:
            return Report(self._file, errors=(f"{path}:1:1: found no line of a decision journal; name a decisions-*.jsonl",))
        if passed and not judged:
            why = "found no start line, so what the node remembered is not known; name the journal of the day before as well"
            return Report(self._file, errors=(f"{path}:1:1: {why}",))
        title = "recorded decisions" + (f"; {passed} before the first start not judged" if passed else "")
        return Report(self._file, title=title, steps=judged)

    # --- lines

    def _begin(self, entry: dict[str, Any]) -> None:
        now_s = _number(entry, "boot_s")
        remembered = entry.get("memory")
        cooldown = remembered.get("cooldown_from_s") if isinstance(remembered, dict) else None
        cooldown_s = None if cooldown is None else _number({"memory.cooldown_from_s": cooldown}, "memory.cooldown_from_s")
        self._mind = Lifecycle(self._limits, now_s, Memory(since_s=now_s, cooldown_from_s=cooldown_s))

    def _go_on(self, entry: dict[str, Any]) -> None:
        """Lines are missing: the tick that they tore is not judged, and the node goes on from what it remembered then."""
        self._tick = None
        try:
            memory = msgspec.convert(entry.get("memory"), Memory)
        except msgspec.ValidationError as error:
            raise _Unreadable(f"memory: {error}") from None
        self._mind = Lifecycle(self._limits, memory=memory)

    def _carry(self, carried: Any) -> None:
        """The day before is not at hand: what the node remembered and went by when this day began."""
        if not isinstance(carried, dict):
            raise _Unreadable(f"carried: found {carried!r:.60}, allowed: an object with memory and limits")
        self._configure({"limits": carried.get("limits")})
        self._go_on(carried)

    def _configure(self, entry: dict[str, Any]) -> None:
        if "limits" not in entry:
            return  # refused files change no limits
        given = entry["limits"]
        known = {f.name for f in fields(Limits)}
        if not isinstance(given, dict) or given.keys() - known:
            raise _Unreadable(f"limits: found {given!r:.60}, allowed: an object with {', '.join(sorted(known))}")
        try:
            self._limits = msgspec.convert(given, Limits)
        except msgspec.ValidationError as error:
            raise _Unreadable(f"limits: {error}") from None
        if self._mind is not None:
            self._mind.limits = self._limits

    def _decision(self, line: int, entry: dict[str, Any]) -> None:
        assert self._mind is not None
        at_s = _number(entry, "at_s" if "at_s" in entry else "boot_s")
        where = f"tick {entry.get('tick', '?')} at {number(at_s)}s"
        task, seen = entry.get("task"), entry.get("observation")
        if not isinstance(seen, dict):
            raise _Unreadable("observation: found none, allowed: an object in the words of `see`")
        about = task if isinstance(task, dict) else {}
        try:
            observation = observation_of(seen, at_s, str(about.get("id", "")), str(about.get("type", "")), "journal")
        except ValueError as error:
            raise _Unreadable(f"observation: {error}") from None
        self._compare(line, where, "from", entry.get("from"), str(self._mind.state), ())
        plan = self._mind.propose(observation)
        seen_by = tuple(guard_lines(plan.guards()))
        self._compare(line, where, "row", entry.get("row"), None if plan.row is None else plan.row.id, seen_by)
        if "effects" in entry:
            self._compare(line, where, "effects", entry["effects"], [str(e) for e in plan.effects], seen_by)
        self._tick = _Tick(self._file, line, where, plan, state=str(entry.get("state", "")))

    def _effect(self, entry: dict[str, Any]) -> None:
        if self._tick is None:
            return  # its decision was before the first start
        name, ok = entry.get("effect"), entry.get("ok")
        if name not in tuple(Effect) or not isinstance(ok, bool):
            known = f"{', '.join(Effect)}, and ok true or false"
            raise _Unreadable(f"effect: found {name!r:.60} (ok: {ok!r:.20}), allowed: {known}")
        self._tick.results.append(EffectResult(Effect(name), ok, str(entry.get("detail", ""))))
        self._tick.state = str(entry.get("state", "")) or self._tick.state

    def _close(self) -> None:
        """The tick's last line was read: move as it was done then, and compare the state after."""
        tick, self._tick = self._tick, None
        if tick is None or self._mind is None:
            return
        outcome = Outcome(tuple(tick.results))
        self._mind.commit(tick.plan, outcome)
        if tick.state:
            done = ", ".join(effect_words(r.effect, r.ok) for r in tick.results) or "none"
            seen = (f"effects        {done}",)
            self._compare(tick.line, tick.where, "state", tick.state, str(self._mind.state), seen, tick.file)

    def _compare(self, line: int, where: str, what: str, was: Any, now: Any, seen: tuple[str, ...], file: str = "") -> None:
        if was != now:
            raise _Differs(Difference(file or self._file, line, where, what, _words(was), _words(now), seen))


def _words(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return "null" if value is None else str(value)


def _number(entry: dict[str, Any], name: str) -> float:
    value = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise _Unreadable(f"{name}: found {value!r:.60}, allowed: a number of seconds")
    return float(value)
