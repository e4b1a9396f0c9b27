"""The diagram comes from the table that runs (R22): no drift, nothing missing, and every text can be read."""

from __future__ import annotations

import itertools
import json
import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support import weeks
from support.running import NodeFolder, daemon
from support.stories import zone
from transitions.extensions import GraphMachine

from states import guards as guards_module
from states.lifecycle import Lifecycle
from states.limits import Limits
from states.memory import State
from states.table import ROWS
from supervisor.journal.decision_log import files, read
from supervisor.tools.history import diagram, diagram_svg, row_counts
from supervisor.tools.history.row_counts import RowCounts
from supervisor.tools.history.svg_to_png import PictureError

FOLDER = Path(__file__).parents[3] / "diagrams"
SVG = "{http://www.w3.org/2000/svg}"
EXPORTED = {  # what diagrams/ keeps for review; `make diagrams` writes it
    "lifecycle.mmd": diagram.mermaid(),
    "lifecycle.dot": diagram.dot(),
    "lifecycle.svg": diagram_svg.svg(),
    "states.svg": diagram_svg.svg(small=True),
}

Edges = dict[tuple[str, str], list[str]]


def edges_of_mermaid(text: str, separator: str) -> Edges:
    found = re.findall(r"^\s*([A-Z_]+) --> ([A-Z_]+): (.+)$", text, re.MULTILINE)
    return {(a, b): label.split(separator) for a, b, label in found}


def edges_of_table() -> Edges:
    edges: Edges = {}
    for row in ROWS:
        for source in row.sources:
            edges.setdefault((str(source), str(row.to)), []).append(row.id)
    return edges


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_files_are_todays(name: str) -> None:
    assert (FOLDER / name).read_text() == EXPORTED[name], "the table has changed: run `make diagrams`"


def test_no_other_file_is_kept_as_a_diagram() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(EXPORTED)


def test_mermaid_says_what_the_table_says() -> None:
    assert edges_of_mermaid(diagram.mermaid(), "<br/>") == edges_of_table()


def test_mermaid_agrees_with_the_library_that_draws_its_own() -> None:
    transitions = [[row.id, list(row.sources), row.to] for row in ROWS]
    machine = GraphMachine(
        states=State, transitions=transitions, initial=State.DISABLED, auto_transitions=False, graph_engine="mermaid"
    )
    theirs = edges_of_mermaid(machine.get_graph().source, " | ")
    ours = edges_of_mermaid(diagram.mermaid(), "<br/>")
    assert {pair: set(ids) for pair, ids in theirs.items()} == {pair: set(ids) for pair, ids in ours.items()}


def test_arrows_are_the_transitions_of_the_machine_that_runs() -> None:
    running = {(t.source, t.dest) for t in Lifecycle(Limits()).machine.get_transitions()}
    assert running == {(str(a), str(b)) for a, b in diagram.arrows()}
    events = {(name, t.source, t.dest) for name, event in Lifecycle(Limits()).machine.events.items() for ts in
              event.transitions.values() for t in ts}
    assert events == {(row.id, str(a), str(b)) for (a, b), rows in diagram.arrows().items() for row in rows}


def test_dot_says_what_the_table_says() -> None:
    found = re.findall(r'^    ([A-Z_]+) -> ([A-Z_]+) \[label="([^"]+)", tooltip=', diagram.dot(), re.MULTILINE)
    assert {(a, b): label.split(r"\n") for a, b, label in found} == edges_of_table()


def test_svg_holds_every_state_row_reason_and_guard() -> None:
    root = ElementTree.fromstring(diagram_svg.svg())
    texts = [t.text or "" for t in root.iter(f"{SVG}text")]
    titles = "\n".join(t.text or "" for t in root.iter(f"{SVG}title"))
    for state in State:
        assert state in texts
    for row in ROWS:
        assert texts.count(row.id) == len(row.sources) + 1, f"{row.id}: at each of its arrows, and in the legend"
        assert f"{row.id}: {row.why}" in titles
    for guard in diagram.guards():
        assert guard.name in texts


def test_the_small_svg_holds_every_state_and_row_and_fits_a_readme() -> None:
    root = ElementTree.fromstring(diagram_svg.svg(small=True))
    texts = [t.text or "" for t in root.iter(f"{SVG}text")]
    assert set(State) <= set(texts)
    for row in ROWS:
        assert texts.count(row.id) == len(row.sources)
    assert float(root.attrib["width"]) <= 840


def busy() -> RowCounts:
    """More than any real year."""
    fired = Counter({(state, row.id): 12345 for row in ROWS for state in row.sources})
    stays = {pair: [86400.0 * 33 + 3600 * 23] for pair in diagram.arrows()}
    return RowCounts(fired, stays, dict.fromkeys(State, 86400.0 * 73), "2026-10-05T00:00", "2026-10-12T00:00")


