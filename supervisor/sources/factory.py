"""Makes the source that `control.source` names."""

from __future__ import annotations

import os
from typing import Any, Final

from supervisor.config.load import Config
from supervisor.linux.clock import Clock
from supervisor.sources.base import Source, SourceEvents, SourceSettings

# This run of the daemon. A server that looks at it can take back what it handed to an earlier run.
RUN_ID: Final = os.urandom(8).hex()


def make_source(config: Config, clock: Clock, token: str | None, events: SourceEvents) -> Source:
    """The source that `control.source` names. `token`: the control node's key."""
    execution = config.runtime.execution
    settings = SourceSettings(
        control=config.control,
        node_id=config.node_id,
        state_dir=config.paths.state,
        heartbeat_interval_s=execution.heartbeat_interval_sec,
        poll_interval_s=execution.poll_interval_sec,
        retry_on_disconnect=execution.retry_on_disconnect,
        on_preempt={name: task_type.on_preempt for name, task_type in config.node.tasks.items()},
        capabilities=capabilities(config),
        token=token,
        wake=config.node.work.wake,
    )
    if config.node.control.source == "nats":
        from supervisor.sources.nats.source import NatsSource

        return NatsSource(settings, clock, events)
    from supervisor.sources.rae.source import RaeSource

    return RaeSource(settings, clock, events)


def capabilities(config: Config) -> dict[str, Any]:
    """What the node registers with: nothing that changes while it runs, nothing about its user."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "task_types": sorted(config.node.tasks),
        "cpu_count": os.cpu_count() or 1,
        "ram_gb": round(memory / (1 << 30), 1),
        "gpu": config.node.gpu.presence != "none",
        "life": RUN_ID,
    }
