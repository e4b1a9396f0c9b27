"""A word before the end: the task saves its place, which goes back with it and comes again (R6, R23)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.task_bench import Bench, contained, run
from support.trees import until_async

from supervisor.config.generate import runtime_yaml
from supervisor.config.load import ConfigErrors, load
from supervisor.config.schema import Notice
from supervisor.tasks.executors.base import Rung
from supervisor.tasks.process.containment import Containment

__all__ = ["contained"]
WAIT = "; touch up; while :; do sleep 0.01; done"
SAVE = "printf '%s' '{\"at\": 7}' > x; mv x rae-state.json"

# what it does on the notice (USR1), the rungs' names, what is saved
CASES: dict[str, tuple[str, list[str], Any]] = {
    "saves and waits for the end": (SAVE, ["frozen", "notice", "state saved", "term", "gone"], {"at": 7}),
    "saves and ends": (SAVE + "; exit 0", ["frozen", "notice", "gone"], {"at": 7}),
    "too late": (":", ["frozen", "notice", "no state", "term", "gone"], None),
    "not JSON": ("echo oh > x; mv x rae-state.json; exit 0", ["frozen", "notice", "gone", "its state is not JSON"], None),
    "a link": ("ln -s /etc/passwd rae-state.json; exit 0", ["frozen", "notice", "gone"], None),
    "a pipe": ("mkfifo rae-state.json; exit 0",
               ["frozen", "notice", "gone", "its state is not a file of at most 65536 bytes"], None),
    "too long": ("head -c 70000 /dev/zero > x; mv x rae-state.json; exit 0",
                 ["frozen", "notice", "gone", "its state is not a file of at most 65536 bytes"], None),
}  # fmt: skip


def names(rungs: tuple[Rung, ...]) -> list[str]:
    """The rungs without their times."""
    return [rung.name for rung in rungs]


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved(contained: Containment, tmp_path: Path, case: str) -> None:
    code, rungs, state = CASES[case]

    async def body(bench: Bench) -> None:
        notice = Notice("USR1", 0.3 if case == "too late" else 20)
        task = await bench.start("sh", "-c", f"trap \"$ON\" USR1{WAIT}", env={"ON": code}, notice=notice)
        await until_async((bench.folder / "up").exists)
        got = names(await task.stop(25))
        if "exit" in code:  # it may be seen between its rename and its end
            got = [word for word in got if word not in ("state saved", "term")]
        assert got == rungs
        assert task.state == state

    run(contained, tmp_path, body)


def test_no_notice_where_it_is_killed_at_once(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        task = await bench.start("sh", "-c", f"trap '{SAVE}' USR1{WAIT}", notice=Notice("USR1", 2))
        await until_async((bench.folder / "up").exists)
        assert names(await task.stop(0)) == ["frozen", "kill", "gone"]
        assert task.state is None

    run(contained, tmp_path, body)


def test_the_deadline_is_a_part_of_the_grace(tmp_path: Path) -> None:
    (tmp_path / "runtime.yaml").write_text(runtime_yaml())
    (tmp_path / "node.yaml").write_text("tasks: {x: {argv: [a], grace_sec: 2, notice: {signal: USR1, deadline_sec: 3}}}\n")
    with pytest.raises(ConfigErrors, match=r"tasks.x.notice.deadline_sec: found 3, allowed: less than grace_sec \(2\)"):
        load(tmp_path)
