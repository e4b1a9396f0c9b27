"""The diagram of the machine, made from the very table that runs (R22): Mermaid, Graphviz, SVG and PNG.

One arrow for each pair of states, labelled with its rows in the order in which they are tried. The SVG's places are
fixed, for there are five states (R8): DISABLED above all, the way of a task from left to right, the rest back below.
Texts, conditions and effects all come from the table; only the places, and what a guard means in a few words, are here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal
from xml.sax.saxutils import escape

from states.effects import LEAVE
from states.guards import SAFE, Guard
from states.memory import State
from states.table import ROWS, Condition, Row
from states.words import elapsed

if TYPE_CHECKING:
    from supervisor.tools.history.row_counts import Traffic
from supervisor.tools.history.svg_to_png import FONT, PictureError, rasterise

Format = Literal["mermaid", "dot", "svg", "png"]
FORMATS: Final[tuple[Format, ...]] = ("mermaid", "dot", "svg", "png")
# What is kept in diagrams/ for review; a test compares it with the table.
EXPORTED: Final[Mapping[str, Format]] = {"lifecycle.mmd": "mermaid", "lifecycle.dot": "dot", "lifecycle.svg": "svg"}

MADE_FROM: Final = "made from states/table.py by `rae-node diagram`; not to be edited"
ONE_ROW: Final = "A tick fires at most one row: the first in the table's order whose conditions all hold."
BY_PHASE: Final = "by the task's phase"

# Each guard claims something safe; the legend says what, in a few words.
MEANING: Final[Mapping[str, str]] = {
    "automation_on": "runtime.yaml, no pause, a sound configuration, a link not given up",
    "user_away": "no sign of the person for idle_required_minutes",
    "gpu_free": "GPU and VRAM of others within their limits, no foreign process",
    "cpu_free": "CPU of others within max_cpu_percent",
    "host_fit": "power, memory and temperature allow work, no sleep announced",
    "host_staying": "no sleep or shutdown announced",
    "task_claimed": "a task was handed over and waits to be started",
    "task_in_time": "the task has run for less than its limit, since its start",
    "task_over": "nothing is asked for, claimed or running",
    "task_here": "a task was handed over: over means ended or failed",
    "stay_young": "this stay in RUNNING is younger than work.run_minutes",
    "may_hold": "the task's type has a hold (hold_sec), not used up, and the task holds nothing on the GPU",
    "on_hold": "the task is frozen because of a sign that may be a false alarm",
    "hold_over": "no task is on hold, or it has been for its whole hold_sec",
    "task_gone": "no process of a task is alive",
    "cooldown_over": "cooldown_minutes have passed since RUNNING was left",
}


class DiagramError(Exception):
    """The diagram cannot be drawn; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What is laid over the bare table: the state that the node is in, and what journals counted on each arrow."""

    now: State | None = None
    traffic: Traffic | None = None

    def row(self, source: State, row: Row) -> str:
        """A row's label: its name, and how often it fired."""
        return row.id if self.traffic is None else f"{row.id} ×{self.traffic.counts[source, row.id]}"

    def never(self, source: State, row: Row) -> bool:
        """The journals show no such step."""
        return self.traffic is not None and not self.traffic.counts[source, row.id]

    def stay(self, pair: tuple[State, State]) -> str:
        """How long the node had been in the first state when it left by this arrow."""
        typical_s = None if self.traffic is None else self.traffic.typical_s(pair)
        return "" if typical_s is None else f"after {elapsed(typical_s)}"

    def time(self, state: State) -> str:
        """How long the node was in a state, all in all."""
        if self.traffic is None:
            return ""
        return f"{elapsed(self.traffic.seconds[state])}, {100 * self.traffic.share(state):.0f} %"

    def span(self) -> str:
        """Which time the counts are of."""
        if self.traffic is None:
            return ""
        first, last = (stamp.replace("T", " ") for stamp in (self.traffic.first, self.traffic.last))
        return f"{first} to {last}: how often each row fired, and the median stay before"

    def labels(self, pair: tuple[State, State], rows: list[Row]) -> list[str]:
        """All that stands at an arrow."""
        stay = self.stay(pair)
        return [*(self.row(pair[0], row) for row in rows), *([stay] if stay else [])]


BARE: Final = Layer()


