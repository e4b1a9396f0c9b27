"""Executors by name: built-in, installed by a site, missing, broken; and what the configuration check says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.config import executor_names
from supervisor.config.cross_field import OLLAMA_TYPES
from supervisor.config.generate import runtime_yaml
from supervisor.config.load import ConfigErrors, load
from supervisor.config.schema import TaskType
from supervisor.tasks.executors import ollama, registry
from supervisor.tasks.executors.command import CommandExecutor
from supervisor.tasks.executors.shell import ShellExecutor
from supervisor.tasks.process.containment import TreeContainment

CONTAINMENT = TreeContainment("by choice")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with an installed distribution in it."""
    info = tmp_path / "site_executors-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: site-executors\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[rae_node.executors]\nmine = site_executor_4711:Mine\n"
        "broken = site_executor_4712:Gone\nnot_one = site_executor_4711:X\n"
        "quits = site_executor_4713:Gone\nwill_not = site_executor_4711:Needy\n"
    )
    (tmp_path / "site_executor_4711.py").write_text(
        "X = 7\nclass Mine:\n    def __init__(self, *given): self.given = given\n"
        "class Needy:\n    pass\n"
    )
    (tmp_path / "site_executor_4712.py").write_text("import no_such_module_4711\n")
    (tmp_path / "site_executor_4713.py").write_text("raise SystemExit('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_built_in_ones_are_there() -> None:
    kinds = {name: type(registry.make(name, TaskType(), CONTAINMENT)) for name in executor_names.BUILT_IN}
    assert kinds == {
        "command": CommandExecutor, "ollama_api": ollama.OllamaExecutor, "shell_command": ShellExecutor,
    }  # fmt: skip
    assert OLLAMA_TYPES == ollama.TYPES


def test_one_that_cannot_be_made_is_none(site: Path) -> None:
    with pytest.raises(executor_names.NoExecutor, match=r"will_not cannot \(TypeError\)"):
        registry.make("will_not", TaskType(executor="will_not"), CONTAINMENT)


def test_a_sites_own_is_found(site: Path) -> None:
    executor_names.installed("mine")
    task_type = TaskType(executor="mine")
    assert registry.make("mine", task_type, CONTAINMENT).given == (task_type, CONTAINMENT)  # type: ignore[attr-defined]


TASKS = [
    ("{x: {executor: mine}}", ""),
    ("{x: {executor: magic}}", "x.executor: found magic, allowed: command, ollama_api, shell_command, broken, mine, not_one"),
    ("{x: {executor: broken}}", "site_executor_4712:Gone cannot: ModuleNotFoundError: No module named 'no_such_module_4711'"),
    ("{x: {executor: quits}}", "site_executor_4713:Gone cannot: SystemExit: no licence"),
    ("{x: {executor: not_one}}", "site_executor_4711:X is not one: it cannot be called"),
    ("{x: {executor: shell_command}}", "x.executor: found shell_command, which runs any text that the control node "
     "sends, without allow_any_command: true, allowed: command, with the program in argv"),
    ("{x: {executor: shell_command, allow_any_command: true}}", ""),
    ("{x: {executor: shell_command, allow_any_command: true, sandbox: bubblewrap, sandbox_network: true}}", ""),
    ("{x: {argv: [a], sandbox: chroot}}", "tasks.x.sandbox: found chroot, allowed: one of auto, unit, bubblewrap, none"),
    ("{x: {executor: shell_command, allow_any_command: true, sandbox: none}}",
     "tasks.x.sandbox: found none, allowed: auto, unit or bubblewrap for shell_command"),
    ("{llm_inference: {executor: ollama_api}}", ""),
    ("{x: {executor: ollama_api}}", "tasks.x.executor: found ollama_api, allowed: for ollama_api the types llm_inference, "),
    ('{quality_loop: {executor: ollama_api, ollama_url: "http://10.0.0.1:1"}}', "allowed: an http URL of this machine"),
    ('{quality_loop: {executor: ollama_api, ollama_url: "https://localhost:1"}}', "allowed: an http URL of this machine"),
    ('{quality_loop: {executor: ollama_api, ollama_url: "http://[::1]:11434"}}', ""),
]


@pytest.mark.parametrize(("tasks", "said"), TASKS)
def test_the_configuration_check_knows_them(site: Path, tmp_path: Path, tasks: str, said: str) -> None:
    (tmp_path / "runtime.yaml").write_text(runtime_yaml())
    (tmp_path / "node.yaml").write_text(f"tasks: {tasks}\n")
    if not said:
        load(tmp_path)
        return
    with pytest.raises(ConfigErrors) as refused:
        load(tmp_path)
    problem, = refused.value.problems
    assert said in str(problem)
    assert "\n" not in str(problem)
