"""A proxy before `rae-node control` plays every fault at random, for 10,000 requests of the node.

    python tests/bench/faults.py [--requests 10000] [--seed 1] [--seconds 60]

Timeouts, back-off and intervals are the shipped ones, over made time (see tests/support/storm.py). Exit 1 unless every
task was settled exactly once or reported, no exception reached the loop, the rate was kept, and memory stayed flat.

Then a whole daemon lives behind such a proxy in real time, and its control socket is asked fifty times a second. Beside it: the
same with a proxy that plays no fault. Exit 1 also when an answer took longer than 100 ms; on a busy machine both tell.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
from support.bench import Row, verdict
from support.running import NodeFolder, control_node, daemon
from support.storm import QUICK, storm, stormy

from supervisor.linux.control_socket import ask

SLOWEST_S = 0.1
LATE_S = (20.0, 60.0, 200.0, 900.0)
REQUESTS = 400  # of each late server


def ask_often(runtime: Path, seconds: float) -> list[float]:
    """How long each answer of the control socket took, in seconds."""
    took, end_s = [], time.monotonic() + seconds
    while (began_s := time.monotonic()) < end_s:
        ask(runtime, "status")
        took.append(time.monotonic() - began_s)
        time.sleep(0.02)
    return took


def answers(seconds: float, *, calm: bool) -> list[float]:
    """The same of a daemon that works behind the proxy. A process of its own asks: the proxy is a thread of this one."""
    with (
        tempfile.TemporaryDirectory(prefix="faults-") as folder,
        control_node() as control,
        stormy(int(control.url.rpartition(":")[2]), 1) as (url, proxy),
    ):
        proxy.calm = calm
        node = NodeFolder.make(Path(folder) / "n", url, node={"work": {"run_minutes": 1}}, **QUICK)
        with daemon(node) as running, multiprocessing.get_context("spawn").Pool(1) as asker:
            running.wait_up()
            for n in range(int(seconds * 20)):
                control.add("echo", {"n": n})
            return asker.apply(ask_often, (node.path / "run", seconds))


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a whole daemon; 0: none")
    given = parser.parse_args()
    began_s = time.monotonic()
    run = storm(given.requests, given.seed, lambda line: print(line, file=sys.stderr, flush=True))
    for count, name in run.figures():
        print(f"{count:9,.6g}  {name}")
    for name, count in sorted(run.proxy.faults.items()):
        print(f"{count:9}  times {name}")
    print(f"seed {given.seed}, {time.monotonic() - began_s:.0f} s")
    faults = run.faults()
    print("answers late by: requests, lost polls, tasks lost with them, tasks given back, posted again, requests in a minute")
    for late_s in LATE_S:
        late = storm(REQUESTS, given.seed, late_s=late_s)
        print(f"{late_s:9g} s: " + ", ".join(f"{count:g}" for count in late.late_figures()))
        faults += late.late_faults()
    for fault in faults[:20]:
        print(f"           {fault}")
    if not given.seconds:
        return int(bool(faults))
    calm, stormy_s = answers(given.seconds, calm=True), answers(given.seconds, calm=False)
    rows = [
        Row(f"ms for an answer, {name}", of(stormy_s) * 1000, of(calm) * 1000, None)
        for name, of in (("p50", statistics.median), ("p99", lambda took: sorted(took)[int(len(took) * 0.99)]), ("worst", max))
    ]
    verdict("the same daemon, its control node without faults", rows)
    return int(bool(faults) or max(stormy_s) > SLOWEST_S)


if __name__ == "__main__":
    sys.exit(main())
