"""The decision journal (R16, interface §6): one JSON object a line, a file a day, kept `logs.keep_days` days.

Cause and effect: an intent line (kind `decision`: the row, every verdict with its reading, the planned effects), then a
line for each effect that was performed, joined by `tick`; the last line of a tick says the state after. Nothing when
nothing changed, but an `alive` line a minute. Never a payload, a result, a key code or a window title (R6).

A folder that cannot be written never stops the node: the trouble is kept in `trouble`, said in `status`, and writing is
tried again at every line. The first line that gets through again follows a `gap` line: how many are missing, and what
the node remembers at that point, so that a replay can go on from there. For the same reason the first line of a day has
the field `carried`: memory and limits, as the days before are deleted one by one.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from states.ending import Ending
from states.guards import GUARDS, host_staying, task_in_time
from states.lifecycle import Outcome, Plan
from states.limits import Limits
from states.memory import Memory
from states.observation import Observation, Task, TaskPhase
from supervisor.journal.codec import see_of
from supervisor.journal.daily_file import DayFile, pattern
from supervisor.journal.effect_text import effect_detail, ending_fields
from supervisor.journal.journald import Journald
from supervisor.journal.summary import gist
from supervisor.journal.text_log import TextLog
from supervisor.linux.clock import Clock, iso

FORMAT: Final = 1
ALIVE_EVERY_S: Final = 60.0
STEM: Final = "decisions"
SUFFIX: Final = ".jsonl"
RECENT: Final = 12
_NAME: Final = pattern(STEM, SUFFIX)

# The guard that says in words what one that only splits rows has judged.
_TOLD_BY: Final = {host_staying.name: "host_fit", task_in_time.name: "task_over"}


def task_of(task: Task) -> dict[str, str] | None:
    """The task as the journal and `status` show it: id, type, phase."""
    return None if task.phase is TaskPhase.NONE else {"id": task.id, "type": task.type, "phase": str(task.phase)}


class Journal:
    """Appends lines to today's file in `folder`. What a line says in words goes to `text`, and to `journald` or else `say`;
    the last such words, with their times, are `recent`."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        keep_days: int = 7,
        say: Callable[[str], None] = lambda _: None,
        text: TextLog | None = None,
        journald: Journald | None = None,
    ) -> None:
        self._file = DayFile(folder, STEM, SUFFIX, keep_days)
        self._clock = clock
        self._say = say
        self._text = text
        self._journald = journald
        self._last_line_s = float("-inf")
        self._tick = 0
        self._memory = Memory()
        self._limits: Limits | None = None
        self._lost = 0
        self._trouble = ""
        self.recent: deque[tuple[str, str]] = deque(maxlen=RECENT)

    def start(self, version: str, limits: Limits, memory: Memory) -> None:
        """A new life of the daemon, with what it remembers and the limits that it goes by."""
        self._memory = memory
        self.write("start", version=version, pid=os.getpid(), memory={"cooldown_from_s": memory.cooldown_from_s})
        self.config(limits, "")

    def config(self, limits: Limits | None, problem: str) -> None:
        """The limits in force from now on, or why the files are refused."""
        if problem:
            self.write("config", problem=problem)
        elif limits is not None:
            self._limits = limits
            self.write("config", limits=asdict(limits))

    def intent(self, plan: Plan) -> None:
        """What a tick decided, before anything is done. Silent when nothing changes."""
        if plan.quiet:
            return
        self._tick += 1
        row, state = plan.row, plan.memory.state
        self._memory = plan.memory
        self.write(
            "decision",
            tick=self._tick,
            **{"from": state},
            row=None if row is None else row.id,
            reason=cause(plan),
            to=state if row is None else row.to,
            effects=list(plan.effects),
            guards=[v.as_dict() for v in plan.guards()],
            task=task_of(plan.observation.task),
            observation=see_of(plan.observation, plan.limits),
            at_s=plan.observation.now_s,
            **({} if plan.effects else {"state": state if row is None else row.to}),
        )

    def outcome(self, plan: Plan, outcome: Outcome, memory: Memory) -> None:
        """What was done, effect by effect; the last line says the state after."""
        results = outcome.results
        self._memory = memory
        for index, r in enumerate(results):
            last = {"state": memory.state} if index == len(results) - 1 else {}
            self.write(
                "effect",
                tick=self._tick,
                effect=r.effect,
                ok=r.ok,
                detail=effect_detail(r),
                **({"ending": ending_fields(r.report)} if isinstance(r.report, Ending) else {}),
                took_s=round(r.took_s, 4),
                **last,
            )

    def alive(self, state: str, reason: str, seen: Observation | None = None, limits: Limits | None = None) -> None:
        """A sign of life, a minute apart at most: without it silence would say nothing. With what was seen, for curves."""
        if self._clock.now_s() - self._last_line_s >= ALIVE_EVERY_S:
            if self._text is not None:
                self._text.day(self._clock.wall_s(), reason)
            told: dict[str, Any] = {}
            if seen is not None and limits is not None:
                told = {"observation": _short_see(see_of(seen, limits)), "at_s": seen.now_s}
            self.write("alive", state=state, reason=reason, **told)

    def presence(self, state: str, reason: str, news: str) -> None:
        """Sources of presence that contradict each other, or do so no more: a sign of life that says it in words."""
        self.write("alive", state=state, reason=reason, presence=news)

    def write(self, kind: str, **fields: Any) -> None:
        """One line, at once; a failure is remembered and never raised."""
        self._last_line_s, wall_s = self._clock.now_s(), self._clock.wall_s()
        stamp = {"v": FORMAT, "time": iso(wall_s), "boot_s": self._last_line_s}
        entry = {**stamp, "kind": kind, **fields}
        trouble, lost = self._trouble, self._lost
        try:
            if lost:
                self._put(wall_s, {**stamp, "kind": "gap", "lost": lost, "why": trouble, "memory": asdict(self._memory)})
                self._lost = 0
            self._put(wall_s, entry)
            self._trouble = ""
        except OSError as error:
            self._lost += 1
            self._trouble = f"decisions cannot be logged in {self._file.folder}: {error.strerror or error}"
        if self._trouble and not trouble:
            self._tell(wall_s, self._trouble, {"kind": "gap", "trouble": self._trouble})
        if trouble and not self._trouble:
            missing = "1 line is missing" if lost == 1 else f"{lost} lines are missing"
            self._tell(wall_s, f"decisions are logged again in {self._file.folder}; {missing}", {"kind": "gap", "lost": lost})
        if words := gist(kind, fields):
            self._tell(wall_s, words, entry)

    def _put(self, wall_s: float, line: dict[str, Any]) -> None:
        if self._limits is not None and line["kind"] != "start" and not self._file.begun(wall_s):
            line = {**line, "carried": {"memory": asdict(self._memory), "limits": asdict(self._limits)}}
        self._file.append(wall_s, json.dumps(line, allow_nan=False).encode() + b"\n")

    def _tell(self, wall_s: float, words: str, entry: dict[str, Any]) -> None:
        """People, each by their own way: the text log, journald or else whoever started us, `rae-node top`."""
        self.recent.append((iso(wall_s), words))
        if self._text is not None:
            self._text.say(wall_s, words)
        sent = self._journald is not None and self._journald.send(words, entry)
        if not sent and entry["kind"] != "start":  # who starts it by hand sees that it has started
            self._say(words)

    @property
    def trouble(self) -> str:
        """Why lines are being lost; empty while none is."""
        return self._trouble or (self._text.trouble if self._text is not None else "")

    def close(self) -> None:
        """Let go of the files."""
        self._file.close()
        if self._text is not None:
            self._text.close()
        if self._journald is not None:
            self._journald.close()


def _short_see(see: dict[str, Any]) -> dict[str, Any]:
    """For curves three digits are enough: nothing was decided by them. A quiet day stays below 1 MB."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: short(v) for name, v in value.items()}
        return round(value, 3) if isinstance(value, float) else value

    return {name: short(value) for name, value in see.items()}


def cause(plan: Plan) -> str:
    """Why the row fires, in words: the verdict of the first guard that is not proven, where that is what fires it."""
    for condition in plan.row.when if plan.row is not None else ():
        if not condition.wanted:
            seen = plan.observation, plan.memory, plan.limits
            failed = next(g.name for g in condition.guards if g.judge(*seen) is not True)
            name = _TOLD_BY.get(failed, failed)
            return next(g.explain(*seen).reason for g in GUARDS if g.name == name)
    return ""


def files(paths: Iterable[Path]) -> list[Path]:
    """Journal files in order of their day: files as given, folders by their `decisions-*.jsonl`."""
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.iterdir() if _NAME.match(p.name)) if path.is_dir() else [path]
    return found


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, entry) of a journal file; a torn or foreign line is left out, whatever its place.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                entry = json.loads(raw)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and entry.get("v") == FORMAT and isinstance(entry.get("kind"), str):
                yield number, entry
