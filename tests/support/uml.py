"""A Linux kernel of its own as a plain process (User-Mode Linux), for what the machine around may not have: cgroup v2
controllers. It sees this machine's files, read-only, on a processor of its own, and changes nothing outside.

    apt-get install user-mode-linux
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

KERNEL = "linux.uml"
BEGIN, END = "---begin---", "---end---"
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR={tmp} PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={path}
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp {tmp}; mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo {begin}; {program} 2>&1; echo {end}
echo o > /proc/sysrq-trigger; sleep 10
"""


def unavailable() -> str:
    """Why there is none; empty when there is one."""
    return "" if shutil.which(KERNEL) else f"no {KERNEL} (apt-get install user-mode-linux)"


def run(base: Path, *words: str, memory: str = "768M", timeout_s: float = 600.0) -> Any:
    """Boot it, run this Python program as root inside, and return the JSON document that it printed last.

    Args:
        base: a folder for the start script.
        words: file and arguments.
    """
    script, root = base / "init", Path(__file__).resolve().parents[2]
    program = f"{sys.executable} {' '.join(words)}"
    hidden = any(str(path).startswith("/tmp/") for path in (root, sys.executable))
    place = {"path": f"{root}:{root}/tests", "tmp": "/mnt" if hidden else "/tmp"}
    script.write_text(_INIT.format(**place, begin=BEGIN, end=END, program=program))
    script.chmod(0o755)
    argv = [KERNEL, "rootfstype=hostfs", "rootflags=/", "ro", f"mem={memory}", f"init={script}", "con=null", "con0=fd:0,fd:1"]
    with subprocess.Popen(
        [*argv, "quiet", f"uml_dir={base}"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    ) as kernel:  # fmt: skip
        try:
            out, _ = kernel.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as late:
            os.killpg(kernel.pid, signal.SIGKILL)
            raise AssertionError(f"the kernel of our own did not end within {timeout_s:g} s:\n{late.stdout!r}") from None
    said = out.partition(BEGIN)[2].partition(END)[0].strip()
    try:
        return json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        raise AssertionError(f"nothing sensible from the kernel of our own:\n{out[-4000:]}") from None
