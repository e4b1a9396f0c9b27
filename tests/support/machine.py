"""What an idle daemon sits in: a session of a logind of ours on a real bus, and an NVIDIA GPU that is awake."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from support.login1 import FakeLogin1, PrivateBus, session
from support.nvml_standin import StandIn, build


@asynccontextmanager
async def machine() -> AsyncIterator[tuple[Path, dict[str, str], FakeLogin1]]:
    """(a scratch folder, the environment of what runs there, logind)."""
    with tempfile.TemporaryDirectory() as name, PrivateBus(Path(name)) as bus:
        folder = Path(name)
        logind = await FakeLogin1(bus.address).start()
        logind.sessions["/org/freedesktop/login1/session/_3"] = session()
        (folder / "gpu").mkdir()
        gpu = StandIn(build(folder / "nvml"), folder / "gpu")
        yield folder, {**os.environ, **gpu.env, "DBUS_SYSTEM_BUS_ADDRESS": bus.address}, logind
        await logind.stop()
