"""All sensors, made from the configuration, with the observer over them: for the daemon, and for one look without it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from states.observation import NEVER, Host, Reading
from supervisor.config.load import Config
from supervisor.config.schedule import in_hours
from supervisor.linux.clock import Clock
from supervisor.linux.dbus import SystemBus
from supervisor.sensors.base import NoOwnTask, OwnTask, PresenceSensor, SleepLock, Wake
from supervisor.sensors.gpu.lent import Gpus
from supervisor.sensors.gpu.poller import Setup
from supervisor.sensors.host.host import HostSensor
from supervisor.sensors.host.metered import Metered
from supervisor.sensors.observer import Observer
from supervisor.sensors.presence.agent_reports import Desktop
from supervisor.sensors.presence.idle_detect import IdleDetect
from supervisor.sensors.presence.input import InputDevices
from supervisor.sensors.presence.logind import Sessions
from supervisor.sensors.presence.terminals import Terminals

START_S: Final = 3.0


def _local(clock: Clock) -> time.struct_time:
    """The local time of here and now: machines travel, and a process asks for its zone once, unless it is made to."""
    time.tzset()
    return time.localtime(clock.wall_s())


class SensorSet:
    """All sensors of a configuration, and the observer over them; also used for one look without a daemon.

    `daemon`: hold logind's delay locks, and count the start as a sign of the person: what only tells events (a game, a
    switch of sessions) was not seen before it.
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
        self.config = config
        self.bus = bus or SystemBus()
        self._sleep_lock = sleep_lock
        own_task = own_task or NoOwnTask()
        presence: list[PresenceSensor] = []
        self.desktop = Desktop(
            clock,
            config.node.presence,
            owner=lambda session: self.sessions.owner(session),
            name_of=lambda uid: self.sessions.name_of(uid),
        )
        self.sessions = Sessions(
            self.bus, clock, config.node.presence, delay_locks=daemon, start_is_sign=daemon, proof=self.desktop.proof
        )
        if config.node.presence.sessions:
            presence += [self.sessions, self.desktop]
        if config.node.presence.terminals:
            presence.append(Terminals(clock))
        self.input: InputDevices | None = None
        if (setting := config.node.presence).input != "off":
            self.input = InputDevices(
                clock,
                required=setting.input == "required" or not presence,  # alone, it must not take "none" for "nobody"
                dead_zone=setting.gamepad_dead_zone_percent / 100,
                ignore_bumps=setting.ignore_bumps,
            )
            presence += [self.input, IdleDetect(clock)]
        self.gpu = Gpus(Setup(clock, config.node.gpu, own_task.pids, config.limits.max_age_gpu_s))
        self.host = HostSensor(
            clock,
            config.node.host,
            own_task.cpu_s,
            in_hours=lambda: in_hours(config.node.work, _local(clock)),
            going_down=lambda: self.sessions.going_down,
            own_pids=own_task.pids,
            metered=None if config.node.host.allow_metered else Metered(self.bus),
        )
        first_sign_s = clock.now_s() if daemon else NEVER
        settle_s = config.node.work.settle_sec if daemon else 0.0
        self.observer = Observer(presence, self.gpu.latest, self.host.cpu, self._host, first_sign_s, settle_s)
        self._starting: list[asyncio.Task[None]] = []

    def _host(self, now_s: float) -> Reading[Host]:
        if self._sleep_lock is not None and (lost := self._sleep_lock.lost):
            return Reading(Host(fit=False, reason=lost), "", "logind", now_s)  # the machine may fall asleep under the task
        return self.host.host(now_s)

    async def start(self, wake: Wake, patience_s: float = START_S) -> None:
        """Start all sensors side by side; returns when all have looked, or after `patience_s` seconds: a sensor that
        is not up yet is unknown until it is, and wakes the loop then."""
        jobs = [self.sessions.start(wake), self.gpu.start(wake), self.host.start(wake)]
        jobs += [s.start(wake) for s in self.observer.presence if s is not self.sessions]
        self._starting = [asyncio.ensure_future(job) for job in jobs]
        await asyncio.wait(self._starting, timeout=patience_s)

    async def stop(self) -> None:
        """Let go of everything."""
        for job in self._starting:
            job.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        jobs = [self.sessions.stop(), self.gpu.stop(), self.host.stop()]
        jobs += [s.stop() for s in self.observer.presence if s is not self.sessions]
        await asyncio.gather(*jobs, return_exceptions=True)
