"""Runs inside a box: the sessions sensor with its delay locks, and the inhibitor, driven by a line of JSON each way.

Usage: python -m support.box_probe. Requests: {"do": "take", "why": …} | {"do": "release"} | {"do": "release_delay"} |
{"do": "state"}. Every answer is the state after it, with "said" (the words) or "refused".
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from supervisor.config.schema import PresenceSettings
from supervisor.daemon.inhibitor import Inhibitor, InhibitRefused, ReleaseFailed
from supervisor.linux.clock import SystemClock
from supervisor.linux.dbus import SystemBus
from supervisor.sensors.presence.logind import Sessions

if TYPE_CHECKING:
    from support.sysbox import SysBox


class Probe:
    """The other end, outside: starts the probe inside and speaks to it."""

    def __init__(self, box: SysBox, user: str | None = None) -> None:
        self._process: subprocess.Popen[str] = box.popen(
            box.python, "-m", "support.box_probe", user=user,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        self.pid_inside = self.do("state")["pid"]

    def do(self, what: str, **more: Any) -> dict[str, Any]:
        """One request and its answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the probe died: {self._process.communicate()[1]}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def state(self) -> dict[str, Any]:
        return self.do("state")

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _, complaints = self._process.communicate()
        assert not complaints, complaints


async def _serve() -> None:
    bus = SystemBus()
    clock = SystemClock()
    sessions = Sessions(bus, clock, PresenceSettings(), max_age_s=80.0)
    inhibitor = Inhibitor(bus, "required")
    await sessions.start(lambda: None)
    requests = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    while line := await requests.readline():
        request = json.loads(line)
        answer: dict[str, Any] = {}
        try:
            if request["do"] == "take":
                answer["said"] = await inhibitor.take(request["why"])
            elif request["do"] == "release":
                answer["said"] = await inhibitor.release()
            elif request["do"] == "release_delay":
                sessions.release_delay()
        except (InhibitRefused, ReleaseFailed) as error:
            answer["refused"] = str(error)
        seen = sessions.latest(clock.now_s())
        answer |= {
            "pid": os.getpid(), "held": inhibitor.held, "lost": inhibitor.lost, "going_down": sessions.going_down,
            "delay_error": sessions.delay_error, "delay_max_s": sessions.delay_max_s,
            "error": seen.error, "present": seen.present, "sign": seen.sign,
        }
        print(json.dumps(answer), flush=True)
    await sessions.stop()
    await bus.stop()


if __name__ == "__main__":
    asyncio.run(_serve())