def render(form: Format, layer: Layer = BARE) -> str | bytes:
    """The diagram as text, or as the bytes of a PNG.

    Raises:
        DiagramError: a PNG, and no font is installed: its texts would silently be missing.
    """
    if form == "mermaid":
        return mermaid(layer)
    if form == "dot":
        return dot(layer)
    return svg(layer=layer) if form == "svg" else png(layer=layer)


# --- what every form draws


def arrows() -> dict[tuple[State, State], list[Row]]:
    """(from, to) → the rows that lead there, in the table's order."""
    pairs: dict[tuple[State, State], list[Row]] = {}
    for row in ROWS:
        for source in row.sources:
            pairs.setdefault((source, row.to), []).append(row)
    return pairs


def condition_words(row: Row) -> str:
    """When a row fires, by the guards' names: `task_over ∧ stay_young ∧ SAFE`."""
    return " ∧ ".join(_condition(c) for c in row.when)


def _condition(condition: Condition) -> str:
    names = _names(condition.guards)
    if condition.wanted:
        return " ∧ ".join(names)
    return f"not {names[0]}" if len(names) == 1 else f"not ({' ∧ '.join(names)})"


def _names(guards: tuple[Guard, ...]) -> list[str]:
    """Names, with the four that belong together as SAFE."""
    names = [guard.name for guard in guards if guard not in SAFE or not set(SAFE) <= set(guards)]
    return names if len(names) == len(guards) else [*names, "SAFE"]


def effect_words(row: Row) -> str:
    """What a row brings with it."""
    return BY_PHASE if row.effects is None else ", ".join(row.effects) or "none"


def _tip(rows: Iterable[Row]) -> str:
    return "\n".join(f"{row.id}: {row.why}" for row in rows)


# --- text forms


def mermaid(layer: Layer = BARE) -> str:
    """A Mermaid state diagram."""
    lines = [f"%% {MADE_FROM}", "stateDiagram-v2", "    direction LR"]
    if layer.traffic is not None:
        lines.insert(1, f"%% {layer.span()}")
        lines += [f'    state "{state}<br/>{layer.time(state)}" as {state}' for state in State]
    lines.append("    [*] --> DISABLED")
    lines += [f"    {a} --> {b}: {'<br/>'.join(layer.labels((a, b), rows))}" for (a, b), rows in arrows().items()]
    if layer.now is not None:
        lines += ["    classDef now stroke-width:4px,font-weight:bold", f"    class {layer.now} now"]
    return "\n".join(lines) + "\n"


def dot(layer: Layer = BARE) -> str:
    """A Graphviz digraph."""
    lines = [
        f"// {MADE_FROM}",
        "digraph lifecycle {",
        "    rankdir=LR;",
        '    node [shape=box, style=rounded, fontname="DejaVu Sans"];',
        '    edge [fontname="DejaVu Sans", fontsize=10];',
        "    start [shape=point];",
        *(f"    {state}{_dot_state(state, layer)};" for state in State),
        f"    start -> {State.DISABLED};",
    ]
    for (a, b), rows in arrows().items():
        label = r"\n".join(layer.labels((a, b), rows))
        lines.append(f"    {a} -> {b} [label={_quoted(label)}, tooltip={_quoted(_tip(rows))}];")
    return "\n".join([*lines, "}"]) + "\n"


def _dot_state(state: State, layer: Layer) -> str:
    label = _quoted(rf"{state}\n{layer.time(state)}")
    marks = [f"label={label}"] if layer.traffic is not None else []
    if state is layer.now:
        marks.append('penwidth=4, style="rounded,bold"')
    return f" [{', '.join(marks)}]" if marks else ""


def _quoted(text: str) -> str:
    return '"' + text.replace('"', r"\"").replace("\n", r"\n") + '"'


# --- SVG

WIDTH: Final = 1320
LEFT: Final = 70
SIDE: Final = 60  # more room at both sides for counts of five digits
RIGHT: Final = 1250

STYLE: Final = """
  .page { fill: #ffffff }
  text { fill: #1f2328; font-size: 13px }
  .title { font-size: 20px; font-weight: bold }
  .head { font-size: 14px; font-weight: bold }
  .state { font-size: 16px; font-weight: bold; text-anchor: middle }
  .note { fill: #59636e; font-size: 12px }
  .cell { font-size: 12px }
  .id { font-size: 12px; font-weight: bold }
  .label { paint-order: stroke; stroke: #ffffff; stroke-width: 5px; stroke-linejoin: round }
  .mid { text-anchor: middle }
  .end { text-anchor: end }
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
LAYERED: Final = """
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


