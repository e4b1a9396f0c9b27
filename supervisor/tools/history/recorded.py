"""Journals read back as typed values, for `replay`, `record` and `whatif`. Torn lines are left out.

A decision comes first; its effects follow in lines of their own, maybe in the file of the next day.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from states.effects import Effect
from states.lifecycle import EffectResult
from states.limits import Limits
from states.memory import Memory
from states.observation import Observation
from supervisor.journal import decision_log
from supervisor.journal.codec import observation_of

_CLOSES: Final = ("decision", "start", "config")  # a line of these kinds ends the tick before it
_Seconds = Annotated[float, msgspec.Meta(ge=-1e15, le=1e15)]


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
    entry: Mapping[str, Any]
    observation: Observation
    state: str
    results: list[EffectResult] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Done:
    """The last effect of this decision was read."""

    decision: Decision


Record = Begin | Config | Decision | Done | Observation  # an Observation: it was seen at a moment without a decision


class JournalReader:
    """Reads the files of one folder, one after another. `lines`: how many lines the last file had.

    `signs_of_life` False leaves these lines out, which are most of a journal.
    """

    def __init__(self, *, signs_of_life: bool = False) -> None:
        self.lines = 0
        self._signs_of_life = signs_of_life
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
            if entry["kind"] == "alive" and not self._signs_of_life and "carried" not in entry:
                continue
            try:
                yield from self._records(str(path), number, entry)
            except ValueError as error:
                raise Unreadable(f"{path}:{number}:1: {error}") from None
        if self._open is not None and self._open.state:  # otherwise its effects are in the file of the next day
            yield Done(self._open)
            self._open = None

    def _records(self, file: str, number: int, entry: Mapping[str, Any]) -> Iterator[Record]:
        kind, time = entry["kind"], str(entry.get("time", ""))
        if "carried" in entry:
            carried = _read(entry, "carried", dict[str, Any])
            yield Begin(time, "carried", _read(carried, "memory", Memory), _limits(carried))
        if kind in _CLOSES and self._open is not None:
            yield Done(self._open)
        if kind in _CLOSES or kind == "gap":
            self._open = None
        if kind == "start":  # a daemon remembers its cooldown alone
            remembered = _read(entry, "memory", Memory | None) or Memory()
            memory = Memory(since_s=_read(entry, "boot_s", _Seconds), cooldown_from_s=remembered.cooldown_from_s)
            yield Begin(time, kind, memory)
        elif kind == "gap":
            yield Begin(time, kind, _read(entry, "memory", Memory))
        elif kind == "config" and "limits" in entry:  # refused files change no limits
            yield Config(time, _limits(entry))
        elif kind == "decision":
            self._open = Decision(time, file, number, entry, _seen(entry), str(entry.get("state", "")))
            yield self._open
        elif kind == "effect" and self._open is not None:
            self._open.results.append(EffectResult(_read(entry, "effect", Effect), _read(entry, "ok", bool)))
            self._open.state = str(entry.get("state", "")) or self._open.state
        elif kind == "alive" and "observation" in entry and self._signs_of_life:
            yield _seen(entry)


def _read(entry: Mapping[str, Any], name: str, kind: Any) -> Any:
    try:
        return msgspec.convert(entry.get(name), kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from None


def _limits(entry: Mapping[str, Any]) -> Limits:
    given, known = _read(entry, "limits", dict[str, Any]), {f.name for f in fields(Limits)}
    if unknown := given.keys() - known:
        raise ValueError(f"limits: found {', '.join(sorted(unknown))}, allowed: {', '.join(sorted(known))}")
    limits: Limits = _read(entry, "limits", Limits)
    return limits


def _seen(entry: Mapping[str, Any]) -> Observation:
    task = _read(entry, "task", dict[str, Any] | None) or {}
    at_s = _read(entry, "at_s" if "at_s" in entry else "boot_s", _Seconds)
    see = _read(entry, "observation", dict[str, Any])
    try:
        return observation_of(see, at_s, str(task.get("id", "")), str(task.get("type", "")), "journal")
    except ValueError as error:
        raise ValueError(f"observation: {error}") from None
