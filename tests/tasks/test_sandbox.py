"""Which sandbox a task gets, by what this machine offers (R4): what is asked for is never replaced by something weaker."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.config.schema import TaskType
from supervisor.tasks.process.bubblewrap import Found
from supervisor.tasks.process.sandbox import Kind, NoSandbox, Offer, choose, notes

NO_UNIT, NO_BWRAP = "there are no units", "bubblewrap is not here"
OFFERS = {
    "both": Offer("", Found("")),
    "unit": Offer("", Found(NO_BWRAP)),
    "bubblewrap": Offer(NO_UNIT, Found("")),
    "neither": Offer(NO_UNIT, Found(NO_BWRAP)),
    "broken unit": Offer(NO_UNIT, Found(""), units_only=True),
}
U, B, N, NO = Kind.UNIT, Kind.BUBBLEWRAP, Kind.NONE, None
CHOICES: dict[str, dict[str, Kind | None]] = {
    "both": {"auto": U, "unit": U, "bubblewrap": B, "none": N},
    "unit": {"auto": U, "unit": U, "bubblewrap": NO, "none": N},
    "bubblewrap": {"auto": B, "unit": NO, "bubblewrap": B, "none": N},
    "neither": {"auto": N, "unit": NO, "bubblewrap": NO, "none": N},
    "broken unit": {"auto": NO, "unit": NO, "bubblewrap": B, "none": N},
}


def chosen(task_type: TaskType, offer: Offer) -> Kind | None:
    try:
        return choose(task_type, offer).kind
    except NoSandbox:
        return None


@pytest.mark.parametrize("executor", ["command", "shell_command"])
@pytest.mark.parametrize("offer", CHOICES)
def test_what_a_type_gets(offer: str, executor: str) -> None:
    """A shell command never starts without a sandbox."""
    none = N if executor == "command" else None
    expected = {setting: none if kind is N else kind for setting, kind in CHOICES[offer].items()}
    settings: list[Any] = list(expected)
    found = {setting: chosen(TaskType(executor=executor, sandbox=setting), OFFERS[offer]) for setting in settings}
    assert found == expected


def test_status_names_what_runs_without_and_what_cannot_start() -> None:
    tasks = {
        "a": TaskType(), "b": TaskType(), "c": TaskType(sandbox="none"), "d": TaskType(sandbox="unit"),
        "e": TaskType(executor="shell_command"), "llm": TaskType(executor="ollama_api"),
    }  # fmt: skip
    assert notes(tasks, OFFERS["neither"]) == [
        f"tasks of type a, b run without a sandbox: {NO_UNIT}; {NO_BWRAP}",
        "tasks of type c run without a sandbox: sandbox: none",
        f"tasks of type d cannot start: sandbox: unit: {NO_UNIT}: install it with deploy/install, or set sandbox: auto",
        f"tasks of type e cannot start: shell_command needs a sandbox ({NO_UNIT}; {NO_BWRAP})",
    ]
    assert notes({name: TaskType() for name in "ab"}, OFFERS["bubblewrap"]) == []


def test_what_an_old_bubblewrap_leaves_open_is_said() -> None:
    offer = Offer(NO_UNIT, Found("", ("--unshare-user",), "a task may make namespaces of its own"))
    assert choose(TaskType(), offer).reason.endswith("; a task may make namespaces of its own")
