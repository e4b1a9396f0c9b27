"""The metrics file: what ticks leave in it, read back by the client library's own parser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.model import NOW, Signs, observe

from states.effects import Effect
from states.ending import Ending, EndingKind, StopReport, Vram, VramState, failed, handed_back, succeeded
from states.lifecycle import EffectResult, Lifecycle, Outcome
from states.limits import Limits
from states.memory import Memory, State
from states.observation import TaskPhase
from supervisor.journal.metrics import Metrics
from supervisor.sources.base import LinkStatus

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
    lifecycle = Lifecycle(LIMITS, memory=Memory(state=State.RUNNING, running_since_s=NOW - 10, started_at_s=NOW - 10))
    plan = lifecycle.propose(observe(Signs(user="no"), TaskPhase.RUNNING))
    reports = {Effect.HAND_BACK: handed_back("the person came back")}
    results = [EffectResult(e, e is not Effect.WIPE, "", 0.02, reports.get(e)) for e in plan.effects]
    outcome = Outcome(tuple(results))
    metrics.tick(plan, outcome, lifecycle.commit(plan, outcome), LIMITS, LinkStatus(outbox=1))
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


@pytest.mark.parametrize(
    ("ending", "counted"),
    [
        (succeeded({"n": 1}), "succeeded"),
        (succeeded({"n": 1}, StopReport((), Vram(VramState.FREE, 0.012))), "succeeded"),
        (failed("exit: code 3"), "failed"),
        (failed("timeout: stopped after 3 h", kind=EndingKind.TIMED_OUT), "timed_out"),
    ],
)
def test_an_ending_is_counted_by_its_kind_whatever_the_gpu_says(tmp_path: Path, ending: Ending, counted: str) -> None:
    """A GPU task that ended well was counted as failed: the text about its VRAM stood behind `succeeded`."""
    metrics = Metrics(tmp_path / "m.prom")
    lifecycle = Lifecycle(LIMITS, memory=Memory(state=State.RUNNING, running_since_s=NOW - 10, started_at_s=NOW - 10))
    plan = lifecycle.propose(observe(Signs(), TaskPhase.ENDED))
    assert Effect.SETTLE in plan.effects
    outcome = Outcome(tuple(EffectResult(e, True, report=ending if e is Effect.SETTLE else None) for e in plan.effects))
    metrics.tick(plan, outcome, lifecycle.commit(plan, outcome), LIMITS, LinkStatus())
    seen = samples(tmp_path / "m.prom")
    assert {name: seen[f"rae_node_tasks_total{{{name}}}"] for name in EndingKind} == {
        name: float(name == counted) for name in EndingKind
    }


def whole(path: Path) -> Path:
    """A file as a node with something to tell leaves it."""
    metrics = Metrics(path, lambda: 1_800_000_000.0)
    lifecycle = Lifecycle(LIMITS, memory=Memory(state=State.RUNNING, running_since_s=NOW - 10, started_at_s=NOW - 10))
    plan = lifecycle.propose(observe(Signs(user="no"), TaskPhase.RUNNING))
    outcome = Outcome(tuple(EffectResult(e, True, "", 0.02) for e in plan.effects))
    metrics.tick(plan, outcome, lifecycle.commit(plan, outcome), LIMITS, LinkStatus(error="refused", error_s=1.0))
    return path


def test_every_series_is_there_from_the_first(tmp_path: Path) -> None:
    seen = samples(whole(tmp_path / "m.prom"))
    assert seen["rae_node_updated_timestamp_seconds"] == 1_800_000_000
    assert {seen[f"rae_node_tasks_total{{{name}}}"] for name in ("succeeded", "failed", "timed_out")} == {0}
    assert {seen[f"rae_node_state_seconds_total{{{state}}}"] for state in State} == {0}
    assert seen["rae_node_rows_total{safe}"] == 0
    assert seen["rae_node_limit{cpu}"] == LIMITS.max_cpu_percent
    assert seen["rae_node_link_errors_total"] == 1


def test_a_trouble_of_the_link_is_counted_once(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m.prom")
    lifecycle = Lifecycle(LIMITS, memory=Memory(state=State.IDLE_WAIT))
    for error_s in (None, 1.0, 1.0, 2.0, None):
        plan = lifecycle.propose(observe(Signs(user="no"), TaskPhase.NONE))
        metrics.tick(plan, Outcome(), lifecycle.commit(plan), LIMITS, LinkStatus(error="x", error_s=error_s))
    metrics._write()
    assert samples(tmp_path / "m.prom")["rae_node_link_errors_total"] == 2


def test_it_is_readable_by_its_collector_and_leaves_no_draft(tmp_path: Path) -> None:
    kept = os.umask(0o077)
    try:
        path = whole(tmp_path / "m.prom")
    finally:
        os.umask(kept)
    assert oct(path.stat().st_mode)[-3:] == "644"
    assert list(tmp_path.iterdir()) == [path]
    Metrics(path).close()
    assert list(tmp_path.iterdir()) == []


def test_promtool_has_nothing_to_say(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here (apt-get install prometheus); the client's own parser reads it in the other tests")
    text = whole(tmp_path / "m.prom").read_bytes()
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


GRAFANA = Path(__file__).parents[2] / "deploy/grafana"


def test_alerts_are_rules_that_prometheus_takes() -> None:
    (group,) = yaml.safe_load((GRAFANA / "rae-node.rules.yaml").read_text())["groups"]
    assert len(group["rules"]) == 3
    assert all(set(rule) == {"alert", "expr", "for", "labels", "annotations"} for rule in group["rules"])
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here (apt-get install prometheus)")
    done = subprocess.run(
        [promtool, "check", "rules", str(GRAFANA / "rae-node.rules.yaml")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "3 rules found" in done.stdout) == (0, True), done.stdout + done.stderr


UPDATED = "rae_node_updated_timestamp_seconds"
READY, RUNNING = (f'rae_node_state_seconds_total{{instance="n",state="{state}"}}' for state in ("READY", "RUNNING"))
TASKS = 'rae_node_tasks_total{instance="n",outcome="succeeded"}'
WRITTEN = (f'{UPDATED}{{instance="n"}}', "0+60x2880")
STOPPED = (f'{UPDATED}{{instance="n"}}', "0+60x10 stale _x60")  # its file is gone, or nothing is collected


@pytest.mark.parametrize(
    ("alert", "at", "fires", "series"),
    [
        ("RaeNodeSilent", "30m", False, [WRITTEN]),
        ("RaeNodeSilent", "30m", True, [(f'{UPDATED}{{instance="n"}}', "0+60x10 600x60")]),
        ("RaeNodeSilent", "30m", False, [STOPPED]),
        ("RaeNodeOutcomesNotDelivered", "14m", False, [('rae_node_outbox{instance="n"}', "1x60")]),
        ("RaeNodeOutcomesNotDelivered", "16m", True, [('rae_node_outbox{instance="n"}', "1x60")]),
        ("RaeNodeReadyWithoutWork", "6h", False, [WRITTEN, (READY, "0+60x360"), (TASKS, "0x360")]),
        ("RaeNodeReadyWithoutWork", "26h", True, [WRITTEN, (READY, "0+60x1560"), (TASKS, "0x1560")]),
        ("RaeNodeReadyWithoutWork", "26h", False, [WRITTEN, (READY, "0+60x1560"), (TASKS, "0x1200 1x360")]),
        ("RaeNodeReadyWithoutWork", "26h", False,
         [WRITTEN, (READY, "0+60x500 30000x1060"), (TASKS, "0x1560"), (RUNNING, "0x500 0+60x1060")]),
    ],
)  # fmt: skip
def test_an_alert_fires_when_it_should(
    tmp_path: Path, alert: str, at: str, fires: bool, series: list[tuple[str, str]]
) -> None:
    """`promtool test rules` with no alert expected: 0 where none fires; else it prints the one that does."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool here (apt-get install prometheus)")
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": []}],
    }
    file = tmp_path / "test.yaml"
    rules = str(GRAFANA / "rae-node.rules.yaml")
    file.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert (done.returncode != 0, f'alertname="{alert}"' in text) == (fires, fires), text


