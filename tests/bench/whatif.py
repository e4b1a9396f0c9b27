"""What-if over a week of journals, beside a bare reading of the same lines; and the whole commands in seconds.

    python tests/bench/whatif.py [--days N]

Prints `name  ours  baseline  ratio  target  ok|short`; exit 1 when short. The journals are a simulated office's
(tests/support/weeks.py). Ours is the quickest of five: everything read, and lived twice, before and after.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import weeks
from support.bench import Row, verdict
from support.stories import zone

from supervisor.tools.history import whatif
from supervisor.tools.history.timeline import html as timeline_html
from supervisor.tools.history.timeline import reader as timeline

RAE_NODE = (sys.executable, "-m", "supervisor.cli.main")


def quickest(work: Callable[[], object], rounds: int = 5) -> float:
    """Seconds."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=7)
    days = parser.parse_args().days
    with tempfile.TemporaryDirectory() as folder, zone():
        logs = Path(folder) / "logs"
        paths = weeks.live("office", days, logs)
        lines = sum(path.read_bytes().count(b"\n") for path in paths)
        decoder = msgspec.json.Decoder()

        def bare() -> None:
            for path in paths:
                with path.open("rb") as file:
                    for line in file:
                        decoder.decode(line)

        def ask() -> None:
            past = whatif.load([logs])
            for limits in (past.limits, replace(past.limits, idle_required_s=300.0)):
                whatif.live(past, limits, 1200.0)

        def command(*words: str) -> Callable[[], object]:
            return lambda: subprocess.run([*RAE_NODE, *words], check=True, stdout=subprocess.DEVNULL)

        change = command("whatif", str(logs), "--set", "cooldown_minutes=5")
        sweep = command("whatif", str(logs), "--sweep", "idle_required_minutes=2..30")
        page = command("timeline", str(logs), "--days", str(days), "--out", str(Path(folder) / "week.html"))
        read_s = quickest(bare)
        drawn_s = quickest(lambda: timeline_html.page(timeline.load([logs], days)))
        rows = [
            Row(f"what-if, {days} days, s", quickest(ask), read_s, 40, less=True, note=f"{lines} lines"),
            Row(f"timeline page, {days} days, s", drawn_s, read_s, 25, less=True),
            Row("whatif --set, the command, s", quickest(change, 3), 2.0, 1, less=True),
            Row("whatif --sweep, 29 values, s", quickest(sweep, 3), None, None),
            Row("timeline --out, the command, s", quickest(page, 3), 10.0, 1, less=True),
        ]
    return verdict("msgspec's decoder over the same lines; for whole commands the seconds that they may take", rows)


if __name__ == "__main__":
    sys.exit(main())
