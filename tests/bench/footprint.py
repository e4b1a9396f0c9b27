"""The live daemon, idle, all sensors on, for 60 s, beside a bare asyncio interpreter, and BOINC's client where installed.

    python tests/bench/footprint.py [--seconds 60]

Idle means: somebody sits in a graphical session (a logind of ours on a private bus says so), an NVIDIA GPU is awake
(the NVML stand-in under the real pynvml), the control node is up and gets its heartbeats. CPU and wake-ups are those of
the daemon and its helpers together; memory is the daemon's, and the helpers' beside it. CPU is the scheduler's own
nanoseconds, wake-ups are voluntary context switches. The floor has a 1-s timer; the floor of start and memory also
imports the required packages. Bytecode is made first where it is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support.bench import Row, verdict
from support.login1 import FakeLogin1
from support.machine import machine

FLOOR = """
import asyncio, os, socket
{imports}
async def main():
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(path); s.send(b"READY=1")
    while True:
        await asyncio.sleep(1)
asyncio.run(main())
"""
REQUIRED = "import transitions, yaml, pynvml, psutil, sdnotify"
NODE = """
node: {{id: bench}}
control: {{url: "{url}"}}
gpu: {{presence: required}}
host: {{inhibitor: required}}
paths: {{logs: logs, workdir: work, runtime: run, state: state}}
"""


@dataclass(frozen=True)
class Use:
    """What processes used: MiB, percent of a core, wake-ups a second."""

    rss: float
    pss: float
    uss: float
    cpu: float
    wakeups: float


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += [int(p) for p in (task / "children").read_text().split() if int(p) not in found]
    return found


def memory(pids: list[int]) -> tuple[float, float, float]:
    """(RSS, PSS, USS) in MiB, of all together."""
    rss = pss = uss = 0
    for pid in pids:
        fields = dict.fromkeys(("Rss", "Pss", "Private_Clean", "Private_Dirty"), 0)
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in fields:
                fields[name] = int(rest.split()[0])
        rss, pss = rss + fields["Rss"], pss + fields["Pss"]
        uss += fields["Private_Clean"] + fields["Private_Dirty"]
    return rss / 1024, pss / 1024, uss / 1024


def spent(pids: list[int]) -> tuple[float, int]:
    """(CPU seconds, voluntary switches) so far, of all threads."""
    cpu_ns = switches = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            cpu_ns += int((task / "schedstat").read_text().split()[0])
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    switches += int(line.split()[1])
    return cpu_ns / 1e9, switches


async def measure(names: dict[str, int], seconds: float) -> dict[str, Use]:
    """All at once, over the same span."""
    before = {name: (tree(pid), *spent(tree(pid))) for name, pid in names.items()}
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if sys.stderr.isatty():
            print(f"\rmeasuring, {left:.0f} s to go ", end="", file=sys.stderr)
        await asyncio.sleep(min(1.0, left))
    uses = {}
    for name, (pids, cpu_s, switches) in before.items():
        living = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        now_s, now_switches = spent(living)
        cpu = (now_s - cpu_s) / seconds * 100
        uses[name] = Use(*memory(tree(names[name])), cpu, (now_switches - switches) / seconds)
    return uses


@contextmanager
def running(argv: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block."""
    with log.open("wb") as out:
        process = subprocess.Popen(argv, env=env, stdout=out, stderr=out, cwd=log.parent)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Starts:
    """Times exec to READY=1 over a notify socket of ours."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(20)

    async def quickest(self, argvs: list[list[str]], env: dict[str, str], log: Path, rounds: int) -> list[float]:
        """The quickest of `rounds` starts of each, in seconds; by turns, so that all meet the same moments of the machine."""
        best = [float("inf")] * len(argvs)
        for _ in range(rounds):
            for index, argv in enumerate(argvs):
                best[index] = min(best[index], await self._ready(argv, env, log))
        return best

    async def _ready(self, argv: list[str], env: dict[str, str], log: Path) -> float:
        began = time.perf_counter()
        with running(argv, env | {"NOTIFY_SOCKET": self.path}, log):
            while b"READY=1" not in await asyncio.to_thread(self._socket.recv, 65536):
                pass
            took_s = time.perf_counter() - began
        self._drain()
        return took_s

    def _drain(self) -> None:
        self._socket.setblocking(False)
        try:
            while self._socket.recv(65536):
                pass
        except BlockingIOError:
            self._socket.settimeout(20)


@dataclass(frozen=True)
class Stage:
    """What an idle daemon sits in: a folder for all, the environment, the command, and logind."""

    folder: Path
    env: dict[str, str]
    daemon: list[str]
    logind: FakeLogin1


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """A session, a GPU that is awake, a control node that is up."""
    async with machine() as (folder, env, logind):
        env["PYTHONDONTWRITEBYTECODE"] = ""
        env.pop("NOTIFY_SOCKET", None)
        run = [sys.executable, "-I", "-m"]
        control_log = folder / "control.log"
        with running([*run, "supervisor.cli.main", "control", "--listen", "127.0.0.1:0"], env, control_log):
            while "\n" not in (said := control_log.read_text()):
                await asyncio.sleep(0.05)
            shutil.copy(ROOT / "config" / "runtime.yaml", folder / "runtime.yaml")
            (folder / "node.yaml").write_text(NODE.format(url=said.partition("\n")[0]))
            yield Stage(folder, env, [*run, "supervisor.daemon.main", "--unattended", "--config", str(folder)], logind)


async def bench(seconds: float) -> int:
    """Set the stage, measure, judge."""
    async with stage() as idle, AsyncExitStack() as stack:
        folder, env, daemon = idle.folder, idle.env, idle.daemon
        bare = [sys.executable, "-I", "-c", FLOOR.format(imports="")]
        packages = [sys.executable, "-I", "-c", FLOOR.format(imports=REQUIRED)]

        starts = Starts(folder)
        start_s, floor_s = await starts.quickest([daemon, packages], env, folder / "start.log", 10)

        argvs = {"ours": daemon, "bare": bare, "packages": packages}
        if boinc := shutil.which("boinc") or shutil.which("boinc_client"):
            (folder / "boinc").mkdir()
            argvs["boinc"] = [boinc, "--dir", str(folder / "boinc"), "--gui_rpc_port", "0", "--no_gpus"]
        pids = {
            name: stack.enter_context(running(argv, env, folder / f"{name}.log")).pid for name, argv in argvs.items()
        }
        await asyncio.sleep(6)  # every one has started, and the link is up
        uses = await measure(pids, seconds)
        helpers = [pid for pid in tree(pids["ours"]) if pid != pids["ours"]]
        largest = max((memory([pid])[1] for pid in helpers), default=0.0)
        rss, pss, uss = memory([pids["ours"]])

    ours, floor, full, boinc_use = uses["ours"], uses["bare"], uses["packages"], uses.get("boinc")
    rows = [
        Row("CPU, % of a core", ours.cpu, floor.cpu, 1.0, less=True),
        Row("wake-ups a second (bare: 1-s timer)", ours.wakeups, floor.wakeups, 0.2, less=True),
        Row("exec → READY=1, s (with packages)", start_s, floor_s, 2.5, less=True),
        Row("RSS, MiB (limit 44)", rss, 44.0, 1.0, less=True, note=f"bare {floor.rss:.1f}, packages {full.rss:.1f}"),
        Row("PSS, MiB (with packages)", pss, full.pss, 2.0, less=True),
        Row("USS, MiB (with packages)", uss, full.uss, None, note=f"with helpers: RSS {ours.rss:.1f}, PSS {ours.pss:.1f}"),
        Row("largest helper, PSS MiB (limit 22)", largest, 22.0, 1.0, less=True, note=f"{len(helpers)} helpers"),
    ]
    if boinc_use is not None:
        rows += [
            Row("CPU beside BOINC's client", ours.cpu, boinc_use.cpu, 0.3, less=True),
            Row("wake-ups beside BOINC's client", ours.wakeups, boinc_use.wakeups, 0.05, less=True),
        ]
    else:
        print("BOINC's client is not installed (Debian: boinc-client), so it is left out")
    return verdict("an asyncio interpreter with a 1-s timer; with the required packages imported where said", rows)


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure (default 60)")
    seconds = parser.parse_args().seconds
    if not list((ROOT / "supervisor" / "__pycache__").glob("daemon.*.pyc")):
        subprocess.run([sys.executable, "-m", "compileall", "-q", "states", "supervisor"], cwd=ROOT, check=True)
    return asyncio.run(bench(seconds))


if __name__ == "__main__":
    sys.exit(main())
