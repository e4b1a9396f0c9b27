"""Correct configurations: what is read from them, at what cost; one line for each error in others (R7, interface §2)."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.config_folder import SEED, gpu, write
from support.depth import examples
from support.recorded_events import Recorded

from states.limits import Limits
from supervisor.config.load import Config, ConfigErrors, load
from supervisor.config.removed import REMOVED
from supervisor.config.schema import NodeSettings
from supervisor.daemon import wiring
from supervisor.linux.clock import SystemClock
from supervisor.sensors import sensor_set
from supervisor.sensors.gpu import ownership
from supervisor.sensors.host import host, site_checks
from supervisor.sensors.presence.evdev import DEAD_ZONE
from supervisor.sources import backoff
from supervisor.sources.factory import make_source
from supervisor.sources.rae import transport
from supervisor.sources.rae.source import RaeSource


def test_the_seed_alone_is_sound(tmp_path: Path) -> None:
    """The shipped values are the defaults of Limits; the node has the name of the host."""
    config = load(write(tmp_path))
    assert config.limits == Limits()
    assert config.node == NodeSettings()
    assert re.fullmatch("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", config.node_id)
    assert config.notes[0] == f"node.yaml: not found in {tmp_path}; every setting is at its default"
    assert config.folder == tmp_path
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.node_id = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    "form",
    [
        SEED.replace("\n", "\r\n"),
        "\ufeff" + SEED,
        "---\n" + SEED + "...\n",
        gpu("9.0e+1"),
        gpu("+90."),
        gpu("90 # ok"),
        SEED.rstrip(),
    ],
)
def test_other_ways_to_write_the_same(tmp_path: Path, form: str) -> None:
    """Windows line ends, a byte order mark, document marks, plain decimals."""
    assert load(write(tmp_path, form)).limits == Limits()


@pytest.mark.parametrize("node", ["", "# nothing\n", "{}", "control:\ntasks:\nhost:\n  # inhibitor: none\n", "null"])
def test_empty_sections_are_at_their_defaults(tmp_path: Path, node: str) -> None:
    """Commenting every field out is no error in node.yaml."""
    assert load(write(tmp_path, node=node)).node == NodeSettings()


def test_settings_become_limits_and_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes become seconds, relative paths start at the folder."""
    monkeypatch.setenv("HOME", "/home/anna")
    node = """\
node: {id: lab-3}
gpu: {presence: optional}
work: {run_minutes: 0}
paths: {logs: l, workdir: ../work, runtime: ~/run, state: /var/x/../y}
tasks:
  a: {argv: [/bin/true], timeout_minutes: 0.5}
  b: {argv: [/bin/true], timeout_minutes: 300}
"""
    config = load(write(tmp_path, SEED.replace("10\n", "0.5\n", 1), node))
    limits = config.limits
    assert (limits.idle_required_s, limits.run_s, limits.gpu_required) == (30.0, 0.0, False)
    assert (limits.timeout_s("a"), limits.timeout_s("b"), limits.timeout_s("c")) == (30.0, 10800.0, 10800.0)
    assert config.node_id == "lab-3"
    assert config.paths.logs == tmp_path / "l"
    assert config.paths.workdir == tmp_path.parent / "work"
    assert (config.paths.runtime, config.paths.state) == (Path("/home/anna/run"), Path("/var/y"))
    assert config.resolve("key") == tmp_path / "key"
    assert config.notes == (
        "node.yaml: tasks.b.timeout_minutes 300 is above execution.task_timeout_minutes 180, which applies",
    )


@pytest.mark.parametrize("name", REMOVED)
def test_a_removed_setting_is_noted_and_not_refused(tmp_path: Path, name: str) -> None:
    """For this release; its value is not read."""
    section, _, field = name.partition(".")
    config = load(write(tmp_path, node=f"{section}:\n  {field}: [of, no, use]\ntasks:\n  a: {{argv: [/bin/true]}}\n"))
    assert config.notes == (f"node.yaml:2:3: {name} was removed: {REMOVED[name]}; delete the line",)
    assert config.node == load(write(tmp_path, node="tasks:\n  a: {argv: [/bin/true]}\n")).node


