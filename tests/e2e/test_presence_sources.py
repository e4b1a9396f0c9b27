"""Each source of presence on the bench's stage: a real sign is seen by the mind, and a source that breaks blocks.

Times are the bench's business; here each sign must be seen at all, and each break must be told in words.
"""

from __future__ import annotations

import asyncio

import pytest
from bench import presence
from bench.presence import SCENES, Scene
from support.own_terminals import own_terminals

pytestmark = pytest.mark.slow

SIGNS = 2
# Played on a whole installed system by test_box_presence.py, or only slow: steps of 8 s, looks each second.
ELSEWHERE = {"session unlocked", "new graphical session", "key on another's terminal", "idle_detect"}


HERE = [scene for scene in SCENES if scene.name not in ELSEWHERE]
TERMINALS = [scene for scene in HERE if "terminal" in scene.name]


@pytest.mark.parametrize("scene", TERMINALS, ids=lambda scene: scene.name)
@own_terminals
def test_a_sign_in_a_terminal_is_seen_and_a_broken_source_blocks(scene: Scene) -> None:
    """Where other tests' terminals are not: the newest sign is the one that counts."""
    judge(scene)


@pytest.mark.parametrize("scene", [s for s in HERE if s not in TERMINALS], ids=lambda scene: scene.name)
def test_a_sign_is_seen_and_a_broken_source_blocks(scene: Scene) -> None:
    judge(scene)


def judge(scene: Scene) -> None:
    row = asyncio.run(presence.play(scene, SIGNS))
    if row["ok"] is None:
        pytest.skip(row["lacks"])
    assert row["signs"] >= SIGNS
    assert row["breaks"] or row["instead"]
    for told in row["breaks"]:
        assert told["blocks"], told
        assert told["says"]
        assert "offers neither" not in told["says"], "what is dead offers nothing at all"
