"""Removed settings: the note reaches `config check`, the status and the log, and scripts may name them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.running import NodeFolder, daemon

from supervisor.tools.history.script import parse


def test_a_script_may_still_name_it() -> None:
    """It has no effect."""
    steps = "steps: [{at: 0s, expect: {state: DISABLED}}]\n"
    old = parse(f"replay: 1\nsettings: {{work.settle_sec: 3, work.run_minutes: 0}}\n{steps}", "old.yaml")
    assert old.limits == parse(f"replay: 1\nsettings: {{work.run_minutes: 0}}\n{steps}", "new.yaml").limits


@pytest.mark.slow
def test_the_note_is_shown_everywhere(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path, node={"work": {"settle_sec": 3}, "control": {"paths": {"poll": "/x"}}})
    lines = (folder.path / "node.yaml").read_text().splitlines()
    paths, settle = lines.index("control:") + 3, lines.index("  settle_sec: 3") + 1
    notes = [
        f"node.yaml:{paths}:3: control.paths was removed: all paths are found automatically; delete the line",
        f"node.yaml:{settle}:3: work.settle_sec was removed: it is a constant now (10 s); delete the line",
    ]
    done = folder.cli("config", "check", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["notes"] == notes
    assert folder.cli("config", "check").stdout.splitlines()[1:] == [f"  note: {note}" for note in notes]
    with daemon(folder) as node:
        node.wait_up()
        assert node.ask()["notes"][:2] == notes
        assert node.said.splitlines()[:2] == notes
        assert node.stop() == 0
