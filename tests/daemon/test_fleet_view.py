"""What a fleet's operator sees of a node, and what not: no name of a person, no program of theirs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.model import LIMITS

from states.guards import GUARDS
from states.memory import Memory
from states.observation import Automation, Cpu, Gpu, Host, Observation, Person, Reading
from supervisor.daemon.fleet_view import guard_for_fleet, log_for_fleet

NOW_S = 10_000.0


def seen(**parts: object) -> Observation:
    """All is free, but for `parts`."""
    fresh = {
        "person": Reading(Person(0.0, "nobody"), "", "x", NOW_S), "gpu": Reading(Gpu(1, 0.5), "", "x", NOW_S),
        "cpu": Reading(Cpu(3.0), "", "x", NOW_S), "host": Reading(Host(), "", "x", NOW_S),
    }  # fmt: skip
    return Observation(NOW_S, Automation(True), **{**fresh, **parts})  # type: ignore[arg-type]


def texts(observation: Observation, *, of_its_person: bool = False) -> dict[str, str]:
    """The text of each guard that is not ok."""
    judged = [guard.explain(observation, Memory(), LIMITS) for guard in GUARDS]
    shown = [guard_for_fleet(verdict, of_its_person=of_its_person) for verdict in judged]
    return {one["name"]: one["text"] for one in shown if one["ok"] is not True and not one["name"].startswith("task_")}


HIDDEN = "cannot be told: `rae-node why` at that machine says more"
CASES = {
    "a person": (
        seen(person=Reading(Person(NOW_S, "anna typed on seat0"), "", "x", NOW_S)),
        {"user_away": "in use by its person"},
    ),
    "a person unseen": (seen(person=Reading(None, "session 3 of anna has no agent", "x", NOW_S)), {"user_away": HIDDEN}),
    "a program": (
        seen(gpu=Reading(Gpu(1, 0.5, 2, ("anna's steam",)), "", "x", NOW_S)),
        {"gpu_free": "its GPU is in use: 2 processes"},
    ),
    "a load": (seen(gpu=Reading(Gpu(99.0, 0.5), "", "x", NOW_S)), {"gpu_free": "its GPU is in use: 99 %, limit 90 %"}),
    "a GPU unseen": (seen(gpu=Reading(None, "pid 7 of anna cannot be read", "x", NOW_S)), {"gpu_free": HIDDEN}),
    "heat": (seen(host=Reading(Host(False, False, "cpu at 99 °C"), "", "x", NOW_S)), {"host_fit": "host unfit: cpu at 99 °C"}),
    "a broken file": (
        replace(seen(), automation=Automation(False, "node.yaml: gpu: wrong", "configuration")),
        {"automation_on": "node.yaml: gpu: wrong"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_guard_says_what_is_the_nodes_own_and_never_a_name(case: str) -> None:
    observation, wanted = CASES[case]
    assert texts(observation) == wanted
    assert "anna" not in json.dumps(wanted)


def test_who_has_paused_the_node_stays_at_the_node() -> None:
    paused = replace(seen(), automation=Automation(False, "paused by anna, until `rae-node resume`", "operator"))
    assert texts(paused, of_its_person=True) == {"automation_on": "switched off there"}


def test_the_log_is_the_end_of_the_journal_without_names(tmp_path: Path) -> None:
    guards = [{"name": "automation_on", "ok": True, "reason": "on"}, {"name": "user_away", "ok": False, "reason": "anna typed"}]
    decision = {"kind": "decision", "from": "RUNNING", "to": "COOLDOWN", "row": "user-returned", "reason": "anna typed",
                "guards": guards, "task": {"id": "t", "type": "render"}}  # fmt: skip
    lines = [
        {"kind": "start", "version": "1"},
        decision,
        {"kind": "effect", "effect": "freeze", "ok": True, "detail": "", "took_s": 0.1},
        {"kind": "effect", "effect": "start", "ok": False, "detail": "no such program", "took_s": 0.1},
        {"kind": "alive", "state": "RUNNING", "reason": "x", "presence": "anna's session contradicts"},
        {"kind": "operator", "word": "pause", "until": None, "by": "anna"},
        {"kind": "decision"},
        {"kind": "stop", "reason": "SIGTERM"},
    ]
    days = {"2026-01-01": lines[:1], "2026-01-02": lines[1:]}
    for day, of_day in days.items():
        text = "".join(json.dumps({"v": 1, "time": day, **line}) + "\n" for line in of_day)
        (tmp_path / f"decisions-{day}.jsonl").write_text(text + '{"torn')
    wanted = [
        "rae-node 1 has started", "RUNNING → COOLDOWN: user-returned (render t): in use by its person",
        "start FAILED in 100 ms: no such program", "operator: pause", "stopped: SIGTERM",
    ]  # fmt: skip
    assert [line["text"].strip() for line in log_for_fleet(tmp_path, 9)] == wanted
    assert [line["text"].strip() for line in log_for_fleet(tmp_path, 2)] == wanted[-2:]


def test_of_a_long_day_the_end_is_read(tmp_path: Path) -> None:
    line = json.dumps({"v": 1, "time": "t", "kind": "stop", "reason": "x" * 200}) + "\n"
    path = tmp_path / "decisions-2026-01-01.jsonl"
    path.write_text(line * 10_000 + json.dumps({"v": 1, "time": "t", "kind": "stop", "reason": "last"}) + "\n")
    found = log_for_fleet(tmp_path, 200)
    assert (len(found), found[-1]["text"]) == (200, "stopped: last")