OVERLAYS = {"bare": diagram.BARE, "now": diagram.Overlay(State.RUNNING), "busy": diagram.Overlay(State.READY, busy())}


@pytest.mark.parametrize("small", [False, True], ids=["whole", "small"])
@pytest.mark.parametrize("overlay", OVERLAYS.values(), ids=OVERLAYS)
def test_no_text_of_the_svg_leaves_the_page_or_covers_another(overlay: diagram.Overlay, small: bool) -> None:
    root = ElementTree.fromstring(diagram_svg.svg(overlay=overlay, small=small))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes: list[tuple[float, float, float, float, str]] = []
    for text in root.iter(f"{SVG}text"):
        content, kind = text.text or "", text.attrib["class"].split()
        size = {"title": 20, "head": 14, "state": 15, "note": 12, "cell": 12, "id": 12}.get(kind[0], 13)
        per_letter = 0.70 if kind[0] in ("title", "head", "state", "id") or content.isupper() else 0.58
        long = len(content) * size * per_letter
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        left = x - long / 2 if "mid" in kind or kind[0] == "state" else x
        assert left >= 0, f"{content!r} begins left of the page"
        assert left + long <= width, f"{content!r} ends right of the page"
        assert 0 < y < height
        boxes.append((left, y - 0.8 * size, left + long, y + 0.2 * size, content))
    for (a, top, b, bottom, one), (c, over, d, under, other) in itertools.combinations(boxes, 2):
        assert b <= c or d <= a or bottom <= over or under <= top, f"{one!r} covers {other!r}"


def test_the_dark_colours_cover_the_light_ones() -> None:
    def names(style: str) -> set[str]:
        return {name for name, colour in re.findall(r"([.a-zA-Z_]+) \{[^}]*?(#[0-9a-f]{6})", style) if colour}

    assert names(diagram_svg.STYLE) == names(diagram_svg.DARK)


def test_every_guard_of_the_table_has_a_meaning_and_no_other() -> None:
    assert {guard.name for guard in diagram.guards()} == set(diagram.MEANING)
    known = {g.name for g in vars(guards_module).values() if isinstance(g, guards_module.Guard)}
    assert set(diagram.MEANING) <= known


def test_an_arrow_without_a_place_is_an_error_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    arrows = {**diagram.arrows(), (State.COOLDOWN, State.READY): [ROWS[-1]]}
    monkeypatch.setattr(diagram, "arrows", lambda: arrows)
    with pytest.raises(PictureError, match="COOLDOWN → READY"):
        diagram_svg.svg()


def test_png_is_one_and_has_the_size_of_the_svg() -> None:
    image = diagram_svg.render("png")
    root = ElementTree.fromstring(diagram_svg.svg())
    assert isinstance(image, bytes)
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", image[16:24])
    assert (width, height) == (2 * int(root.attrib["width"]), 2 * int(root.attrib["height"]))


def test_png_without_a_font_is_an_error_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import resvg_py

    real = resvg_py.svg_to_bytes
    monkeypatch.setattr(resvg_py, "svg_to_bytes", lambda **kwargs: real(**kwargs, skip_system_fonts=True))
    with pytest.raises(PictureError, match="no font is installed"):
        diagram_svg.render("png")


def test_png_needs_no_library_until_it_is_asked_for() -> None:
    code = "import sys, supervisor.tools.history.diagram; sys.exit('resvg_py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, check=False).returncode == 0


# --- what is drawn over it


@pytest.fixture(scope="module")
def week() -> tuple[RowCounts, list[dict[str, Any]]]:
    """A week of an office, counted; and its journal's lines."""
    with zone():
        logs = weeks.lived("office", 7)
        entries = [entry for path in files([logs]) for _, entry in read(path)]
        return row_counts.count([logs]), entries


def test_counts_are_those_of_the_journal(week: tuple[RowCounts, list[dict[str, Any]]]) -> None:
    counted, entries = week
    decisions = Counter((e["from"], e["row"]) for e in entries if e["kind"] == "decision" and e["row"])
    assert {(str(state), row): n for (state, row), n in counted.fired.items()} == dict(decisions)
    whole_s = entries[-1]["boot_s"] - entries[0]["boot_s"]  # one run: it was never switched off
    assert sum(counted.seconds.values()) == pytest.approx(whole_s, abs=1)
    cooldown_s = counted.typical_s((State.COOLDOWN, State.IDLE_WAIT))
    assert cooldown_s == pytest.approx(900, abs=2), "the shipped cooldown"
    assert counted.typical_s((State.READY, State.DISABLED)) is None


def entry(kind: str, boot_s: float, **fields: Any) -> str:
    return json.dumps({"v": 1, "time": "2026-10-05T10:00:00+02:00", "boot_s": boot_s, "kind": kind, **fields}) + "\n"


