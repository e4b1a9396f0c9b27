"""What `rae-node top` shows, as lines for a terminal of any size: made of one answer of the daemon, nothing else.

At 80 × 24 everything has its place; what is smaller loses the last decisions first, what is larger shows more of them.
Nothing is told by colour alone, and nothing is red: a node that waits is a normal node.
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
class Seen:
    """The last answer (None: there was none yet), how old it is in seconds, and why there is no newer one."""

    answer: dict[str, Any] | None
    age_s: float = 0.0
    trouble: str = ""


def screen(seen: Seen, message: str, width: int, height: int, *, plain: bool = False) -> list[Text]:
    """Exactly `height` lines of at most `width` cells. `plain`: bars of ASCII."""
    foot = _fit(Text.assemble((f" {KEYS} ", "reverse"), "  ", message), width)
    if seen.answer is None:
        body = [Text("rae-node top", "bold"), Text(), Text(seen.trouble or "asking the daemon …")]
    else:
        body = _body(seen.answer, seen, width, height - 1, plain)
    lines = [_fit(line, width) for line in body][: max(0, height - 1)]
    return [*lines, *[Text()] * (height - 1 - len(lines)), foot][-max(1, height) :]


def _body(answer: dict[str, Any], seen: Seen, width: int, height: int, plain: bool) -> list[Text]:
    since = f"since {_clock(answer['since'])}"
    if answer["paused_until"]:
        since += f"   paused: {answer['paused_until']}"
    head = [Text(answer["status"], "bold"), Text(since, "dim"), Text()]
    if seen.trouble:  # what follows is old
        head = [Text(seen.trouble, "bold"), Text(f"{elapsed(seen.age_s)} ago it was {answer['status']}"), Text()]
    blocked = set(answer["blocked_by"])
    guards = [_guard(guard, guard["name"] in blocked, width, plain) for guard in answer["guards"]]
    facts = [Text(), *_facts(answer, width)]
    room = height - len(head) - len(guards) - len(facts) - 2
    recent = answer.get("recent", [])[-max(0, room) :] if room > 0 else []
    told = [Text(), Text("last decisions", "dim"), *(_recent(line) for line in recent)] if recent else []
    return [*head, *guards, *facts, *told]


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
    """How much of its limit a reading has reached; empty for what is no number."""
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
    """The time of day of an ISO time; the day is said where it is another one."""
    from datetime import datetime

    then = datetime.fromisoformat(stamp)
    return then.strftime("%H:%M:%S") if then.date() == datetime.now(then.tzinfo).date() else then.strftime("%a %H:%M")


def _fit(line: Text, width: int) -> Text:
    line = line.copy()
    line.truncate(max(1, width), overflow="ellipsis")
    return line
