"""The loop: one inbox; look → propose → perform → commit; tell systemd. Events only wake, what counts is the look after.

Only here do observer, lifecycle and performer meet.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from transitions import MachineError

from states.effects import Effect
from states.guards import gpu_free, hold_left_s
from states.lifecycle import Lifecycle, blocked_by, tell
from states.memory import Memory, State
from states.observation import Link, Observation
from states.telling import reason, status_text, unblock
from supervisor import VERSION
from supervisor.daemon.wiring import Node
from supervisor.journal.decision_log import Journal, task_of
from supervisor.linux.clock import Clock, iso
from supervisor.linux.sd_notify import Notifier
from supervisor.sources.base import Availability

# Seconds between looks when no event comes: with a task in hand, while the CPU's load needs a second sample, and at rest.
BUSY_S: Final = 1.0
UNSEEN_S: Final = 0.6
REST_S: Final = 28.0
VETO_PAUSE_S: Final = 60.0
# Seconds that an orderly stop waits for a process that will not die, or for the answer to a poll in flight.
LEAVE_S: Final = 5.0


class InvariantBroken(Exception):
    """What must hold in every state does not: a fault of ours, after which only a new start can be trusted."""


class Daemon:
    """Drives one node until it is told to stop. `node` holds the parts; everything decided is decided in states/."""

    def __init__(self, node: Node, mind: Lifecycle, journal: Journal, clock: Clock, notifier: Notifier) -> None:
        self.node = node
        self.mind = mind
        self.journal = journal
        self._clock = clock
        self._notifier = notifier
        self._inbox = asyncio.Event()
        self._next_poll_s = 0.0
        self._vetoes = 0
        now_s = clock.now_s()
        # Nothing is known before the first look; whoever asks that early gets just that.
        self._last = Observation(now_s, node.will.automation(now_s))
        self._leave_by_s = 0.0
        self._reloading = False
        node.describe = self.brief

    def wake(self) -> None:
        """Something may have changed: look soon. Cheap, and may be called at any time from the loop's thread."""
        self._inbox.set()

    def stop(self, why: str) -> None:
        """Stop in order: out of RUNNING, hand back, OFFLINE."""
        if not self.node.will.stopping:
            self.node.will.stopping = why
            self._notifier.stopping()
        self.wake()

    def reload(self) -> None:
        """SIGHUP: read the files again, and tell systemd so."""
        self._notifier.reloading()
        self._reloading = True
        self.node.reload()

    def pause(self, request: dict[str, Any]) -> dict[str, Any]:
        """The operator's word: lend nothing until `until` (seconds since the epoch), or until resumed (None); with
        `after_task`, from the end of the task in hand on.

        Raises:
            ValueError: `until` is no time in the future.
        """
        until, after_task = request.get("until"), request.get("after_task", False)
        if until is not None and (isinstance(until, bool) or not isinstance(until, int | float)):
            raise ValueError(f"until: found {until!r:.40}, allowed: seconds since the epoch, or null")
        if not isinstance(after_task, bool):
            raise ValueError(f"after_task: found {after_task!r:.40}, allowed: true or false")
        return self._word(
            "pause", lambda: self.node.will.pause(until, "", after_task=after_task), after_task=after_task or None
        )

    def resume(self, _request: dict[str, Any]) -> dict[str, Any]:
        """The operator's word: the pause is over, and a link that was given up is tried again (R21)."""
        self.node.source.resume()
        self._poll_soon()
        return self._word("resume", self.node.will.resume)

    def _word(self, word: str, obey: Callable[[], None], **more: Any) -> dict[str, Any]:
        try:
            obey()
            trouble = ""
        except OSError as error:
            trouble = f"not kept over a restart: {error.filename}: {error.strerror}"
        until = self.node.will.paused_end()
        more = {name: value for name, value in {**more, "trouble": trouble}.items() if value}
        self.event("operator", {"word": word, "until": until, **more})
        self.wake()
        automation = self.node.will.automation(self._clock.now_s())
        status = (self.node.will.finishing_words() or "the node is on") if automation.on else automation.reason
        return {"status": status + (f" ({trouble})" if trouble else "")}

    def _poll_soon(self) -> None:
        """What kept tasks from starting may be mended: no pause for it any more."""
        if self._vetoes:
            self._next_poll_s, self._vetoes = 0.0, 0

    def event(self, kind: str, fields: dict[str, Any]) -> None:
        """Something worth a line in the journal that no tick decided: the link, the configuration, the operator."""
        if kind == "config":
            self.journal.config(fields.get("limits"), fields.get("problem", ""))
        else:
            self.journal.write(kind, **fields)

    async def run(self) -> None:
        """Until stopped, and nothing of ours is left to stop."""
        first = True
        while True:
            fired = await self.tick()
            if first:
                self._notifier.ready(self.status_line())
                await self.node.connect()
                first = False
            if self._may_leave(fired):
                return
            if not fired:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._wait_s()):
                        await self._inbox.wait()
            self._inbox.clear()

    def _may_leave(self, fired: bool) -> bool:
        """Told to stop, in DISABLED, and nothing is left to stop, hand back or wait for; or patience is over."""
        if not self.node.will.stopping or fired or self.mind.state is not State.DISABLED:
            return False
        self._leave_by_s = self._leave_by_s or self._clock.now_s() + LEAVE_S
        return (self.node.slot.empty and not self.mind.memory.owed) or self._clock.now_s() >= self._leave_by_s

    async def tick(self) -> bool:
        """One whole tick; True when a row fired, so that the next follows at once."""
        performer = self.node.performer
        await self.node.refresh()
        if self.node.performer is not performer:
            self._poll_soon()
        self.mind.limits = self.node.limits
        now_s = self._clock.now_s()
        observation = self._last = self.node.look(now_s)
        plan = self.mind.propose(observation)
        self.journal.intent(plan)
        outcome = await self.node.performer.perform(plan)
        try:
            memory = self.mind.commit(plan, outcome)
        except MachineError as error:
            raise InvariantBroken(f"a row fired that may not: {error}") from error
        self.journal.outcome(plan, outcome, memory)
        fired = plan.row.id if plan.row is not None and not outcome.vetoed else ""
        if outcome.vetoed:
            self._vetoes += 1
            self._next_poll_s = now_s + VETO_PAUSE_S * min(60, 2 ** (self._vetoes - 1))
            if name := self.node.performer.inhibitor.refused:
                self._notifier.bus_error(name)
        elif any(r.effect is Effect.INHIBIT for r in outcome.results):
            self._vetoes = 0
        if (metrics := self.node.metrics) is not None:
            metrics.tick(plan, outcome, memory, self.mind.limits, self.node.source.status)
        self._ask(fired, memory, now_s)
        self._must_hold(memory)
        self._tell(memory)
        return bool(fired)

    def _must_hold(self, memory: Memory) -> None:
        """Locks are held if and only if RUNNING (R15), and no task lives where tasks are asked for.

        Raises:
            InvariantBroken: one of these is not so, and is not owed either.
        """
        inhibitor, tree = self.node.performer.inhibitor, self.node.slot.tree
        if inhibitor.held and memory.state is not State.RUNNING and Effect.RELEASE not in memory.owed:
            raise InvariantBroken(f"the sleep lock is held in {memory.state}")
        if memory.state is State.RUNNING and not inhibitor.held and inhibitor.needed and not inhibitor.lost:
            raise InvariantBroken("RUNNING without a sleep lock")
        if memory.state is State.READY and tree is not None and tree.alive:
            raise InvariantBroken("a task lives in READY")

    def _ask(self, fired: str, memory: Memory, now_s: float) -> None:
        """Poll when READY and the interval is over, and once more after task-settled (R20)."""
        node = self.node
        if fired == "task-settled" and node.may_ask:
            node.source.ask()
        elif self._poll_is_due(memory, now_s) and node.source.ask():
            self._next_poll_s = now_s + node.poll_interval_s
        ready = memory.state is State.READY
        node.source.announce(Availability.ONLINE if ready else Availability.BUSY)
        observation = self._last
        node.demand(memory.state, observation is not None and gpu_free.judge(observation, memory, self.mind.limits) is True)

    def _poll_is_due(self, memory: Memory, now_s: float) -> bool:
        return memory.state is State.READY and now_s >= self._next_poll_s and self.node.may_ask

    def _tell(self, memory: Memory) -> None:
        if self._reloading:
            self._reloading = False
            self._notifier.ready(self.status_line())
        self._notifier.status(self.status_line())
        self._notifier.watchdog()
        for news in self.node.sensors.observer.news():
            self.journal.presence(memory.state, self.status_line(), news)
        words = "; ".join(filter(None, (self.status_line(), self.node.minder.note())))
        self.journal.alive(memory.state, words, self._last, self.mind.limits)

    def _wait_s(self) -> float:
        """Seconds until the next look is due by itself."""
        memory, observation = self.mind.memory, self._last
        busy = memory.state is State.RUNNING or memory.owed or self.node.slot.in_hand
        wait_s = BUSY_S if busy else UNSEEN_S if observation.cpu.value is None else REST_S
        for verdict in blocked_by(observation, memory, self.mind.limits):
            if verdict.wait_s:
                wait_s = min(wait_s, verdict.wait_s)
        if left_s := hold_left_s(observation, memory, self.mind.limits):
            wait_s = min(wait_s, left_s)
        if (due_s := self.node.sensors.observer.due_s(self._clock.now_s())) is not None:
            wait_s = min(wait_s, due_s)
        if memory.state is State.READY and observation.link is Link.UP:
            wait_s = min(wait_s, max(0.0, self._next_poll_s - self._clock.now_s()))
        if self._notifier.watchdog_interval_s is not None:
            wait_s = min(wait_s, self._notifier.watchdog_interval_s)
        return max(wait_s, 0.01)

    @property
    def last(self) -> Observation:
        """The last look, as it was."""
        return self._last

    def status_line(self) -> str:
        """`STATE: reason in words[, time to go]`."""
        return status_text(self._last_now(), self.mind.memory, self.mind.limits)

    def status(self) -> dict[str, Any]:
        """What `rae-node status --json` prints (interface §4)."""
        observation, memory, limits = self._last_now(), self.mind.memory, self.mind.limits
        now_s, wall_s = self._clock.now_s(), self._clock.wall_s()
        link = self.node.source.status
        return {
            "state": memory.state,
            "since": iso(wall_s - (now_s - memory.since_s)),
            "reason": reason(observation, memory, limits),
            "guards": [v.as_dict() for v in tell(observation, memory, limits)],
            "blocked_by": [v.name for v in blocked_by(observation, memory, limits)],
            "unblock": unblock(observation, memory, limits),
            "task": task_of(observation.task),
            "task_usage": self.node.minder.words(),
            "paused_until": self.node.will.paused_end(),
            "source": {
                "kind": self.node.source_kind,
                "url": link.url,
                "link": link.link,
                "since": iso(wall_s - (now_s - link.since_s)),
                "reason": link.reason,
                "next_try_s": None if link.next_try_s is None else max(0.0, round(link.next_try_s - now_s, 1)),
                "dialect": link.dialect,
                "outbox": link.outbox,
                "error": link.error,
                "error_at": None if link.error_s is None else iso(wall_s - (now_s - link.error_s)),
            },
            "version": VERSION,
            "presence": [source.as_dict() for source in self.node.sensors.observer.sources(now_s)],
            "contradictions": self.node.sensors.observer.contradictions(now_s),
            "owed": list(memory.owed),
            "last_row": memory.last_row,
            "recent": [{"time": when, "text": text} for when, text in self.journal.recent],
            "inhibitor": self.node.inhibitor_words(),
            "notes": self.node.notes(
                self.node.minder.note(), self.journal.trouble, self.node.metrics.trouble if self.node.metrics else "",
                *self.node.sensors.observer.contradictions(now_s),
            ),
            "status": self.status_line(),
        }

    def brief(self) -> dict[str, Any]:
        """What a fleet's operator may know: the state, since when, and which guards it waits for; no reading of the person."""
        memory = self.mind.memory
        since = iso(self._clock.wall_s() - (self._clock.now_s() - memory.since_s))
        waits_for = [verdict.name for verdict in blocked_by(self._last_now(), memory, self.mind.limits)]
        return {"state": memory.state, "since": since, "blocked_by": waits_for}

    def _last_now(self) -> Observation:
        """The last look, as old as it is by now."""
        return replace(self._last, now_s=self._clock.now_s(), task=self.node.slot.task())

