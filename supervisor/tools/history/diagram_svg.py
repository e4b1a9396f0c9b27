"""The diagram as SVG and PNG: the states with their arrows, and below them the whole table.

The order of the states is fixed: DISABLED above all, a task's way from left to right, the rest back below. All distances
follow from the labels, so that no text covers another. `small` leaves the tables out: 830 pixels wide, for a README.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Final
from xml.sax.saxutils import escape

from states.effects import LEAVE
from states.guards import SAFE
from states.memory import State
from states.table import ROWS, Row
from supervisor.tools.history import diagram
from supervisor.tools.history.diagram import BARE, MADE_FROM, MEANING, Overlay
from supervisor.tools.history.svg_to_png import FONT, PictureError, rasterise

MARGIN: Final = 20
TABLE: Final = 1100  # pixels that the tables need
TOP: Final = 66  # height of the heading; the small picture has none
LABEL: Final = 17  # from one line of a label to the next
CELL: Final = 16  # from one line of a cell to the next
ONE_ROW: Final = "A tick fires at most one row: the first in the table's order whose conditions all hold."

STYLE: Final = """
  .page { fill: #ffffff }
  text { fill: #1f2328; font-size: 13px }
  .title { font-size: 20px; font-weight: bold }
  .head { font-size: 14px; font-weight: bold }
  .state { font-size: 15px; font-weight: bold; text-anchor: middle }
  .note { fill: #59636e; font-size: 12px }
  .cell { font-size: 12px }
  .id { font-size: 12px; font-weight: bold }
  .label { paint-order: stroke; stroke: #ffffff; stroke-width: 5px; stroke-linejoin: round }
  .mid { text-anchor: middle }
  .edge { fill: none; stroke: #59636e; stroke-width: 1.6 }
  .tip { fill: #59636e }
  .rule { stroke: #d1d9e0; stroke-width: 1 }
  .box { stroke-width: 2 }
  .DISABLED { fill: #f6f8fa; stroke: #818b98 }
  .IDLE_WAIT { fill: #fbf3ff; stroke: #8250df }
  .READY { fill: #ddf4ff; stroke: #0969da }
  .RUNNING { fill: #dafbe1; stroke: #1a7f37 }
  .COOLDOWN { fill: #fff8c5; stroke: #9a6700 }
"""
OVERLAID: Final = """
  .now { stroke-width: 5 }
  .never { opacity: 0.45 }
  .stay { font-style: italic; font-size: 12px }
"""
DARK: Final = """
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 }
    text { fill: #e6edf3 }
    .note { fill: #9198a1 }
    .label { stroke: #0d1117 }
    .edge { stroke: #9198a1 }
    .tip { fill: #9198a1 }
    .rule { stroke: #3d444d }
    .DISABLED { fill: #151b23; stroke: #9198a1 }
    .IDLE_WAIT { fill: #211a33; stroke: #ab7df8 }
    .READY { fill: #0c2138; stroke: #4493f8 }
    .RUNNING { fill: #0d2818; stroke: #3fb950 }
    .COOLDOWN { fill: #2b2206; stroke: #d29922 }
  }
"""

Pair = tuple[State, State]


@dataclass(frozen=True, slots=True)
class Box:
    """A state's place, in pixels."""

    x: int
    y: int
    width: int
    height: int = 60

    @property
    def middle(self) -> int:
        return self.x + self.width // 2

    @property
    def half(self) -> int:
        return self.y + self.height // 2

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height


@dataclass(frozen=True, slots=True)
class Way:
    """How an arrow runs: its path, and x and y of its first label."""

    path: str
    x: int
    y: int
    anchor: str = ""


def _long(text: str, size: float = 13) -> int:
    """The pixels that a text may need; letters are narrower in most fonts."""
    return round(len(text) * size * 0.62)


def _layout(labels: Mapping[Pair, list[str]], top: int) -> tuple[Mapping[State, Box], Mapping[Pair, Way], int, int]:
    """The places of boxes and arrows, from the lines at each arrow; the width and height of the picture."""
    off, on, idle, ready, running, cool = State.DISABLED, (State.DISABLED, State.IDLE_WAIT), *tuple(State)[1:]

    def space(*pairs: Pair) -> int:
        return max(48, *(_long(line) for pair in pairs for line in labels.get(pair, []))) + 24

    def stack(pair: Pair) -> int:
        return len(labels.get(pair, [])) * LABEL

    first = max(112, space(on) + 16)  # wide enough for the label between its two arrows
    widths = {idle: first, ready: 112, running: 112, cool: 112}
    gaps = {ready: space((idle, ready), (ready, idle)), running: space((ready, running)), cool: space((running, cool))}
    under = top + 44 + 22  # the first label below DISABLED
    half = under + max(stack((state, off)) for state in widths) + stack((running, cool)) + 8
    boxes, x = {}, MARGIN
    for state, width in widths.items():
        x += gaps.get(state, 0)
        boxes[state] = Box(x, half - 30, width)
        x += width
    i, r, n, c = boxes.values()
    boxes[off] = Box(MARGIN, top, c.right - MARGIN, 44)
    back = n.bottom + 46 + stack((running, running)) + 24

    def up(box: Box, x: int) -> Way:
        return Way(f"M{x} {box.y} V{top + 44}", x + 7, under)

    def across(a: Box, b: Box, y: int, lift: int) -> Way:
        return Way(f"M{a.right} {y} H{b.x}", (a.right + b.x) // 2, y - 8 + LABEL - lift, "mid")

    bow = f"V{back - 14} q0 14 -14 14 H{i.middle + 14} q-14 0 -14 -14 V{i.bottom}"
    ways = {
        on: Way(f"M{i.x + 12} {top + 44} V{i.y}", i.x + 19, under),
        (idle, off): up(i, i.right - 12),
        (ready, off): up(r, r.middle),
        (running, off): up(n, n.middle),
        (cool, off): up(c, c.x + 12),
        (idle, ready): across(i, r, half - 12, stack((idle, ready))),
        (ready, idle): Way(f"M{r.x} {half + 12} H{i.right}", (i.right + r.x) // 2, half + 30, "mid"),
        (ready, running): across(r, n, half, stack((ready, running))),
        (running, cool): across(n, c, half, stack((running, cool))),
        (running, running): Way(f"M{n.middle - 30} {n.bottom} c-5 50 65 50 60 0", n.middle, n.bottom + 54, "mid"),
        (cool, idle): Way(f"M{c.middle} {c.bottom} {bow}", r.middle, back - 8 + LABEL - stack((cool, idle)), "mid"),
    }
    right = max(ways[cool, off].x + space((cool, off)) - 24, c.right) + MARGIN
    return boxes, ways, right, back + 16


def svg(dark: bool = True, overlay: Overlay = BARE, small: bool = False) -> str:
    """The picture. `dark`: with colours of its own where the reader's screen is dark. `small`: without the tables.

    Raises:
        PictureError: the table has an arrow that has no place here.
    """
    pairs = diagram.arrows()
    labels = {pair: overlay.labels(pair, rows) for pair, rows in pairs.items()}
    boxes, ways, width, height = _layout(labels, 40 if small else TOP + 40)
    if ways.keys() != pairs.keys():
        missing = ", ".join(sorted(f"{a} → {b}" for a, b in pairs.keys() ^ ways.keys()))
        raise PictureError(f"supervisor/tools/history/diagram_svg.py has no place for {missing}; add it to _layout()")
    width, top = width if small else max(TABLE, width), boxes[State.DISABLED].y
    body = [
        f'<circle class="tip" cx="{MARGIN + 20}" cy="{top - 24}" r="7"/>',
        f'<path class="edge" marker-end="url(#tip)" d="M{MARGIN + 20} {top - 17} V{top}"/>',
        *(_arrow(pair, rows, ways[pair], overlay) for pair, rows in pairs.items()),
        *(_state(state, box, overlay) for state, box in boxes.items()),
    ]
    if small and overlay.counts is not None:
        body.append(_text(MARGIN + 46, top - 18, overlay.span(), "note"))
    if not small:
        body += [_text(MARGIN, 36, "The life of the node", "title"), _text(MARGIN, 58, overlay.span() or ONE_ROW, "note")]
        height = _tables(body, height + 30, width)
    style = f"{STYLE}{DARK if dark else ''}{OVERLAID if overlay != BARE else ''}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="{FONT}" role="img" aria-label="The states of the node and what leads from one to another">',
            f"<!-- {MADE_FROM} -->",
            f"<style>{style}</style>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="10" refY="5" markerWidth="8" markerHeight="8" '
            'orient="auto"><path class="tip" d="M0 0 L10 5 L0 10 z"/></marker></defs>',
            f'<rect class="page" width="{width}" height="{height}"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _arrow(pair: Pair, rows: list[Row], way: Way, overlay: Overlay) -> str:
    kinds = ["never" if overlay.never(pair[0], row) else "" for row in rows] + ["stay"]
    labels = "".join(
        _text(way.x, way.y + line * LABEL, text, " ".join(filter(None, ("label", way.anchor, kind))))
        for line, (text, kind) in enumerate(zip(overlay.labels(pair, rows), kinds, strict=False))
    )
    title = escape(f"{pair[0]} → {pair[1]}\n{diagram.tooltip(rows)}")
    return f'<g><title>{title}</title><path class="edge" marker-end="url(#tip)" d="{way.path}"/>{labels}</g>'


def _state(state: State, box: Box, overlay: Overlay) -> str:
    time, now = overlay.time(state), state is overlay.now
    return (
        f'<rect class="box {state}{" now" * now}" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="12"/>'
        + _text(box.middle, box.half + (0 if time else 6), state, "state")
        + (_text(box.middle, box.half + 17, time, "note mid") if time else "")
        + (_text(box.x + 8, box.y + 14, "now", "note") if now else "")
    )


def _tables(body: list[str], y: int, width: int) -> int:
    """Rows, guards, and the effects on leaving RUNNING; returns the height of the whole."""
    rows = []
    for row in ROWS:
        source = f"any but {row.to}" if len(row.sources) > 1 else row.sources[0]
        rows.append([row.id, f"{source} → {row.to}", diagram.condition_text(row), diagram.effects_text(row), row.why])
    y = _table(body, MARGIN, y, ["Row", "From → to", "When", "Effects", "Why"], [14, 20, 42, 27, 36], rows) + 30
    body.append(f'<path class="rule" d="M{MARGIN} {y - 22} H{width - MARGIN}"/>')
    meanings = [[guard.name, MEANING[guard.name]] for guard in diagram.guards()]
    meanings.append(["SAFE", " ∧ ".join(guard.name for guard in SAFE)])
    phases = [[str(phase), ", ".join(effects)] for phase, effects in LEAVE.items()]
    _table(body, 700, y, ["Phase", "Effects on leaving RUNNING"], [10, 32], phases)
    y = _table(body, MARGIN, y, ["Guard", "What it claims; unknown never passes"], [15, 62], meanings)
    body.append(_text(MARGIN, y + 10, MADE_FROM, "note"))
    return y + 26


def _table(body: list[str], x: int, y: int, heads: list[str], widths: list[int], rows: list[list[str]]) -> int:
    """A table whose cells are wrapped to `widths`, in characters; returns the y below it."""
    pixels = [round(wide * (8.4 if wide <= 20 else 7)) + 14 for wide in widths]  # bold or capital letters in narrow columns
    lefts = [x + sum(pixels[:column]) for column in range(len(widths))]
    body += [_text(left, y, head, "head") for left, head in zip(lefts, heads, strict=True)]
    y += 22
    for cells in rows:
        lines = [wrap(cell, wide, break_on_hyphens=False) for cell, wide in zip(cells, widths, strict=True)]
        for column, (left, cell) in enumerate(zip(lefts, lines, strict=True)):
            kind = "cell" if column else "id"
            body += [_text(left, y + n * CELL, line, kind) for n, line in enumerate(cell)]
        y += max(map(len, lines)) * CELL + 5
    return y


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


def render(form: str, overlay: Overlay = BARE, small: bool = False) -> str | bytes:
    """The diagram in a form of `rae-node diagram --format`: text, or the bytes of a PNG in light colours, two pixels to one.

    Raises:
        PictureError: it has no place for an arrow, or a PNG is wanted and no font is installed.
    """
    if form == "mermaid":
        return diagram.mermaid(overlay)
    if form == "dot":
        return diagram.dot(overlay)
    return svg(True, overlay, small) if form == "svg" else rasterise(svg(False, overlay, small), 2.0)
