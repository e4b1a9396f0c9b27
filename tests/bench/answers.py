"""How long the short questions take: is a person there, is the GPU free (R9, R10), how is the node; beside the floor.

    python tests/bench/answers.py [--rounds 15]

The doors are called as they are installed, by the system's python3, with a logind of ours on a private bus (a graphical
session is open), an NVIDIA GPU that is awake (the NVML stand-in under the real pynvml), and the daemon running. The floor
is the node's own interpreter with the command line's package imported, which no answer can come before. The quickest and
the median of all rounds; what is judged is the median against its limit in performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from support.bench import Row, verdict
from support.machine import machine

NODE = """
node: {id: bench}
gpu: {presence: required}
host: {inhibitor: none}
paths: {logs: logs, workdir: work, runtime: run, state: state}
"""
LIMITS_S = {"check_user_idle.py": 0.3, "check_gpu_load.py": 0.3, "rae-node status": 0.15}


async def bench(rounds: int) -> int:
    """Set the stage, ask, judge."""
    async with machine() as (folder, env, _), AsyncExitStack() as stack:
        config = folder / "config"
        config.mkdir()
        shutil.copy(ROOT / "config" / "runtime.yaml", config / "runtime.yaml")
        (config / "node.yaml").write_text(NODE)
        env["RAE_NODE_CONFIG"] = str(config)
        own = [sys.executable, "-I"]
        daemon = subprocess.Popen(
            [*own, "-m", "supervisor.daemon.main", "--config", str(config)], env=env, stderr=subprocess.DEVNULL
        )
        stack.callback(daemon.wait)
        stack.callback(daemon.terminate)
        while not (config / "run" / "control.sock").exists():
            await asyncio.sleep(0.02)
        asked = {
            "check_user_idle.py": ["/usr/bin/python3", str(ROOT / "deploy/agent/check_user_idle.py")],
            "check_gpu_load.py": ["/usr/bin/python3", str(ROOT / "deploy/agent/check_gpu_load.py")],
            "rae-node status": [*own, "-m", "supervisor.cli.main", "status"],
            "floor": [*own, "-c", "import typer, asyncio"],
        }
        took: dict[str, list[float]] = {name: [] for name in asked}
        answers: dict[str, tuple[int | None, bytes]] = {}
        for _ in range(rounds):
            for name, argv in asked.items():
                began = time.perf_counter()
                pipe = asyncio.subprocess.PIPE
                process = await asyncio.create_subprocess_exec(*argv, env=env, stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
                said, _ = await process.communicate()
                took[name].append(time.perf_counter() - began)
                answers[name] = process.returncode, said.split(b"\n")[0]
    rows = []
    for name, limit_s in LIMITS_S.items():
        note = f"quickest {min(took[name]):.3f}, floor {statistics.median(took['floor']):.3f}"
        rows.append(Row(f"{name}, s", statistics.median(took[name]), limit_s, 1.0, less=True, note=note))
        print(f"{name}: exit {answers[name][0]}, {answers[name][1].decode()[:90]}")
    return verdict("the limits of performance.md", rows)


def main() -> int:
    """Run and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="how often each is asked (default 15)")
    return asyncio.run(bench(parser.parse_args().rounds))


if __name__ == "__main__":
    sys.exit(main())
