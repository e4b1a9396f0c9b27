"""A timeline as SVG: a day has four lanes (states, tasks, person, load against its limits), the same on page and picture.

Places across are percents, so that a day fits any width and its patterns are not stretched. The colours are Okabe and
Ito's, which people with colour blindness can tell apart. Every state also has a pattern of its own, and its name where
there is room. The `<title>` of every part says what it means.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from states.limits import Limits
from states.memory import State
from supervisor.tools.history.svg_to_png import FONT
from supervisor.tools.history.timeline.spans import GAP, PersonState, Point, Span, TaskOutcome, TaskSpan, Timeline
from supervisor.tools.history.timeline.words import clock, date, day_text, person_text, span_text, summary_rows, task_text

HEIGHT: Final = 122  # of a day, in pixels
_STATE_Y, _TASK_Y, _PERSON_Y, _LOAD_Y, _HOUR_Y = 8, 40, 54, 70, 116
_STATE_H, _TASK_H, _PERSON_H, _LOAD_H = 28, 9, 9, 32
_BIN_S: Final = 300.0  # the load is drawn by its highest reading in five minutes
_LEAST: Final = 0.09  # percent of the width that everything has at least, about a pixel
_BRIEF_S: Final = 1.0  # a shorter stay is not drawn; the sums and the texts of its neighbours hold it
_TOP: Final = 1.25  # the most that the load's lane shows, as a share of the limit


class Look(NamedTuple):
    """How a state is drawn: colour, the pattern over it in a tile of 8 pixels, and the letter where its name has no room."""

    fill: str
    tile: str
    letter: str


HATCH: Final = "M-2 2 L2 -2 M0 8 L8 0 M6 10 L10 6"
LOOKS: Final = {
    State.DISABLED: Look("#999999", "M0 0 L8 8 M8 0 L0 8", "D"),
    State.IDLE_WAIT: Look("#56b4e9", "M0 4 H8", "I"),
    State.READY: Look("#f0e442", "M2 2 h2 M6 6 h2", "Y"),
    State.RUNNING: Look("#009e73", "M0 0", "R"),
    State.COOLDOWN: Look("#e69f00", HATCH, "C"),
}
CURVES: Final = (("cpu", "CPU", "%"), ("gpu", "GPU", "%"), ("vram", "VRAM", "GiB"))

_PERSON_FILL: Final = {
    PersonState.HERE: 'class="body here"',
    PersonState.LEFT: 'class="body" fill="url(#p-left)"',
    PersonState.UNSEEN: 'class="body" fill="url(#p-unseen)"',
}

_BASE: Final = """
.page{fill:#fff}.ink{fill:#1f2328}.soft{fill:#59636e}.grid{stroke:#d1d9e0}
.t{font-size:12px}.tt{font-size:20px;font-weight:bold}.b{font-weight:bold}.mid{text-anchor:middle}
"""
_BASE_DARK: Final = ".page{fill:#0d1117}.ink{fill:#e6edf3}.soft{fill:#9198a1}.grid{stroke:#3d444d}"
_STYLE: Final = """
.hour{font-size:10px}.name{font-size:11px;font-weight:bold;fill:#000;pointer-events:none}.tile{fill:none;stroke:#000;stroke-opacity:.3;stroke-width:1.3}
.gap-back{fill:#fff}.gap-tile{fill:none;stroke:#818b98;stroke-width:1}.gap{stroke:#818b98;stroke-dasharray:3 3}
.task{fill:#0072b2;stroke:#fff;stroke-width:.8}.task.failed{fill:#1f2328}.back-back{fill:#cc79a7}.back-tile{fill:none;stroke:#fff;stroke-width:2}
.flag{fill:#882255}.cross{fill:none;stroke:#1f2328;stroke-width:2}.mark{fill:#1f2328}
.here{fill:#d55e00}.left-tile{fill:none;stroke:#d55e00;stroke-width:2}.unseen-tile{fill:none;stroke:#818b98;stroke-width:2}
.curve{fill:none;stroke-width:1.4;vector-effect:non-scaling-stroke}
.cpu{stroke:#0072b2}.gpu{stroke:#d55e00;stroke-dasharray:6 2}.vram{stroke:#009e73;stroke-dasharray:2 2}
.limit{fill:none;stroke:#59636e;stroke-dasharray:4 4;stroke-width:1}
.seg:focus{outline:none}.seg:focus-visible .body{stroke:#1f2328;stroke-width:3}
"""
_DARK: Final = """
.gap-back{fill:#0d1117}.task{fill:#56b4e9;stroke:#0d1117}.task.failed{fill:#e6edf3}.flag{fill:#ee99bb}
.cross{stroke:#e6edf3}.mark{fill:#e6edf3}.cpu{stroke:#56b4e9}.gpu{stroke:#f08030}.vram{stroke:#2fd0a0}.limit{stroke:#9198a1}
.seg:focus-visible .body{stroke:#fff}
"""


def style(own: str = _STYLE, own_dark: str = _DARK, dark: bool = True) -> str:
    """The rules of a picture; `dark`: with other colours where the reader's screen is dark."""
    return _BASE + own + (f"@media (prefers-color-scheme:dark){{{_BASE_DARK}{own_dark}}}" if dark else "")


def patterns() -> str:
    """The fills; a document needs them once."""

    def tile(name: str, back: str, kind: str, path: str) -> str:
        return (
            f'<pattern id="p-{name}" width="8" height="8" patternUnits="userSpaceOnUse">{back}'
            f'<path class="{kind}" d="{path}"/></pattern>'
        )

    rect = '<rect {} width="8" height="8"/>'
    states = (tile(state, rect.format(f'fill="{look.fill}"'), "tile", look.tile) for state, look in LOOKS.items())
    others = (
        tile(GAP, rect.format('class="gap-back"'), "gap-tile", HATCH),
        tile("back", rect.format('class="back-back"'), "back-tile", HATCH),
        tile("left", "", "left-tile", HATCH),
        tile("unseen", "", "unseen-tile", LOOKS[State.READY].tile),
    )
    return f"<defs>{''.join((*states, *others))}</defs>"


class _Scale:
    """Places across a day, in percent."""

    def __init__(self, begin: float, longest_s: float) -> None:
        self.begin = begin
        self.longest_s = longest_s

    def x(self, at: float) -> str:
        return f"{100 * (at - self.begin) / self.longest_s:.3f}%"

    def bar(self, begin: float, end: float, y: int, height: int, kind: str) -> str:
        """A rectangle with the attributes `kind`."""
        width = max(100 * (end - begin) / self.longest_s, _LEAST)
        return f'<rect {kind} x="{self.x(begin)}" y="{y}" width="{width:.3f}%" height="{height}"/>'


def day(part: Timeline, begin: float, end: float, longest_s: float, place: str, width: float = 1000.0) -> str:
    """A local day in its lanes, as an `<svg>` with the attributes `place`; `width` in pixels, as far as it is known."""
    scale = _Scale(begin, longest_s)
    drawn = (s for s in part.spans if s.end - s.begin >= _BRIEF_S)
    spans = sorted(drawn, key=lambda s: s.end - s.begin < longest_s * _LEAST / 100)  # short stays lie on top
    person = (p for p in part.person if p.state is not PersonState.AWAY)
    marks = ((m, f'<svg x="{scale.x(m.at)}" y="0" overflow="visible"><circle class="mark body" cx="0" cy="4" r="3"/></svg>')
             for m in part.marks)  # fmt: skip
    lanes = {
        "states": [(span_text(s, part.tasks), _state(s, scale)) for s in spans],
        "tasks": [(task_text(t), _task(t, scale, end)) for t in part.tasks],
        "person": [
            (person_text(p), scale.bar(p.begin, p.end, _PERSON_Y, _PERSON_H, _PERSON_FILL[p.state])) for p in person
        ],
        "events": [(f"{clock(mark.at)} {mark.text}", body) for mark, body in marks],
    }
    out = [f'<svg {place} role="group" aria-label="{_attribute(date(begin))}">', *_hours(begin, end, scale)]
    for name, parts in lanes.items():
        out.append(f'<g class="lane" role="group" aria-label="{name}">')
        out += [f'<g class="seg"><title>{escape(title)}</title>{body}</g>' for title, body in parts]
        out.append("</g>")
    return "".join((*out, _load(part, begin, longest_s, width), "</svg>"))


def _state(span: Span, scale: _Scale) -> str:
    """A stay with its name where there is room, else with its letter."""
    share = (span.end - span.begin) / scale.longest_s
    kind = span.state if span.state in LOOKS else GAP  # a state of another version has no colour
    body = scale.bar(span.begin, span.end, _STATE_Y, _STATE_H, f'class="body {kind.lower()}" fill="url(#p-{kind})"')
    if share <= 0.009 or (share <= 0.075 and span.state == GAP):
        return body
    text, at = "no record" if span.state == GAP else span.state, span.begin + 0.004 * scale.longest_s
    shown = "name" if share > 0.24 else "name narrow"
    if share <= 0.075:
        letter = next((look.letter for state, look in LOOKS.items() if state == span.state), "?")
        text, shown, at = letter, "name narrow mid", (span.begin + span.end) / 2
    ink = " ink" if span.state == GAP else ""
    return f'{body}<text class="{shown}{ink}" x="{scale.x(at)}" y="{_STATE_Y + 18}">{escape(text)}</text>'


def _task(task: TaskSpan, scale: _Scale, end: float) -> str:
    """A task, with a sign at its end if it did not end well."""
    handed_back = task.outcome is TaskOutcome.HANDED_BACK
    kind = 'class="body" fill="url(#p-back)"' if handed_back else f'class="body task {task.outcome}"'
    body = scale.bar(task.begin, task.end, _TASK_Y, _TASK_H, kind)
    if task.ended_badly and task.end < end:
        flag = '<path class="flag" d="M-4.5 -4 H4.5 L0 4 z"/>'
        if task.outcome is TaskOutcome.FAILED:
            flag = '<path class="cross" d="M-3 -4 L3 2 M3 -4 L-3 2"/>'
        body += f'<svg x="{scale.x(task.end)}" y="{_TASK_Y}" overflow="visible">{flag}</svg>'
    return body


def _hours(begin: float, end: float, scale: _Scale) -> Iterable[str]:
    """Lines and figures, every three hours of the local clock."""
    x = scale.x
    yield f'<line class="grid" x1="{x(begin)}" x2="{x(end)}" y1="{_LOAD_Y + _LOAD_H}" y2="{_LOAD_Y + _LOAD_H}"/>'
    at, last = begin, -1
    while at <= end + 1:
        hour = time.localtime(at).tm_hour if at < end else 24
        if hour % 3 == 0 and hour != last:
            kind = "hour soft" + (" mid" if at > begin else "") + (" narrow" if hour % 6 else "")
            yield f'<line class="grid" x1="{x(at)}" x2="{x(at)}" y1="{_STATE_Y}" y2="{_LOAD_Y + _LOAD_H}"/>'
            if hour < 24:
                yield f'<text class="{kind}" x="{x(at)}" y="{_HOUR_Y}">{hour:02}:00</text>'
        last = hour
        at += 3600


def _load(part: Timeline, begin: float, longest_s: float, width: float) -> str:
    """CPU, GPU and VRAM of others, each as a share of its limit."""

    def y(share: float) -> str:
        return f"{_LOAD_H * (1 - min(max(share, 0), _TOP) / _TOP):.1f}"

    scale = width / longest_s
    tops = [(since, tops_of(limits)) for since, _, limits in part.steps()]
    lines = [f'<path class="limit curve" d="M0 {y(1)} H{(part.end - begin) * scale:.1f}"/>']
    for name, label, _ in CURVES:
        path, last_bin = "", -2
        for n, value in _bins(part.points, name, begin):
            at = begin + n * _BIN_S
            limit = next((top[name] for since, top in reversed(tops) if since <= at), tops[0][1][name])
            path += f"{'L' if n == last_bin + 1 else 'M'}{(n + 0.5) * _BIN_S * scale:.1f} {y(value / limit)}"
            last_bin = n
        if path:
            title = f"{label} of others, as a share of its limit"
            lines.append(f'<path class="curve {name}" d="{path}"><title>{title}</title></path>')
    return (
        f'<svg class="load" x="0" y="{_LOAD_Y}" width="100%" height="{_LOAD_H}" viewBox="0 0 {width:.0f} {_LOAD_H}" '
        f'preserveAspectRatio="none" aria-hidden="true">{"".join(lines)}</svg>'
    )


def tops_of(limits: Limits) -> dict[str, float]:
    """Each curve's limit."""
    return {"cpu": limits.max_cpu_percent, "gpu": limits.max_gpu_percent, "vram": limits.max_vram_gb}


def _bins(points: Iterable[Point], name: str, begin: float) -> list[tuple[int, float]]:
    highest: dict[int, float] = {}
    for point in points:
        value = getattr(point, name)
        if value is not None:
            n = int((point.at - begin) // _BIN_S)
            highest[n] = max(value, highest.get(n, 0.0))
    return sorted(highest.items())


def swatch(place: str, kind: str) -> str:
    """A sample for a legend; `kind` is a state, GAP, a curve, or one of task, back, failed, here, left, unseen, mark."""
    if kind in LOOKS or kind == GAP:
        body = f'<rect class="{kind.lower()}" width="28" height="14" fill="url(#p-{kind})"/>'
    elif kind in ("back", "left", "unseen"):
        body = f'<rect width="28" height="9" y="3" fill="url(#p-{kind})"/>'
    elif kind in ("cpu", "gpu", "vram", "limit"):
        body = f'<path class="curve {kind}" d="M0 7 H28"/>'
    elif kind == "failed":
        body = '<path class="cross" d="M11 4 L17 10 M17 4 L11 10"/>'
    elif kind == "mark":
        body = '<circle class="mark" cx="14" cy="7" r="3"/>'
    else:
        body = f'<rect class="{kind}" width="28" height="9" y="3"/>'
    return f'<svg {place} width="28" height="14" aria-hidden="true">{body}</svg>'


LEGEND: Final = (
    *((str(state), f"{state} ({look.letter})") for state, look in LOOKS.items()),
    (GAP, "no record"),
    ("task", "task"),
    ("back", "task handed back (▼)"),
    ("failed", "task failed"),
    ("here", "person here"),
    ("left", "just left"),
    ("unseen", "person unknown"),
    ("cpu", "CPU"),
    ("gpu", "GPU"),
    ("vram", "VRAM"),
    ("limit", "limit"),
    ("mark", "event"),
)


def picture(timeline: Timeline, dark: bool = True) -> str:
    """The whole timeline as one SVG; for `dark` see `style`."""
    left, wide, right = 184, 1100, 36
    width = left + wide + right
    days = timeline.days()
    longest_s = max(b - a for a, b in days)
    dates = f"{date(timeline.begin)} to {date(timeline.end - 1)}"
    body = [text(24, 40, "rae-node timeline", "tt ink"), text(24, 62, dates, "t soft")]
    y = 92
    for name, value in summary_rows(timeline):
        body += [text(24, y, name, "t soft"), text(210, y, value, "t ink")]
        y += 19
    y, x = y + 12, 24.0
    for kind, label in LEGEND:
        step = 44 + 7.4 * len(label) + 10
        if x + step > width - right:
            x, y = 24.0, y + 22
        body += [swatch(f'x="{x:.0f}" y="{y - 11}"', kind), text(x + 34, y, label, "t ink")]
        x += step
    y += 26
    for begin, end in days:
        part = timeline.between(begin, end)
        body.append(text(24, y + _STATE_Y + 12, date(begin), "t ink b"))
        for n, sum_ in enumerate(day_text(part).split(", ")[:5]):
            body.append(text(24, y + _STATE_Y + 30 + 15 * n, sum_, "t soft"))
        body.append(day(part, begin, end, longest_s, f'x="{left}" y="{y}" width="{wide}" height="{HEIGHT}"', wide))
        y += HEIGHT + 8
    return document(width, y + 16, style(dark=dark), patterns(), body)


def document(width: int, height: int, rules: str, definitions: str, body: Iterable[str]) -> str:
    """A whole SVG file on a `page` of its size."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="{FONT}"><style>{rules}</style>{definitions}'
        f'<rect class="page" width="{width}" height="{height}"/>{"".join(body)}</svg>\n'
    )


def text(x: float, y: float, content: str, kind: str) -> str:
    """A text of the classes `kind`."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(content)}</text>'


def _attribute(content: str) -> str:
    return escape(content, {'"': "&quot;"})
