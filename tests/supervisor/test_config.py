"""Broken configurations and what is said about them, to the letter (R7, interface §2 and §3)."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from states.limits import Limits
from supervisor.config import Config, ConfigErrors, find_folder, fingerprint, load
from supervisor.settings import NodeSettings

SEED = """\
automation:
  enabled: true
  auto_start: true

safety:
  detect_active_user: true
  idle_required_minutes: 10
  max_cpu_percent: 80
  max_gpu_percent: 90
  max_vram_gb: 14
  cooldown_minutes: 15

execution:
  poll_interval_sec: 45
  heartbeat_interval_sec: 30
  task_timeout_minutes: 180
  retry_on_disconnect: true
"""
SAFETY = "detect_active_user, idle_required_minutes, max_cpu_percent, max_gpu_percent, max_vram_gb, cooldown_minutes"
EXECUTION = "poll_interval_sec, heartbeat_interval_sec, task_timeout_minutes, retry_on_disconnect"
PERCENT = "allowed: a number > 0 and ≤ 100"
GPU = "runtime.yaml:9:20: safety.max_gpu_percent: found"
BOOL = "allowed: true or false"
TEXT_NAME = "allowed: a text (in quotes where YAML reads it as something else)"


def write(folder: Path, runtime: str | bytes | None = SEED, node: str | bytes | None = None) -> Path:
    """A configuration folder."""
    for name, content in (("runtime.yaml", runtime), ("node.yaml", node)):
        if content is not None:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def errors(folder: Path) -> list[str]:
    """The lines that a folder's configuration gets."""
    with pytest.raises(ConfigErrors) as caught:
        load(folder)
    lines = [str(problem) for problem in caught.value.problems]
    assert str(caught.value) == "\n".join(lines)
    return lines


def gpu(value: str) -> str:
    """runtime.yaml with another max_gpu_percent."""
    return SEED.replace("max_gpu_percent: 90", f"max_gpu_percent: {value}")


def enabled(value: str) -> str:
    """runtime.yaml with another automation.enabled."""
    return SEED.replace("enabled: true", f"enabled: {value}", 1)


