"""The sandbox without systemd: a read-only system, of other files only the work folder, no other process, no network.

Whether it works depends on the kernel, its settings and this process's rights. So it is tried once, not assumed. The try also
finds out what an old bubblewrap or a container leaves out.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from supervisor.config.schema import TaskType

NAME: Final = "bwrap"
TRY_S: Final = 5.0
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/opt", "/srv")
# What programs need of /etc. A task sees nothing else of it, and not the node's own folders.
_ETC: Final = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl", "ca-certificates", "pki", "passwd", "group",
    "nsswitch.conf", "hosts", "localtime", "resolv.conf", "OpenCL", "vulkan", "glvnd", "python3",
)  # fmt: skip
_PRIVATE: Final = ("/etc/ssl/private", "/etc/pki/tls/private")  # keys below a readable path
# Files of the kernel that root may write even without capabilities, such as the core pattern.
_KERNEL: Final = ("sys", "sysrq-trigger", "irq", "bus", "fs", "acpi", "scsi", "mtrr")
_ALWAYS: Final = ("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL")
# From the strictest: what is added, and what is then missing. `--disable-userns` is new in bubblewrap 0.8.
_VARIANTS: Final = (
    (("--unshare-user", "--disable-userns"), ""),
    (("--unshare-user",), "a task may make namespaces of its own: bubblewrap 0.8 forbids that"),
    ((), "a task has no user namespace of its own"),
)
_MIB, _GIB = 1 << 20, 1 << 30
_SIGNALS: Final = frozenset(map(int, signal.valid_signals()))


@dataclass(frozen=True, slots=True)
class Found:
    """What the try has found."""

    fault: str  # why it does not work here, and what to do; empty: it works
    options: tuple[str, ...] = ()
    missing: str = ""  # what it leaves open here


def argv(
    task_type: TaskType, workdir: Path, found: Found, hidden: Iterable[str] = (), devices: Iterable[str] = ()
) -> list[str]:
    """The command line that goes before the task's own command.

    Args:
        hidden: files and folders that the task may not see, also below a path that it may read.
        devices: the nodes of the GPUs that it may use.
    """
    line = [NAME, *_ALWAYS, *found.options]
    if task_type.sandbox_network:
        line.append("--share-net")
    line += ["--proc", "/proc", *_each("--ro-bind", filter(os.path.exists, (f"/proc/{name}" for name in _KERNEL)))]
    line += ["--dev", "/dev"]
    line += _each("--dev-bind-try", devices)
    # Outside the work folder a task may write to memory only, and not to much of it.
    size = ["--size", str(_room(task_type))] if found.options == _VARIANTS[0][0] else []
    line += [*size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev", *size, "--tmpfs", "/tmp", "--dir", "/run"]  # noqa: S108
    top = (*_SYSTEM, *sorted(glob.glob("/lib*")))
    for link in filter(os.path.islink, top):
        line += ["--symlink", os.readlink(link), link]
    inside = tuple(f"{folder}/" for folder in (*top, *task_type.sandbox_read))
    named = (part for part in task_type.argv if os.path.isabs(part) and not part.startswith(inside) and os.path.isfile(part))
    readable = [*(f for f in top if not os.path.islink(f)), *(f"/etc/{name}" for name in _ETC), *named, *task_type.sandbox_read]
    return [*line, *_binds(readable, [*hidden, *_PRIVATE], str(workdir)), "--remount-ro", "/", "--chdir", str(workdir), "--"]


def _room(task_type: TaskType) -> int:
    """Bytes that a task may write to /tmp, and as many to /dev/shm: they are memory that no process is charged with."""
    if task_type.max_memory_gb is not None:
        return max(_MIB, int(task_type.max_memory_gb * _GIB / 4))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def _each(option: str, paths: Iterable[str]) -> list[str]:
    return [part for path in paths for part in (option, path, path)]


def _binds(readable: Sequence[str], hidden: Sequence[str], workdir: str) -> list[str]:
    """The readable paths, with what is hidden below them covered, and the work folder. What lies deeper comes later."""
    steps = {path: ["--ro-bind", path, path] for path in map(os.path.abspath, readable) if os.path.exists(path)}
    covers = []
    for path in list(steps):
        real = os.path.realpath(path)  # a link may lead to what is hidden
        for secret in map(os.path.realpath, hidden):
            if not os.path.exists(secret) or os.path.commonpath([real, secret]) != real:
                continue
            cover = os.path.normpath(path + secret[len(real) :])
            steps[cover] = ["--tmpfs", cover] if os.path.isdir(secret) else ["--ro-bind", "/dev/null", cover]
            covers += [cover] if os.path.isdir(secret) else []
    steps[workdir] = ["--bind", workdir, workdir]
    closed = [part for cover in covers for part in ("--remount-ro", cover)]
    return [*(part for path in sorted(steps) for part in steps[path]), *closed]


def inner_status(status: int | None) -> int | None:
    """The wait status of the command inside. bubblewrap tells a death by a signal as a shell does: exit code 128 and more."""
    if status is not None and os.WIFEXITED(status):
        number = os.WEXITSTATUS(status) - 128
        return number if number in _SIGNALS else status
    return status


def tried() -> Found:
    """Try it, with the strictest options first. Blocks, for a few milliseconds; TRY_S at most for each try."""
    if shutil.which(NAME) is None:
        return Found("bubblewrap is not here: install it (apt-get install bubblewrap)")
    first = ""
    for options, missing in _VARIANTS:
        found = Found("", options, missing)
        if not (why := _try([*argv(TaskType(), Path("/tmp"), found), "true"])):  # noqa: S108 - a folder that is there
            return found
        first = first or why
    return Found(first)


def _try(line: list[str]) -> str:
    """Why this command line fails; empty: it works."""
    try:
        trial = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        return f"bubblewrap cannot be run: {error.strerror}"
    with trial:
        try:
            _, stderr = trial.communicate(timeout=TRY_S)
        except subprocess.TimeoutExpired:
            return f"bubblewrap did not answer within {TRY_S:g} s"
        finally:
            if trial.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(trial.pid, signal.SIGKILL)  # if a filter forbids a step, it may hang, in two processes
    if trial.returncode == 0:
        return ""
    lines = stderr.decode(errors="replace").strip().splitlines() or [f"exit code {trial.returncode}"]
    return f"bubblewrap does not work here ({lines[0].removeprefix('bwrap: ')}): let this user make user namespaces"
