"""An hour of ticks on a full disk, in injected time: the real loop, lifecycle, performer and journal of support/weeks.py.

    unshare --mount sh -c 'mount -t tmpfs -o size=96k none DIR && exec python tests/support/full_disk.py DIR'

DIR fills up 15 minutes into the day, while tasks run, and is freed 65 minutes later. In between the person comes back in
the middle of a task, stays for two minutes, and leaves. Prints one JSON document: what was said, and what the files hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import weeks  # noqa: E402
from support.clock import ManualClock  # noqa: E402
from support.simulated import Supply  # noqa: E402
from support.stories import Story, at  # noqa: E402

from supervisor.journal.decision_log import Journal, files, read  # noqa: E402
from supervisor.journal.text_log import TextLog  # noqa: E402
from supervisor.linux.clock import Clock  # noqa: E402
from supervisor.tools.history.replay import replay_files  # noqa: E402

FULL_S, FREED_S, END_S = 15 * 60.0, 80 * 60.0, 100 * 60.0
BACK_S, GONE_S = 40 * 60.0 + 7, 42 * 60.0


@dataclass
class Eventful(ManualClock):
    """Does things on the way, by seconds since the beginning."""

    todo: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def go(self, seconds: float) -> None:
        """See ManualClock."""
        super().go(seconds)
        while self.todo and self.wall >= self.todo[0][0]:
            self.todo.pop(0)[1]()


def fill(folder: Path) -> None:
    """Not a byte is left."""
    fd = os.open(folder / "ballast", os.O_WRONLY | os.O_CREAT)
    for size in (4096, 1):
        with contextlib.suppress(OSError):
            while os.write(fd, b"x" * size):
                pass
    os.close(fd)


def hour(logs: Path) -> dict[str, Any]:
    """Live it; what was said (seconds since the beginning, words), and what is in the files."""
    begin = at(0, 9)
    story = Story(begin, begin + END_S, there=[(begin, begin + 1), (begin + BACK_S, begin + GONE_S)])
    todo: list[tuple[float, Callable[[], None]]] = [
        (begin + FULL_S, lambda: fill(logs)), (begin + FREED_S, (logs / "ballast").unlink),
    ]
    clock = Eventful(weeks.UP_S, begin, todo=todo)
    said: list[tuple[float, str]] = []
    journals: list[Journal] = []

    def journal(folder: Path, its_clock: Clock, keep_days: int) -> Journal:
        journals.append(
            Journal(folder, its_clock, keep_days, lambda text: said.append((clock.wall - begin, text)), TextLog(folder))
        )
        return journals[0]

    weeks.Journal = journal  # type: ignore[assignment, misc]
    supply = Supply(random.Random(1), endless=True, task_s=170.0)
    troubles: list[str] = []
    clock.todo.insert(1, (begin + FULL_S + 300, lambda: troubles.append(journals[0].trouble)))
    with tempfile.TemporaryDirectory() as scratch:
        config = weeks.settings(Path(scratch), logs, None)
        weeks.live_once(config, clock, story, supply, begin + END_S)
    troubles.append(journals[0].trouble)
    paths = files([logs])
    return {
        "said": said,
        "trouble_then_and_after": troubles,
        "entries": [entry for path in paths for _, entry in read(path)],
        "text": "".join(path.read_text() for path in sorted(logs.glob("rae-node-*.log"))),
        "replays": [report.ok for report in replay_files(paths)],
    }


if __name__ == "__main__":
    print(json.dumps(hour(Path(sys.argv[1]))))