RUNTIME = [
    (gpu("140"), f"{GPU} 140, {PERCENT}"),
    (gpu("0"), f"{GPU} 0, {PERCENT}"),
    (gpu("-1"), f"{GPU} -1, {PERCENT}"),
    (gpu("100.0001"), f"{GPU} 100.0001, {PERCENT}"),
    (gpu('"90"'), f"{GPU} '90', {PERCENT}"),
    (gpu("true"), f"{GPU} true, {PERCENT}"),
    (gpu(".nan"), f"{GPU} .nan, {PERCENT}"),
    (gpu("NaN"), f"{GPU} NaN, {PERCENT}"),
    (gpu("-.inf"), f"{GPU} -.inf, {PERCENT}"),
    (gpu("1e400"), f"{GPU} 1e400, {PERCENT}"),
    (gpu("90%"), f"{GPU} 90%, {PERCENT}"),
    (gpu("٣"), f"{GPU} ٣, {PERCENT}"),
    (gpu("0x5a"), f"{GPU} 0x5a, {PERCENT}, in plain decimal form"),
    (gpu("0b11"), f"{GPU} 0b11, {PERCENT}, in plain decimal form"),
    (gpu("010"), f"{GPU} 010, {PERCENT}, in plain decimal form"),
    (gpu("1_0"), f"{GPU} 1_0, {PERCENT}, in plain decimal form"),
    (gpu("1:30"), f"{GPU} 1:30, {PERCENT}, in plain decimal form"),
    (gpu("~"), f"{GPU} nothing, {PERCENT}"),
    (gpu(""), f"runtime.yaml:9:19: safety.max_gpu_percent: found nothing, {PERCENT}"),
    (gpu("[1]"), f"{GPU} a list, {PERCENT}"),
    (gpu("{}"), f"{GPU} a mapping, {PERCENT}"),
    (gpu("\u202e90"), f"{GPU} \\u202e90, {PERCENT}"),
    (gpu("x" * 100), f"{GPU} {'x' * 59}…, {PERCENT}"),
    (gpu("'" + "x" * 100 + "'"), f"{GPU} '{'x' * 59}…', {PERCENT}"),
    (gpu("|\n    90"), f"{GPU} '90\\n', {PERCENT}"),
    (
        SEED.replace("45", "0.1"),
        "runtime.yaml:14:22: execution.poll_interval_sec: found 0.1, allowed: a number ≥ 0.2 and ≤ 3600",
    ),
    (SEED.replace("15", "-1"), "runtime.yaml:11:21: safety.cooldown_minutes: found -1, allowed: a number ≥ 0 and ≤ 1440"),
    (enabled("yes"), f"runtime.yaml:2:12: automation.enabled: found yes, {BOOL}"),
    (enabled("on"), f"runtime.yaml:2:12: automation.enabled: found on, {BOOL}"),
    (enabled("1"), f"runtime.yaml:2:12: automation.enabled: found 1, {BOOL}"),
    (enabled("True"), f"runtime.yaml:2:12: automation.enabled: found True, {BOOL}"),
    (enabled('"true"'), f"runtime.yaml:2:12: automation.enabled: found 'true', {BOOL}"),
    (enabled(""), f"runtime.yaml:2:11: automation.enabled: found nothing, {BOOL}"),
    (SEED.replace("  max_gpu_percent: 90\n", ""), f"runtime.yaml:5:1: safety.max_gpu_percent: found nothing, {PERCENT}"),
    (
        SEED.partition("\nexecution")[0],
        f"runtime.yaml:1:1: execution: found nothing, allowed: a section with {EXECUTION}",
    ),
    (
        SEED.replace("14\n", "14\n  max_vram: 3\n"),
        f"runtime.yaml:11:3: safety.max_vram: found an unknown field, allowed: {SAFETY} (did you mean max_vram_gb?)",
    ),
    (SEED + "zzz: 1\n", "runtime.yaml:18:1: zzz: found an unknown field, allowed: automation, safety, execution"),
    (
        SEED.replace("15\n", "15\n  cooldown_minutes: 20\n"),
        "runtime.yaml:12:3: safety.cooldown_minutes: found a second time (first on line 11), allowed: once",
    ),
    (SEED + "safety: {}\n", "runtime.yaml:18:1: safety: found a second time (first on line 5), allowed: once"),
    (SEED + "1: x\n", f"runtime.yaml:18:1: found 1 as a name, {TEXT_NAME}"),
    (SEED + "on: x\n", f"runtime.yaml:18:1: found on as a name, {TEXT_NAME}"),
    (SEED + "? [a]\n: 1\n", f"runtime.yaml:18:3: found a list as a name, {TEXT_NAME}"),
    (SEED + "<<: {a: 1}\n", "runtime.yaml:18:1: found the merge key <<, allowed: every value written out"),
    ("", "runtime.yaml:1:1: found nothing, allowed: a section with automation, safety, execution"),
    ("# only this\n", "runtime.yaml:1:1: found nothing, allowed: a section with automation, safety, execution"),
    ("[]\n", "runtime.yaml:1:1: found a list, allowed: a section with automation, safety, execution"),
    ("so so\n", "runtime.yaml:1:1: found so so, allowed: a section with automation, safety, execution"),
    (gpu("&a 90"), "runtime.yaml:9:20: found the anchor &a, allowed: every value written out"),
    (gpu("*a"), "runtime.yaml:9:20: found the alias *a, allowed: every value written out"),
    (gpu("!!int 90"), "runtime.yaml:9:20: found the tag !!int, allowed: values without tags"),
    (
        gpu("!!python/object/apply:os.system [id]"),
        "runtime.yaml:9:20: found the tag !!python/object/apply:os.system, allowed: values without tags",
    ),
    (gpu("! 90"), "runtime.yaml:9:20: found the tag !, allowed: values without tags"),
    (SEED + "---\na: 1\n", "runtime.yaml:18:1: found a second document, allowed: one document"),
    (SEED + "...\nb: 1\n", "runtime.yaml:19:1: found something after the end, allowed: one document, equally indented"),
    ("%YAML 1.1\n---\n" + SEED, "runtime.yaml:1:1: found a % directive, allowed: none"),
    (SEED.replace("  enabled", "\tenabled"), "runtime.yaml:2:1: found a tab, allowed: spaces"),
    (gpu('"90'), "runtime.yaml:9:20: found a quote that is never closed, allowed: a closing quote"),
    (gpu("[90"), "runtime.yaml:9:20: found a list that is not closed, allowed: a , or ] after each item"),
    (gpu("{a: 90"), "runtime.yaml:9:20: found a mapping that is not closed, allowed: a , or } after each field"),
    (gpu("@90"), "runtime.yaml:9:20: found the character @ at the start of a value, allowed: such a text in quotes"),
    (
        gpu("90: 1"),
        "runtime.yaml:9:22: found a ':' where no value can follow, allowed: one 'field: value' a line, equally indented",
    ),
    (
        SEED.replace("  max_gpu", " max_gpu"),
        "runtime.yaml:9:2: found something that is no field of its section, allowed: 'field: value', equally indented",
    ),
    (
        gpu('"\\q"'),
        "runtime.yaml:9:21: found an unknown \\ escape in double quotes, allowed: single quotes, or \\\\ for a backslash",
    ),
    ("%a\n" + SEED, "runtime.yaml:1:3: found a % directive, allowed: none"),
    (gpu("& 90"), "runtime.yaml:9:21: found an & or * without a name, allowed: such a text in quotes"),
    ("{a: " * 5000, "runtime.yaml:1:62: found too many levels of nesting, allowed: at most 16"),
    ("[\n" * 5000, "runtime.yaml:17:1: found too many levels of nesting, allowed: at most 16"),
    (SEED.encode("utf-16"), "runtime.yaml:1:1: found UTF-16 text, allowed: UTF-8 text"),
    (gpu("é").encode("latin-1"), "runtime.yaml:9:20: found the byte 0xe9, which is not UTF-8, allowed: UTF-8 text"),
    (gpu("\x00"), "runtime.yaml:9:20: found the control character U+0000, allowed: printable text"),
    (gpu("90 # \x85"), "runtime.yaml:9:25: found the control character U+0085, allowed: printable text"),
]


