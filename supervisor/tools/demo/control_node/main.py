"""The embedded control node: dialect B in memory, as a process of its own (`rae-node control`), for the first try and tests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys

from supervisor.linux.clock import SystemClock
from supervisor.tools.demo.control_node.api import Api
from supervisor.tools.demo.control_node.server import listen, loopback
from supervisor.tools.demo.control_node.store import REQUEUE_AFTER_S, ControlNode


def parse_listen(text: str) -> tuple[str, int]:
    """The loopback address and the port of `HOST:PORT` or `[HOST]:PORT`.

    Raises:
        ValueError: it is not one; the text says what is wrong.
    """
    match = re.fullmatch(r"\[([0-9a-fA-F:.]+)\]:(\d{1,5})|([^:\[\]]+):(\d{1,5})", text, re.ASCII)
    if match is None or int(match[2] or match[4]) > 65535:
        raise ValueError("expected HOST:PORT")
    return loopback(match[1] or match[3]), int(match[2] or match[4])


def main(address: str, requeue_after_s: float = REQUEUE_AFTER_S) -> int:
    """`rae-node control`: serve on `address` until SIGTERM or SIGINT; the exit status."""
    if not requeue_after_s > 0:
        return _fail(f"--requeue-after: found {requeue_after_s:g}, allowed: a number of seconds > 0", 2)
    try:
        host, port = parse_listen(address)
    except ValueError as error:
        return _fail(f"--listen: found {address!r}, allowed: a loopback address and a port, as 127.0.0.1:8000 ({error})", 2)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        asyncio.run(_until_signal(host, port, ControlNode(SystemClock(), requeue_after_s=requeue_after_s)))
    except OSError as error:
        return _fail(f"--listen: cannot listen on {address}: {os.strerror(error.errno or 0)}; choose another port", 1)
    return 0


async def _until_signal(host: str, port: int, node: ControlNode) -> None:
    server = asyncio.ensure_future(listen(Api(node), host, port, _print_url))
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, server.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await server


def _print_url(url: str) -> None:
    sys.stdout.write(url + "\n")
    sys.stdout.flush()


def _fail(text: str, status: int) -> int:
    sys.stderr.write(text + "\n")
    return status
