"""What an idle node does: every system call of the daemon, its helpers and a session agent, by strace, for a minute.

    python tests/bench/quiet.py [--seconds 60]

The stage is that of footprint.py, with the session's own agent beside it (an ext-idle-notify compositor and a tray of ours).
Exit 1 when anything polls (more than 0.3 wake-ups a second, or 20 in one second), or when a process is started, or one is
there that is no agent.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/bench")]
from footprint import running, stage, tree
from support.bench import Row, verdict
from support.desktop_panel import MessageService, TrayHost
from support.displays import IdleServer
from support.login1 import PrivateBus, session

SETTLED_S = 20.0  # every one has started, the link is up, and what was tried at the start is over
AGENT = "sensors.session_agent.agent"
# PID SECONDS NAME(ARGUMENTS) = RESULT <SECONDS>; what another process interrupts ends with <unfinished ...>, and is
# resumed later.
CALL = re.compile(r"(\d+) +(\d+\.\d+) (?:<\.\.\. )?(\w+)(?: resumed>|\()(.*?)(?:<(\d+\.\d+)>)?$")
WAITS = frozenset({
    "epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6", "futex", "read", "recvfrom", "recvmsg",
})  # fmt: skip
SLEPT_S = 0.001  # a call of these that took longer had to wait, and its end is a wake-up
STARTS = frozenset({"fork", "vfork", "execve", "execveat"})
OURS = re.compile(r"supervisor[./]([\w./]+?)(?:\.py)?$")
CLONES = frozenset({"clone", "clone3"})


@dataclass
class Trace:
    """What strace saw of one program."""

    calls: Counter[str] = field(default_factory=Counter)
    wakes: Counter[int] = field(default_factory=Counter)  # by second
    processes: int = 0
    threads: int = 0


def read(lines: Iterable[str], program_of: dict[int, str]) -> dict[str, Trace]:
    """By program; `program_of` knows each thread. What is started while it is watched counts to who started it."""
    traces = {name: Trace() for name in program_of.values()}
    last = next(iter(program_of.values()), "")
    for found in filter(None, map(CALL.match, lines)):
        number, at, name, rest, took_s = found.groups()
        last = program_of.setdefault(int(number), last)
        trace = traces[last]
        if name in STARTS:
            trace.processes += 1
        if "<unfinished" in rest:
            continue
        trace.calls[name] += 1
        if name in WAITS and float(took_s or 0) >= SLEPT_S:
            trace.wakes[int(float(at))] += 1
        elif name in CLONES and "CLONE_THREAD" in rest:
            trace.threads += 1
        elif name in CLONES:
            trace.processes += 1
    return traces


def program(pid: int) -> str:
    """What a process runs, in a word: "daemon.main", "sensors.gpu.nvml_helper"."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    known = [found[1].replace("/", ".") for word in words if (found := OURS.search(word))]
    return known[0] if known else Path(words[0]).name


def by_itself() -> list[str]:
    """What runs a program with terminals of its own, where that may be had: whoever types elsewhere here wakes a node."""
    script = 'mount -t devpts -o newinstance,ptmxmode=0666 none /dev/pts && exec "$@"'
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    may = os.geteuid() == 0 and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    return words if may else []


async def watch(seconds: float, settled_s: float = SETTLED_S) -> tuple[dict[str, Trace], list[str]]:
    """The traces by program, and what runs below the daemon."""
    async with stage() as idle:
        runtime = idle.folder / "desk"
        runtime.mkdir()
        idle.logind.sessions["/org/freedesktop/login1/session/_3"] = session(User=(os.getuid(), "/u"))
        alone = by_itself()
        agent = [*alone, sys.executable, "-I", "-m", "supervisor.sensors.session_agent.agent", "--config", str(idle.folder)]
        env = {**idle.env, "XDG_RUNTIME_DIR": str(runtime), "XDG_CONFIG_HOME": str(idle.folder)}
        with (
            PrivateBus(runtime) as bus,
            running([*alone, *idle.daemon], idle.env, idle.folder / "ours.log") as daemon,
            IdleServer(runtime / "wayland-0", 2),
            running(agent, env | {"DBUS_SESSION_BUS_ADDRESS": bus.address}, idle.folder / "agent.log") as beside,
        ):
            tray, messages = await TrayHost(bus.address).start(), await MessageService(bus.address).start()
            async with asyncio.timeout(60):
                while b"link: up" not in (idle.folder / "ours.log").read_bytes() or not tree(daemon.pid)[1:]:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(settled_s)
            shown = (await tray.icon())["IconName"] if tray.item else "no icon"
            print(f"in the tray: {shown}; messages: {len(messages.shown)}")
            watched = [*tree(daemon.pid), beside.pid]
            threads = {int(task.name): program(pid) for pid in watched for task in Path(f"/proc/{pid}/task").iterdir()}
            log = idle.folder / "strace"
            pids = [f"-p{pid}" for pid in watched]
            strace = await asyncio.create_subprocess_exec("strace", "-f", "-ttt", "-T", "-qq", "-o", str(log), *pids)
            if sys.stderr.isatty():
                print(f"watching for {seconds:g} s", file=sys.stderr)
            await asyncio.sleep(seconds)
            below = [program(pid) for pid in tree(daemon.pid)[1:]]
            strace.send_signal(signal.SIGINT)
            await strace.wait()
            return read(log.read_text().splitlines(), threads), below


def judge(traces: dict[str, Trace], below: list[str], seconds: float) -> int:
    """Print, and say whether all is quiet."""
    wakes = {name: sum(trace.wakes.values()) for name, trace in traces.items()}
    for name, trace in sorted(traces.items()):
        most = ", ".join(f"{call} {count}" for call, count in trace.calls.most_common(8))
        print(f"{name}: {sum(trace.calls.values())} calls, {wakes[name]} wake-ups, {trace.threads} threads started: {most}")
    print(f"below the daemon: {', '.join(below) or 'nothing'}")
    strangers = [name for name in below if not name.startswith("sensors.")]
    busiest = max((count for trace in traces.values() for count in trace.wakes.values()), default=0)
    node = sum(count for name, count in wakes.items() if name != AGENT)
    rows = [
        Row("wake-ups/s, daemon and helpers", node / seconds, 1.0, 0.3, less=True),  # footprint.py is stricter: strace slows
        Row("wake-ups/s, session agent", wakes.get(AGENT, 0) / seconds, 1.0, 0.3, less=True),
        Row("wake-ups in the busiest second", busiest, 20.0, 1.0, less=True),
        Row("processes started", sum(trace.processes for trace in traces.values()), 1.0, 0.0, less=True),
        Row("processes that are no helpers", len(strangers), 1.0, 0.0, less=True, note=" ".join(strangers)),
    ]
    return verdict("one wake-up a second, as a client that polls each second has", rows)


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to watch (default 60)")
    seconds = parser.parse_args().seconds
    if not shutil.which("strace"):
        print("needs strace")
        return 2
    return judge(*asyncio.run(watch(seconds)), seconds)


if __name__ == "__main__":
    sys.exit(main())
