"""Network namespaces joined to ours by cables of their own; they need root and iproute2."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

_COUNT = itertools.count()


@dataclass
class Namespace:
    """A network of its own. Cable n joins `ours[n]` at our interface `cards[n]` to `theirs[n]` at its interface `cablen`."""

    name: str
    cards: list[str] = field(default_factory=list)
    ours: list[str] = field(default_factory=list)
    theirs: list[str] = field(default_factory=list)

    @property
    def prefix(self) -> list[str]:
        """What runs a command there."""
        return ["ip", "netns", "exec", self.name]

    def ip(self, *words: str) -> str:
        """What `ip` says there."""
        return _ip("-n", self.name, *words)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def namespace(cables: int = 1) -> Iterator[Namespace]:
    """One with so many cables, while the context lasts; skips where none can be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    count = next(_COUNT)
    one = Namespace(f"rae{os.getpid()}-{count}")
    taken = _ip("-o", "-4", "addr")
    order = [200 + (os.getpid() + n) % 50 for n in range(50)]  # another run's is passed over
    ten = next(f"10.{n}" for n in order if f" 10.{n}." not in taken)
    try:
        _ip("netns", "add", one.name)
    except subprocess.CalledProcessError as refused:
        pytest.skip(f"no network namespace can be made here: {refused.stderr.strip()}")
    try:
        one.ip("link", "set", "lo", "up")
        for side in range(cables):
            ours, theirs, net = f"ra{os.getpid() % 100000}{count}{side}", f"cable{side}", f"{ten}.{side}"
            _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", one.name)
            _ip("addr", "add", f"{net}.1/24", "dev", ours)
            _ip("link", "set", ours, "up")
            one.ip("addr", "add", f"{net}.2/24", "dev", theirs)
            one.ip("link", "set", theirs, "up")
            one.cards.append(ours)
            one.ours.append(f"{net}.1")
            one.theirs.append(f"{net}.2")
        yield one
    finally:
        subprocess.run(["ip", "netns", "del", one.name], capture_output=True)