def test_the_note_names_the_value_of_the_constant() -> None:
    """The note of a removed setting must not drift from the constant that took its place."""
    gib, limits = 2**30, Limits()
    values = {
        "control.connect_timeout_sec": transport.CONNECT_TIMEOUT_S,
        "control.read_timeout_sec": transport.READ_TIMEOUT_S,
        "control.total_timeout_sec": transport.TOTAL_TIMEOUT_S,
        "control.max_answer_mb": transport.MAX_ANSWER_BYTES * 1024 / gib,
        "control.max_requests_per_sec": transport.MAX_REQUESTS_PER_SEC,
        "control.backoff_max_sec": backoff.LONGEST_S,
        "gpu.display_cap_gb": ownership.DESKTOP_GB,
        "gpu.look_interval_sec": wiring.LOOK_INTERVAL_S,
        "gpu.vram_release_sec": ownership.VRAM_RELEASE_S,
        "gpu.max_age_sec": limits.max_age_gpu_s,
        "presence.gamepad_dead_zone_percent": 100 * DEAD_ZONE,
        "presence.max_age_sec": limits.max_age_person_s,
        "host.check_timeout_sec": site_checks.TIMEOUT_S,
        "host.cpu_window_sec": host.CPU_WINDOW_S,
        "host.max_age_sec": limits.max_age_host_s,
        "work.settle_sec": sensor_set.SETTLE_S,
    }
    assert limits.max_age_cpu_s == limits.max_age_host_s
    assert [*values] == [name for name in REMOVED if name not in ("control.paths", "gpu.display_servers")]
    for name, value in values.items():
        assert REMOVED[name].startswith(f"it is a constant now ({value:g}"), name


@pytest.mark.parametrize(
    ("named", "used"), [(None, None), ("ca.pem", "ca.pem"), ("../ca.pem", "../ca.pem"), ("~/ca.pem", "/home/anna/ca.pem")]
)
def test_files_of_the_link_start_at_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None, used: str | None
) -> None:
    """The source gets absolute paths, independent of the working directory."""
    monkeypatch.setenv("HOME", "/home/anna")
    node = f"control: {{ca_file: {named}, token: {{file: {named}}}}}\n" if named else ""
    config = load(write(tmp_path, node=node))
    wanted = None if used is None else os.path.normpath(tmp_path / used)
    assert (config.control.ca_file, config.control.token.file) == (wanted, wanted)
    source = make_source(config, SystemClock(), None, Recorded())
    assert isinstance(source, RaeSource)
    assert source._transport._ca_file == wanted


URLS = [
    "http://localhost:8000", "http://LOCALHOST", "http://127.1.2.3", "http://[::1]:8000/api", "http://10.255.0.1", "http://172.16.0.1",
    "http://172.31.255.255", "http://192.168.0.1", "http://169.254.1.1", "http://100.64.0.1", "http://100.127.255.255",
    "http://[fd7a:115c:a1e0::1]", "http://[fe80::1%eth0]", "http://[::ffff:10.0.0.1]", "https://rae.example", "https://8.8.8.8",
]


@pytest.mark.parametrize("url", URLS)
def test_where_a_control_node_may_be(tmp_path: Path, url: str) -> None:
    """https anywhere, http where nobody reads along."""
    assert load(write(tmp_path, node=f"control: {{url: '{url}'}}")).node.control.url == url