@pytest.mark.parametrize(("text", "line"), RUNTIME, ids=[line[:70] for _, line in RUNTIME])
def test_a_broken_runtime_file_gets_one_line(tmp_path: Path, text: str | bytes, line: str) -> None:
    """Each has one fault, and that one line names it."""
    assert errors(write(tmp_path, text)) == [line]


ID = "1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit, or nothing"
HOURS = 'a text of the form "HH:MM-HH:MM", from 00:00 to 24:00'
URL = "node.yaml:1:16: control.url: found"
HTTPS = "allowed: https, or http to localhost or to a loopback, private, link-local or Tailscale address"
FORM = "allowed: a URL of the form http(s)://host:port"
ENV = "the name of an environment variable: letters, digits and underscores, the first no digit"

NODE = [
    ("gpu: {presence: maybe}", "node.yaml:1:17: gpu.presence: found maybe, allowed: one of required, optional, none"),
    ("gpu: {presence: no}", "node.yaml:1:17: gpu.presence: found no, allowed: one of required, optional, none"),
    ("host: {inhibitor: ~}", "node.yaml:1:19: host.inhibitor: found nothing, allowed: one of required, none"),
    ("node: {id: 5}", f"node.yaml:1:12: node.id: found 5, allowed: {ID} (in quotes)"),
    ("node: {id: -a}", f"node.yaml:1:12: node.id: found -a, allowed: {ID}"),
    ('node: {id: "a\\n"}', f"node.yaml:1:12: node.id: found 'a\\n', allowed: {ID}"),
    ("control: {url: ftp://x}", f"{URL} ftp://x, {FORM}"),
    ("control: {url: 'https://'}", f"{URL} 'https://', {FORM}"),
    ("control: {url: http://localhost:99999}", f"{URL} http://localhost:99999, {FORM}"),
    ("control: {url: 'http://[::1'}", f"{URL} 'http://[::1', {FORM}"),
    ("control: {url: http://8.8.8.8}", f"{URL} http://8.8.8.8, {HTTPS}"),
    ("control: {url: http://172.32.0.1}", f"{URL} http://172.32.0.1, {HTTPS}"),
    ("control: {url: http://100.128.0.1}", f"{URL} http://100.128.0.1, {HTTPS}"),
    ("control: {url: http://rae.example}", f"{URL} http://rae.example, {HTTPS}"),
    ("control: {url: 'http://[2001:db8::1]'}", f"{URL} 'http://[2001:db8::1]', {HTTPS}"),
    ("control: {url: 'http://[::ffff:8.8.8.8]'}", f"{URL} 'http://[::ffff:8.8.8.8]', {HTTPS}"),
    ("control: {url: http://0x7f.1}", f"{URL} http://0x7f.1, allowed: a URL with a valid host name or address"),
    ("control: {url: 'http://127.0.0.1 '}", f"{URL} 'http://127.0.0.1 ', allowed: an ASCII URL without spaces"),
    (
        "control: {url: 'http://anna:geheim@127.0.0.1'}",
        f"{URL} a URL with a user name or password, allowed: a URL without user name, password, ? and # "
        "(the key belongs into control.token)",
    ),
    (
        "control: {source: nats}",
        "node.yaml:1:10: control.url: found http://127.0.0.1:8000, allowed: nats://host:port or tls://host:port, several "
        "between commas",
    ),
    (
        "control: {source: embedded, url: 'http://10.0.0.1'}",
        "node.yaml:1:34: control.url: found 'http://10.0.0.1', allowed: an address of this machine "
        "(127.0.0.1, ::1, localhost), as control.source is embedded",
    ),
    (
        "control: {token: {file: a, env: B}}",
        "node.yaml:1:33: control.token.env: found a second place for the key, beside control.token.file, "
        "allowed: at most one of file, credential, env",
    ),
    (
        'control: {source: nats, url: "nats://8.8.8.8:4222"}',
        "node.yaml:1:30: control.url: found 'nats://8.8.8.8:4222', allowed: tls://, or nats:// to localhost or to a loopback, "
        "private, link-local or Tailscale address",
    ),
    (
        'control: {source: nats, url: "tls://a:1,tls://b:x@c:1"}',
        "node.yaml:1:30: control.url: found a URL with a user name or password, allowed: a URL without user name, password, ? "
        "and # (the key belongs into control.token)",
    ),
    ("control: {nats: {consumer: a.b}}", "node.yaml:1:28: control.nats.consumer: found a.b, allowed: 1 to 64 letters, digits, "
     "dashes and underscores"),
    ("control: {token: {env: 1B}}", f"node.yaml:1:24: control.token.env: found 1B, allowed: {ENV}, or nothing"),
    ("tasks: []", "node.yaml:1:8: tasks: found a list, allowed: a mapping, each name a task type of 1 to 128 characters"),
    ("tasks: {x: {}}", "node.yaml:1:12: tasks.x.argv: found nothing, allowed: a list with the program first"),
    ("tasks:\n  x:\n    grace_sec: 1", "node.yaml:3:5: tasks.x.argv: found nothing, allowed: a list with the program first"),
    ("tasks: {x: {argv: []}}", "node.yaml:1:19: tasks.x.argv: found an empty list, allowed: a list with the program first"),
    ("tasks: {x: {argv: ['']}}", "node.yaml:1:20: tasks.x.argv[0]: found '', allowed: the program to run"),
    ("host: {checks: [[]]}", "node.yaml:1:17: host.checks[0]: found an empty list, allowed: a list with the program first"),
    ("host: {checks: [[a], ['', b]]}", "node.yaml:1:22: host.checks[1]: found '', allowed: a list with the program first"),
    ("host: {checks: [a]}", "node.yaml:1:17: host.checks[0]: found a, allowed: a list, each item a text"),
    ("tasks: {x: {argv: [sleep, 10]}}", "node.yaml:1:27: tasks.x.argv[1]: found 10, allowed: a text (in quotes)"),
    ("tasks: {x: {argv: sleep 10}}", "node.yaml:1:19: tasks.x.argv: found sleep 10, allowed: a list, each item a text"),
    ("tasks: {x: {executor: bad}}", "node.yaml:1:23: tasks.x.executor: found bad, allowed: command, ollama_api, shell_command"),
    ("tasks: {1: {argv: [a]}}", f"node.yaml:1:9: tasks: found 1 as a name, {TEXT_NAME}"),
    ("tasks: {'': {argv: [a]}}", "node.yaml:1:9: tasks: found the name '', allowed: a task type of 1 to 128 characters"),
    ("tasks: {x: {argv: [a], env: {A: yes}}}", "node.yaml:1:33: tasks.x.env.A: found yes, allowed: a text (in quotes)"),
    ("tasks: {x: {argv: [a], env: {B=C: x}}}", f"node.yaml:1:30: tasks.x.env: found the name B=C, allowed: {ENV}"),
    (
        "tasks: {x: {argv: [a], grace: 1}}",
        "node.yaml:1:24: tasks.x.grace: found an unknown field, allowed: executor, argv, allow_any_command, "
        "sandbox, sandbox_read, sandbox_network, timeout_minutes, on_yield, on_preempt, grace_sec, notice, max_result_mb, "
        "max_memory_gb, max_vram_gb, max_disk_gb, max_processes, env, ollama_url (did you mean grace_sec?)",
    ),
    ("work: {hours: [22:00]}", f"node.yaml:1:16: work.hours[0]: found 22:00, allowed: {HOURS}"),
    ("work: {hours: [08:00-12:00, 9:00-24:30]}", f"node.yaml:1:29: work.hours[1]: found 9:00-24:30, allowed: {HOURS}"),
    ("work: {hours: '22:00-06:00'}", f"node.yaml:1:15: work.hours: found '22:00-06:00', allowed: a list, each item {HOURS}"),
    ("work: {days: [mon, Tue]}", "node.yaml:1:20: work.days[1]: found Tue, allowed: one of mon, tue, wed, thu, fri, sat, sun"),
    ("logs: {keep_days: 7.0}", "node.yaml:1:19: logs.keep_days: found 7.0, allowed: a whole number ≥ 1 and ≤ 366"),
    ("logs: {keep_days: 0}", "node.yaml:1:19: logs.keep_days: found 0, allowed: a whole number ≥ 1 and ≤ 366"),
    (
        f"logs: {{keep_days: {'9' * 6000}}}",
        f"node.yaml:1:19: logs.keep_days: found {'9' * 59}…, allowed: a whole number ≥ 1 and ≤ 366",
    ),
    ("paths: {workdir: ''}", "node.yaml:1:18: paths.workdir: found '', allowed: a text that is not empty"),
    ('paths: {logs: "a\\0b"}', "node.yaml:1:15: paths.logs: found 'a\\x00b', allowed: a text that is not empty"),
    (
        "paths: {workdir: .}",
        "node.yaml:1:18: paths.workdir: found ., allowed: a folder of its own: it is wiped, and the configuration lies in it",
    ),
    (
        "paths: {logs: w/logs, workdir: w}",
        "node.yaml:1:32: paths.workdir: found w, allowed: a folder of its own: it is wiped, and paths.logs lies in it",
    ),
    (
        "control: {token: {file: w/key}}\npaths: {workdir: w}",
        "node.yaml:2:18: paths.workdir: found w, allowed: a folder of its own: it is wiped, and control.token.file lies in it",
    ),
    (
        "paths: {workdir: ~nobody_here/x}",
        "node.yaml:1:18: paths.workdir: found ~nobody_here/x, allowed: a path whose home folder is known on this machine",
    ),
    ("tasks: {x: &a {argv: [a]}}", "node.yaml:1:12: found the anchor &a, allowed: every value written out"),
]


