"""The dry run (R17): every combination comes out as required, whatever the limits; and it can fail."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from states.lifecycle import Lifecycle
from states.limits import Limits
from states.memory import State
from supervisor.tools.history import dry_run as dryrun
from supervisor.tools.history.dry_run import CPUS, GPUS, HOSTS, USERS, Case, as_table, dry_run, exit_code

KEYS = ["case", "user", "gpu", "cpu", "host", "allowed", "state", "reason"]


def find(cases: list[Case], *what: str) -> Case:
    (case,) = [c for c in cases if (c.user, c.gpu, c.cpu, c.host) == what]
    return case


def test_as_shipped_only_an_absent_person_and_a_free_machine_allow_work() -> None:
    cases = dry_run(Limits())
    allowed = [(c.user, c.gpu, c.cpu, c.host) for c in cases if c.allowed]
    assert allowed == [("idle", "free", "free", "fit")]
    assert exit_code(cases) == 0


def test_every_combination_is_there_once_and_the_four_of_the_requirement_come_first() -> None:
    cases = dry_run(Limits())
    seen = [(c.user, c.gpu, c.cpu, c.host) for c in cases]
    assert len(set(seen)) == len(seen)
    assert set(itertools.product(USERS, GPUS, CPUS, HOSTS)) <= set(seen)
    first = {(c.user, c.gpu) for c in cases[:6]}
    assert set(itertools.product(("active", "idle"), ("busy", "free"))) <= first


@pytest.mark.parametrize(
    ("limits", "what", "allowed", "reason"),
    [
        (Limits(), ("active", "free", "free", "fit"), False, "user active"),
        (Limits(), ("idle", "busy", "free", "fit"), False, "safety.max_gpu_percent"),
        (Limits(), ("idle", "VRAM full", "free", "fit"), False, "safety.max_vram_gb"),
        (Limits(), ("idle", "foreign process", "free", "fit"), False, "not RAE's"),
        (Limits(), ("idle", "free", "busy", "fit"), False, "safety.max_cpu_percent"),
        (Limits(), ("idle", "free", "free", "unfit"), False, "host unfit"),
        (Limits(), ("idle", "free", "free", "going-down"), False, "sleep or shut down"),
        (Limits(), ("unknown", "free", "free", "fit"), False, "user unknown"),
        (Limits(), ("idle", "stale", "free", "fit"), False, "too old"),
        (Limits(), ("idle", "absent", "free", "fit"), False, "gpu.presence"),
        (Limits(gpu_required=False), ("idle", "absent", "free", "fit"), True, "nothing blocks"),
        (Limits(gpu_required=False), ("idle", "unknown", "free", "fit"), False, "GPU unknown"),
        (Limits(detect_active_user=False), ("active", "free", "free", "fit"), True, "nothing blocks"),
        (Limits(detect_active_user=False), ("active", "busy", "free", "fit"), False, "GPU at"),
    ],
)
def test_cases(limits: Limits, what: tuple[str, str, str, str], allowed: bool, reason: str) -> None:
    case = find(dry_run(limits), *what)
    assert case.allowed is allowed
    assert case.state is (State.READY if allowed else State.IDLE_WAIT)
    assert reason in case.reason
    assert case.as_required


@given(
    st.builds(
        Limits,
        detect_active_user=st.booleans(),
        idle_required_s=st.floats(0.1, 86400),
        max_cpu_percent=st.floats(0.01, 100),
        max_gpu_percent=st.floats(0.01, 100),
        max_vram_gb=st.floats(0.01, 1024),
        gpu_required=st.booleans(),
    )
)
def test_whatever_the_limits_every_case_comes_out_as_required(limits: Limits) -> None:
    assert exit_code(dry_run(limits)) == 0


def test_json_has_the_keys_of_the_interface() -> None:
    for case in dry_run(Limits()):
        assert list(case.as_dict()) == KEYS


def test_rules_that_let_everything_pass_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reckless(Lifecycle):
        def commit(self, plan, outcome=None):  # type: ignore[no-untyped-def]
            from dataclasses import replace

            self.memory = replace(self.memory, state=State.RUNNING if self.state is State.READY else State.READY)
            return self.memory

    monkeypatch.setattr(dryrun, "Lifecycle", Reckless)
    monkeypatch.setattr(dryrun, "_would_run", lambda lifecycle, offered: True)
    cases = dry_run(Limits())
    assert exit_code(cases) == 1
    assert "MUST BE blocked" in as_table(cases)
    assert "NOT as required" in as_table(cases)


def test_rules_that_never_allow_work_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dryrun, "_would_run", lambda lifecycle, offered: False)
    cases = dry_run(Limits())
    assert exit_code(cases) == 1
    assert "MUST BE allowed" in as_table(cases)


def test_the_table_has_a_line_for_each_case_and_says_the_sum() -> None:
    cases = dry_run(Limits())
    lines = as_table(cases).splitlines()
    assert lines[0].split() == ["USER", "GPU", "CPU", "HOST", "TASKS", "STATE", "REASON"]
    assert len(lines) == len(cases) + 3
    assert lines[-1] == f"{len(cases)} cases: 1 allowed, {len(cases) - 1} blocked; all as required"
