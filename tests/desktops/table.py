"""Real desktops and ways in, each with the installed node beside it: what it says of the person there.

    python tests/desktops/table.py [NAME…] [--quiet 180] [--cells touch,film] [--out FILE]

As root; the packages come from a layer of their own (layer.sh), onto this machine comes nothing. Each row has a box of its
own, one at a time. A cell holds what was seen; one that fails says so, and --out gets its evidence. Exit 1 where one fails.
Settings are as shipped, but for 6 s in place of 10 minutes of absence, and no cooldown.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from desktops import cells
from desktops.cells import Cell
from desktops.stage import Fails, Stage, stage

COLUMNS = ("ready", "touch", "tray", "quiet", "film", "locked", "hang", "logout", "kill", "tasks")
LIGHTDM_FILMS = ("inhibit", "inhibit2", "inhibit4")


@dataclass(frozen=True)
class Row:
    """`script` with `settings` in its environment; `cells` in order. `starts`: the verb that brings it up."""

    script: str
    cells: Mapping[str, Cell]
    settings: Mapping[str, str] = field(default_factory=dict)
    starts: str = "start"


def desktop(films: tuple[str, ...] = ("inhibit",)) -> dict[str, Cell]:
    """What a desktop is asked."""
    return {
        "ready": cells.ready, "touch": cells.touch, "tray": cells.tray, "quiet": partial(cells.quiet, seconds=QUIET_S),
        "film": partial(cells.film, verbs=films), "locked": cells.locked, "hang": cells.hang, "logout": cells.logout,
        "kill": cells.kill, "tasks": cells.whole_tasks,
    }  # fmt: skip


def without_tray(asked: dict[str, Cell]) -> dict[str, Cell]:
    """The layer has neither tray nor service of messages for it."""
    return {name: cell for name, cell in asked.items() if name != "tray"}


def some(*names: str, films: tuple[str, ...] = ("inhibit",)) -> dict[str, Cell]:
    """Some of it."""
    return {name: cell for name, cell in desktop(films).items() if name in names}


def way_in(variant: str, quiet: str = "") -> dict[str, Cell]:
    """Somebody comes in without a desktop; `quiet`: the variant in which they touch nothing."""
    asked: dict[str, Cell] = {"touch": partial(cells.typed, variant=variant, seconds=24), "logout": cells.gone}
    return asked | ({"ready": partial(cells.open_but_quiet, variant=quiet)} if quiet else {})


def by_itself(variant: str) -> dict[str, Cell]:
    """Nobody comes in."""
    return {"quiet": partial(cells.nobody, variant=variant, seconds=QUIET_S)}


QUIET_S = 180.0
QUIETLY: tuple[str, ...] = ("ready", "touch", "quiet")


def rows() -> dict[str, Row]:
    """The table. A function, for --quiet is in it."""
    table = {
        "GNOME": Row("gnome-wayland", desktop(("inhibit", "inhibit2"))),
        "Plasma": Row("plasma-wayland", desktop(("inhibit", "inhibit4"))),
        "Xfce": Row("lightdm", desktop(LIGHTDM_FILMS), {"DESK": "xfce"}),
        "MATE": Row("lightdm", desktop((*LIGHTDM_FILMS, "inhibit3")), {"DESK": "mate"}),
        "Cinnamon": Row("lightdm", desktop((*LIGHTDM_FILMS, "inhibit3")), {"DESK": "cinnamon"}),
        "LXQt": Row("lightdm", without_tray(desktop(LIGHTDM_FILMS)), {"DESK": "lxqt"}),
    }
    return table | {
        "sway": Row("sway", without_tray(desktop())),
        "weston": Row("weston", {"ready": cells.held, **{v: partial(cells.over, verb=v) for v in ("logout", "kill")}}),
        "GDM's greeter": Row("greeters", some(*QUIETLY), {"KIND": "gdm"}),
        "SDDM's greeter": Row("greeters", some(*QUIETLY), {"KIND": "sddm"}),
        "LightDM's greeter": Row("greeters", some(*QUIETLY), {"KIND": "lightdm"}),
        "xrdp": Row("remote-desktops", some(*QUIETLY, "hang", "logout", "kill"), {"KIND": "xrdp"}),
        "vncsession": Row("remote-desktops", some(*QUIETLY, "hang", "logout", "kill"), {"KIND": "vncsession"}),
        "vncserver": Row("remote-desktops", some(*QUIETLY, "hang", "logout", "kill"), {"KIND": "vncserver"}),
        "ssh": Row("remote-shells", way_in("ssh-pty", "ssh-pty-quiet")),
        "ssh, no terminal": Row("remote-shells", way_in("ssh-no-pty")),
        "ssh -N": Row("remote-shells", way_in("ssh-forward")),
        "sftp": Row("remote-shells", way_in("sftp")),
        "rsync": Row("remote-shells", way_in("rsync")),
        "mosh": Row("remote-shells", way_in("mosh")),
        "dropbear": Row("remote-shells", way_in("dropbear-pty")),
        "dropbear, no terminal": Row("remote-shells", way_in("dropbear-no-pty")),
        "tmux": Row("remote-shells", way_in("tmux") | by_itself("tmux-left")),
        "screen": Row("remote-shells", way_in("screen")),
        "cron": Row("remote-shells", by_itself("cron")),
        "linger": Row("remote-shells", by_itself("linger")),
        "runuser": Row("remote-shells", by_itself("runuser-job")),
    }


@dataclass
class Answer:
    """A cell, played. `seen` begins with FAILS where it fails."""

    seen: str
    evidence: str = ""


def play(name: str, row: Row, wanted: tuple[str, ...], base: Path) -> dict[str, Answer]:
    """One row, in one box; after a cell that leaves the node unable to work, in a new one."""
    answers: dict[str, Answer] = {}
    left = [column for column in row.cells if column in wanted]
    while left:
        with contextlib.ExitStack() as stack:
            try:
                shipped = left[0] == "tasks"
                folder = Path(tempfile.mkdtemp(dir=base))
                at_work = stack.enter_context(stage(folder, row.script, row.settings, shipped=shipped))
                at_work.act(row.starts)
            except (Fails, AssertionError) as error:
                said = f"FAILS: no stage: {error}"
                print(f"{name}: {said}", flush=True)
                return answers | {column: Answer(said) for column in left}
            while left:
                column = left.pop(0)
                answers[column] = answer = one(at_work, row.cells[column])
                print(f"{time.strftime('%H:%M:%S')} {name}: {column}: {answer.seen}", flush=True)
                if answer.evidence or left[:1] == ["tasks"]:
                    break
    return answers


def one(at_work: Stage, cell: Cell) -> Answer:
    """One cell."""
    try:
        return Answer(f"ok: {cell(at_work)}")
    except Exception as error:  # whatever it is, the other cells are played
        known = isinstance(error, Fails)
        text = str(error) if known else f"{type(error).__name__}: {str(error)[-300:]}"
        return Answer(f"FAILS: {text}", (known and error.evidence) or at_work.evidence())


def drawn(table: Mapping[str, Mapping[str, Answer]]) -> str:
    """As Markdown."""
    head = f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}\n"
    seen = {name: " | ".join(answers[c].seen if c in answers else "" for c in COLUMNS) for name, answers in table.items()}
    return head + "".join(f"| {name} | {line} |".replace("\n", " ") + "\n" for name, line in seen.items())


def main() -> int:
    global QUIET_S
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--quiet", type=float, default=QUIET_S, help="seconds of nothing")
    parser.add_argument("--cells", default=",".join(COLUMNS))
    parser.add_argument("--out", type=Path, help="a file for the table and the evidence")
    asked = parser.parse_args()
    QUIET_S = asked.quiet
    table = rows()
    if unknown := set(asked.names) - set(table):
        parser.error(f"no row {', '.join(unknown)}; there are: {', '.join(table)}")
    found: dict[str, dict[str, Answer]] = {}
    with tempfile.TemporaryDirectory(prefix="desktops-") as base:
        for name in asked.names or table:
            found[name] = play(name, table[name], tuple(asked.cells.split(",")), Path(base))
            if asked.out:
                asked.out.write_text(report(found))
    print(drawn(found))
    return any(answer.evidence or answer.seen.startswith("FAILS") for answers in found.values() for answer in answers.values())


def report(found: Mapping[str, Mapping[str, Answer]]) -> str:
    """The table, and for each cell that fails what helps to see why."""
    failing = (
        f"\n## {name}: {column}\n{answer.seen}\n{answer.evidence}"
        for name, answers in found.items()
        for column, answer in answers.items()
        if answer.seen.startswith("FAILS")
    )
    return drawn(found) + "".join(failing)


if __name__ == "__main__":
    sys.exit(main())
