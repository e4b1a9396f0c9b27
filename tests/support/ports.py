"""A port for a server that is started later, and maybe again."""

from __future__ import annotations

import secrets
import socket
from typing import Final

FIRST: Final = 20_000
LAST: Final = 32_000  # above, the kernel takes ports for whoever asks for any


def free_port() -> int:
    """One that nobody has, and that nobody is given by chance before it is bound."""
    for _ in range(100):
        port = FIRST + secrets.randbelow(LAST - FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no port from {FIRST} to {LAST} is free")
