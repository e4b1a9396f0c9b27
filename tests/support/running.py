"""A real daemon and a real control node on loopback, as context managers; every process dies with the test."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from support.constants import with_constants
from support.waiting import DEADLINE_S, until

ROOT = Path(__file__).resolve().parents[2]
RAE_NODE = (sys.executable, "-I", "-m", "supervisor.cli.main")
SERVICE = (sys.executable, "-I", "-m", "supervisor.daemon.main", "--unattended")

# Off the person's and the machine's whims: what a test wants to see, it brings about itself.
RUNTIME: dict[str, dict[str, Any]] = {
    "automation": {"enabled": True, "auto_start": True},
    "safety": {
        "detect_active_user": False, "idle_required_minutes": 0.02, "max_cpu_percent": 100, "max_gpu_percent": 90,
        "max_vram_gb": 14, "cooldown_minutes": 0.01,
    },
    "execution": {
        "poll_interval_sec": 0.2, "heartbeat_interval_sec": 0.5, "task_timeout_minutes": 10, "retry_on_disconnect": True,
    },
}
TASKS: dict[str, dict[str, Any]] = {
    "echo": {"argv": ["/bin/cat"]},
    "sleep": {"argv": ["/bin/sleep", "1000"], "grace_sec": 0.5},
    "fail": {"argv": ["/bin/sh", "-c", "exit 3"]},
}


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@dataclass
class ControlNode:
    """`rae-node control`, and the submitter's side of it."""

    process: subprocess.Popen[str]
    url: str

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request; the answer's JSON."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return json.load(answer)

    def add(self, kind: str, payload: Any = None, priority: int = 0) -> str:
        """Queue a task; its id."""
        body = {"type": kind, "payload": {} if payload is None else payload, "priority": priority}
        return str(self.call("POST", "/control/tasks", body)["id"])

    def task(self, task_id: str) -> dict[str, Any]:
        """A task as it is now."""
        answer: dict[str, Any] = self.call("GET", f"/control/tasks/{task_id}")
        return answer

    def settled(self, task_id: str, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
        """The task once it is COMPLETED or FAILED."""

        def over() -> dict[str, Any] | None:
            task = self.task(task_id)
            return task if task["status"] in ("COMPLETED", "FAILED") else None

        answer: dict[str, Any] = until(over, f"task {task_id} settled", timeout_s)
        return answer

    def stop(self) -> None:
        """End it; its tasks are gone."""
        self.process.terminate()
        self.process.wait(DEADLINE_S)


def start_control(port: int = 0) -> ControlNode:
    """A control node on a free port, or on the one that it had."""
    process = subprocess.Popen(
        [*RAE_NODE, "control", "--listen", f"127.0.0.1:{port}"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=_die_with_us, cwd="/",
    )
    assert process.stdout
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:"), "the control node did not start"
    return ControlNode(process, url)


@contextlib.contextmanager
def control_node(port: int = 0) -> Iterator[ControlNode]:
    """A control node while the context lasts."""
    node = start_control(port)
    try:
        yield node
    finally:
        node.process.kill()
        node.process.wait()
        assert node.process.stdout
        node.process.stdout.close()


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, section by section."""
    merged = dict(base)
    for key, value in change.items():
        inner = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if inner else value
    return merged


@dataclass
class NodeFolder:
    """A node's configuration and its folders, all below one temporary folder."""

    path: Path
    runtime: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(RUNTIME)))
    node: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=lambda: {"backoff_longest_s": 0.5})  # see constants.py

    @classmethod
    def make(
        cls, path: Path, url: str = "http://127.0.0.1:9", runtime: Any = None, node: Any = None, **constants: Any
    ) -> NodeFolder:
        """Write both files; `runtime`, `node` and the constants are laid over the tests' defaults, section by section."""
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        folder.constants |= constants
        base = {
            "node": {"id": "test-node"},
            "control": {"url": url},
            "tasks": TASKS,
            "gpu": {"presence": "optional"},
            "presence": {"sessions": True, "terminals": True},
            "host": {"inhibitor": "none", "min_memory_gb": 0, "max_temperature_c": 120, "on_battery": "allow"},
            "work": {"run_minutes": 0},
            "paths": {"logs": "logs", "workdir": "work", "runtime": "run", "state": "state"},
        }
        folder.node = base
        # no bus, no NVML: a test that wants one brings its own
        folder.environment = {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={path}/no-bus"}
        folder.write(runtime or {}, node or {})
        return folder

    def write(self, runtime: Any = None, node: Any = None) -> None:
        """Change settings, as an editor does: a new file in the old one's place."""
        if runtime is not None:
            self.runtime = merge(self.runtime, runtime)
            self.put("runtime.yaml", yaml.safe_dump(self.runtime, sort_keys=False))
        if node is not None:
            self.node = merge(self.node, node)
            self.put("node.yaml", yaml.safe_dump(self.node, sort_keys=False))

    def put(self, name: str, text: str) -> None:
        """This text as one of the two files."""
        new = self.path / f".{name}.new"
        new.write_text(text)
        new.replace(self.path / name)

    def cli(self, *words: str, timeout_s: float = 60.0, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command of `rae-node` on this configuration."""
        argv = [*RAE_NODE, *words, "--config", str(self.path)]
        env = {**os.environ, **self.environment}
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, env=env, cwd="/", **options)

    def journal(self) -> list[dict[str, Any]]:
        """Every whole line of the journal, in order."""
        lines: list[dict[str, Any]] = []
        for path in sorted((self.path / "logs").glob("decisions-*.jsonl")):
            for raw in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(raw))
        return lines

    def decisions(self) -> list[dict[str, Any]]:
        """The journal's decisions."""
        return [line for line in self.journal() if line["kind"] == "decision"]

    def rows(self) -> list[str]:
        """The rows that fired, in order."""
        return [d["row"] for d in self.decisions() if d["row"]]

    def replays_clean(self) -> None:
        """Today's lifecycle decides as the journal says."""
        from supervisor.tools.history.replay import answer, errors, exit_code, replay_files

        reports = replay_files([self.path / "logs"])
        assert exit_code(reports) == 0, "\n".join([*answer(reports), *errors(reports)])


@dataclass
class Daemon:
    """The node as a process."""

    folder: NodeFolder
    process: subprocess.Popen[bytes]
    _said: list[bytes] = field(default_factory=list)
    _listener: threading.Thread = field(default_factory=threading.Thread)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def said(self) -> str:
        """What it wrote to stderr so far."""
        return b"".join(self._said).decode(errors="replace")

    def ask(self, name: str = "status", **fields: Any) -> dict[str, Any]:
        """The answer of its control socket."""
        from supervisor.linux.control_socket import ask

        return ask(self.folder.path / "run", name, **fields)

    def look(self) -> dict[str, Any]:
        """Its status, or nothing while it cannot be asked."""
        from supervisor.linux.control_socket import DaemonDown, DaemonUnresponsive

        try:
            return self.ask()
        except (DaemonDown, DaemonUnresponsive):
            return {}

    def state(self) -> str:
        """Its state, or nothing while it cannot be asked."""
        return str(self.look().get("state", ""))

    def wait_up(self) -> None:
        """Until it can be asked."""
        until(lambda: self.state() or self._dead(), lambda: f"an answer; it said:\n{self.said}")
        assert self.process.poll() is None, self.said

    def wait_for(self, state: str, timeout_s: float = DEADLINE_S) -> None:
        """Until it is in that state."""
        until(
            lambda: self.state() == state or self._dead(),
            lambda: f"{state}, not {self.look().get('status')}; it said:\n{self.said}",
            timeout_s,
        )
        assert self.process.poll() is None, self.said

    def wait_for_task(self, timeout_s: float = DEADLINE_S) -> int:
        """Until a task's process runs; its pid, from the journal's own kind of evidence: /proc."""
        until(
            lambda: (self.look().get("task") or {}).get("phase") == "running",
            lambda: f"a running task, not {self.look().get('status')}; it said:\n{self.said}",
            timeout_s,
        )
        pids: list[int] = until(self.task_pids, "its processes")
        return pids[0]

    def task_pids(self) -> list[int]:
        """Processes whose environment names this node's work folder: its tasks, the oldest first."""
        pids = [pid for pid, env in _environments() if f"HOME={self.folder.path}/work/".encode() in env]
        return sorted(pids, key=lambda pid: (_started(pid), pid))

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = DEADLINE_S) -> int:
        """Tell it to stop; its exit status. All that it wrote is in `said` then."""
        self.process.send_signal(number)
        code = self.process.wait(timeout_s)
        self._listener.join(5)  # for ever only if something of it lives on
        return code

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(10)

    def _dead(self) -> bool:
        return self.process.poll() is not None


def _environments() -> Iterator[tuple[int, bytes]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                yield int(name), Path("/proc", name, "environ").read_bytes()


def _started(pid: int) -> int:
    try:
        return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[19])
    except OSError:  # gone meanwhile
        return 0


@contextlib.contextmanager
def daemon(
    folder: NodeFolder,
    *,
    env: Mapping[str, str] | None = None,
    argv: Sequence[str] = (*RAE_NODE, "run"),
    user: int | None = None,
) -> Iterator[Daemon]:
    """A daemon while the context lasts; killed at its end if it still runs."""
    reads, writes = os.pipe()
    process = subprocess.Popen(
        [*with_constants(argv, folder.constants), "--config", str(folder.path)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=writes, preexec_fn=_die_with_us, cwd="/",
        env={**os.environ, **folder.environment, **(env or {})}, user=user, group=user,
    )
    os.close(writes)
    node = Daemon(folder, process)

    def listen() -> None:
        while chunk := os.read(reads, 65536):
            node._said.append(chunk)

    node._listener = listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield node
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        for pid in node.task_pids():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        listener.join(5)
        if not listener.is_alive():
            os.close(reads)
