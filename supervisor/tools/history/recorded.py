"""Journals read back as typed values, for `replay`, `record` and `whatif`. Torn lines are left out.

A decision comes first; its effects follow in lines of their own, maybe in the file of the next day.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from states.effects import Effect
from states.lifecycle import EffectResult
from states.limits import Limits
from states.memory import Memory
from states.observation import Observation
from supervisor.journal import decision_log
from supervisor.journal.codec import observation_of

_T = TypeVar("_T")
_CLOSES: Final = ("decision", "start", "config")  # a line of these kinds ends the tick before it
_READ: Final = (*_CLOSES, "effect", "gap")


class Unreadable(Exception):
    """A line is not of the journal's form; the text names its place and what is wrong."""


@dataclass(frozen=True, slots=True)
class Begin:
    """What the node remembers from here on. `kind`: `start`, `gap` (lines were lost before), or `carried` (a new day began;
    then with the limits in force)."""

    time: str
    kind: str
    memory: Memory
    limits: Limits | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """The limits in force from here on."""

    time: str
    limits: Limits


@dataclass(slots=True)
class Decision:
    """What a tick saw and decided. `results` and `state` (the state after, "" while unknown) come with its effect lines."""

    time: str
    file: str
    line: int
    at_s: float
    entry: Mapping[str, Any]
    observation: Observation
    state: str
    results: list[EffectResult] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Done:
    """The last effect of this decision was read."""

    decision: Decision


@dataclass(frozen=True, slots=True)
class SignOfLife:
    """What was seen at a moment at which nothing was decided."""

    observation: Observation


Record = Begin | Config | Decision | Done | SignOfLife

_Seconds = Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]


class _Carried(msgspec.Struct):
    memory: Memory
    limits: dict[str, Any]


class _Line(msgspec.Struct):
    """The fields of all kinds of lines that are read here."""

    time: str = ""
    boot_s: _Seconds | None = None
    at_s: _Seconds | msgspec.UnsetType = msgspec.UNSET
    memory: Memory | None = None
    limits: dict[str, Any] | None = None
    carried: _Carried | None = None
    observation: dict[str, Any] | None = None
    task: dict[str, Any] | None = None
    effect: Effect | None = None
    ok: bool | None = None
    state: str = ""

    def observed(self) -> Observation:
        task, at_s = self.task or {}, self.boot_s if self.at_s is msgspec.UNSET else self.at_s
        see, at_s = _there("observation", self.observation), _there("boot_s", at_s)
        return observation_of(see, at_s, str(task.get("id", "")), str(task.get("type", "")), "journal")


class JournalReader:
    """Reads the files of one folder, one after another. `lines`: how many lines the last file had.

    `signs_of_life` False leaves these lines out, which are most of a journal.
    """

    def __init__(self, *, signs_of_life: bool = False) -> None:
        self.lines = 0
        self._kinds = (*_READ, "alive") if signs_of_life else _READ
        self._open: Decision | None = None

    def read(self, path: Path) -> Iterator[Record]:
        """The records of one file.

        Raises:
            Unreadable: a line is not of the journal's form.
            OSError: the file cannot be read.
        """
        self.lines = 0
        for number, entry in decision_log.read(path):
            self.lines += 1
            if entry["kind"] in self._kinds or "carried" in entry:
                try:
                    yield from self._records(str(path), number, entry)
                except (ValueError, msgspec.ValidationError) as error:
                    raise Unreadable(f"{path}:{number}:1: {error}") from None
        if self._open is not None and self._open.state:  # otherwise its effects are in the file of the next day
            yield Done(self._open)
            self._open = None

    def _records(self, file: str, number: int, entry: Mapping[str, Any]) -> list[Record]:
        kind, line = entry["kind"], msgspec.convert(entry, _Line)
        records: list[Record] = []
        if line.carried is not None:
            records.append(Begin(line.time, "carried", line.carried.memory, _limits(line.carried.limits)))
        if kind in _CLOSES and self._open is not None:
            records.append(Done(self._open))
        if kind in _CLOSES or kind == "gap":
            self._open = None
        if kind == "start":  # a daemon remembers its cooldown alone
            cooldown_s = None if line.memory is None else line.memory.cooldown_from_s
            records.append(Begin(line.time, kind, Memory(since_s=_there("boot_s", line.boot_s), cooldown_from_s=cooldown_s)))
        elif kind == "gap":
            records.append(Begin(line.time, kind, _there("memory", line.memory)))
        elif kind == "config" and line.limits is not None:  # refused files change no limits
            records.append(Config(line.time, _limits(line.limits)))
        elif kind == "decision":
            seen = line.observed()
            self._open = Decision(line.time, file, number, seen.now_s, entry, seen, line.state)
            records.append(self._open)
        elif kind == "effect" and self._open is not None:
            self._open.results.append(EffectResult(_there("effect", line.effect), _there("ok", line.ok)))
            self._open.state = line.state or self._open.state
        elif kind == "alive" and line.observation is not None:
            records.append(SignOfLife(line.observed()))
        return records


def _there(name: str, value: _T | None) -> _T:
    if value is None:
        raise ValueError(f"{name} is missing")
    return value


def _limits(given: Mapping[str, Any]) -> Limits:
    known = {f.name for f in fields(Limits)}
    if unknown := given.keys() - known:
        raise ValueError(f"limits: found {', '.join(sorted(unknown))}, allowed: {', '.join(sorted(known))}")
    return msgspec.convert(given, Limits)
