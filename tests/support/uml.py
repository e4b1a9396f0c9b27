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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import shared
from support.libraries import compiled

KERNEL = "linux.uml"
BEGIN, END = "---begin---", "---end---"
_INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin TMPDIR={tmp} PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={path}
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp {tmp}; mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for kind in {kinds}; do
  echo {begin}$kind; {program} $kind 2>&1; echo {end}$kind
  for group in /sys/fs/cgroup/*/; do echo 1 > $group/cgroup.kill; done
  while groups=$(find /sys/fs/cgroup -mindepth 1 -depth -type d); [ -n "$groups" ]; do
    rmdir $groups 2> /dev/null || sleep 0.1
  done
  rm -rf {tmp}/*
done
echo o > /proc/sysrq-trigger; sleep 10
"""


def unavailable() -> str:
    """Why there is none; empty when there is one."""
    return "" if shutil.which(KERNEL) else f"no {KERNEL} (apt-get install user-mode-linux)"


def _wide_fpu() -> Path:
    return shared.once("uml", lambda folder: compiled("wide_fpu.c", "libwide_fpu.so", folder)) / "libwide_fpu.so"


def run(base: Path, program: str, kinds: Sequence[str], *, memory: str = "768M", timeout_s: float = 600.0) -> dict[str, Any]:
    """Boot it once and run this Python program as root inside, once for each kind, each with an empty tree of cgroups.

    Args:
        base: a folder for the start script.
        program: the file. Its one argument is the kind; its last line is a JSON document.
        kinds: the arguments.

    Returns:
        By kind, the document.
    """
    script, root = base / "init", Path(__file__).resolve().parents[2]
    hidden = any(str(path).startswith("/tmp/") for path in (root, sys.executable))
    place = {"path": f"{root}:{root}/tests", "tmp": "/mnt" if hidden else "/tmp"}
    command = f"{sys.executable} {program}"
    script.write_text(_INIT.format(**place, begin=BEGIN, end=END, program=command, kinds=" ".join(kinds)))
    script.chmod(0o755)
    argv = [KERNEL, "rootfstype=hostfs", "rootflags=/", "ro", f"mem={memory}", f"init={script}", "con=null", "con0=fd:0,fd:1"]
    with subprocess.Popen(
        [*argv, "quiet", f"uml_dir={base}"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True, env={**os.environ, "LD_PRELOAD": str(_wide_fpu())},
    ) as kernel:  # fmt: skip
        try:
            out, _ = kernel.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as late:
            os.killpg(kernel.pid, signal.SIGKILL)
            raise AssertionError(f"the kernel of our own did not end within {timeout_s:g} s:\n{late.stdout!r}") from None
    return {kind: _document(out.partition(BEGIN + kind)[2].partition(END + kind)[0], out) for kind in kinds}


def _document(text: str, out: str) -> Any:
    try:
        return json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise AssertionError(f"nothing sensible from the kernel of our own:\n{out[-4000:]}") from None
