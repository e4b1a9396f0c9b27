"""The sandbox of task types with `sandbox: bubblewrap`: a read-only system, of other files only the work folder, no other
process, no network. If it does not work here, the task fails before it starts, and the error says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import os
import shutil
import signal
from pathlib import Path
from typing import Final

from supervisor.config.schema import TaskType

NAME: Final = "bwrap"
TRY_S: Final = 5.0
# What programs need of /etc. A task sees nothing else of it, and not the node's own folders.
_ETC: Final = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl", "ca-certificates", "pki", "passwd", "group",
    "nsswitch.conf", "hosts", "localtime", "resolv.conf", "OpenCL", "vulkan", "glvnd", "python3",
)  # fmt: skip
_GPU: Final = ("/dev/nvidia*", "/dev/dri", "/dev/kfd")
INSTALL: Final = "install it (apt-get install bubblewrap), or set sandbox: none"
# What bubblewrap needs and the shipped unit forbids; tried in tests/e2e/test_box_place.py.
DROP_IN: Final = ("RestrictNamespaces=no", "SystemCallFilter=@mount capset")
PERMIT: Final = f"let the service (`systemctl edit rae-node`: [Service] {' and '.join(DROP_IN)}), or set sandbox: none"


def argv(task_type: TaskType, workdir: Path) -> list[str]:
    """The command line that goes before the task's own command."""
    line = [NAME, "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
    line += ["--tmpfs", "/tmp"]  # noqa: S108 - before mounts that may be below it
    if task_type.sandbox_network:
        line.append("--share-net")
    for folder in ("/usr", "/bin", "/sbin", *sorted(glob.glob("/lib*"))):
        link = Path(folder)
        line += ["--symlink", str(link.readlink()), folder] if link.is_symlink() else ["--ro-bind-try", folder, folder]
    for path in (*(f"/etc/{name}" for name in _ETC), *task_type.sandbox_read):
        line += ["--ro-bind-try", path, path]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for pattern in _GPU:
        for path in sorted(glob.glob(pattern)):
            line += ["--dev-bind-try", path, path]
    return [*line, "--bind", str(workdir), str(workdir), "--chdir", str(workdir), "--"]


async def fault(task_type: TaskType, workdir: Path) -> str:
    """Why it does not work here, and what to do; empty: it was tried, and works."""
    if shutil.which(NAME) is None:
        return f"sandbox: bubblewrap is not here: {INSTALL}"
    try:
        trial = await asyncio.create_subprocess_exec(
            *argv(task_type, workdir), "true",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return f"sandbox: bubblewrap cannot be run: {error.strerror}: {INSTALL}"
    try:
        async with asyncio.timeout(TRY_S):
            _, stderr = await trial.communicate()
    except TimeoutError:
        return f"sandbox: bubblewrap did not answer within {TRY_S:g} s"
    finally:
        if trial.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(trial.pid, signal.SIGKILL)  # if a filter forbids a step, it may hang, in two processes
            await trial.wait()
    if trial.returncode == 0:
        return ""
    lines = stderr.decode(errors="replace").strip().splitlines() or [f"exit code {trial.returncode}"]
    return f"sandbox: bubblewrap does not work here ({lines[0].removeprefix('bwrap: ')}): {PERMIT}"
