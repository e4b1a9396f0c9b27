"""Cuts a span out of recorded journals as a scripted replay (interface §5): a regression test made from reality.

The script first brings the machine to where it was (state, running task, cooldown). Then it shows it what each decision
of the span saw, and expects what was decided. It is played before it is written, so it passes. A script is one life under
one set of limits: it ends where the node was restarted, its limits changed or lines were lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from states.effects import Effect
from states.lifecycle import Lifecycle, Outcome
from states.limits import Limits
from states.memory import USED_UP, Memory, State
from states.table import BY_ID
from supervisor.journal import decision_log
from supervisor.tools.history.difference import effect_name
from supervisor.tools.history.recorded import Begin, Config, Decision, Done, JournalReader, Unreadable
from supervisor.tools.history.replay import compare, play
from supervisor.tools.history.script import ScriptError, parse

# Dotted setting → the limit it becomes, and what it is divided by on the way back.
SETTINGS: Final[Mapping[str, tuple[str, float]]] = {
    "safety.idle_required_minutes": ("idle_required_s", 60),
    "safety.max_cpu_percent": ("max_cpu_percent", 1),
    "safety.max_gpu_percent": ("max_gpu_percent", 1),
    "safety.max_vram_gb": ("max_vram_gb", 1),
    "safety.cooldown_minutes": ("cooldown_s", 60),
    "execution.task_timeout_minutes": ("task_timeout_s", 60),
    "work.run_minutes": ("run_s", 60),
    "work.hold_sec": ("hold_s", 1),
}
_LONG_S: Final = 999_999_999.0  # the longest time that a script can hold
_FREE: Final = "user: {idle: 1000000}, gpu: {percent: 0, vram_gb: 0, foreign: 0}, cpu: 0, host: fit"


class RecordError(Exception):
    """There is nothing to cut out; the text says why and what to do."""


@dataclass(slots=True)
class _Span:
    """The decisions that the script holds, what the node remembered before them, their limits, and why they end early."""

    decisions: list[Decision] = field(default_factory=list)
    before: Memory = field(default_factory=Memory)
    limits: Limits = field(default_factory=Limits)
    note: str = ""


def cut(paths: Iterable[Path], since: datetime, until: datetime) -> tuple[str, str]:
    """(the script, what it covers, and why it ends before `until`); both times are inclusive.

    Raises:
        RecordError: no decision lies in the span, or the script would not replay.
        OSError: a journal cannot be read.
    """
    try:
        span = _read(paths, since, until)
        if span.decisions:
            first, last = span.decisions[0].time, span.decisions[-1].time
            covers = f"{len(span.decisions)} decisions from {first} to {last}"
            return _checked(_script(span)), covers + (f"; it {span.note}" if span.note else "")
    except Unreadable as error:
        raise RecordError(f"{error}: this line is not of the journal's form") from None
    dates = f"{since.isoformat(timespec='seconds')} to {until.isoformat(timespec='seconds')}"
    raise RecordError(f"no decision from {dates} follows a start; name a wider span, or the journals of the days before")


def _read(paths: Iterable[Path], since: datetime, until: datetime) -> _Span:
    """The decisions of the span, as far as they are one life under one set of limits."""
    span, reader = _Span(), JournalReader()
    lifecycle: Lifecycle | None = None
    judged: Decision | None = None
    for record in (record for path in decision_log.files(paths) for record in reader.read(path)):
        match record:
            case Begin(kind="carried"):
                if lifecycle is None:  # the days before are not at hand
                    span.limits = record.limits or span.limits
                    lifecycle = Lifecycle(span.limits, memory=record.memory)
            case Done():
                if lifecycle is not None and record.decision is judged:
                    lifecycle.commit(lifecycle.propose(judged.observation), Outcome(tuple(judged.results)))
            case Begin() | Config() | Decision() if _when(record) > until:
                break
            case Decision() if lifecycle is not None:
                judged = record
                if _when(record) >= since and (span.decisions or not lifecycle.memory.owed):
                    span.before = span.before if span.decisions else lifecycle.memory
                    span.decisions.append(record)
            case Config(limits=limits) if limits == span.limits:
                pass
            case Begin() | Config() if span.decisions:
                kind = record.kind if isinstance(record, Begin) else "config"
                why = {"start": "the node was restarted", "config": "the limits changed", "gap": "lines were lost"}[kind]
                span.note = f"ends at {record.time}, where {why}; record from there for the rest"
                break
            case Config():
                span.limits = record.limits
                if lifecycle is not None:
                    lifecycle.limits = record.limits
            case Begin():
                lifecycle = Lifecycle(span.limits, memory=record.memory)
    return span


def _when(record: Begin | Config | Decision) -> datetime:
    try:
        at = datetime.fromisoformat(record.time)
    except ValueError:
        at = datetime.min
    if at.tzinfo is None:
        raise Unreadable(f"time: found {record.time!r:.60}, allowed: a time with its offset")
    return at


def _checked(text: str) -> str:
    try:
        for got in play(parse(text, "the script")):
            if got.step.expect is not None and (differs := compare(got.step.expect, got)):
                what, wanted, came = differs
                raise RecordError(
                    f"line {got.step.line}: {what} was {wanted}, and is {came} today: the rules changed, or a setting that a "
                    "script cannot hold did; `rae-node replay` on the journal shows more"
                )
    except ScriptError as error:
        raise RecordError(f"a script cannot hold what was seen: {error.problems[0]}") from None
    except UnicodeError as error:
        raise RecordError(f"a script cannot hold what was seen: {error}") from None
    return text


def _script(span: _Span) -> str:
    decisions, before, limits = span.decisions, span.before, span.limits
    known = (decisions[0].observation.now_s, before.running_since_s, before.started_at_s, before.cooldown_from_s)
    zero_s = min(at_s for at_s in known if at_s is not None)
    settings = [f"{name}: {_digits(getattr(limits, at) / per)}" for name, (at, per) in SETTINGS.items()]
    settings += [f"safety.detect_active_user: {str(limits.detect_active_user).lower()}"]
    settings += [f"gpu.presence: {'required' if limits.gpu_required else 'optional'}"]
    title = f"Recorded from {decisions[0].time} to {decisions[-1].time}"
    lines = ["replay: 1", f"title: {json.dumps(title, ensure_ascii=False)}", "settings:"]
    lines += [*(f"  {line}" for line in settings), "steps:", *_preamble(before, zero_s, decisions[0].observation.now_s)]
    for d in decisions:
        see = dict(d.entry["observation"])
        stale = see.pop("stale", [])
        failed = [str(r.effect) for r in d.results if not r.ok]
        row = d.entry.get("row", "")
        if row is not None and row not in tuple(BY_ID):
            raise Unreadable(f"{d.file}:{d.line}:1: row: found {row!r:.60}, allowed: null, {', '.join(BY_ID)}")
        if "at_s" not in d.entry:
            raise Unreadable(f"{d.file}:{d.line}:1: at_s: found none, allowed: a number of seconds")
        if Effect.INHIBIT in failed:
            row = None
        effects = ", ".join(f'"{effect_name(r.effect, r.ok)}"' for r in d.results)
        parts = [f"at: {_digits(d.observation.now_s - zero_s)}", f"see: {_see(see)}"]
        parts += [f"stale: [{', '.join(stale)}]"] if stale else []
        parts += [f"refuse: [{', '.join(failed)}]"] if failed else []
        parts.append(f"expect: {{state: {d.state}, row: {row or 'null'}, effects: [{effects}]}}")
        lines.append(f"  - {{{', '.join(parts)}}}")
    return "\n".join(lines) + "\n"


def _preamble(memory: Memory, zero_s: float, first_s: float) -> list[str]:
    """Steps from DISABLED to the state, the running task and the cooldown of `memory`."""

    def step(at_s: float, see: str, ticks: int = 1, refuse: str = "") -> str:
        refused = f", refuse: [{refuse}]" if refuse else ""
        return f"  - {{at: {_digits(at_s - zero_s)}, ticks: {ticks}, see: {{{see}}}{refused}}}"

    steps: list[str] = []
    state = memory.state
    if state is State.RUNNING and memory.running_since_s is not None:
        entry_s, start_s = memory.running_since_s, memory.started_at_s
        failed = "start" if start_s is None and memory.last_row != "task-settled" else ""
        paused = memory.last_row in ("on-hold", "false-alarm")
        first = memory.last_row == "task-claimed" or (paused and start_s == entry_s)
        steps.append(step(entry_s, f"automation: on, task: none, {_FREE}", 2))
        steps.append(step(entry_s, "task: claimed", refuse=failed if first else ""))
        if not first:  # the one before was settled while the stay was young
            steps.append(step(entry_s, "task: ended"))
        if memory.last_row == "next-task" or (paused and not first):
            steps.append(step(entry_s if start_s is None else start_s, "task: claimed", refuse=failed))
        if memory.hold_from_s is not None:
            refused = memory.hold_from_s == USED_UP
            steps.append(step(first_s if refused else memory.hold_from_s, "cpu: 1000", refuse="freeze" if refused else ""))
        return steps
    if memory.cooldown_from_s is not None and state is not State.READY:
        at_s = memory.cooldown_from_s
        steps += [step(at_s, f"automation: on, task: none, {_FREE}", 2), step(at_s, "task: claimed"), step(at_s, "task: none")]
        if state is not State.COOLDOWN:
            steps.append(step(at_s, "automation: off"))
    if state is State.IDLE_WAIT:
        steps.append(step(first_s, "automation: on, user: active, task: none, link: up"))
    elif state is State.READY:
        steps.append(step(first_s, f"automation: on, task: none, {_FREE}", 2))
    return steps


def _see(see: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {_value(value)}" for name, value in see.items()) + "}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _see(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return _digits(value)
    return str(value) if str(value).replace("-", "").isalpha() else json.dumps(value, ensure_ascii=False)


def _digits(value: float) -> str:
    """A number as scripts write it: no exponent, no sign, six digits of a second."""
    text = f"{min(max(float(value), 0.0), _LONG_S):.6f}".rstrip("0").rstrip(".")
    return text or "0"
