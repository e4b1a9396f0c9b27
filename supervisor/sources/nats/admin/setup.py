"""Makes a fleet's streams and consumers, or brings them in step with streams.json (`deploy/fleet/setup`).

May be run again at any time; it deletes nothing. Needs the rights of the user `admin`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from supervisor.sources.errors import RequestError
from supervisor.sources.nats.connection import Connection
from supervisor.sources.nats.errors import Refused

DEFINITIONS: Final = Path(__file__).with_name("streams.json")
NO_SUCH: Final = 404


class NoDefinitions(Exception):
    """The file does not define streams and consumers; one line."""


def read(file: Path) -> dict[str, Any]:
    """What the file defines.

    Raises:
        NoDefinitions: it cannot be read, or is no such file.
    """
    try:
        wanted: dict[str, Any] = json.loads(file.read_text())
        sound = all(isinstance(one["name"], str) for one in wanted["streams"]) and all(
            isinstance(one["stream"], str) and isinstance(one["durable_name"], str) for one in wanted["consumers"]
        )
    except OSError as error:
        raise NoDefinitions(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError, TypeError, KeyError):
        sound = False
    if not sound:
        raise NoDefinitions(f"{file}: defines no streams and consumers; {DEFINITIONS} shows the form")
    return wanted


async def set_up(
    wire: Connection, replicas: int = 1, *, wanted: Mapping[str, Any] | None = None, consumer: Mapping[str, Any] | None = None
) -> list[str]:
    """Make or change them; a line for each. `consumer` is laid over every consumer of tasks.

    Raises:
        RequestError: the server did not, and why.
    """
    wanted = wanted or read(DEFINITIONS)
    lines = [await _stream(wire, {**stream, "num_replicas": replicas}) for stream in wanted["streams"]]
    for one in wanted["consumers"]:
        settings = {**one, **(consumer or {} if one["stream"] == "RAE_TASKS" else {})}
        stream = settings.pop("stream")
        await wire.api(
            f"CONSUMER.DURABLE.CREATE.{stream}.{settings['durable_name']}", {"stream_name": stream, "config": settings}
        )
        lines.append(f"consumer {settings['durable_name']} of {stream}")
    return lines


async def _stream(wire: Connection, settings: Mapping[str, Any]) -> str:
    name = settings["name"]
    try:
        await wire.api(f"STREAM.INFO.{name}")
        verb = "UPDATE"
    except Refused as missing:
        if missing.status != NO_SUCH:
            raise
        verb = "CREATE"
    await wire.api(f"STREAM.{verb}.{name}", settings)
    return f"stream {name}, {settings['num_replicas']} replica(s)"


def main(argv: Sequence[str]) -> int:
    """`python -m supervisor.sources.nats.admin.setup --server URL [--replicas 3]`."""
    import argparse

    from supervisor.sources.nats.admin.access import AccessError, add_arguments, server_of

    parser = argparse.ArgumentParser(prog="deploy/fleet/setup", description="Make a fleet's streams and consumers.")
    add_arguments(parser)
    parser.add_argument("--replicas", type=int, choices=(1, 3, 5), default=1, help="copies of each stream: 3 for three servers")
    parser.add_argument("--file", type=Path, default=DEFINITIONS, help="the definitions")
    given = parser.parse_args(argv)

    async def work() -> list[str]:
        wanted = read(given.file)
        wire = Connection(server_of(given.server, given.user, given.password_file, given.ca_file), name="rae-node fleet setup")
        await wire.open()
        try:
            return await set_up(wire, given.replicas, wanted=wanted)
        finally:
            await wire.close()

    try:
        lines = asyncio.run(work())
    except NoDefinitions as wrong:
        sys.stderr.write(f"--file: {wrong}\n")
        return 1
    except (RequestError, AccessError) as trouble:
        sys.stderr.write(f"{trouble}\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