@pytest.mark.parametrize(("text", "line"), NODE, ids=[line[:70] for _, line in NODE])
def test_a_broken_node_file_gets_one_line(tmp_path: Path, text: str, line: str) -> None:
    """Each has one fault, positions in flow style included."""
    assert errors(write(tmp_path, node=text)) == [line]


def test_all_errors_come_at_once_in_file_order(tmp_path: Path) -> None:
    """runtime.yaml first; within a file by place, a missing section at its top."""
    runtime = "automation: {enabled: yes, auto_start: 2}\nsafety: []\nextra: &a 1\n"
    node = "host: {max_age_sec: 0, inhibitor: no}\nlogs: {keep_days: !!int 3, keep: 1}\n"
    assert errors(write(tmp_path, runtime, node)) == [
        f"runtime.yaml:1:1: execution: found nothing, allowed: a section with {EXECUTION}",
        f"runtime.yaml:1:23: automation.enabled: found yes, {BOOL}",
        f"runtime.yaml:1:40: automation.auto_start: found 2, {BOOL}",
        f"runtime.yaml:2:9: safety: found a list, allowed: a section with {SAFETY}",
        "runtime.yaml:3:1: extra: found an unknown field, allowed: automation, safety, execution",
        "runtime.yaml:3:8: found the anchor &a, allowed: every value written out",
        "node.yaml:1:21: host.max_age_sec: found 0, allowed: a number > 0 and ≤ 600",
        "node.yaml:1:35: host.inhibitor: found no, allowed: one of required, none",
        "node.yaml:2:19: found the tag !!int, allowed: values without tags",
        "node.yaml:2:28: logs.keep: found an unknown field, allowed: keep_days (did you mean keep_days?)",
    ]


