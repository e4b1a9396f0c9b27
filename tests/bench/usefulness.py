"""How much of a safe day is worked, and what a task costs beside the same command run bare.

    python tests/bench/usefulness.py [--kind office] [--days 7] [--tasks 200]

The share: a simulated week by the real loop (see tests/support/weeks.py) with the shipped configuration and a full queue
of tasks of one length. Safe is the time in READY and RUNNING; worked is that with a task's process in it; the cooldown is
left out, as the operator asked for it. The overhead: real tasks, one after another, through the real daemon and a control
node on loopback, beside the same command started bare as often. Exit 1 when short.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from support import weeks
from support.bench import Row, verdict
from support.running import NodeFolder, control_node, daemon
from support.stories import KINDS, zone
from support.waiting import until

LENGTHS_S = {"20-s tasks": (20.0, 0.90), "2-min tasks": (120.0, 0.98), "60-min tasks": (3600.0, 0.98)}
OVERHEAD_MS = 50.0


def shares(journals: Iterable[Path]) -> tuple[float, float, int]:
    """(hours safe, hours worked, tasks done) of what was lived."""
    safe_s = worked_s = 0.0
    done = 0
    for path in journals:
        state, task, last_s = "DISABLED", False, 0.0
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            now_s = float(entry.get("at_s", entry["boot_s"]))
            if entry["kind"] == "start":
                state, task, last_s = "DISABLED", False, now_s
            if state in ("READY", "RUNNING"):
                safe_s += now_s - last_s
                worked_s += (now_s - last_s) * task
            last_s = now_s
            if entry["kind"] == "effect" and entry["effect"] == "start":
                task = bool(entry["ok"])
            elif entry["kind"] == "effect" and entry["effect"] in ("settle", "stop", "hand_back"):
                task = False
                done += entry["effect"] == "settle"
            elif entry["kind"] == "decision":
                state = entry.get("to") or state
    return safe_s / 3600, worked_s / 3600, done


def lived(kind: str, days: int) -> list[Row]:
    """A row a length."""
    rows = []
    for name, (seconds, target) in LENGTHS_S.items():
        print(f"{days} days of {kind} with {name} …", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="usefulness-") as folder, zone():
            safe, worked, done = shares(weeks.live(kind, days, Path(folder), endless_s=seconds))
        rows.append(Row(f"share worked, {name}", worked, safe, target, note=f"hours of a safe week; {done} tasks done"))
    return rows


def overhead(tasks: int) -> list[Row]:
    """Milliseconds a task, through the node and bare."""
    print(f"{tasks} real tasks, and the same command bare …", file=sys.stderr, flush=True)
    argv = ["/bin/cat"]
    began = time.perf_counter()
    for _ in range(tasks):
        subprocess.run(argv, input=b"{}", capture_output=True, check=True)
    bare_ms = (time.perf_counter() - began) / tasks * 1e3
    with tempfile.TemporaryDirectory(prefix="usefulness-") as name, control_node() as control:
        runtime = {"execution": {"poll_interval_sec": 0.2}}
        folder = NodeFolder.make(Path(name), control.url, runtime, {"work": {"run_minutes": 60}})
        with daemon(folder) as node:
            node.wait_for("READY")
            ids = [control.add("echo") for _ in range(tasks)]
            until(lambda: control.task(ids[-1])["status"] == "COMPLETED", "all of them", 120)
        times = [control.task(task) for task in ids]
    # From the second claim to the last result: the first waits for the poll.
    stamps = [_seconds(times[1]["started_at"]), _seconds(times[-1]["completed_at"])]
    ours_ms = (stamps[1] - stamps[0]) / (tasks - 1) * 1e3
    cost = ours_ms - bare_ms
    return [
        Row("a task through the node, ms", ours_ms, bare_ms, None, note="the bare command; for information"),
        Row("overhead a task, ms", cost, OVERHEAD_MS, 1.0, less=True, note="baseline is the target itself: claim to result"),
    ]


def _seconds(stamp: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(stamp).timestamp()


def main() -> int:
    """Parse, live, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(KINDS), default="office")
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=200)
    given = parser.parse_args()
    return verdict("the safe time itself; the same command bare", [*lived(given.kind, given.days), *overhead(given.tasks)])


if __name__ == "__main__":
    sys.exit(main())
