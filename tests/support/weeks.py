"""Weeks and months of a node's life in seconds: the real loop, lifecycle, performer and journal over simulated people.

    python tests/support/weeks.py --kind office --days 30 --out DIR

Simulated are the signs (person, GPU, CPU; see stories.py), the control node and the tasks (simulated.py); the clock is
injected, and the event loop skips the time in which nothing happens. Everything else is the product: `Daemon.run`,
`Observer`, `Lifecycle`, `Performer`, `Attempts`, `AutomationSwitch`, `Journal`. The same kind, seed and days give the same
lines, but for the process id. The loop looks every 30 s with a task in hand, and not every second, so that a month takes
seconds; signs wake it at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import shared  # noqa: E402
from support.clock import MadeLoop, ManualClock  # noqa: E402
from support.depth import DEEP  # noqa: E402
from support.simulated import TYPES, SimulatedNode, Supply  # noqa: E402
from support.stories import KINDS, Story, zone  # noqa: E402

from states.lifecycle import Lifecycle  # noqa: E402
from states.memory import Memory  # noqa: E402
from supervisor import VERSION  # noqa: E402
from supervisor.config.load import Config, load  # noqa: E402
from supervisor.daemon import loop as loop_module  # noqa: E402
from supervisor.journal.decision_log import Journal, files  # noqa: E402
from supervisor.linux.sd_notify import Notifier  # noqa: E402

DAYS: Final = 30 if DEEP else 7  # of a life that tests read
BUSY_S: Final = 30.0  # between looks with a task in hand; the product takes 1 s
UP_S: Final = 40.0  # since boot, when the daemon starts


def settings(folder: Path, logs: Path, changes: Mapping[str, float] | None = None) -> Config:
    """A configuration as shipped, with `changes` to runtime.yaml ("safety.idle_required_minutes": 5)."""
    import yaml

    runtime = yaml.safe_load((ROOT / "config" / "runtime.yaml").read_text())
    node: dict[str, Any] = {
        "node": {"id": "simulated"},
        "tasks": {kind: {"argv": ["/bin/true"]} for kind in TYPES},
        "host": {"inhibitor": "none"},
        "paths": {"logs": str(logs), "workdir": "work", "runtime": "run", "state": "state"},
    }
    for name, value in (changes or {}).items():
        section, _, key = name.partition(".")
        (runtime if section in runtime else node).setdefault(section, {})[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runtime.yaml").write_text(yaml.safe_dump(runtime))
    (folder / "node.yaml").write_text(yaml.safe_dump(node))
    return load(folder)


def live(
    kind: str,
    days: int,
    out: Path,
    *,
    seed: int = 1,
    changes: Mapping[str, float] | None = None,
    endless_s: float | None = None,
) -> list[Path]:
    """Live `days` days and write their journals into `out`; the files.

    `changes`: settings, dotted. `endless_s`: there is always a task, each of so many seconds; None: a queue that people
    fill now and then.
    """
    story = KINDS[kind](random.Random(f"{kind}-{seed}"), days)
    supply = Supply(random.Random(f"tasks-{kind}-{seed}"), endless_s is not None, endless_s or 0.0)
    clock = ManualClock(UP_S, story.begin)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weeks-")))
        stack.enter_context(_slow_when_busy())
        config = settings(folder, out.resolve(), changes)
        for begin, end, cut in _lives(story):
            clock.wall, clock.now = begin, UP_S
            live_once(config, clock, story, supply, end, cut)
            if cut:
                with max(out.glob("decisions-*.jsonl")).open("a") as file:
                    file.write('{"v": 1, "time": "20')
            shutil.rmtree(folder / "work", ignore_errors=True)
    return files([out])


def _lives(story: Story) -> Iterator[tuple[float, float, bool]]:
    """(from, to, whether the power went) of each time that the machine is on."""
    now = story.begin
    for begin, end, cut in sorted(story.off):
        if begin < story.end:
            yield now, begin, cut
        now = end
    if now < story.end:
        yield now, story.end, False


@contextlib.contextmanager
def _slow_when_busy() -> Iterator[None]:
    kept = loop_module.BUSY_S
    loop_module.BUSY_S = BUSY_S  # type: ignore[misc]
    try:
        yield
    finally:
        loop_module.BUSY_S = kept  # type: ignore[misc]


def live_once(config: Config, clock: ManualClock, story: Story, supply: Supply, end: float, cut: bool = False) -> None:
    """From one start of the daemon, now, to its end; `cut`: by a power cut."""
    with asyncio.Runner(loop_factory=lambda: MadeLoop(clock)) as runner:
        runner.run(_life(config, clock, story, supply, end, cut))


async def _life(config: Config, clock: ManualClock, story: Story, supply: Supply, end: float, cut: bool) -> None:
    """From one start of the daemon to its end, as supervisor/daemon/main.py does it."""
    loop = asyncio.get_running_loop()
    zero = clock.wall - clock.now
    journal, inbox = Journal(config.paths.logs, clock, keep_days=100_000), loop_module.Inbox()
    memory = Memory(since_s=clock.now)
    lifecycle = Lifecycle(config.limits, memory=memory)
    node = SimulatedNode(config, clock, inbox.wake, journal, lifecycle, story, supply)
    node.automation.configure(config.runtime.automation.enabled)
    daemon = loop_module.Daemon(node, lifecycle, journal, clock, Notifier({}), inbox)
    journal.start(VERSION, config.limits, memory)
    rng = random.Random(f"latency-{clock.wall}")
    for spans in (story.there, story.gpu):
        for span in spans:
            if clock.wall <= span[0] < end:
                loop.call_at(span[0] - zero + rng.uniform(0.002, 0.02), daemon.wake)
    for span in story.gpu:
        if clock.wall <= span[1] < end:
            loop.call_at(span[1] - zero + rng.uniform(0.1, 5), daemon.wake)
    for said, until in story.pauses:
        if clock.wall <= said < end:
            loop.call_at(said - zero, daemon.pause, {"until": until})
    for begin, over in story.down:
        for when, event in ((begin, "down"), (over, "up")):
            if clock.wall <= when < end:
                reason = "connection refused" if event == "down" else ""
                fields = {"reason": reason, "url": "http://control.example", "dialect": "B"}
                loop.call_at(when - zero, node.link_event, event, fields)
                loop.call_at(when - zero, daemon.wake)
    running = asyncio.ensure_future(daemon.run())
    loop.call_at(end - zero, running.cancel if cut else lambda: daemon.stop("the machine is shut down"))
    with contextlib.suppress(asyncio.CancelledError):
        await running
    if not cut:
        await node.source.stop(1.0)
        journal.write("stop", state=lifecycle.state, reason=node.automation.stopping)
    journal.close()


def lived(kind: str, days: int = DAYS, endless_s: float | None = None, seed: int = 1) -> Path:
    """The folder of a span that is lived once a run of the tests, in central Europe. It may be read, not changed."""

    def fill(folder: Path) -> None:
        with zone():
            live(kind, days, folder, seed=seed, endless_s=endless_s)

    return shared.once(f"weeks-{kind}-{days}-{endless_s}-{seed}", fill)


def main() -> None:
    """Live it, and say where its journals are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(KINDS), default="office")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder for the journals")
    parser.add_argument("--tz", help="time zone of the people, such as Europe/Berlin; default: this machine's")
    parser.add_argument("--endless", type=float, metavar="MINUTES", help="there is always a task, each so long")
    given = parser.parse_args()
    if given.tz:
        os.environ["TZ"] = given.tz
        time.tzset()
    if given.out.is_dir() and files([given.out]):
        parser.error(f"{given.out}: has journals already; name another folder")
    began = time.perf_counter()
    endless_s = None if given.endless is None else given.endless * 60
    written = live(given.kind, given.days, given.out, seed=given.seed, endless_s=endless_s)
    size = sum(path.stat().st_size for path in written)
    took = time.perf_counter() - began
    print(f"{len(written)} journals, {size / 1e6:.1f} MB, lived in {took:.1f} s: {given.out}")


if __name__ == "__main__":
    main()