def test_a_file_full_of_errors_is_cut_short(tmp_path: Path) -> None:
    """Nobody reads ten thousand lines, and they are told in no time."""
    started = time.monotonic()
    lines = errors(write(tmp_path, SEED + "".join(f"k{n}: 1\n" for n in range(20_000))))
    assert len(lines) == 101
    assert lines[-1] == "runtime.yaml:118:1: found 19900 more errors, allowed: none"
    assert time.monotonic() - started < 10


# --- files that are none


def test_a_missing_runtime_file_says_what_to_do(tmp_path: Path) -> None:
    """One line; a missing node.yaml is no error."""
    (line,) = errors(tmp_path)
    assert line.startswith(f"runtime.yaml: not found in {tmp_path}; copy the shipped config/runtime.yaml there")
    (line,) = errors(tmp_path / "nowhere")
    assert line == (
        f"runtime.yaml: not found in {tmp_path}/nowhere; there is no such folder; "
        "name the one that holds runtime.yaml with --config"
    )
    write(tmp_path)
    for line in errors(tmp_path / "runtime.yaml"):
        assert line.endswith(f"cannot be read in {tmp_path}/runtime.yaml; name a folder, not a file, with --config")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    """A FIFO without a writer would hang an open; a device never ends."""
    write(tmp_path)
    os.mkfifo(tmp_path / "node.yaml")
    assert errors(tmp_path) == [f"node.yaml: is a device, pipe or socket in {tmp_path}; put a regular file there"]
    (tmp_path / "node.yaml").unlink()
    (tmp_path / "node.yaml").symlink_to("/dev/zero")
    assert errors(tmp_path) == [f"node.yaml: is a device, pipe or socket in {tmp_path}; put a regular file there"]
    (tmp_path / "node.yaml").unlink()
    (tmp_path / "node.yaml").mkdir()
    assert errors(tmp_path) == [f"node.yaml: is a directory in {tmp_path}; put a regular file there"]
    (tmp_path / "node.yaml").rmdir()
    (tmp_path / "node.yaml").symlink_to("node.yaml")
    assert errors(tmp_path) == [
        f"node.yaml: cannot be read (Too many levels of symbolic links) in {tmp_path}; put a regular file there"
    ]
    with socket.socket(socket.AF_UNIX) as unix:
        (tmp_path / "node.yaml").unlink()
        unix.bind(os.path.relpath(tmp_path / "node.yaml"))
        assert errors(tmp_path) == [f"node.yaml: is a device, pipe or socket in {tmp_path}; put a regular file there"]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A bound on size keeps a sparse file of a terabyte out of memory."""
    write(tmp_path)
    with open(tmp_path / "node.yaml", "wb") as file:
        file.truncate(2**40)
    assert errors(tmp_path) == [f"node.yaml: is larger than 256 KiB in {tmp_path}; shorten it"]


def test_a_file_without_the_right_to_read_it(tmp_path: Path) -> None:
    """As any user but root, for whom everything is readable."""
    write(tmp_path)
    os.chmod(tmp_path / "runtime.yaml", 0)
    if os.geteuid() != 0:
        lines = errors(tmp_path)
    else:  # pytest's own folders are for their owner alone
        for folder in (tmp_path, *tmp_path.parents[:2]):
            os.chmod(folder, 0o755)
        lines = _as_nobody(tmp_path).splitlines()
    assert lines == [
        f"runtime.yaml: cannot be read (Permission denied) in {tmp_path}; give the service's user the right to read it"
    ]


def _as_nobody(folder: Path) -> str:
    """What uid 65534 is told: the modules are loaded first, as it may not reach them."""
    program = (
        "import os, sys, pathlib; from supervisor.config import load, ConfigErrors\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: load(pathlib.Path(sys.argv[1]))\nexcept ConfigErrors as e: print(e)"
    )
    return subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True).stdout


def test_hostile_folder_names_stay_on_one_line() -> None:
    """A line break or a NUL in a folder's name makes no second line and no traceback."""
    for name in ("/no\nwhere", "/no\0where", "/" + "x" * 5000):
        for line in errors(Path(name)):
            assert "\n" not in line


