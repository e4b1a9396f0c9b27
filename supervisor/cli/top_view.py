"""What `rae-node top` shows: one answer of the daemon as lines for a terminal of any size.

80 × 24 has room for everything; a smaller terminal shows fewer last decisions, a larger one more. Nothing depends on colour
alone, and nothing is red: a waiting node is normal.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap
from typing import Any, Final

from rich.text import Text

from states.formatting import duration, elapsed
from supervisor.cli.status import MARK

BAR: Final = 12
NAME: Final = 9
KEYS: Final = "p pause  a after the task  2 two hours  r resume  q quit"


@dataclass(frozen=True, slots=True)
class LastAnswer:
    """The daemon's last answer (None: none yet), its age in seconds, and why there is no newer one."""

    answer: dict[str, Any] | None
    age_s: float = 0.0
    trouble: str = ""


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
    since = f"since {_clock(answer['since'])}"
    if answer["paused_until"]:
        since += f"   paused: {answer['paused_until']}"
    head = [Text(answer["status"], "bold"), Text(since, "dim"), Text()]
    if last.trouble:  # the rest is old
        head = [Text(last.trouble, "bold"), Text(f"{elapsed(last.age_s)} ago it was {answer['status']}"), Text()]
    blocked = set(answer["blocked_by"])
    guards = [_guard(guard, guard["name"] in blocked, width, plain) for guard in answer["guards"]]
    facts = [Text(), *_facts(answer, width)]
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


def _facts(answer: dict[str, Any], width: int) -> list[Text]:
    task, source = answer["task"], answer["source"]
    link = f"{source['link']} since {_clock(source['since'])}, {source['url']}"
    if source["reason"]:
        link += f": {source['reason']}"
    if source["outbox"]:
        link += f"; {source['outbox']} outcomes to deliver"
    facts = [("task", f"{task['type']} {task['id']}, {task['phase']}" if task else "none"), ("link", link)]
    advice = wrap(answer["unblock"], max(10, width - NAME), max_lines=2, placeholder=" …")
    facts += [("unblock" if n == 0 else "", line) for n, line in enumerate(advice)]
    facts += [("note", note) for note in answer["notes"][-1:]]
    return [Text.assemble((f"{name:<{NAME}}", "dim"), text) for name, text in facts]


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
