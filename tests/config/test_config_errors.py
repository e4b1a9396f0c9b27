"""Broken configurations and their errors, to the letter (R7, interface §2 and §3)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest
from support.config_folder import SEED, errors, gpu, write

from supervisor.config.schema import NodeSettings, Runtime
from supervisor.config.validate import unwrap, validate
from supervisor.config.yaml_reader import Problem

SAFETY = "detect_active_user, idle_required_minutes, max_cpu_percent, max_gpu_percent, max_vram_gb, cooldown_minutes"
EXECUTION = "poll_interval_sec, heartbeat_interval_sec, task_timeout_minutes, retry_on_disconnect"
PERCENT = "allowed: a number > 0 and ≤ 100"
GPU = "runtime.yaml:9:20: safety.max_gpu_percent: found"
BOOL = "allowed: true or false"
HIDDEN = "a text that is not shown here, because it may be a secret"
TEXT_NAME = "allowed: a text (in quotes where YAML reads it as something else)"


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
    ("control: {token: {env: 1B}}", f"node.yaml:1:24: control.token.env: found {HIDDEN}, allowed: {ENV}, or nothing"),
    ("tasks: []", "node.yaml:1:8: tasks: found a list, allowed: a mapping, each name a task type of 1 to 128 characters"),
    ("tasks: {x: {}}", "node.yaml:1:12: tasks.x.argv: found nothing, allowed: a list with the program first"),
    ("tasks:\n  x:\n    grace_sec: 1", "node.yaml:3:5: tasks.x.argv: found nothing, allowed: a list with the program first"),
    ("tasks: {x: {argv: []}}", "node.yaml:1:19: tasks.x.argv: found an empty list, allowed: a list with the program first"),
    ("tasks: {x: {argv: ['']}}", "node.yaml:1:20: tasks.x.argv[0]: found '', allowed: the program to run"),
    ("host: {checks: [[]]}", "node.yaml:1:17: host.checks[0]: found an empty list, allowed: a list with the program first"),
    ("host: {checks: [[a], ['', b]]}", "node.yaml:1:22: host.checks[1]: found '', allowed: a list with the program first"),
    ("host: {checks: [a]}", f"node.yaml:1:17: host.checks[0]: found {HIDDEN}, allowed: a list, each item a text"),
    ("tasks: {x: {argv: [sleep, 10]}}", "node.yaml:1:27: tasks.x.argv[1]: found 10, allowed: a text (in quotes)"),
    ("tasks: {x: {argv: sleep 10}}", f"node.yaml:1:19: tasks.x.argv: found {HIDDEN}, allowed: a list, each item a text"),
    ("tasks: {x: {executor: bad}}", "node.yaml:1:23: tasks.x.executor: found bad, allowed: command, ollama_api, shell_command"),
    ("tasks: {1: {argv: [a]}}", f"node.yaml:1:9: tasks: found 1 as a name, {TEXT_NAME}"),
    ("tasks: {'': {argv: [a]}}", "node.yaml:1:9: tasks: found the name '', allowed: a task type of 1 to 128 characters"),
    ("tasks: {x: {argv: [a], env: {A: yes}}}", f"node.yaml:1:33: tasks.x.env.A: found {HIDDEN}, allowed: a text (in quotes)"),
    ("tasks: {x: {argv: [a], env: {B=C: x}}}", f"node.yaml:1:30: tasks.x.env: found {HIDDEN}, allowed: {ENV}"),
    (
        "tasks: {x: {argv: [a], grace: 1}}",
        "node.yaml:1:24: tasks.x.grace: found an unknown field, allowed: executor, argv, allow_any_command, "
        "sandbox, sandbox_read, sandbox_network, timeout_minutes, on_yield, hold_sec, checkpoint, on_preempt, grace_sec, "
        "notice, max_result_mb, max_memory_gb, max_vram_gb, max_disk_gb, max_processes, env, ollama_url "
        "(did you mean grace_sec?)",
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
    node = "host: {min_memory_gb: -1, inhibitor: no}\nlogs: {keep_days: !!int 3, keep: 1}\n"
    assert errors(write(tmp_path, runtime, node)) == [
        f"runtime.yaml:1:1: execution: found nothing, allowed: a section with {EXECUTION}",
        f"runtime.yaml:1:23: automation.enabled: found yes, {BOOL}",
        f"runtime.yaml:1:40: automation.auto_start: found 2, {BOOL}",
        f"runtime.yaml:2:9: safety: found a list, allowed: a section with {SAFETY}",
        "runtime.yaml:3:1: extra: found an unknown field, allowed: automation, safety, execution",
        "runtime.yaml:3:8: found the anchor &a, allowed: every value written out",
        "node.yaml:1:23: host.min_memory_gb: found -1, allowed: a number ≥ 0 and ≤ 4096",
        "node.yaml:1:38: host.inhibitor: found no, allowed: one of required, none",
        "node.yaml:2:19: found the tag !!int, allowed: values without tags",
        "node.yaml:2:28: logs.keep: found an unknown field, allowed: keep_days (did you mean keep_days?)",
    ]


def test_a_file_full_of_errors_is_cut_short(tmp_path: Path) -> None:
    """Nobody reads ten thousand lines; the first hundred come quickly."""
    started = time.monotonic()
    lines = errors(write(tmp_path, SEED + "".join(f"k{n}: 1\n" for n in range(20_000))))
    assert len(lines) == 101
    assert lines[-1] == "runtime.yaml:118:1: found 19900 more errors, allowed: none"
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("node", [
    "S", "control: S", "control: {token: S}", "control: {token: [S]}", "control: {token: {S: 1}}",
    "control: {token: {file: a, S: S}}", "control: {token: {env: S!}}", "control: {token: {env: [S]}}",
    "control: {token: {credential: S/..}}", "control: {password: S}", "control: {url: S}", "control: {source: nats, url: S}",
    "control: {url: 'http://u:S@10.0.0.1'}", "control: {url: 'http://10.0.0.1/?key=S'}", "control: {url: 'http://10.0.0.1/#S'}",
    "control: {source: nats, url: 'nats://u:S@10.0.0.1'}", "tasks: S", "tasks: {x: S}", "tasks: {x: {argv: [a], env: S}}",
    "tasks: {x: {argv: [a], env: {A: [S]}}}", "tasks: {x: {argv: [a], env: {S=: b}}}", "tasks: {x: {argv: [a], secret: S}}",
    "secret: S", "control: {nats: S}", "tasks: {x: {argv: S}}", "tasks: {x: {argv: [[S], {S: 1}]}}",
    "tasks: {x: {argv: [a], notice: S}}", "host: {checks: [S]}",
])  # fmt: skip
def test_a_secret_in_the_wrong_place_is_in_no_error(tmp_path: Path, node: str) -> None:
    write(tmp_path, node=node.replace("S", "hunter2"))
    lines = errors(tmp_path)
    assert lines
    assert "hunter2" not in "\n".join(lines)


def fields(cls: type[Any]) -> Iterator[tuple[str, ...]]:
    """The path of each section and field of a file."""
    for one in msgspec.structs.fields(cls):
        inner = unwrap(one.type)[0]
        yield (one.name,)
        if get_origin(inner) is dict:
            inner = get_args(inner)[1]
            below: tuple[str, ...] = (one.name, "x")
            yield below
        else:
            below = (one.name,)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            yield from (below + rest for rest in fields(inner))


def test_what_looks_like_a_key_is_in_no_error_wherever_it_stands() -> None:
    key, refused = "sk-4711-Zq8rT2", 0
    for cls, file in ((NodeSettings, "node"), (Runtime, "runtime")):
        for path in ((), *fields(cls)):
            for wrong in (key, [key], {key: 1}, {"x": key}):
                if path == ("tasks",) and isinstance(wrong, dict):
                    continue  # the name of a task type is public
                value: Any = wrong
                for name in reversed(path):
                    value = {name: value}
                problems: list[Problem] = []
                validate(cls, json.dumps(value), f"{file}.yaml", problems, [])
                refused += bool(problems)
                assert key not in "\n".join(map(str, problems)), (path, wrong)
    assert refused > 300
