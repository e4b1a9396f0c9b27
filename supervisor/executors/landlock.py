"""A wall between a task and what runs as the same user: by Landlock it can neither trace other processes, so that the
daemon's memory and environment are closed to it, nor, from Linux 6.12 on, signal them (R4). Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import sys

_LIBC = ctypes.PyDLL(None, use_errno=True)
_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # one number on every architecture
_VERSION, _PATH_BENEATH = 1, 1
_REFER = 1 << 13  # renaming between folders: must be handled to be allowed, and is the one thing that we handle
_SCOPE_SIGNAL = 1 << 1
_SCOPED_ABI, _REFER_ABI = 6, 2


def abi() -> int:
    """The kernel's version of it; 0 where there is none, or it is forbidden."""
    found: int = _LIBC.syscall(_CREATE, None, 0, _VERSION)
    return max(0, found)


def describe(found: int) -> str:
    """What a task may do to other processes of its user, for `doctor`."""
    if found >= _SCOPED_ABI:
        return "by Landlock a task can neither trace nor signal what is not its own"
    weaker = "a task can signal what runs as the same user"
    return f"{weaker} (Landlock keeps it from tracing)" if found >= _REFER_ABI else f"{weaker}, and trace it (no Landlock)"


def enter() -> None:
    """Put this process, and all that descend from it, behind the wall, as far as the kernel can; needs no_new_privs."""
    found = abi()
    if found >= _SCOPED_ABI:  # struct landlock_ruleset_attr: handled_access_fs, handled_access_net, scoped
        attributes, size = (ctypes.c_uint64 * 3)(0, 0, _SCOPE_SIGNAL), 24
    elif found >= _REFER_ABI:
        attributes, size = (ctypes.c_uint64 * 3)(_REFER, 0, 0), 8
    else:
        return
    ruleset = _LIBC.syscall(_CREATE, ctypes.byref(attributes), size, 0)
    if ruleset < 0:
        return
    try:
        if found >= _SCOPED_ABI or _allow_everywhere(ruleset):
            _LIBC.syscall(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow_everywhere(ruleset: int) -> bool:
    """Renaming stays as it was."""
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _REFER.to_bytes(8, sys.byteorder) + root.to_bytes(4, sys.byteorder)  # struct landlock_path_beneath_attr
        return bool(_LIBC.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0) == 0)
    finally:
        os.close(root)
