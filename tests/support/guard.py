"""A limit around what a test lets loose: processes and memory, by whatever cgroups this machine has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

PROCESSES, MEMORY = 3000, 3 << 30
LIMITS = {"pids": {"pids.max": PROCESSES}, "memory": {"memory.max": MEMORY, "memory.limit_in_bytes": MEMORY}}


def _places() -> dict[str, Path]:
    """Our own cgroup by controller, in version 1 or 2."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    found: dict[str, Path] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in LIMITS:
            for _, target, kind, options, *_ in mounts:
                ours = name in names.split(",") and kind == "cgroup" and name in options.split(",")
                whole = not names and kind == "cgroup2"
                place = Path(target) / path.lstrip("/")
                if ours or (whole and name in (place / "cgroup.subtree_control").read_text().split()):
                    found.setdefault(name, place)
    return found


@contextlib.contextmanager
def limited(pid: int) -> Iterator[str]:
    """Keep this process, and what it starts from now on, within the limits; why that cannot be done, if it cannot."""
    made: list[Path] = []
    try:
        lacking = sorted(LIMITS.keys() - _places().keys())
        why = f"no cgroup with {' and '.join(lacking)} to hold it in" if lacking else ""
        for name, place in _places().items():
            folder = place / f"rae-test-{os.getpid()}-{pid}"
            folder.mkdir()
            made.append(folder)
            for file, value in LIMITS[name].items():
                if (folder / file).exists():
                    (folder / file).write_text(str(value))
            (folder / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        why = f"{error.filename}: {error.strerror}"
    try:
        yield why
    finally:
        for folder in made:
            for _ in range(500):
                with contextlib.suppress(OSError):
                    for left in (folder / "cgroup.procs").read_text().split():
                        with contextlib.suppress(OSError):
                            (folder.parent / "cgroup.procs").write_text(left)
                    folder.rmdir()
                if not folder.exists():
                    break
