"""The loop: look → propose → perform → commit, then tell systemd. Events only wake it; the look that follows counts.

Observer, lifecycle and performer meet only here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from transitions import MachineError

from states.effects import Effect
from states.guards import gpu_free, hold_left_s, user_away
from states.lifecycle import Lifecycle, Outcome, Plan, blocked_by, verdicts
from states.memory import Memory, State
from states.observation import Link
from states.status import cause, next_step, reason, status_text, unblock
from supervisor import VERSION
from supervisor.daemon.desk_view import DeskView
from supervisor.daemon.performer import HAND_BACK_REASONS
from supervisor.daemon.wiring import Node
from supervisor.journal.decision_log import Journal, task_of
from supervisor.linux.bounded import wait_for_event
from supervisor.linux.clock import Clock, iso
from supervisor.linux.sd_notify import Notifier
from supervisor.sources.base import Availability

# Seconds between looks when no event comes: with a task in hand, while the CPU load needs a second sample, and at rest.
BUSY_S: Final = 1.0
UNSEEN_S: Final = 0.6
REST_S: Final = 28.0
VETO_PAUSE_S: Final = 60.0
# Seconds that an orderly stop waits for a process that will not die, or for the answer to a poll in flight.
LEAVE_S: Final = 5.0


class InvariantBroken(Exception):
    """What must hold in every state does not hold. It is a fault of ours; only a new start can be trusted."""


class Inbox:
    """Wakes the loop. Made before the parts that wake it."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Something may have changed: look soon. Cheap; callable at any time from the loop's thread."""
        self._event.set()

    async def wait(self, timeout_s: float) -> None:
        """Until something wakes the loop, or the time is over."""
        await wait_for_event(self._event, timeout_s)

    def clear(self) -> None:
        """The next look is about to see everything up to now."""
        self._event.clear()


