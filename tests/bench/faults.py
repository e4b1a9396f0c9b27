"""A proxy before `rae-node control` plays every fault at random, for 10,000 requests of the node.

    python tests/bench/faults.py [--requests 10000] [--seed 1]

Timeouts, back-off and intervals are the shipped ones, over made time (see tests/support/storm.py). Exit 1 unless every
task was settled exactly once or reported, no exception reached the loop, the rate was kept, and memory stayed flat.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
from support.storm import storm


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began_s = time.monotonic()
    run = storm(given.requests, given.seed, lambda line: print(line, file=sys.stderr, flush=True))
    for count, name in run.figures():
        print(f"{count:9,.6g}  {name}")
    for name, count in sorted(run.proxy.faults.items()):
        print(f"{count:9}  times {name}")
    print(f"seed {given.seed}, {time.monotonic() - began_s:.0f} s")
    faults = run.faults()
    for fault in faults[:20]:
        print(f"           {fault}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
