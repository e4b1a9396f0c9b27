"""Runs inside a box as a Type=notify service: `Notifier` told what to say by a file, one word a line.

Usage: python -m support.notify_probe FILE. Words: "status TEXT", "starve" (no watchdog from then on), "reload", "stop".
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from supervisor.linux.sd_notify import Notifier


def main(orders: Path) -> None:
    notifier = Notifier()
    interval_s = notifier.watchdog_interval_s
    assert interval_s is not None
    notifier.grant(5)
    notifier.ready("READY: nothing to do")
    done, fed = 0, True
    while True:
        lines = orders.read_text().splitlines() if orders.exists() else []
        for word, _, rest in (line.partition(" ") for line in lines[done:]):
            done += 1
            if word == "status":
                notifier.status(rest)
            elif word == "starve":
                fed = False
            elif word == "reload":
                notifier.reloading()
                notifier.ready("READY: read again")
            elif word == "stop":
                notifier.stopping("stopping")
                sys.exit(0)
        if fed:
            notifier.watchdog()
        time.sleep(min(interval_s, 0.02))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
