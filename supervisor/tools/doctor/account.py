"""What makes the service's user root's equal, or root: for `doctor`, and for the installer, which runs this file.

`python -m supervisor.tools.doctor.account USER` prints a line for each.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Final

# Groups whose members become root without a password, and how. Not kvm: its virtual machines have none of this one's disks.
ROOTS_EQUAL: Final[Mapping[str, str]] = {
    "docker": "starts containers as root",
    "lxd": "starts containers as root",
    "incus-admin": "starts containers as root",
    "libvirt": "gives virtual machines any disk of this one",
    "libvirtd": "gives virtual machines any disk of this one",
    "disk": "reads and writes every disk",
    "kmem": "reads the kernel's memory",
    "shadow": "reads every password's hash",
}
SUDO_S: Final = 10.0


def is_root(user: str) -> bool:
    """The user, by name or number, is root. A unit without a user runs as root."""
    try:
        return not user or pwd.getpwnam(user).pw_uid == 0
    except KeyError:
        return user.isdecimal() and int(user) == 0


def roots_equal(user: str, more_groups: Iterable[str] = ()) -> list[str]:
    """What makes `user` root's equal, a line each, with what to do. `more_groups`: groups that the unit adds."""
    lines = []
    unit, own = set(more_groups), _groups(user)
    for name in sorted((own | unit) & ROOTS_EQUAL.keys()):
        leave = f"`gpasswd -d {user} {name}`" if name in own else "take it out of SupplementaryGroups="
        why = f"which {ROOTS_EQUAL[name]}: as good as root"
        lines.append(f"{user} is in the group {name}, {why}; {leave}, or install with --user rae-node")
    if _sudo_without_password(user):
        lines.append(f"sudo asks {user} for no password: as good as root; change that, or install with --user rae-node")
    return lines


def _groups(user: str) -> set[str]:
    try:
        ids = os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
    except KeyError:
        return set()
    found = set()
    for number in ids:
        with contextlib.suppress(KeyError):
            found.add(grp.getgrgid(number).gr_name)
    return found


def _sudo_without_password(user: str) -> bool:
    """What sudo itself says. Only root may ask for another user."""
    whose = ["-U", user] if os.geteuid() == 0 else []
    try:
        done = subprocess.run(
            ["sudo", "-n", *whose, "-l"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=SUDO_S,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "NOPASSWD:" in done.stdout


if __name__ == "__main__":
    sys.stdout.writelines(line + "\n" for line in roots_equal(sys.argv[1]))
