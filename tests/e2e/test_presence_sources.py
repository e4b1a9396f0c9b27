"""Each source of presence on the bench's stage: a real sign is seen by the mind, and a source that breaks blocks.

Times are the bench's business; here each sign must be seen at all, and each break must be told in words.
"""

from __future__ import annotations

import asyncio

import pytest
from bench import presence
from bench.presence import SCENES, Scene

pytestmark = pytest.mark.slow

SIGNS = 2
# Played on a whole installed system by test_box_presence.py, or only slow: steps of 8 s, looks each second.
ELSEWHERE = {"session unlocked", "new graphical session", "key on another's terminal", "idle_detect"}


@pytest.mark.parametrize("scene", [s for s in SCENES if s.name not in ELSEWHERE], ids=lambda scene: scene.name)
def test_a_sign_is_seen_and_a_broken_source_blocks(scene: Scene) -> None:
    row = asyncio.run(presence.play(scene, SIGNS))
    if row["ok"] is None:
        pytest.skip(row["lacks"])
    assert row["signs"] >= SIGNS
    assert row["breaks"] or row["instead"]
    for told in row["breaks"]:
        assert told["blocks"], told
        assert told["says"]
        assert "offers neither" not in told["says"], "what is dead offers nothing at all"
