"""The decision journal: one JSON object a line, one file a day, kept for `logs.keep_days` days.

Intent first: a line of the kind `decision` with the row, every verdict with its reading, and the planned effects. Then a
line for each effect that was performed, joined by `tick`; the last line of a tick has the state after it. When nothing
changes, only an `alive` line a minute. Never a payload, a result, a key code or a window title.

A folder that cannot be written does not stop the node: the error is in `trouble` and in `status`, and every line tries again.
The first line that is written again follows a `gap` line: how many lines are missing, and the memory at that point, so that
a replay can go on from there. For the same reason the first line of a day has the field `carried` with memory and limits,
because older days are deleted.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
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
from supervisor.journal.summary import summary
from supervisor.journal.text_log import TextLog
from supervisor.linux.clock import Clock, iso
from supervisor.linux.small_files import TooLarge, open_plain

FORMAT: Final = 1
ALIVE_EVERY_S: Final = 60.0
STEM: Final = "decisions"
SUFFIX: Final = ".jsonl"
RECENT: Final = 12
MAX_FILE: Final = 1 << 30  # a quiet day has less than 1 MB
MAX_LINE: Final = 1 << 20
_NAME: Final = pattern(STEM, SUFFIX)

# The guard that explains the judgement of a guard that only splits rows.
_EXPLAINED_BY: Final = {host_staying.name: "host_fit", task_in_time.name: "task_over"}


def task_of(task: Task) -> dict[str, str] | None:
    """The task as the journal and `status` show it: id, type, phase."""
    return None if task.phase is TaskPhase.NONE else {"id": task.id, "type": task.type, "phase": str(task.phase)}


class Journal:
    """Appends lines to today's file in `folder`. The text of a line goes to `text`, and to `journald` or else to `say`.
    `recent` holds the last texts with their times."""

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
        """The daemon has started, with this memory and these limits."""
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
        """What a tick decided. Writes nothing when nothing changes."""
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
        """What was done, effect by effect. The last line has the state after."""
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
        """A line that the node is alive, at most once a minute, with the readings for curves."""
        if self._clock.now_s() - self._last_line_s >= ALIVE_EVERY_S:
            if self._text is not None:
                self._text.day(self._clock.wall_s(), reason)
            readings: dict[str, Any] = {}
            if seen is not None and limits is not None:
                readings = {"observation": _short_see(see_of(seen, limits)), "at_s": seen.now_s}
            self.write("alive", state=state, reason=reason, **readings)

    def presence(self, state: str, reason: str, news: str) -> None:
        """A line when sources of presence contradict each other, or no longer do."""
        self.write("alive", state=state, reason=reason, presence=news)

    def note(self, state: str, reason: str, note: str) -> None:
        """A line when something of the node's own was broken: what, and what was done about it."""
        self.write("alive", state=state, reason=reason, note=note)

    def write(self, kind: str, **fields: Any) -> None:
        """Write one line at once. A failure is kept in `trouble` and never raised."""
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
            self._publish(wall_s, self._trouble, {"kind": "gap", "trouble": self._trouble})
        if trouble and not self._trouble:
            missing = "1 line is missing" if lost == 1 else f"{lost} lines are missing"
            again = f"decisions are logged again in {self._file.folder}; {missing}"
            self._publish(wall_s, again, {"kind": "gap", "lost": lost})
        if text := summary(kind, fields):
            self._publish(wall_s, text, entry)

    def _put(self, wall_s: float, line: dict[str, Any]) -> None:
        if self._limits is not None and line["kind"] != "start" and not self._file.begun(wall_s):
            line = {**line, "carried": {"memory": asdict(self._memory), "limits": asdict(self._limits)}}
        self._file.append(wall_s, json.dumps(line, allow_nan=False).encode() + b"\n")

    def _publish(self, wall_s: float, text: str, entry: dict[str, Any]) -> None:
        """To people: the text log, journald or else stderr, and `rae-node top`."""
        self.recent.append((iso(wall_s), text))
        if self._text is not None:
            self._text.append(wall_s, text)
        sent = self._journald is not None and self._journald.send(text, entry)
        if not sent and entry["kind"] != "start":  # on a terminal the start is seen anyway
            self._say(text)

    @property
    def trouble(self) -> str:
        """Why lines are being lost; empty while none is."""
        return self._trouble or (self._text.trouble if self._text is not None else "")

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._text is not None:
            self._text.close()
        if self._journald is not None:
            self._journald.close()


def _short_see(see: dict[str, Any]) -> dict[str, Any]:
    """Three digits are enough for curves, by which nothing is decided. A quiet day stays below 1 MB."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: short(v) for name, v in value.items()}
        return round(value, 3) if isinstance(value, float) else value

    return {name: short(value) for name, value in see.items()}


def cause(plan: Plan) -> str:
    """Why the row fires: the text of the first guard that is not proven, if the row fires because of that."""
    for condition in plan.row.when if plan.row is not None else ():
        if not condition.wanted:
            seen = plan.observation, plan.memory, plan.limits
            failed = next(g.name for g in condition.guards if g.judge(*seen) is not True)
            name = _EXPLAINED_BY.get(failed, failed)
            return next(g.explain(*seen).reason for g in GUARDS if g.name == name)
    return ""


def files(paths: Iterable[Path]) -> list[Path]:
    """Journal files in order of their day: files as given, folders by their `decisions-*.jsonl`."""
    found: list[Path] = []
    for path in paths:
        found += sorted(p for p in path.iterdir() if _NAME.match(p.name)) if path.is_dir() else [path]
    return found


def tail(folder: Path, most: int, days: int = 3) -> Iterator[dict[str, Any]]:
    """The entries of the newest `days` files, newest first; of each file those in its last `most` bytes.

    Raises:
        OSError: a file cannot be read, or is none.
    """
    for path in reversed(files([folder])[-days:]):
        with os.fdopen(open_plain(path), "rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - most)
            file.seek(start)
            lines = file.read(most).split(b"\n")
        for raw in reversed(lines[1:] if start else lines):
            if (entry := _entry(raw)) is not None:
                yield entry


def _entry(raw: bytes) -> dict[str, Any] | None:
    """The entry in a line; None for a torn one, and for one of another form."""
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and entry.get("v") == FORMAT and isinstance(entry.get("kind"), str) else None


def read(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, entry) of a journal file. Torn lines and lines of another form are left out.

    Raises:
        OSError: the file cannot be read, or is none.
    """
    with os.fdopen(open_plain(path, follow=True), "rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE:
            raise TooLarge(MAX_FILE, path)
        for number, raw in enumerate(iter(partial(file.readline, MAX_LINE), b""), 1):
            if (entry := _entry(raw)) is not None:
                yield number, entry