# --- sound ones


def test_the_seed_alone_is_sound(tmp_path: Path) -> None:
    """The shipped values are the mind's defaults; the node is named after the host."""
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
    """Minutes become seconds, ages come from their sections, relative paths start at the folder."""
    monkeypatch.setenv("HOME", "/home/anna")
    node = """\
node: {id: lab-3}
gpu: {presence: optional, max_age_sec: 7}
presence: {max_age_sec: 8}
host: {max_age_sec: 9}
work: {run_minutes: 0}
paths: {logs: l, workdir: ../work, runtime: ~/run, state: /var/x/../y}
tasks:
  a: {argv: [/bin/true], timeout_minutes: 0.5}
  b: {argv: [/bin/true], timeout_minutes: 300}
"""
    config = load(write(tmp_path, SEED.replace("10\n", "0.5\n", 1), node))
    limits = config.limits
    assert (limits.idle_required_s, limits.run_s, limits.gpu_required) == (30.0, 0.0, False)
    assert (limits.max_age_gpu_s, limits.max_age_person_s) == (7.0, 8.0)
    assert (limits.max_age_host_s, limits.max_age_cpu_s) == (9.0, 9.0)
    assert (limits.timeout_s("a"), limits.timeout_s("b"), limits.timeout_s("c")) == (30.0, 10800.0, 10800.0)
    assert config.node_id == "lab-3"
    assert config.paths.logs == tmp_path / "l"
    assert config.paths.workdir == tmp_path.parent / "work"
    assert (config.paths.runtime, config.paths.state) == (Path("/home/anna/run"), Path("/var/y"))
    assert config.resolve("key") == tmp_path / "key"
    assert config.notes == (
        "node.yaml: tasks.b.timeout_minutes 300 is above execution.task_timeout_minutes 180, which holds",
    )


