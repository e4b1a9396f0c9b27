"""The node's loop runs before all other programs while a task runs, so that a person who comes back to a busy machine does not
wait for it. The kernel's fair share would let the loop wait behind the person's own programs at each of its steps.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import Any, Final

# CPU seconds without a wait, after which the loop waits like all others until its next tick: the processor is the person's.
LONGEST_S: Final = 0.5


class Precedence:
    """The first real-time priority, for the calling thread alone: what it starts gets an ordinary one.

    Needs LimitRTPRIO=1 or CAP_SYS_NICE (deploy/rae-node.service); without them, and where the kernel has real-time groups,
    nothing changes. The kernel sends SIGXCPU when the thread computes for LONGEST_S without a wait. Call from the main thread.
    """

    def __init__(self) -> None:
        self._taken = False
        self._refused = False

    def request(self, wanted: bool) -> None:
        """Take it, or give it back. Cheap where nothing changes."""
        if wanted is self._taken or self._refused:
            return
        policy, priority = (os.SCHED_RR, 1) if wanted else (os.SCHED_OTHER, 0)
        try:
            if wanted:
                signal.signal(signal.SIGXCPU, self._too_long)
                hard = resource.getrlimit(resource.RLIMIT_RTTIME)[1]
                resource.setrlimit(resource.RLIMIT_RTTIME, (int(LONGEST_S * 1e6), hard))
            os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
        except (OSError, ValueError):
            self._refused = True
        else:
            self._taken = wanted

    def _too_long(self, *_: Any) -> None:
        self._taken = False
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