@dataclass(frozen=True, slots=True)
class Box:
    """A state's place, in pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def middle(self) -> int:
        """The x of its centre."""
        return self.x + self.width // 2

    @property
    def right(self) -> int:
        """The x of its right side."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The y of its lower side."""
        return self.y + self.height


BOXES: Final[Mapping[State, Box]] = {
    State.DISABLED: Box(LEFT, 88, RIGHT - LEFT, 50),
    State.IDLE_WAIT: Box(LEFT, 330, 150, 64),
    State.READY: Box(370, 330, 150, 64),
    State.RUNNING: Box(690, 330, 150, 64),
    State.COOLDOWN: Box(RIGHT - 150, 330, 150, 64),
}
_LINE: Final = 17  # pixels from label to label
_BACK_Y: Final = 508  # the way back from COOLDOWN runs below everything


@dataclass(frozen=True, slots=True)
class Way:
    """How one arrow runs: its path, and where its labels begin (x, y of the first), with their class."""

    path: str
    x: int
    y: int
    anchor: str = "mid"
    lift: int = 0  # 1 where the labels end just above the arrow


def _ways() -> dict[tuple[State, State], Way]:
    """The arrows' places, for every pair that the table has; the labels of a stack end just above their arrow."""
    disabled, idle, ready, running, cool = (BOXES[state] for state in State)
    count = {pair: len(rows) for pair, rows in arrows().items()}
    half = idle.y + idle.height // 2
    above = (disabled.bottom + idle.y) // 2 + 4
    on_x, off_x = idle.x + 45, idle.x + 105

    def up(box: Box, x: int = 0) -> Way:
        x = x or box.middle
        return Way(f"M{x} {box.y} V{disabled.bottom}", x + 8, above, "")

    stack = (count[State.RUNNING, State.COOLDOWN] - 1) * _LINE
    return {
        (State.DISABLED, State.IDLE_WAIT): Way(f"M{on_x} {disabled.bottom} V{idle.y}", on_x - 8, above, "end"),
        (State.IDLE_WAIT, State.DISABLED): up(idle, off_x),
        (State.READY, State.DISABLED): up(ready),
        (State.RUNNING, State.DISABLED): up(running),
        (State.COOLDOWN, State.DISABLED): up(cool),
        (State.IDLE_WAIT, State.READY): Way(
            f"M{idle.right} {half - 14} H{ready.x}", (idle.right + ready.x) // 2, half - 22, lift=1
        ),
        (State.READY, State.IDLE_WAIT): Way(f"M{ready.x} {half + 14} H{idle.right}", (idle.right + ready.x) // 2, half + 32),
        (State.READY, State.RUNNING): Way(
            f"M{ready.right} {half} H{running.x}", (ready.right + running.x) // 2, half - 8, lift=1
        ),
        (State.RUNNING, State.COOLDOWN): Way(
            f"M{running.right} {half} H{cool.x}", (running.right + cool.x) // 2, half - 8 - stack, lift=1
        ),
        (State.RUNNING, State.RUNNING): Way(
            f"M{running.middle - 34} {running.bottom} c-6 56 74 56 68 0", running.middle, running.bottom + 62
        ),
        (State.COOLDOWN, State.IDLE_WAIT): Way(
            f"M{cool.middle} {cool.bottom} V{_BACK_Y - 14} q0 14 -14 14 H{idle.middle + 14} q-14 0 -14 -14 V{idle.bottom}",
            (idle.middle + ready.middle) // 2 + 60,
            _BACK_Y - 8,
            lift=1,
        ),
    }


def svg(dark: bool = True, layer: Layer = BARE) -> str:
    """The diagram with its legend. `dark`: with colours of its own where the reader's screen is dark."""
    ways, pairs = _ways(), arrows()
    if ways.keys() != pairs.keys():
        missing = sorted(f"{a} → {b}" for a, b in pairs.keys() ^ ways.keys())
        raise DiagramError(f"supervisor/tools/history/diagram.py has no place for {', '.join(missing)}; add it to _ways()")
    body: list[str] = [
        _text(LEFT, 42, "The life of the node", "title"),
        _text(LEFT, 64, layer.span() or ONE_ROW, "note"),
        f'<circle class="tip" cx="34" cy="{BOXES[State.DISABLED].y + 25}" r="7"/>',
        f'<path class="edge" marker-end="url(#tip)" d="M41 {BOXES[State.DISABLED].y + 25} H{LEFT}"/>',
    ]
    for pair, rows in pairs.items():
        way = ways[pair]
        kinds = [f"label {way.anchor}{' never' * layer.never(pair[0], row)}".strip() for row in rows] + [
            f"label stay {way.anchor}".strip()
        ]
        lift = way.lift * _LINE if layer.stay(pair) else 0  # a stack that ends above its arrow grows upwards
        labels = "".join(
            _text(way.x, way.y - lift + n * _LINE, text, kind)
            for n, (text, kind) in enumerate(zip(layer.labels(pair, rows), kinds, strict=False))
        )
        title = f"<title>{escape(f'{pair[0]} → {pair[1]}')}\n{escape(_tip(rows))}</title>"
        body.append(f'<g>{title}<path class="edge" marker-end="url(#tip)" d="{way.path}"/>{labels}</g>')
    for state, box in BOXES.items():
        time = layer.time(state)
        here = " now" if state is layer.now else ""
        body.append(
            f'<rect class="box {state}{here}" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="12"/>'
            + _text(box.middle, box.y + box.height // 2 + (-3 if time else 6), state, "state")
            + (_text(box.middle, box.y + box.height // 2 + 16, time, "note mid") if time else "")
            + (_text(box.x + 10, box.y - 7, "now", "head") if here else "")
        )
    height = _legend(body, 556)
    side = SIDE if layer.traffic is not None else 0
    left, width = -side, WIDTH + 2 * side
    x = f' x="{left}"' if side else ""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="{FONT}" role="img" aria-label="The states of the node and what leads from one to another">',
            f"<!-- {MADE_FROM} -->",
            f"<style>{STYLE}{DARK if dark else ''}{LAYERED if layer != BARE else ''}</style>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="10" refY="5" markerWidth="8" markerHeight="8" '
            'orient="auto"><path class="tip" d="M0 0 L10 5 L0 10 z"/></marker></defs>',
            f'<rect class="page"{x} width="{width}" height="{height}"/>',
            *body,
            "</svg>",
            "",
        ]
    )


def _legend(body: list[str], top: int) -> int:
    """Rows, guards and ways out, as three tables; returns the height of the whole."""
    columns = (LEFT, 190, 395, 680, 870)
    y = top
    body.append(_rule(y - 22))
    body += [_text(x, y, head, "head") for x, head in zip(columns, ("Row", "From → to", "When", "Effects", "Why"), strict=True)]
    for row in ROWS:
        y += 20
        many = len(row.sources) > 1
        source = f"any but {row.to}" if many else str(row.sources[0])
        cells = (row.id, f"{source} → {row.to}", condition_words(row), effect_words(row), row.why)
        body += [_text(x, y, cell, "id" if x == columns[0] else "cell") for x, cell in zip(columns, cells, strict=True)]
    y += 46
    body += [
        _rule(y - 22),
        _text(LEFT, y, "Guards: each claims something safe, and unknown never passes", "head"),
        _text(columns[3], y, "Effects on leaving RUNNING, by the task's phase", "head"),
    ]
    rows = [(guard.name, MEANING[guard.name]) for guard in guards()]
    rows.append(("SAFE", " ∧ ".join(guard.name for guard in SAFE)))
    for n, (name, meaning) in enumerate(rows, 1):
        body += [_text(LEFT, y + 20 * n, name, "id"), _text(columns[1], y + 20 * n, meaning, "cell")]
    for n, (phase, effects) in enumerate(LEAVE.items(), 1):
        body += [_text(columns[3], y + 20 * n, phase, "id"), _text(columns[3] + 80, y + 20 * n, ", ".join(effects), "cell")]
    y += 20 * len(rows)
    body.append(_text(LEFT, y + 34, MADE_FROM, "note"))
    return y + 56


def guards() -> list[Guard]:
    """Every guard that the table reads, in the order in which it first does."""
    seen: dict[str, Guard] = {}
    for row in ROWS:
        for condition in row.when:
            for guard in condition.guards:
                seen.setdefault(guard.name, guard)
    return list(seen.values())


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


def _rule(y: int) -> str:
    return f'<path class="rule" d="M{LEFT} {y} H{RIGHT}"/>'


# --- PNG


def png(zoom: float = 2.0, layer: Layer = BARE) -> bytes:
    """The SVG in its light colours, `zoom` pixels to one.

    Raises:
        DiagramError: no font is installed.
    """
    try:
        return rasterise(svg(dark=False, layer=layer), zoom)
    except PictureError as error:
        raise DiagramError(str(error)) from None