URLS = [
    "http://localhost:8000", "http://LOCALHOST", "http://127.1.2.3", "http://[::1]:8000/api", "http://10.255.0.1", "http://172.16.0.1",
    "http://172.31.255.255", "http://192.168.0.1", "http://169.254.1.1", "http://100.64.0.1", "http://100.127.255.255",
    "http://[fd7a:115c:a1e0::1]", "http://[fe80::1%eth0]", "http://[::ffff:10.0.0.1]", "https://rae.example", "https://8.8.8.8",
]


@pytest.mark.parametrize("url", URLS)
def test_where_a_control_node_may_be(tmp_path: Path, url: str) -> None:
    """https anywhere, http where nobody reads along."""
    assert load(write(tmp_path, node=f"control: {{url: '{url}'}}")).node.control.url == url


def test_the_fingerprint_moves_with_either_file(tmp_path: Path) -> None:
    """Written again, replaced, or gone: each is a change."""
    seen = [fingerprint(tmp_path)]
    assert seen == [(None, None)]
    write(tmp_path)
    seen.append(fingerprint(tmp_path))
    write(tmp_path, node="# x")
    seen.append(fingerprint(tmp_path))
    (tmp_path / "new").write_text("# y")
    os.replace(tmp_path / "new", tmp_path / "node.yaml")
    seen.append(fingerprint(tmp_path))
    assert fingerprint(tmp_path) == seen[-1]
    assert len(set(seen)) == 4