def test_it_imports_little() -> None:
    """Errors of the configuration come before anything heavy is loaded."""
    program = (
        "import sys, dataclasses, pathlib, typing, yaml, msgspec\n"
        "from supervisor.config.load import load\n"
        "load(pathlib.Path('config'))\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('states', 'supervisor')))\n"
        "print(*(m for m in ('asyncio', 'socket', 'difflib', 'psutil', 'transitions', 'logging') if m in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules, heavy = run.stdout.split("\n")[:2]
    assert {".".join(name.split(".")[:2]) for name in modules.split()} == {
        "states", "states.limits", "supervisor", "supervisor.config", "supervisor.linux"
    }  # fmt: skip
    assert heavy == ""


# --- nothing but ConfigErrors, whatever is in the files

MARKS = ["automation", "tasks", "true", "90", "[", "]", "{", "}", ",", "'", '"', "|", ">", "#", "%", "?"]
SPACED = ["<<", "~", "*a", "é", "\\u", ": ", "  ", "- ", "&a ", "!!str ", "\n", "\r", "\t", "\0", "---\n", "...\n"]
PIECES = st.sampled_from([mark.encode() for mark in [*MARKS, *SPACED]] + [b"\xff", b"\xfe"])
SPLICED = st.tuples(st.integers(0, len(SEED)), st.integers(0, 30), st.lists(PIECES, max_size=6)).map(
    lambda cut: SEED[: cut[0]].encode() + b"".join(cut[2]) + SEED[cut[0] + cut[1] :].encode()
)
HOSTILE = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=40).map(b"".join), SPLICED)
ONE_LINE = re.compile(r"(runtime|node)\.yaml:[1-9][0-9]*:[1-9][0-9]*: ([^\n]+: )?found [^\n]+, allowed: [^\n]+")


@settings(max_examples=examples(400, 60), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(runtime=HOSTILE, node=HOSTILE)
def test_any_bytes_give_a_config_or_lines(tmp_path: Path, runtime: bytes, node: bytes) -> None:
    """Every line has the one form, and its place exists in the file."""
    write(tmp_path, runtime, node)
    try:
        outcome: Config | ConfigErrors = load(tmp_path)
    except ConfigErrors as caught:
        outcome = caught
    if isinstance(outcome, Config):
        return
    assert outcome.problems
    for problem in outcome.problems:
        assert ONE_LINE.fullmatch(str(problem)), str(problem)
        assert str(problem).isprintable()
        raw = runtime if problem.file == "runtime.yaml" else node
        assert problem.line <= len(re.split(b"\r\n|\r|\n", raw)) + 1


def number(low: float, high: float) -> st.SearchStrategy[float]:
    """Any float within bounds, the ends too."""
    return st.floats(low, high, allow_subnormal=False)


RUNTIMES = st.fixed_dictionaries(
    {
        "automation": st.fixed_dictionaries({"enabled": st.booleans(), "auto_start": st.booleans()}),
        "safety": st.fixed_dictionaries(
            {
                "detect_active_user": st.booleans(),
                "idle_required_minutes": number(1e-6, 1440),
                "max_cpu_percent": number(1e-6, 100),
                "max_gpu_percent": number(1e-6, 100),
                "max_vram_gb": number(1e-6, 1024),
                "cooldown_minutes": number(0, 1440),
            }
        ),
        "execution": st.fixed_dictionaries(
            {
                "poll_interval_sec": number(0.2, 3600),
                "heartbeat_interval_sec": number(0.2, 3600),
                "task_timeout_minutes": number(1e-6, 10080),
                "retry_on_disconnect": st.booleans(),
            }
        ),
    }
)
# PyYAML writes `0E0` without quotes, for YAML 1.1 takes it for a text; YAML 1.2 takes it for a number, so it is refused.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30).filter(
    lambda text: not re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", text)
)
TASKS = st.dictionaries(
    st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), min_size=1, max_size=20),
    st.fixed_dictionaries(
        {"argv": st.tuples(TEXTS.filter(bool), TEXTS).map(list)},
        optional={"env": st.dictionaries(st.from_regex("[A-Z_]{1,8}", fullmatch=True), TEXTS), "grace_sec": number(0, 60)},
    ),
    max_size=4,
)


@settings(max_examples=examples(200, 30), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(runtime=RUNTIMES, tasks=TASKS, flow=st.booleans())
def test_what_is_written_is_what_is_read(
    tmp_path: Path, runtime: dict[str, dict[str, object]], tasks: dict[str, dict[str, object]], flow: bool
) -> None:
    """Round trip of sound values through PyYAML's own writer, in block and in flow style."""
    dumped = [yaml.safe_dump(data, default_flow_style=flow, allow_unicode=False) for data in (runtime, {"tasks": tasks})]
    config = load(write(tmp_path, *dumped))
    for section, fields in runtime.items():
        for name, value in fields.items():
            assert getattr(getattr(config.runtime, section), name) == value
    for task, fields in tasks.items():
        for name, value in fields.items():
            assert getattr(config.node.tasks[task], name) == value
