"""Makes or updates a fleet's streams and consumers from streams.json. It may run again at any time and deletes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from supervisor.linux.small_files import read_plain
from supervisor.sources.errors import MIB
from supervisor.sources.nats.connection import Connection
from supervisor.sources.nats.errors import Refused

DEFINITIONS: Final = Path(__file__).with_name("streams.json")
NO_SUCH: Final = 404


class NoDefinitions(Exception):
    """The file does not define streams and consumers; one line."""


def read(file: Path) -> dict[str, Any]:
    """The definitions in the file.

    Raises:
        NoDefinitions: it cannot be read, or has another form.
    """
    try:
        wanted: dict[str, Any] = json.loads(read_plain(file, MIB, follow=True))
        names = [one["name"] for one in wanted["streams"]]
        names += [one[key] for one in wanted["consumers"] for key in ("stream", "durable_name")]
        if all(isinstance(name, str) for name in names):
            return wanted
    except OSError as error:
        raise NoDefinitions(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError, TypeError, KeyError):
        pass
    raise NoDefinitions(f"{file}: defines no streams and consumers; {DEFINITIONS} shows the form")


async def set_up(
    connection: Connection,
    replicas: int = 1,
    *,
    wanted: Mapping[str, Any] | None = None,
    consumer: Mapping[str, Any] | None = None,
) -> list[str]:
    """Make or update them; a line for each. The settings in `consumer` replace those of each consumer of tasks."""
    wanted = wanted or read(DEFINITIONS)
    lines = [await _stream(connection, {**stream, "num_replicas": replicas}) for stream in wanted["streams"]]
    for one in wanted["consumers"]:
        settings = {**one, **(consumer or {} if one["stream"] == "RAE_TASKS" else {})}
        stream = settings.pop("stream")
        await connection.api(
            f"CONSUMER.DURABLE.CREATE.{stream}.{settings['durable_name']}", {"stream_name": stream, "config": settings}
        )
        lines.append(f"consumer {settings['durable_name']} of {stream}")
    return lines


async def _stream(connection: Connection, settings: Mapping[str, Any]) -> str:
    name = settings["name"]
    try:
        await connection.api(f"STREAM.INFO.{name}")
        verb = "UPDATE"
    except Refused as missing:
        if missing.status != NO_SUCH:
            raise
        verb = "CREATE"
    await connection.api(f"STREAM.{verb}.{name}", settings)
    return f"stream {name}, {settings['num_replicas']} replica(s)"
