"""Asks the control node as the daemon does: name, connection, TLS, key, paths, and a look at its tasks. Changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from supervisor.config.load import Config
from supervisor.config.schema import Control
from supervisor.linux.clock import SystemClock
from supervisor.sources.base import SourceSettings
from supervisor.sources.errors import RequestError
from supervisor.sources.rae.api import RaeApi
from supervisor.sources.rae.transport import Transport
from supervisor.tools.doctor.report import UNATTENDED, Check

NAME: Final = "control node"
ASK_S: Final = 20.0


async def control_node(config: Config) -> Check:
    """The control node answers this node. Nothing is registered, polled for or changed."""
    control = config.control
    if control.source == "nats":
        return await fleet(config)
    fix = "correct what the reason names in node.yaml, or start the control node"
    if control.url == Control().url:
        fix = f"control.url is as shipped ({control.url}): set it to your control node's address"
    transport = Transport(control, SystemClock())
    api = RaeApi(transport, _settings(config))
    try:
        async with asyncio.timeout(ASK_S):
            await api.look()
    except RequestError as error:
        return Check(NAME, UNATTENDED, False, error.reason, fix)
    except TimeoutError:
        return Check(NAME, UNATTENDED, False, f"{transport.url} has not answered within {ASK_S:g} s", fix)
    finally:
        await transport.close()
    key = "takes this node's key" if api.has_key else "asks for no key"
    return Check(NAME, UNATTENDED, True, f"{transport.url} answers (dialect {api.dialect}), and {key}")


async def fleet(config: Config) -> Check:
    """The fleet takes this node's key and has its consumer. No task is asked for, no entry written."""
    from supervisor.sources.nats import subjects
    from supervisor.sources.nats.connection import Connection, Server

    settings, control = _settings(config), config.control
    fix = "correct what the reason names in node.yaml, or see to the fleet (deploy/fleet/README.md)"
    connection = Connection(Server(control.url, config.node_id, ca_file=control.ca_file), name=f"{config.node_id} doctor")
    try:
        async with asyncio.timeout(ASK_S):
            connection.use_password(await settings.key())
            await connection.open()
            await connection.api(f"CONSUMER.INFO.{subjects.TASKS}.{control.nats.consumer}")
    except RequestError as error:
        return Check(NAME, UNATTENDED, False, error.reason, fix)
    except TimeoutError:
        return Check(NAME, UNATTENDED, False, f"{connection.url} has not answered within {ASK_S:g} s", fix)
    finally:
        await connection.close()
    return Check(NAME, UNATTENDED, True, f"{connection.url} answers as a fleet, and has the consumer {control.nats.consumer}")


def task_types(config: Config) -> Check:
    """A node that can run no task type is no use to any control node."""
    names = ", ".join(sorted(config.node.tasks))
    fix = "name one below tasks in node.yaml, with its program; see docs/tasks.md"
    return Check.of("task types", UNATTENDED, "" if names else "node.yaml names no task type", f"this node runs {names}", fix)


def _settings(config: Config) -> SourceSettings:
    return SourceSettings(
        control=config.control, node_id=config.node_id, state_dir=Path("/nonexistent"), heartbeat_interval_s=1.0,
        poll_interval_s=1.0, retry_on_disconnect=False, on_preempt={},
    )  # fmt: skip
