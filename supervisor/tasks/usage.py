"""The memory and disk that a task uses, by /proc and its work folder. Blocks: call it in worker threads only."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection
from typing import Final

GIB: Final = 1 << 30
_KIB: Final = 1024
_BLOCK: Final = 512
_CHECK_EVERY: Final = 256  # entries between two checks of the clock
WALK_S: Final = 2.0
# A thread that uses up its time slice waits until each of the task's processes had one, though they are of the idle class:
# 100 ms and more with 200 of them, maybe with the interpreter's lock, without which the loop does not see the person. One that
# rests now and then runs at once when it wakes.
_BATCH: Final = 8  # processes between two rests
_REST_S: Final = 0.0005


def memory(pids: Collection[int], enough: float | None = None) -> int:
    """Bytes of memory and swap that the processes use together. The quick sum counts shared memory once for each process. If
    that is more than `enough` bytes, the shares are read, for which the kernel walks through the pages."""
    quick = {}
    for pid in pids:
        quick[pid] = _sum_kib(f"/proc/{pid}/status", (b"VmRSS:", b"VmSwap:")) or 0
        if len(quick) % _BATCH == 0:
            time.sleep(_REST_S)
    total = sum(quick.values()) * _KIB
    if enough is None or total <= enough:
        return total
    shares = 0
    for pid, kib in quick.items():
        share = _sum_kib(f"/proc/{pid}/smaps_rollup", (b"Pss:", b"SwapPss:"))
        shares += kib if share is None else share  # not readable: all of it may be its own
    return shares * _KIB


def _sum_kib(path: str, names: tuple[bytes, ...]) -> int | None:
    """The sum of these lines of a file of /proc; None: it cannot be read, because the process is gone, for example."""
    try:
        with open(path, "rb", buffering=0) as file:
            lines = file.read(1 << 16).splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) for line in lines if line.startswith(names))


def disk(folder: str, pids: Collection[int], limit_s: float = WALK_S) -> int:
    """Bytes that the folder takes on disk, with its files that are deleted but still open. After `limit_s` seconds, what was
    counted so far: never more than there is."""
    until_s = time.monotonic() + limit_s
    try:
        device = os.lstat(folder).st_dev
    except OSError:
        return 0
    counted: set[int] = set()  # inodes of files with several names
    total = entries = 0
    todo = [folder]
    while todo:
        try:
            with os.scandir(todo.pop()) as there:
                for entry in there:
                    entries += 1
                    if entries % _CHECK_EVERY == 0 and time.monotonic() > until_s:
                        return total
                    try:
                        info = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    if stat.S_ISDIR(info.st_mode):
                        todo.append(entry.path)
                    if info.st_nlink < 2 or stat.S_ISDIR(info.st_mode) or info.st_ino not in counted:
                        total += info.st_blocks * _BLOCK
                    if info.st_nlink > 1:
                        counted.add(info.st_ino)
        except OSError:  # gone meanwhile, or another user's
            continue
    return total + _deleted(device, pids, until_s)


def _deleted(device: int, pids: Collection[int], until_s: float) -> int:
    """Bytes of the processes' open files on this device that are deleted."""
    sizes: dict[int, int] = {}
    for pid in pids:
        if time.monotonic() > until_s:
            break
        try:
            fds = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for fd in fds:
            try:
                info = os.stat(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            if info.st_dev == device and info.st_nlink == 0 and stat.S_ISREG(info.st_mode):
                sizes[info.st_ino] = info.st_blocks * _BLOCK
    return sum(sizes.values())