def test_vetoes_power_cuts_and_gaps_are_no_steps(tmp_path: Path) -> None:
    (tmp_path / "decisions-2026-10-05.jsonl").write_text(
        entry("start", 10)
        + entry("decision", 20, **{"from": "DISABLED", "row": "switched-on", "to": "IDLE_WAIT", "state": "IDLE_WAIT"})
        + entry("decision", 50, **{"from": "IDLE_WAIT", "row": "safe", "to": "READY", "state": "READY"})
        + entry("decision", 60, **{"from": "READY", "row": "task-claimed", "to": "RUNNING"})
        + entry("effect", 60, effect="inhibit", ok=False)
        + entry("effect", 61, effect="hand_back", ok=True, state="READY")
        + entry("alive", 90, state="READY")
        + '{"v": 1, "kind": "ali\n'
        + entry("start", 5)  # the power was cut
        + entry("decision", 6, **{"from": "DISABLED", "row": "switched-on", "to": "IDLE_WAIT", "state": "IDLE_WAIT"})
        + entry("gap", 1000, lost=9, memory={"state": "READY"})
        + entry("decision", 1010, **{"from": "READY", "row": "unsafe", "to": "IDLE_WAIT", "state": "IDLE_WAIT"})
        + entry("stop", 1015)
    )
    counted = row_counts.count([tmp_path])
    assert counted.fired == {
        (State.DISABLED, "switched-on"): 2, (State.IDLE_WAIT, "safe"): 1, (State.READY, "unsafe"): 1,
    }
    assert counted.stays == {(State.DISABLED, State.IDLE_WAIT): [10, 1], (State.IDLE_WAIT, State.READY): [30]}
    assert counted.seconds == {
        State.DISABLED: 11, State.IDLE_WAIT: 35, State.READY: 50, State.RUNNING: 0, State.COOLDOWN: 0,
    }
    with pytest.raises(row_counts.NothingToCount, match="no decision"):
        row_counts.count([])


CHANGES = [{"boot_s": 10**400}, {"boot_s": None}, {"row": {}}, {"row": ["safe"]}, {"from": {}}, {"to": 1}]


@pytest.mark.parametrize("change", CHANGES)
def test_a_line_of_another_form_is_not_counted(tmp_path: Path, change: dict[str, object]) -> None:
    line = {"v": 1, "kind": "decision", "time": "2026-11-24T12:00:00+00:00", "boot_s": 5.0, "from": "DISABLED",
            "row": "switched-on", "to": "IDLE_WAIT", "state": "IDLE_WAIT"}  # fmt: skip
    (tmp_path / "decisions-2026-11-24.jsonl").write_text("".join(json.dumps(x) + "\n" for x in (line | change, line)))
    counted = row_counts.count([tmp_path])
    assert counted.fired == {(State.DISABLED, "switched-on"): 2 if change == {"to": 1} else 1}


@pytest.mark.parametrize("form", ["mermaid", "dot", "svg"])
def test_every_form_shows_counts_times_and_where_it_is(week: tuple[RowCounts, list[dict[str, Any]]], form: Any) -> None:
    counted, _ = week
    drawn = str(diagram_svg.render(form, diagram.Overlay(State.COOLDOWN, counted)))
    for (state, row), n in counted.fired.items():
        assert f"{row} ×{n}" in drawn, state
    assert "unsafe ×0" in drawn
    assert "after 15 min" in drawn
    mark = {"mermaid": "class COOLDOWN now", "dot": 'penwidth=4, style="rounded,bold"', "svg": 'class="box COOLDOWN now"'}
    assert mark[form] in drawn
    bare = str(diagram_svg.render(form))
    assert "×" not in bare
    assert "after" not in bare or form == "svg"


def test_the_command_marks_and_counts(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    assert "class READY now" in folder.cli("diagram", "--highlight", "ready").stdout
    for arguments, code, message in (
        (("--highlight",), 3, "not running"),
        (("--highlight", "nowhere"), 2, "allowed: DISABLED, IDLE_WAIT"),
        (("READY",), 2, "goes with --highlight"),
        (("--from", str(tmp_path / "no-such")), 2, "No such file"),
        (("--from", str(tmp_path)), 2, "no decision in these journals"),
    ):
        done = folder.cli("diagram", *arguments)
        assert (done.returncode, done.stdout) == (code, ""), arguments
        assert len(done.stderr.splitlines()) == 1
        assert message in done.stderr


@pytest.mark.slow
def test_the_live_daemons_state_is_marked(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path)
    with daemon(folder) as node:
        node.wait_for("READY")
        done = folder.cli("diagram", "--highlight", "--from", str(tmp_path / "logs"))
        assert "class READY now" in done.stdout
        assert "switched-on ×1" in done.stdout
        node.stop()