def test_each_node_is_one_row_and_each_figure_has_its_unit() -> None:
    dashboard = json.loads((GRAFANA / "rae-node.json").read_text())
    state = dashboard["panels"][0]
    (mapping,) = state["fieldConfig"]["defaults"]["mappings"]
    assert [mapping["options"][str(n)]["text"] for n in range(1, 6)] == ["off", "waiting", "ready", "working", "resting"]
    (target,) = state["targets"]
    assert re.findall(r'(\d) \* rae_node_state\{[^}]*state="(\w+)"', target["expr"]) == [
        (str(n), state) for n, state in enumerate(State, 1)
    ]
    figures = [panel for panel in dashboard["panels"] if panel["type"] != "state-timeline"]
    assert [panel["title"] for panel in figures if "unit" not in panel["fieldConfig"]["defaults"]] == []


def test_the_dashboard_asks_for_what_is_there(tmp_path: Path) -> None:
    dashboard = json.loads((GRAFANA / "rae-node.json").read_text())
    told = whole(tmp_path / "m.prom").read_text()
    names = set(re.findall(r"^(rae_node_\w+)", told, re.MULTILINE))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert asked
    (group,) = yaml.safe_load((GRAFANA / "rae-node.rules.yaml").read_text())["groups"]
    asked += [rule["expr"] for rule in group["rules"]]
    used = {name for expr in asked for name in re.findall(r"rae_node_\w+", expr)}
    assert used <= names
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} >= families - {"rae_node_build_info"}, "and shows all"
    labels = {name for expr in asked for name in re.findall(r"(\w+)=~?\"", expr)} - {"instance"}
    assert labels <= {"state", "guard", "reading", "unit", "row", "outcome", "effect", "le"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_unknown_is_minus_one_and_no_number(tmp_path: Path) -> None:
    path = tmp_path / "rae_node.prom"
    lifecycle = Lifecycle(LIMITS, memory=Memory(state=State.IDLE_WAIT))
    plan = lifecycle.propose(observe(Signs(user="unknown", gpu="unknown"), TaskPhase.NONE))
    Metrics(path).tick(plan, Outcome(), lifecycle.commit(plan), LIMITS, LinkStatus())
    seen = samples(path)
    assert seen["rae_node_guard{user_away}"] == -1
    assert seen["rae_node_reading{user_idle}"] != seen["rae_node_reading{user_idle}"]


def test_a_folder_that_cannot_be_written_is_said_and_stops_nothing(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "not-there" / "rae_node.prom")
    lifecycle = Lifecycle(LIMITS, memory=Memory(state=State.IDLE_WAIT))
    plan = lifecycle.propose(observe(Signs(user="no"), TaskPhase.NONE))
    metrics.tick(plan, Outcome(), lifecycle.commit(plan), LIMITS, LinkStatus())
    assert "metrics cannot be written" in metrics.trouble
    (tmp_path / "not-there").mkdir()
    moved = Lifecycle(LIMITS, memory=Memory(state=State.DISABLED)).propose(observe(Signs(), TaskPhase.NONE))
    metrics.tick(moved, Outcome(), Memory(state=State.IDLE_WAIT), LIMITS, LinkStatus())  # a move is written at once
    assert metrics.trouble == ""
    assert samples(tmp_path / "not-there" / "rae_node.prom")["rae_node_state{IDLE_WAIT}"] == 1


@pytest.mark.slow
def test_the_daemon_writes_it_only_where_it_is_asked_to(tmp_path: Path) -> None:
    from support.running import NodeFolder, daemon
    from support.waiting import until

    folder = NodeFolder.make(tmp_path / "node", "http://127.0.0.1:9", node={"metrics": {"file": "m.prom"}})
    with daemon(folder) as node:
        until(lambda: (tmp_path / "node" / "m.prom").exists(), "the metrics file")
        until(lambda: "rae_node_state" in (tmp_path / "node" / "m.prom").read_text(), "whole from the first")
        assert node.stop() == 0
    assert not list((tmp_path / "node").glob("*m.prom*")), "who is gone tells nothing, and no half file stays"