def test_which_folder_is_meant(tmp_path: Path) -> None:
    """--config, then the environment, then the installed folder or the checkout's."""
    assert find_folder("a", {"RAE_NODE_CONFIG": "b"}) == Path("a")
    assert find_folder(None, {"RAE_NODE_CONFIG": "b"}) == Path("b")
    assert find_folder(None, {}) in (Path("/opt/rae-node/agent"), Path("config"))


def test_it_is_cheap_and_imports_little() -> None:
    """A broken configuration is told before anything heavy is loaded."""
    program = (
        "import sys, time, dataclasses, pathlib, typing, yaml, msgspec\n"
        "before = time.perf_counter()\n"
        "from supervisor.config import load\n"
        "load(pathlib.Path('config'))\n"
        "print(time.perf_counter() - before)\n"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('states', 'supervisor')))\n"
        "print(*(m for m in ('asyncio', 'socket', 'difflib', 'psutil', 'transitions', 'logging') if m in sys.modules))"
    )
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    best = 1.0
    for _ in range(5):
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environ)
        took, modules, heavy = run.stdout.split("\n")[:3]
        best = min(best, float(took))
    ours = ["config", "control_url", "executors", "executors.registry", "hours", "node_checks", "reach", "settings"]
    ours += ["settings_walk", "yaml_strict"]
    assert modules.split() == ["states", "states.limits", "supervisor", *(f"supervisor.{name}" for name in ours)]
    assert heavy == ""
    assert best < 0.1  # 0.009 s on an unloaded machine of 2026, over the libraries' own imports


# --- nothing but ConfigErrors, whatever is in the files

MARKS = ["automation", "tasks", "true", "90", "[", "]", "{", "}", ",", "'", '"', "|", ">", "#", "%", "?"]
SPACED = ["<<", "~", "*a", "é", "\\u", ": ", "  ", "- ", "&a ", "!!str ", "\n", "\r", "\t", "\0", "---\n", "...\n"]
PIECES = st.sampled_from([mark.encode() for mark in [*MARKS, *SPACED]] + [b"\xff", b"\xfe"])
SPLICED = st.tuples(st.integers(0, len(SEED)), st.integers(0, 30), st.lists(PIECES, max_size=6)).map(
    lambda cut: SEED[: cut[0]].encode() + b"".join(cut[2]) + SEED[cut[0] + cut[1] :].encode()
)
HOSTILE = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=40).map(b"".join), SPLICED)
ONE_LINE = re.compile(r"(runtime|node)\.yaml:[1-9][0-9]*:[1-9][0-9]*: ([^\n]+: )?found [^\n]+, allowed: [^\n]+")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
