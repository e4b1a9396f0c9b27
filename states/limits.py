"""Everything that guards compare readings with, typed, with the unit in the name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds from runtime.yaml and node.yaml ; the defaults are the shipped ones.

    A reading is too much above its limit; a time is up when it is reached. `max_age_*_s` says how old a reading may be
    before it proves nothing.
    """

    detect_active_user: bool = True
    idle_required_s: float = 600.0
    max_cpu_percent: float = 80.0
    max_gpu_percent: float = 90.0
    max_vram_gb: float = 14.0
    cooldown_s: float = 900.0
    task_timeout_s: float = 10800.0
    task_timeouts_s: Mapping[str, float] = field(default_factory=dict)
    run_s: float = 1800.0
    hold_s: float = 0.0
    holds_s: Mapping[str, float] = field(default_factory=dict)
    gpu_required: bool = True
    max_age_person_s: float = 80.0
    max_age_gpu_s: float = 80.0
    max_age_cpu_s: float = 30.0
    max_age_host_s: float = 30.0

    def timeout_s(self, task_type: str) -> float:
        """Seconds that a task of this type may run: its own limit, never above the node's."""
        return min(self.task_timeouts_s.get(task_type, self.task_timeout_s), self.task_timeout_s)

    def hold_of(self, task_type: str) -> float:
        """Seconds for which a task of this type is frozen, not stopped, at a sign that may be a false alarm; 0: never."""
        return self.holds_s.get(task_type, self.hold_s)

    def older_by(self, seconds: float) -> Limits:
        """The same, but readings may be this much older: no newer ones were due yet."""
        ages = ("max_age_person_s", "max_age_gpu_s", "max_age_cpu_s", "max_age_host_s")
        return replace(self, **{name: getattr(self, name) + seconds for name in ages})
