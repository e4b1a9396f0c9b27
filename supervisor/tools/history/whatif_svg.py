"""What other limits would have meant, as a picture: a small chart for each sum; lines for a sweep, bars for two results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Final
from xml.sax.saxutils import escape

from states.formatting import number
from supervisor.tools.history.timeline.svg import HATCH, document, style, text
from supervisor.tools.history.whatif import Result

SUMS: Final = (
    ("hours_worked", "Hours worked"),
    ("hours_ready", "Hours ready"),
    ("tasks_done", "Tasks done"),
    ("tasks_preempted", "Tasks preempted"),
    ("person_met", "Times a person was met"),
)
_WIDTH, _LEFT, _TOP = 1000, 24, 92
_CHART_W, _CHART_H, _GAP_X, _GAP_Y = 452, 210, 48, 64
_AXIS: Final = 46  # room for the figures on the left of a chart

_STYLE: Final = """
.end{text-anchor:end}.line{fill:none;stroke:#0072b2;stroke-width:2}.dot{fill:#0072b2}.bar{fill:#0072b2}.back{fill:#d55e00}
.now{stroke:#d55e00;stroke-width:1.5;stroke-dasharray:5 4}.tile{fill:none;stroke:#fff;stroke-width:2}
"""
_DARK: Final = ".line{stroke:#56b4e9}.dot{fill:#56b4e9}.bar{fill:#56b4e9}.now{stroke:#f08030}"


@dataclass(frozen=True, slots=True)
class Swept:
    """What was swept: its name, its value for each result, and the value that was in force."""

    name: str
    values: tuple[float, ...]
    now: float


def picture(results: Mapping[str, Result], swept: Swept | None, title: str, dark: bool = True) -> str:
    """The charts. `dark`: with other colours where the reader's screen is dark."""
    waited = any(r.hours_ready > 0.01 for r in results.values())
    charts = [(name, label) for name, label in SUMS if waited or name != "hours_ready"]
    body = [text(_LEFT, 40, "What other limits would have meant", "tt ink"), text(_LEFT, 62, title, "t soft")]
    for n, (name, label) in enumerate(charts):
        x, y = _LEFT + (n % 2) * (_CHART_W + _GAP_X), _TOP + (n // 2) * (_CHART_H + _GAP_Y)
        values = [float(getattr(r, name)) for r in results.values()]
        top = _round_up(max(values))
        body.append(f'<g transform="translate({x} {y})">{text(0, 0, label, "t ink b")}')
        body += _grid(top)
        body += _bars(list(results), values, top) if swept is None else _curve(swept, values, top)
        body.append("</g>")
    height = _TOP + ceil(len(charts) / 2) * (_CHART_H + _GAP_Y) + 4
    pattern = (
        '<defs><pattern id="after" width="8" height="8" patternUnits="userSpaceOnUse"><rect class="back" width="8" height="8"/>'
        f'<path class="tile" d="{HATCH}"/></pattern></defs>'
    )
    return document(_WIDTH, height, style(_STYLE, _DARK, dark), pattern, body)


def _round_up(value: float) -> float:
    """The end of an axis: four steps that are easy to read."""
    if value <= 0:
        return 4.0
    ten = 10.0 ** floor(log10(value / 4))
    return 4 * next(step * ten for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * ten >= value / 4 - 1e-12)


def _y(value: float, top: float) -> float:
    return _CHART_H - (_CHART_H - 18) * value / top


def _grid(top: float) -> list[str]:
    parts = []
    for n in range(5):
        value = top * n / 4
        y = _y(value, top)
        parts.append(f'<line class="grid" x1="{_AXIS}" x2="{_CHART_W}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(_AXIS - 6, y + 4, number(value), "t soft end"))
    return parts


def _curve(swept: Swept, values: Sequence[float], top: float) -> list[str]:
    first, last = swept.values[0], swept.values[-1]
    span = last - first or 1.0

    def x(value: float) -> float:
        return _AXIS + 8 + (_CHART_W - _AXIS - 16) * (value - first) / span

    points = [(x(at), _y(value, top)) for at, value in zip(swept.values, values, strict=True)]
    parts = [f'<path class="line" d="M{" L".join(f"{a:.1f} {b:.1f}" for a, b in points)}"/>']
    for (a, b), at, value in zip(points, swept.values, values, strict=True):
        title = escape(f"{swept.name}={number(at)}: {number(value)}")
        parts.append(f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="3"><title>{title}</title></circle>')
    every = ceil(len(points) / 10)
    for (a, _), at in list(zip(points, swept.values, strict=True))[::every]:
        parts.append(text(a, _CHART_H + 16, number(at), "t soft mid"))
    parts.append(text((_AXIS + _CHART_W) / 2, _CHART_H + 34, swept.name, "t soft mid"))
    if first <= swept.now <= last:
        a = x(swept.now)
        parts.append(f'<line class="now" x1="{a:.1f}" x2="{a:.1f}" y1="10" y2="{_CHART_H}"/>')
        parts.append(text(a + 5, 14, "as it was", "t soft"))
    return parts


def _bars(names: Sequence[str], values: Sequence[float], top: float) -> list[str]:
    parts = []
    step = (_CHART_W - _AXIS) / len(names)
    for n, (name, value) in enumerate(zip(names, values, strict=True)):
        x, y = _AXIS + step * (n + 0.2), _y(value, top)
        fill = 'class="bar"' if n == 0 else 'fill="url(#after)"'
        parts.append(f'<rect {fill} x="{x:.1f}" y="{y:.1f}" width="{step * 0.6:.1f}" height="{_CHART_H - y:.1f}"/>')
        parts.append(text(x + step * 0.3, y - 5, number(value), "t ink mid"))
        parts.append(text(x + step * 0.3, _CHART_H + 16, name, "t soft mid"))
    return parts