class Daemon:
    """Drives one node until it must stop. `node` holds the parts; `states` decides everything.

    Args:
        go_first: told whether a person may have to be answered before all other programs, see Precedence.request.
        announce: gets what the people at the desk see, after each tick.
    """

    def __init__(
        self,
        node: Node,
        lifecycle: Lifecycle,
        journal: Journal,
        clock: Clock,
        notifier: Notifier,
        inbox: Inbox,
        go_first: Callable[[bool], object] = bool,
        announce: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self.node = node
        self.lifecycle = lifecycle
        self.journal = journal
        self._clock = clock
        self._notifier = notifier
        self._inbox = inbox
        self._go_first = go_first
        self._announce = announce
        self._desk_view = DeskView(clock.now_s())
        self._next_poll_s = 0.0
        self._poll_refused = False
        self._vetoes = 0
        self._leave_by_s = 0.0
        self._reloading = False

    def wake(self) -> None:
        """See Inbox."""
        self._inbox.wake()

    def stop(self, why: str) -> None:
        """Stop in order: leave RUNNING, hand the task back, say OFFLINE."""
        if not self.node.automation.stopping:
            self.node.automation.stopping = why
            self._notifier.stopping()
        self._inbox.wake()

    def reload(self) -> None:
        """SIGHUP: read the files again, and tell systemd so."""
        self._notifier.reloading()
        self._reloading = True
        self.node.reload()

    def pause(self, request: dict[str, Any], by: str = "") -> dict[str, Any]:
        """Lend nothing until `until` (seconds since the epoch), for `for_s` seconds, or until resumed (both None). With
        `after_task`, from the end of the task in hand on. `by`: who at the desk says so; empty: the operator.

        Raises:
            ValueError: the end is not in the future, or somebody else has paused the node.
        """
        self._check_pauser(by)
        after_task = request.get("after_task", False)
        until = _number(request, "until", "seconds since the epoch")
        for_s = _number(request, "for_s", "seconds")
        if not isinstance(after_task, bool):
            raise ValueError(f"after_task: found {after_task!r:.40}, allowed: true or false")
        more = {"after_task": True} if after_task else {}
        return self._obey("pause", by, lambda: self.node.automation.pause(until, by, for_s=for_s, after_task=after_task), more)

    def resume(self, by: str = "") -> dict[str, Any]:
        """The pause is over, and what was given up is tried again. `by`: as for `pause`.

        Raises:
            ValueError: somebody else has paused the node.
        """
        self._check_pauser(by)
        self.node.source.resume()
        self.node.try_again()
        self._poll_soon()
        return self._obey("resume", by, self.node.automation.resume, {})

    def _check_pauser(self, by: str) -> None:
        """Who sits at the machine may end or change their own pause only."""
        automation = self.node.automation
        if by and automation.paused and automation.paused_by != by:
            raise ValueError(f"{automation.paused_by or 'the operator'} has paused the node; it stays paused")

    def _obey(self, command: str, by: str, action: Callable[[], None], more: dict[str, Any]) -> dict[str, Any]:
        try:
            action()
        except OSError as error:
            more = {**more, "trouble": f"not kept over a restart: {error.filename}: {error.strerror}"}
        switch = self.node.automation
        who = {"by": by} if by else {}
        self.journal.write("operator", word=command, until=switch.paused_end(), **who, **more)
        self._inbox.wake()
        reading = switch.reading(self._clock.now_s(), task_in_hand=self.node.attempts.current is not None)
        status = (switch.note or "the node is on") if reading.on else reading.reason
        return {"status": status + (f" ({more['trouble']})" if "trouble" in more else "")}

    def _poll_soon(self) -> None:
        """What kept tasks from starting may be repaired: no longer pause for it."""
        if self._vetoes:
            self._next_poll_s, self._vetoes = 0.0, 0

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
                wait_s = self._wait_s()
                self.node.look_due_s = self._clock.now_s() + wait_s
                await self._inbox.wait(wait_s)
            self._inbox.clear()

    def _may_leave(self, fired: bool) -> bool:
        """The node must stop, is DISABLED, and nothing is left to stop or hand back; or the time for that is over. A poll in
        flight is for the source to end."""
        if not self.node.automation.stopping or fired or self.lifecycle.state is not State.DISABLED:
            return False
        self._leave_by_s = self._leave_by_s or self._clock.now_s() + LEAVE_S
        return (not self.node.attempts.in_hand and not self.lifecycle.memory.owed) or self._clock.now_s() >= self._leave_by_s

    async def tick(self) -> bool:
        """One whole tick. True: a row fired, so the next tick follows at once."""
        plan = await self._decide()
        self.journal.intent(plan)
        outcome = await self._perform(plan)
        try:
            memory = self.lifecycle.commit(plan, outcome)
        except MachineError as error:
            raise InvariantBroken(f"a row fired that may not: {error}") from error
        self.journal.outcome(plan, outcome, memory)
        fired = plan.row.id if plan.row is not None and not outcome.vetoed else ""
        self._count_vetoes(plan, outcome)
        if (metrics := self.node.metrics) is not None:
            metrics.tick(plan, outcome, memory, self.lifecycle.limits, self.node.source.status)
        self._ask(fired, memory, plan.observation.now_s)
        self._check_invariants(memory)
        self._go_first(memory.state is State.RUNNING)
        self._report(memory)
        return bool(fired)

    async def _decide(self) -> Plan:
        """The plan of this tick. The person comes first: while a task runs, the first look comes before anything that may
        take time, and a task that must stop is frozen before the journal is written."""
        node = self.node
        if node.attempts.process is not None and node.performer.begin(plan := self._look()):
            return plan
        performer = node.performer
        await node.refresh()
        if node.performer is not performer:
            self._poll_soon()
        self.lifecycle.limits = node.limits
        plan = self._look()
        node.performer.begin(plan)
        return plan

    async def _perform(self, plan: Plan) -> Outcome:
        """Do what the plan says. A person who comes back while a task is being started does not wait for the start."""
        if Effect.START not in plan.effects:
            return await self.node.performer.perform(plan)
        performing = asyncio.ensure_future(self.node.performer.perform(plan))
        try:
            while True:
                self._inbox.clear()
                woken = asyncio.ensure_future(self._inbox.wait(BUSY_S))
                await asyncio.wait([performing, woken], return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                if performing.done():
                    return performing.result()
                observation = self.node.look(self._clock.now_s())
                if user_away.judge(observation, self.lifecycle.memory, self.lifecycle.limits) is not True:
                    self.node.performer.call_off_start(HAND_BACK_REASONS["user-returned"])
        finally:
            performing.cancel()

    def _look(self) -> Plan:
        return self.lifecycle.propose(self.node.look(self._clock.now_s()))

    def _count_vetoes(self, plan: Plan, outcome: Outcome) -> None:
        if outcome.vetoed:
            self._vetoes += 1
            self._next_poll_s = plan.observation.now_s + VETO_PAUSE_S * min(60, 2 ** (self._vetoes - 1))
            if name := self.node.performer.inhibitor.refused:
                self._notifier.bus_error(name)
        elif any(r.effect is Effect.INHIBIT for r in outcome.results):
            self._vetoes = 0

    def _check_invariants(self, memory: Memory) -> None:
        """Locks are held if and only if RUNNING, and no task lives where tasks are asked for.

        Raises:
            InvariantBroken: one of these is not so, and is not owed either.
        """
        inhibitor, process = self.node.performer.inhibitor, self.node.attempts.process
        if inhibitor.held and memory.state is not State.RUNNING and Effect.RELEASE not in memory.owed:
            raise InvariantBroken(f"the sleep lock is held in {memory.state}")
        if memory.state is State.RUNNING and not inhibitor.held and inhibitor.needed and not inhibitor.lost:
            raise InvariantBroken("RUNNING without a sleep lock")
        if memory.state is State.READY and process is not None and process.alive:
            raise InvariantBroken("a task lives in READY")

    def _ask(self, fired: str, memory: Memory, now_s: float) -> None:
        """Poll when READY and the interval is over, and once more after task-settled."""
        node, self._poll_refused = self.node, False
        if fired == "task-settled" and node.may_ask:
            node.source.ask()
        elif self._poll_is_due(memory, now_s):
            if node.source.ask():
                self._next_poll_s = now_s + node.config.runtime.execution.poll_interval_sec
            else:
                self._poll_refused = True
        node.source.announce(Availability.ONLINE if memory.state is State.READY else Availability.BUSY)
        node.demand(memory.state, gpu_free.judge(node.last, memory, self.lifecycle.limits) is True)

    def _poll_is_due(self, memory: Memory, now_s: float) -> bool:
        return memory.state is State.READY and now_s >= self._next_poll_s and self.node.may_ask

    def _report(self, memory: Memory) -> None:
        """To systemd and the journal."""
        status = self.status_line()
        if self._reloading:
            self._reloading = False
            self._notifier.ready(status)
        self._notifier.status(status)
        self._notifier.watchdog()
        for news in self.node.sensors.observer.news():
            self.journal.presence(memory.state, status, news)
        for text in self.node.news():
            self.journal.note(memory.state, status, text)
        text = "; ".join(filter(None, (status, self.node.task_note())))
        self.journal.alive(memory.state, text, self.node.last, self.lifecycle.limits)
        self._announce(self._desk_view.fields(self.node, memory, self._clock.now_s()))

    def _wait_s(self) -> float:
        """Seconds until the next look is due."""
        memory, observation = self.lifecycle.memory, self.node.last
        busy = memory.state is State.RUNNING or memory.owed or self.node.attempts.in_hand
        wait_s = BUSY_S if busy else UNSEEN_S if observation.cpu.value is None else REST_S
        for verdict in blocked_by(observation, memory, self.lifecycle.limits):
            if verdict.wait_s:
                wait_s = min(wait_s, verdict.wait_s)
        if left_s := hold_left_s(observation, memory, self.lifecycle.limits):
            wait_s = min(wait_s, left_s)
        if (due_s := self.node.sensors.observer.due_s(self._clock.now_s())) is not None:
            wait_s = min(wait_s, due_s)
        may_poll = memory.state is State.READY and observation.link is Link.UP and not self._poll_refused
        if may_poll:  # a source that refuses a poll wakes the loop when it takes one
            wait_s = min(wait_s, max(0.0, self._next_poll_s - self._clock.now_s()))
        if self._leave_by_s:
            wait_s = min(wait_s, self._leave_by_s - self._clock.now_s())
        if self._notifier.watchdog_interval_s is not None:
            wait_s = min(wait_s, self._notifier.watchdog_interval_s)
        return max(wait_s, 0.01)

    def status_line(self) -> str:
        """`STATE: reason[, time to go]`."""
        return status_text(self.node.last_now(), self.lifecycle.memory, self.node.limits_now())

    def status(self, *, presence: bool = True) -> dict[str, Any]:
        """What `rae-node status --json` prints. `presence`: with the signs of the person, source by source."""
        node, memory, limits = self.node, self.lifecycle.memory, self.node.limits_now()
        observation, observer, attempt = node.last_now(), node.sensors.observer, node.attempts.current
        now_s, wall_s = self._clock.now_s(), self._clock.wall_s()
        link, conflicts = node.source.status, observer.contradictions(now_s) if presence else []
        troubles = (self.journal.trouble, node.metrics.trouble if node.metrics else "")

        def when(at_s: float) -> str:
            return iso(wall_s - (now_s - at_s))

        return {
            "state": memory.state,
            "since": when(memory.since_s),
            "reason": reason(observation, memory, limits),
            "cause": cause(observation, memory, limits),
            "next": next_step(observation, memory, limits),
            "last": self._last(when),
            "guards": [v.as_dict() for v in verdicts(observation, memory, limits)],
            "blocked_by": [v.name for v in blocked_by(observation, memory, limits)],
            "unblock": unblock(observation, memory, limits),
            "task": task_of(observation.task),
            "task_usage": None if attempt is None else attempt.usage(),
            "paused_until": node.automation.first.paused_end(),
            "source": {
                "kind": node.config.node.control.source,
                "url": link.url,
                "link": link.link,
                "since": when(link.since_s),
                "reason": link.reason,
                "next_try_s": None if link.next_try_s is None else max(0.0, round(link.next_try_s - now_s, 1)),
                "dialect": link.dialect,
                "outbox": link.outbox,
                "lost_polls": link.lost_polls,
                "lost_poll_at": None if link.lost_poll_s is None else when(link.lost_poll_s),
                "error": link.error,
                "error_at": None if link.error_s is None else when(link.error_s),
            },
            "version": VERSION,
            "presence": [source.as_dict() for source in observer.sources(now_s)] if presence else [],
            "contradictions": conflicts,
            "owed": list(memory.owed),
            "last_row": memory.last_row,
            "recent": [{"time": at, "text": text} for at, text in self.journal.recent] if presence else [],
            "inhibitor": node.inhibitor_state(),
            "notes": [*node.notes(), *filter(None, troubles), *conflicts],
            "status": self.status_line(),
        }

    def _last(self, when: Callable[[float], str]) -> dict[str, str] | None:
        if (last := self.node.attempts.last) is None:
            return None
        return {"id": last.id, "type": last.type, "ending": last.kind, "reason": last.reason, "at": when(last.at_s)}


def _number(request: dict[str, Any], name: str, what: str) -> float | None:
    value = request.get(name)
    if value is None:
        return None
    with contextlib.suppress(OverflowError):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    raise ValueError(f"{name}: found {value!r:.40}, allowed: {what}, or null")
