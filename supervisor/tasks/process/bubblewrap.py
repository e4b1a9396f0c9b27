"""A task's walls by bubblewrap, where its type asks for them: the system read-only, of its files the work folder alone, no
other process, no network (R4, R6). What cannot be had fails the task before it starts, with what would mend it.
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
from supervisor.tasks.executors.base import StartFailed

NAME: Final = "bwrap"
TRY_S: Final = 5.0
# What programs need of /etc; the rest of it, and the node's own folders, are none of a task's business.
_ETC: Final = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl", "ca-certificates", "pki", "passwd", "group",
    "nsswitch.conf", "hosts", "localtime", "resolv.conf", "OpenCL", "vulkan", "glvnd", "python3",
)  # fmt: skip
_GPU: Final = ("/dev/nvidia*", "/dev/dri", "/dev/kfd")
INSTALL: Final = "install it (apt-get install bubblewrap), or set sandbox: none"
# What the shipped unit forbids and bubblewrap needs, no more; tried in tests/e2e/test_box_place.py.
DROP_IN: Final = ("RestrictNamespaces=no", "SystemCallFilter=@mount capset")
PERMIT: Final = f"let the service (`systemctl edit rae-node`: [Service] {' and '.join(DROP_IN)}), or set sandbox: none"


def argv(task_type: TaskType, workdir: Path) -> list[str]:
    """What comes before the task's own command."""
    words = [NAME, "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
    words += ["--tmpfs", "/tmp"]  # noqa: S108 - before what may lie in it
    if task_type.sandbox_network:
        words.append("--share-net")
    for folder in ("/usr", "/bin", "/sbin", *sorted(glob.glob("/lib*"))):
        link = Path(folder)
        words += ["--symlink", str(link.readlink()), folder] if link.is_symlink() else ["--ro-bind-try", folder, folder]
    for path in (*(f"/etc/{name}" for name in _ETC), *task_type.sandbox_read):
        words += ["--ro-bind-try", path, path]
    words += ["--proc", "/proc", "--dev", "/dev"]
    for pattern in _GPU:
        for path in sorted(glob.glob(pattern)):
            words += ["--dev-bind-try", path, path]
    return [*words, "--bind", str(workdir), str(workdir), "--chdir", str(workdir), "--"]


async def fault(task_type: TaskType, workdir: Path) -> str:
    """Why it does not work here, with the mend; empty when it was tried and does."""
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
            _, said = await trial.communicate()
    except TimeoutError:
        return f"sandbox: bubblewrap did not answer within {TRY_S:g} s"
    finally:
        if trial.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(trial.pid, signal.SIGKILL)  # where a filter forbids it a step, it may hang in two processes
            await trial.wait()
    if trial.returncode == 0:
        return ""
    lines = said.decode(errors="replace").strip().splitlines() or [f"exit code {trial.returncode}"]
    return f"sandbox: bubblewrap does not work here ({lines[0].removeprefix('bwrap: ')}): {PERMIT}"


async def must_work(task_type: TaskType, workdir: Path) -> None:
    """Try it, empty, before each task: what it says of itself must not be taken for the task's words.

    Raises:
        StartFailed: it does not work.
    """
    if why := await fault(task_type, workdir):
        raise StartFailed(why)
