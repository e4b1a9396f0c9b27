"""A barrier between a task and what runs as the same user, by Landlock: the task cannot trace other processes, so it cannot
read the daemon's memory and environment. From Linux 6.12 on it can neither signal them nor connect to their abstract sockets,
such as the X server's. Where the service may read input devices, or open a GPU that is not lent, the task may not. Standard
library only.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence

_LIBC = ctypes.PyDLL(None, use_errno=True)
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_VERSION, _PATH_BENEATH = 1, 1
_WRITE_FILE, _READ_FILE = 1 << 1, 1 << 2
_REFER = 1 << 13  # renaming between folders: must be handled to be allowed
_SCOPE_ABSTRACT_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1
_SCOPED_ABI, _REFER_ABI = 6, 2
INPUT = "/dev/input"


def abi() -> int:
    """The kernel's Landlock version; 0: there is none, or it is forbidden."""
    version: int = _LIBC.syscall(_CREATE, None, 0, _VERSION)
    return max(0, version)


def summary(version: int) -> str:
    """What a task may do to other processes of its user, for `doctor`."""
    if version >= _SCOPED_ABI:
        return "by Landlock a task can neither trace nor signal what is not its own"
    signals = "a task can signal what runs as the same user"
    return f"{signals} (Landlock keeps it from tracing)" if version >= _REFER_ABI else f"{signals}, and trace it (no Landlock)"


def enter(closed: Sequence[str] = (INPUT,), *, mounts: bool = False) -> None:
    """Restrict this process and its descendants as far as the kernel can. Needs no_new_privs.

    Args:
        closed: files, and folders of files, that become unreadable and unwritable, if they were not already. The service may
            read input devices to see when they were used; a task that may would be a key logger. What is created later beside
            them or the folders above them, such as a new device node, is closed too.
        mounts: what comes next makes mounts, as a sandbox does. A rule about files would forbid that, so there are none.
    """
    version = abi()
    if version < (_SCOPED_ABI if mounts else _REFER_ABI):
        return
    close = [] if mounts else [path for path in closed if _is_open(path)]
    # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped
    handled = _REFER | (_READ_FILE | _WRITE_FILE if close else 0)
    scoped = version >= _SCOPED_ABI
    attributes = (ctypes.c_uint64 * 3)(handled if close or not scoped else 0, 0, _SCOPE_SIGNAL | _SCOPE_ABSTRACT_SOCKET)
    ruleset = _LIBC.syscall(_CREATE, ctypes.byref(attributes), 24 if scoped else 8, 0)
    if ruleset < 0:
        return
    try:
        if not attributes[0] or _allow(ruleset, "/", _REFER):  # renaming stays allowed
            for path in _all_but(close):
                _allow(ruleset, path, _READ_FILE | _WRITE_FILE)
            _LIBC.syscall(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _is_open(path: str) -> bool:
    """This process can read or write it, or something in it."""
    try:
        paths = [entry.path for entry in os.scandir(path)] if os.path.isdir(path) else [path]
    except OSError:
        return False
    return any(os.access(each, os.R_OK) or os.access(each, os.W_OK) for each in paths)


def _all_but(closed: Sequence[str]) -> list[str]:
    """Everything beside the closed paths, and beside each folder above them."""
    above = set()
    for path in closed:
        while path != "/":
            path = os.path.dirname(path)
            above.add(path)
    return [entry.path for folder in above for entry in os.scandir(folder) if entry.path not in above | set(closed)]


def _allow(ruleset: int, path: str, access: int) -> bool:
    """Allow this on a path and below it; not on a path that is gone, nor where a symbolic link leads."""
    try:
        folder = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        rule = access.to_bytes(8, sys.byteorder) + folder.to_bytes(4, sys.byteorder)  # struct landlock_path_beneath_attr
        return bool(_LIBC.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) == 0)
    finally:
        os.close(folder)
