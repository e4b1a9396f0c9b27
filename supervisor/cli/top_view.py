"""What `rae-node top` shows: one answer of the daemon as lines for a terminal of any size.

80 × 24 has room for everything; a smaller terminal shows fewer last decisions, a larger one more. Nothing depends on colour
alone, and nothing is red: a waiting node is normal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, Final

from rich.text import Text

from states.formatting import duration, elapsed, number
from supervisor.cli.headline import MARK, ago, headline, style_of
from supervisor.cli.status import usage

BAR: Final = 12
SAMPLES: Final = 600  # ten minutes
CURVE: Final = 40
NAME: Final = 9
KEYS: Final = "p pause  a after the task  2 two hours  r resume  q quit"


@dataclass(frozen=True, slots=True)
class LastAnswer:
    """The daemon's last answer (None: none yet), its age in seconds, why there is no newer one, and when this is shown."""

    answer: dict[str, Any] | None
    age_s: float = 0.0
    trouble: str = ""
    wall_s: float = 0.0  # now, in seconds since the epoch
    history: Sequence[Mapping[str, tuple[float, float]]] = ()  # `samples` of the last answers, one a second


def screen(last: LastAnswer, message: str, width: int, height: int, *, plain: bool = False) -> list[Text]:
    """Exactly `height` lines of at most `width` cells. `plain`: bars of ASCII."""
    foot = _fit(Text.assemble((f" {KEYS} ", "reverse"), "  ", message), width)
    if last.answer is None:
        body = [Text("rae-node top", "bold"), Text(), Text(last.trouble or "asking the daemon …")]
    else:
        body = _body(last.answer, last, width, height - 1, plain)
    lines = [_fit(line, width) for line in body][: max(0, height - 1)]
    return [*lines, *[Text()] * (height - 1 - len(lines)), foot][-max(1, height) :]


def _body(answer: dict[str, Any], last: LastAnswer, width: int, height: int, plain: bool) -> list[Text]:
    first, *others = headline(answer, last.wall_s, plain=False)
    head = [Text(first, style_of(first)), *(Text(line, "dim") for line in others), Text()]
    if last.trouble:  # the rest is old
        head = [Text(last.trouble, "bold"), Text(f"{elapsed(last.age_s)} ago it was {answer['status']}"), Text()]
    blocked = set(answer["blocked_by"])
    guards = [_guard(guard, guard["name"] in blocked, width, plain) for guard in answer["guards"]]
    facts = [Text(), *_facts(answer, width, last.wall_s)]
    curves = _curves(last.history, plain)
    facts += curves if height - len(head) - len(guards) - len(facts) >= len(curves) else []
    room = height - len(head) - len(guards) - len(facts) - 2
    recent = answer.get("recent", [])[-max(0, room) :] if room > 0 else []
    decisions = [Text(), Text("last decisions", "dim"), *map(_recent, recent)] if recent else []
    return [*head, *guards, *facts, *decisions]


def _guard(guard: dict[str, Any], blocks: bool, width: int, plain: bool) -> Text:
    wait_s = guard["wait_s"]
    wait = "" if guard["ok"] is True else f"  {duration(wait_s)} to go" if wait_s is not None else ""
    line = Text.assemble(
        "> " if blocks else "  ", f"{MARK[guard['ok']]} ", (f"{guard['name']:<13} ", "bold" if blocks else ""),
        (bar(guard["value"], guard["limit"], plain), "cyan"), " ",
    )
    reason = Text(guard["reason"], "" if blocks else "dim")
    reason.truncate(max(0, width - line.cell_len - len(wait)), overflow="ellipsis")
    return Text.assemble(line, reason, wait)


def bar(value: Any, limit: Any, plain: bool = False) -> str:
    """A reading as a part of its limit; spaces if one of them is no number."""
    if not _number(value) or not _number(limit) or limit <= 0:
        return " " * BAR
    full: int = round(BAR * min(1.0, max(0.0, value / limit)))
    return ("#" * full + "." * (BAR - full)) if plain else ("█" * full + "░" * (BAR - full))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _facts(answer: dict[str, Any], width: int, wall_s: float) -> list[Text]:
    task, source = answer["task"], answer["source"]
    link = f"{source['link']} for {ago(source['since'], wall_s)}, {source['url']}"
    if source["reason"]:
        link += f": {source['reason']}"
    if source["outbox"]:
        link += f"; {source['outbox']} outcomes to deliver"
    facts = [("task", f"{task['type']} {task['id']}, {task['phase']}" if task else "none")]
    if answer["task_usage"]:
        used = wrap(usage(answer["task_usage"]), max(10, width - NAME), max_lines=2, placeholder=" …")
        facts += [("uses" if n == 0 else "", line) for n, line in enumerate(used)]
    facts.append(("link", link))
    facts += [("note", note) for note in answer["notes"][-1:]]
    return [Text.assemble((f"{name:<{NAME}}", "dim"), text) for name, text in facts]


def samples(answer: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """The readings of an answer that are drawn as curves: (value, the value at which it blocks or is stopped)."""
    found = {}
    for guard in answer["guards"]:
        name = {"cpu_free": "CPU", "gpu_free": "GPU"}.get(guard["name"])
        if name and guard["unit"] == "%" and _number(guard["value"]) and _number(guard["limit"]):
            found[f"{name} %"] = (guard["value"], guard["limit"])
    for key, name in (("memory_gb", "GiB"), ("vram_gb", "VRAM GiB")):
        use = answer["task_usage"] or {}
        if _number(use.get(key)) and _number(use.get(f"max_{key}")):
            found[name] = (use[key], use[f"max_{key}"])
    return found


def _curves(history: Sequence[Mapping[str, tuple[float, float]]], plain: bool) -> list[Text]:
    """A line for each reading: the last ten minutes, as parts of its limit. Nothing until there are two samples."""
    names = list(history[-1]) if len(history) > 1 else []
    lines = []
    for name in names:
        drawn = curve([one.get(name) for one in history], plain)
        value, limit = history[-1][name]
        lines.append(Text.assemble((f"{name:<{NAME}}", "dim"), (drawn, "cyan"), f" {number(value)} of {number(limit)}"))
    return lines


def curve(values: Sequence[tuple[float, float] | None], plain: bool = False) -> str:
    """CURVE characters for as many seconds as SAMPLES, the newest on the right; a space where nothing is known."""
    levels, each = (".:-=+*#@" if plain else "▁▂▃▄▅▆▇█"), SAMPLES // CURVE
    padded = [*[None] * (SAMPLES - len(values)), *values[-SAMPLES:]]
    text = ""
    for start in range(0, SAMPLES, each):
        parts = [min(1.0, max(0.0, one[0] / one[1])) for one in padded[start : start + each] if one and one[1] > 0]
        text += levels[min(len(levels) - 1, int(max(parts) * len(levels)))] if parts else " "
    return text


def _recent(line: dict[str, str]) -> Text:
    return Text.assemble((_clock(line["time"]), "dim"), " ", line["text"])


def _clock(stamp: str) -> str:
    """The time of day of an ISO time, with the weekday if it is not today."""
    from datetime import datetime

    then = datetime.fromisoformat(stamp)
    return then.strftime("%H:%M:%S") if then.date() == datetime.now(then.tzinfo).date() else then.strftime("%a %H:%M")


def _fit(line: Text, width: int) -> Text:
    line = line.copy()
    line.truncate(max(1, width), overflow="ellipsis")
    return line
