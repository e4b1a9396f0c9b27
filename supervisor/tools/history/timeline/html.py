"""A timeline as one HTML file that needs nothing else: no network, no file beside it, no script but its own two.

Its policy (CSP) forbids every request, and every script and style but those whose digests it names. What the journal
says is data and is escaped everywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

from supervisor import VERSION
from supervisor.tools.history.timeline.spans import Timeline
from supervisor.tools.history.timeline.svg import CURVES, HEIGHT, LEGEND, day, patterns, style, swatch, tops_of
from supervisor.tools.history.timeline.words import (
    clock,
    date,
    day_lines,
    day_text,
    hours,
    kept_rows,
    quick,
    short,
    summary_rows,
)

ASSETS: Final = Path(__file__).parent / "page"
MOST_ROWS: Final = 1000
_ACTS: Final = (("back", "◀ earlier"), ("on", "later ▶"), ("near", "zoom in"), ("far", "zoom out"), ("whole", "everything"))


def page(timeline: Timeline, name: str = "the node") -> str:
    """`name`: of the node, where it is known."""
    scripts = [_asset("uplot.js"), _asset("timeline.js")]
    styles = [_asset("uplot.css") + _asset("timeline.css") + style()]
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_digest, scripts))}; style-src {' '.join(map(_digest, styles))}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    span = f"{date(timeline.begin)} to {date(timeline.end - 1)}"
    about = f"{span}, in local time ({_zone_name(timeline)})"
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
            f"<title>{escape(name)}: rae-node timeline, {span}</title>",
            *(f"<style>{rules}</style>" for rules in styles),
            f"</head><body><header><h1>What {escape(name)} did</h1><p>{about}</p></header><main>",
            '<section aria-label="Summary"><dl>',
            *(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in summary_rows(timeline)),
            "</dl></section>",
            *_kept(timeline),
            f'<svg class="defs" width="0" height="0" aria-hidden="true">{patterns()}</svg>',
            "<section><h2>Days</h2><p>The newest first. Each from top to bottom: states, tasks, the person as the node saw "
            "them, the load of others as a share of its limit; then in words. Point at a part, or Tab to a day and use the "
            "arrow keys.</p>",
            '<ul class="legend">',
            *(f"<li>{swatch('', kind)}{escape(label)}</li>" for kind, label in LEGEND),
            "</ul>",
            *_days(timeline),
            "</section>",
            *_readings(timeline),
            *_tables(timeline),
            f"<p>Made by rae-node {VERSION} from its decision journal.</p></main>",
            '<div id="tip" role="tooltip" hidden></div><div id="live" aria-live="polite"></div>',
            f'<script type="application/json" id="data">{_data(timeline)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body></html>\n",
        )
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text()


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _days(timeline: Timeline) -> Iterator[str]:
    days = timeline.days()
    longest_s = max(b - a for a, b in days)
    for begin, end in reversed(days):  # today first
        part = timeline.between(begin, end)
        yield (
            f"<article><div><h3>{date(begin)}</h3><p>{escape(day_text(part))}</p>"
            f'<button data-act="day" data-from="{begin:.0f}" data-to="{end:.0f}" aria-label="Readings of {date(begin)}">'
            "readings</button></div>"
        )
        yield day(part, begin, end, longest_s, f'class="day" height="{HEIGHT}"')
        yield f"<details{' open' if end >= timeline.end else ''}><summary>{date(begin)} in words</summary><ul class=\"lines\">"
        yield from (f"<li>{escape(line)}</li>" for line in day_lines(part))
        yield "</ul></details></article>"


def _kept(timeline: Timeline) -> Iterator[str]:
    rows = kept_rows(timeline)
    if not rows:
        return
    yield "<section><h2>What kept it from working</h2><p>Several may at a time. The commands show what another limit would "
    yield 'have meant for these days.</p><div class="scroll cards"><table><thead><tr>'
    heads = ("Kept by", "For", "Setting", "Try")
    yield "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr></thead><tbody>"
    for row in rows:
        *cells, command = map(escape, row)
        shown = zip(heads, (*cells, f"<code>{command}</code>" if command else ""), strict=True)
        yield "<tr>" + "".join(f'<td data-head="{head}">{cell}</td>' for head, cell in shown) + "</tr>"
    yield "</tbody></table></div></section>"


def _readings(timeline: Timeline) -> Iterator[str]:
    yield '<section id="readings"><h2>Readings of others against their limits</h2>'
    if not timeline.points:
        yield "<p>The journal has none for these days.</p></section>"
        return
    yield "<p>Drag to zoom, double-click to see everything. Keys: arrows move, + and - zoom, 0 shows everything.</p>"
    yield '<div class="buttons">'
    yield from (f'<button data-act="{act}">{label}</button>' for act, label in _ACTS)
    yield "</div>"
    for name, label, unit in CURVES:
        about = f'tabindex="0" role="group" aria-label="{label} in {unit}, with its limit"'
        yield f'<h3>{label}</h3><div class="chart" id="chart-{name}" {about}></div>'
    yield "</section>"


def _tables(timeline: Timeline) -> Iterator[str]:
    yield from _table(
        "Tasks that did not end well",
        ("Day", "Time", "Task", "Outcome", "By", "Why", "Person back → task gone"),
        [
            (
                *(date(t.end), clock(t.end), f"{t.type} {short(t.id)}", t.outcome, t.row, t.why),
                "" if t.reaction_s is None else quick(t.reaction_s),
            )
            for t in timeline.tasks
            if t.ended_badly
        ],
    )
    missing = [
        (date(g.begin), f"{clock(g.begin)} to {clock(g.end)}", hours((g.end - g.begin) / 3600), g.why) for g in timeline.gaps()
    ]
    yield from _table("No record", ("Day", "From, to", "For", "What is known"), missing)
    events = [(date(m.at), clock(m.at), m.kind, m.text) for m in timeline.marks]
    yield from _table("Events", ("Day", "Time", "Kind", "What"), events)


def _table(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    more = f" (the first {MOST_ROWS})" if len(rows) > MOST_ROWS else ""
    yield f"<details><summary>{name}: {len(rows)}{more}</summary>"
    if rows:
        yield '<div class="scroll"><table><thead><tr>'
        yield from (f'<th scope="col">{head}</th>' for head in heads)
        yield "</tr></thead><tbody>"
        for row in rows[:MOST_ROWS]:
            yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        yield "</tbody></table></div>"
    yield "</details>"


def _data(timeline: Timeline) -> str:
    """The readings for the script, as JSON; each time is the step from the one before."""
    points = timeline.points
    at, last = [], 0
    for point in points:
        now = max(round(point.at), last + 1)  # a chart's times rise
        at.append(now - last)
        last = now
    data: dict[str, Any] = {
        "at": at,
        "curves": [{"name": name, "label": label, "unit": unit} for name, label, unit in CURVES],
        "limits": {
            name: [(round(since), tops_of(limits)[name]) for since, _, limits in timeline.steps()] for name, _, _ in CURVES
        },
        "zone": list(_zone(timeline)),
    }
    for name, _, _ in CURVES:
        values: Iterable[float | None] = (getattr(p, name) for p in points)
        data[name] = [None if v is None else round(v, 1) for v in values]
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _zone_name(timeline: Timeline) -> str:
    names = {time.localtime(at).tm_zone for at in (timeline.begin, timeline.end)}
    return escape("/".join(sorted(names)))


def _zone(timeline: Timeline) -> Iterator[tuple[int, int]]:
    """(since, seconds east of Greenwich): where the local clock changes."""
    known: int | None = None
    at = timeline.begin
    while at <= timeline.end:
        east = time.localtime(at).tm_gmtoff
        if east != known:
            yield round(at), east
            known = east
        at = (at // 900 + 1) * 900
