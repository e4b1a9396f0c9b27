"""All sensors of a configuration, with the observer over them: for the daemon, and for a look without it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from states.observation import NEVER, Host, Reading
from supervisor.config.load import Config
from supervisor.config.schedule import in_hours
from supervisor.linux.clock import Clock
from supervisor.linux.dbus import SystemBus
from supervisor.sensors.base import OwnTask, PresenceSensor, SleepLock, Wake
from supervisor.sensors.gpu.lent import LentGpus
from supervisor.sensors.gpu.poller import Setup
from supervisor.sensors.host.host import HostSensor
from supervisor.sensors.host.metered import Metered
from supervisor.sensors.host.power import UPower
from supervisor.sensors.observer import Observer
from supervisor.sensors.presence.agent_reports import AgentReports, SessionOwners
from supervisor.sensors.presence.connections import Connections
from supervisor.sensors.presence.idle_detect import IdleDetect
from supervisor.sensors.presence.input import InputDevices
from supervisor.sensors.presence.logind import Sessions
from supervisor.sensors.presence.terminals import Terminals
from supervisor.sensors.presence.unlisted import Unlisted

START_S: Final = 3.0
# How long a load must have been below its limit to count as below it; a load that comes and goes must not switch the node.
SETTLE_S: Final = 10.0


def _local(clock: Clock) -> time.struct_time:
    """The local time. A process reads its time zone only once, but a laptop travels: read it again."""
    time.tzset()
    return time.localtime(clock.wall_s())


class SensorSet:
    """All sensors, and the observer over them.

    Args:
        bus: the system bus; its owner stops it.
        sleep_lock: when it is lost, the machine may fall asleep under the task, so it is not fit.
        daemon: hold logind's delay locks, and count the start as a sign of the person: sources that only report events
            have not seen what was before it.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        own_task: OwnTask | None = None,
        bus: SystemBus | None = None,
        sleep_lock: SleepLock | None = None,
        *,
        daemon: bool = False,
    ) -> None:
        self.bus = bus or SystemBus()
        self._sleep_lock = sleep_lock
        own_pids = own_task.pids if own_task else frozenset
        wanted, owners, connections = config.node.presence, SessionOwners(), Connections()
        exceptions = any((wanted.ignore_users, wanted.ignore_hosts, wanted.ignore_commands, wanted.ignore_units))
        self._terminals = Terminals(clock, owners=owners, exceptions=exceptions)
        self.agent_reports = AgentReports(clock, wanted, owners, config.limits.max_age_person_s)
        self.sessions = Sessions(
            self.bus, clock, wanted, owners,
            max_age_s=config.limits.max_age_person_s, delay_locks=daemon, start_is_sign=daemon, proof=self.agent_reports.proof,
            sees_terminal=self._terminals.sees if wanted.terminals else lambda _: True, connections=connections,
        )  # fmt: skip
        self._unlisted = Unlisted(
            wanted, lambda: self.sessions.known, self.agent_reports, owners, connections, own_pids=own_pids
        )
        self.gpu = LentGpus(Setup(clock, config.node.gpu, own_pids, config.limits.max_age_gpu_s))
        self.host = HostSensor(
            clock,
            config.node.host,
            own_task.cpu_s if own_task else lambda: 0.0,
            in_hours=lambda: in_hours(config.node.work, _local(clock)),
            going_down=lambda: self.sessions.going_down,
            own_pids=own_pids,
            metered=None if config.node.host.allow_metered else Metered(self.bus),
            upower=UPower(self.bus),
        )
        first_sign_s = clock.now_s() if daemon else NEVER
        settle_s = SETTLE_S if daemon else 0.0
        presence = self._presence(config, clock)
        self.observer = Observer(presence, self.gpu.latest, self.host.cpu, self._host, first_sign_s, settle_s)
        self._starting: list[asyncio.Task[None]] = []

    def _presence(self, config: Config, clock: Clock) -> list[PresenceSensor]:
        """Every source of presence that node.yaml switches on. A new source is added here, and nowhere else."""
        wanted = config.node.presence
        found: list[PresenceSensor] = []
        if wanted.sessions:
            found += [self.sessions, self.agent_reports, self._unlisted]
        if wanted.terminals:
            found.append(self._terminals)
        if wanted.input != "off":
            found += [
                InputDevices(
                    clock,
                    required=wanted.input == "required" or not found,  # as the only source it must see the person
                    ignore_bumps=wanted.ignore_bumps,
                    on_lid=self.sessions.lid_moved,
                ),
                IdleDetect(clock),
            ]
        return found

    def _host(self, now_s: float) -> Reading[Host]:
        if self._sleep_lock is not None and (lost := self._sleep_lock.lost):
            return Reading(Host(fit=False, reason=lost), "", "logind", now_s)
        return self.host.host(now_s)

    async def start(self, wake: Wake, patience_s: float = START_S) -> None:
        """Start all sensors side by side. Returns when all have looked, or after `patience_s` seconds: a sensor that is not
        ready by then is unknown until it is, and then calls `wake`."""
        self._starting = [asyncio.ensure_future(sensor.start(wake)) for sensor in self._all()]
        await asyncio.wait(self._starting, timeout=patience_s)

    async def stop(self) -> None:
        for job in self._starting:
            job.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(*(sensor.stop() for sensor in self._all()), return_exceptions=True)

    def _all(self) -> list[PresenceSensor | LentGpus | HostSensor]:
        """Every sensor once. logind is also asked whether the machine is going down, so it is always among them."""
        presence = [sensor for sensor in self.observer.presence if sensor is not self.sessions]
        return [self.sessions, self.gpu, self.host, *presence]
