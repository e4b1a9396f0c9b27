"""Cut a span out of recorded journals as a scripted replay (interface §5, R17): a regression test made of reality.

The script brings the machine to where the span began (state, running task, cooldown), then gives it what each decision
of the span saw, and expects what was decided then. It is played before it is handed out, so it passes as it is. A script
is one life under one set of limits: it ends where the node was restarted, its limits changed or lines were lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from states.effects import Effect
from states.lifecycle import EffectResult, Lifecycle, Outcome
from states.limits import Limits
from states.memory import USED_UP, Memory, State
from states.observation import Observation
from supervisor.journal import decision_log as journal
from supervisor.journal.codec import observation_of
from supervisor.tools.history.difference import effect_words
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
_LONG_S: Final = 999_999_999.0  # the longest that a script can say; whoever was away as long is away
_FREE: Final = "user: {idle: 1000000}, gpu: {percent: 0, vram_gb: 0, foreign: 0}, cpu: 0, host: fit"


# What comes of a line that lacks something, or holds something else than it should.
_NO_JOURNAL: Final = (AttributeError, KeyError, OverflowError, TypeError, ValueError, msgspec.ValidationError)


class RecordError(Exception):
    """There is nothing to cut out; the text says why and what to do."""


@dataclass(slots=True)
class _Decision:
    """A decision of the span: what was seen, and what came of it."""

    at_s: float
    entry: dict[str, Any]
    seen: Observation
    results: list[EffectResult] = field(default_factory=list)
    state: str = ""


def cut(paths: Iterable[Path], since: datetime, until: datetime, title: str = "") -> tuple[str, str]:
    """(the script, a note on why it ends before `until`, or ""); both times are inclusive.

    Raises:
        RecordError: no decision lies in the span, or the script would not replay.
        OSError: a journal cannot be read.
    """
    mind: Lifecycle | None = None
    limits, began, note = Limits(), Memory(), ""
    inside: list[_Decision] = []
    open_: _Decision | None = None

    def close() -> None:
        nonlocal open_
        done, open_ = open_, None
        if done is not None and mind is not None:
            mind.commit(mind.propose(done.seen), Outcome(tuple(done.results)))

    try:
        for path in journal.files(paths):
            for _, entry in journal.read(path):
                kind = entry["kind"]
                if mind is None and "carried" in entry:  # of the days before, which are not at hand
                    limits = msgspec.convert(entry["carried"]["limits"], Limits)
                    mind = Lifecycle(limits, memory=msgspec.convert(entry["carried"]["memory"], Memory))
                if kind == "effect":
                    if open_ is not None:
                        open_.results.append(EffectResult(Effect(entry["effect"]), entry["ok"]))
                        open_.state = entry.get("state", open_.state)
                    continue
                if kind not in ("start", "config", "gap", "decision"):
                    continue
                close()
                at = datetime.fromisoformat(entry["time"])
                if at > until:
                    break
                if kind == "decision":
                    if mind is None:
                        continue
                    at_s, about = float(entry["at_s"]), entry.get("task") or {}
                    seen = observation_of(entry["observation"], at_s, str(about.get("id", "")), str(about.get("type", "")))
                    open_ = _Decision(at_s, entry, seen, state=str(entry.get("state", "")))
                    if at >= since and (inside or not mind.memory.owed):
                        began = began if inside else mind.memory
                        inside.append(open_)
                    continue
                if kind == "config" and ("limits" not in entry or msgspec.convert(entry["limits"], Limits) == limits):
                    continue
                if inside:
                    why = {"start": "the node was restarted", "config": "the limits changed", "gap": "lines were lost"}[kind]
                    note = f"ends at {entry['time']}, where {why}; record from there for the rest"
                    raise StopIteration
                if kind == "config":
                    limits = msgspec.convert(entry["limits"], Limits)
                    if mind is not None:
                        mind.limits = limits
                elif kind == "gap":
                    mind = Lifecycle(limits, memory=msgspec.convert(entry["memory"], Memory))
                else:
                    cooldown = entry["memory"].get("cooldown_from_s")
                    mind = Lifecycle(limits, memory=Memory(since_s=entry["boot_s"], cooldown_from_s=cooldown))
    except StopIteration:
        pass
    except _NO_JOURNAL as error:
        raise _of_another_form(error) from None
    if not inside:
        span = f"{since.isoformat(timespec='seconds')} to {until.isoformat(timespec='seconds')}"
        raise RecordError(f"no decision from {span} follows a start; name a wider span, or the journals of the days before")
    try:
        return _checked(_script(inside, began, limits, title)), note
    except _NO_JOURNAL as error:
        raise _of_another_form(error) from None


def _of_another_form(error: Exception) -> RecordError:
    return RecordError(f"a line is not of the journal's form ({error}); `rae-node replay` names it")


def _checked(text: str) -> str:
    try:
        for got in play(parse(text, "the script")):
            if got.step.expect is not None and (differs := compare(got.step.expect, got)):
                what, wanted, came = differs
                raise RecordError(
                    f"line {got.step.line}: {what} would come out as {came}, and was {wanted}: today's rules, or a setting "
                    "that a script cannot hold, decide otherwise; `rae-node replay` on the journal shows more"
                )
    except ScriptError as error:
        raise RecordError(f"what was seen cannot be said in a script: {error.problems[0]}") from None
    return text


def _script(decisions: list[_Decision], began: Memory, limits: Limits, title: str) -> str:
    zero_s = min(
        s for s in (decisions[0].at_s, began.running_since_s, began.started_at_s, began.cooldown_from_s) if s is not None
    )
    settings = [f"{name}: {_plain(getattr(limits, at) / per)}" for name, (at, per) in SETTINGS.items()]
    settings += [f"safety.detect_active_user: {str(limits.detect_active_user).lower()}"]
    settings += [f"gpu.presence: {'required' if limits.gpu_required else 'optional'}"]
    about = title or f"Recorded from {decisions[0].entry['time']} to {decisions[-1].entry['time']}"
    lines = ["replay: 1", f"title: {json.dumps(about, ensure_ascii=False)}", "settings:"]
    lines += [*(f"  {line}" for line in settings), "steps:", *_preamble(began, zero_s, decisions[0].at_s)]
    for d in decisions:
        see = dict(d.entry["observation"])
        stale = see.pop("stale", [])
        failed = [str(r.effect) for r in d.results if not r.ok]
        vetoed = Effect.INHIBIT.value in failed
        row = None if vetoed else d.entry["row"]
        effects = ", ".join(f'"{effect_words(r.effect, r.ok)}"' for r in d.results)
        parts = [f"at: {_plain(d.at_s - zero_s)}", f"see: {_see(see)}"]
        parts += [f"stale: [{', '.join(stale)}]"] if stale else []
        parts += [f"refuse: [{', '.join(failed)}]"] if failed else []
        parts.append(f"expect: {{state: {d.state}, row: {row or 'null'}, effects: [{effects}]}}")
        lines.append(f"  - {{{', '.join(parts)}}}")
    return "\n".join(lines) + "\n"


def _preamble(memory: Memory, zero_s: float, first_s: float) -> list[str]:
    """Steps from DISABLED to the state, the running task and the cooldown of `memory`."""

    def step(at_s: float, see: str, ticks: int = 1, refuse: str = "") -> str:
        refused = f", refuse: [{refuse}]" if refuse else ""
        return f"  - {{at: {_plain(at_s - zero_s)}, ticks: {ticks}, see: {{{see}}}{refused}}}"

    steps: list[str] = []
    state = memory.state
    if state is State.RUNNING and memory.running_since_s is not None:
        entry_s, start_s = memory.running_since_s, memory.started_at_s
        failed = "start" if start_s is None and memory.last_row != "task-settled" else ""
        paused = memory.last_row in ("on-hold", "false-alarm")
        first = memory.last_row == "task-claimed" or (paused and start_s == entry_s)
        steps.append(step(entry_s, f"automation: on, task: none, {_FREE}", 2))
        steps.append(step(entry_s, "task: claimed", refuse=failed if first else ""))
        if not first:  # settled while the stay was young, whenever the next one came
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
    return "{" + ", ".join(f"{name}: {_word(value)}" for name, value in see.items()) + "}"


def _word(value: Any) -> str:
    if isinstance(value, Mapping):
        return _see(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return _plain(value)
    return str(value) if str(value).replace("-", "").isalpha() else json.dumps(value, ensure_ascii=False)


def _plain(value: float) -> str:
    """A number as scripts write it: no exponent, no sign, six digits of a second."""
    text = f"{min(max(float(value), 0.0), _LONG_S):.6f}".rstrip("0").rstrip(".")
    return text or "0"
