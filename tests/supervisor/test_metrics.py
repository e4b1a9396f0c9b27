"""The metrics file: what ticks leave in it, read back by the client library's own parser."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.model import NOW, Signs, observe

from states.effects import Effect
from states.lifecycle import EffectResult, Lifecycle, Outcome
from states.limits import Limits
from states.memory import Memory, State
from states.observation import TaskPhase
from supervisor.metrics import Metrics

LIMITS = Limits(idle_required_s=600)


def samples(path: Path) -> dict[str, float]:
    """`name{label}` → value."""
    found = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            labels = ",".join(sample.labels[key] for key in sorted(sample.labels) if key != "unit")
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_a_way_out_of_running_is_counted_with_its_time(tmp_path: Path) -> None:
    path = tmp_path / "rae_node.prom"
    metrics = Metrics(path)
    mind = Lifecycle(LIMITS, memory=Memory(state=State.RUNNING, running_since_s=NOW - 10, started_at_s=NOW - 10))
    plan = mind.propose(observe(Signs(user="no"), TaskPhase.RUNNING))
    results = [EffectResult(e, e is not Effect.WIPE, "the person came back", 0.02) for e in plan.effects]
    outcome = Outcome(tuple(results))
    metrics.tick(plan, outcome, mind.commit(plan, outcome), LIMITS, outbox=1)
    seen = samples(path)
    assert seen["rae_node_state{COOLDOWN}"] == 1
    assert seen["rae_node_state{RUNNING}"] == 0
    assert seen["rae_node_guard{user_away}"] == 0
    assert seen["rae_node_rows_total{user-returned}"] == 1
    assert seen["rae_node_tasks_total{handed_back}"] == 1
    assert seen["rae_node_effect_failures_total{wipe}"] == 1
    assert seen["rae_node_yield_seconds_count"] == 1
    assert seen["rae_node_yield_seconds_bucket{0.025}"] == 1
    assert seen["rae_node_reading{user_idle}"] == 599
    assert seen["rae_node_outbox"] == 1
    assert seen["rae_node_link_up"] == 1


def test_unknown_is_minus_one_and_no_number(tmp_path: Path) -> None:
    path = tmp_path / "rae_node.prom"
    mind = Lifecycle(LIMITS, memory=Memory(state=State.IDLE_WAIT))
    plan = mind.propose(observe(Signs(user="unknown", gpu="unknown"), TaskPhase.NONE))
    Metrics(path).tick(plan, Outcome(), mind.commit(plan), LIMITS, outbox=0)
    seen = samples(path)
    assert seen["rae_node_guard{user_away}"] == -1
    assert seen["rae_node_reading{user_idle}"] != seen["rae_node_reading{user_idle}"]


def test_a_folder_that_cannot_be_written_is_said_and_stops_nothing(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "not-there" / "rae_node.prom")
    mind = Lifecycle(LIMITS, memory=Memory(state=State.IDLE_WAIT))
    plan = mind.propose(observe(Signs(user="no"), TaskPhase.NONE))
    metrics.tick(plan, Outcome(), mind.commit(plan), LIMITS, outbox=0)
    assert "metrics cannot be written" in metrics.trouble
    (tmp_path / "not-there").mkdir()
    moved = Lifecycle(LIMITS, memory=Memory(state=State.DISABLED)).propose(observe(Signs(), TaskPhase.NONE))
    metrics.tick(moved, Outcome(), Memory(state=State.IDLE_WAIT), LIMITS, outbox=0)  # a move is written at once
    assert metrics.trouble == ""
    assert samples(tmp_path / "not-there" / "rae_node.prom")["rae_node_state{IDLE_WAIT}"] == 1


@pytest.mark.slow
def test_the_daemon_writes_it_only_where_it_is_asked_to(tmp_path: Path) -> None:
    from support.running import NodeFolder, daemon, until

    folder = NodeFolder.make(tmp_path / "node", "http://127.0.0.1:9", node={"metrics": {"file": "m.prom"}})
    with daemon(folder):
        until(lambda: (tmp_path / "node" / "m.prom").exists(), "the metrics file")
        until(lambda: "rae_node_state" in (tmp_path / "node" / "m.prom").read_text(), "whole from the first")
    assert not list((tmp_path / "node").glob("m.prom.*")), "no half file stays"
