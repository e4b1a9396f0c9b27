"""A site's own executor: a small distribution, really installed; the node runs its tasks, and names it where it is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.running import NodeFolder, control_node, daemon

pytestmark = pytest.mark.slow
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
# What setuptools would do, without needing it and its wheel here.
BACKEND = """
import zipfile

def build_wheel(folder, settings=None, metadata=None):
    name, info = "site_executor_4711-1.0-py3-none-any.whl", "site_executor_4711-1.0.dist-info"
    files = {
        "site_executor_4711.py": open("site_executor_4711.py").read(),
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: site-executor-4711\\nVersion: 1.0\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{info}/entry_points.txt": "[rae_node.executors]\\nreverse = site_executor_4711:Reverse\\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
"""
MODULE = """
from supervisor.tasks.executors.command import CommandExecutor
from supervisor.tasks.executors.base import StartFailed

class Reverse(CommandExecutor):
    def _order(self, claim):
        if "word" not in claim.payload:
            raise StartFailed("bad payload: it has no word")
        code = "import json, sys; print(json.dumps({'word': json.load(sys.stdin)['word'][::-1]}))"
        return ["/usr/bin/python3", "-c", code], b'{"word": "%s"}' % claim.payload["word"].encode(), {}
"""
START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from supervisor.cli.main import main; sys.exit(main())"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which pip has installed it."""
    base = tmp_path_factory.mktemp("site")
    (base / "project").mkdir()
    (base / "project/pyproject.toml").write_text(PROJECT)
    (base / "project/backend.py").write_text(BACKEND)
    (base / "project/site_executor_4711.py").write_text(MODULE)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    argv = [*pip, "--no-index", "--no-build-isolation", "--target", str(base / "site"), str(base / "project")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return base / "site"


def test_its_tasks_are_run(tmp_path: Path, site: Path) -> None:
    with control_node() as control:
        folder = NodeFolder.make(tmp_path / "node", control.url, node={"tasks": {"mirror": {"executor": "reverse"}}})
        with daemon(folder, argv=(sys.executable, "-I", "-c", START, str(site), "run")) as node:
            node.wait_for("READY")
            done = control.settled(control.add("mirror", {"word": "abc"}))
            assert (done["status"], done["result"]) == ("COMPLETED", {"word": "cba"})
            assert control.settled(control.add("mirror"))["error"] == "bad payload: it has no word"
            wrong = control.settled(control.add("mirror", {"word": 7}))  # it raises what no executor should
            assert wrong["error"] == "the task could not be started (AttributeError)"
            unknown = control.settled(control.add("no-such-type"))
            assert unknown["error"] == "unknown task type 'no-such-type'; this node runs: echo, fail, mirror, sleep"


def test_where_it_is_not_installed_the_file_is_wrong(tmp_path: Path) -> None:
    folder = NodeFolder.make(tmp_path / "node", node={"tasks": {"mirror": {"executor": "reverse"}}})
    said = folder.cli("config", "check")
    assert said.returncode == 2
    assert "tasks.mirror.executor: found reverse, allowed: command, ollama_api, shell_command" in said.stderr
