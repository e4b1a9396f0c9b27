"""The parts of the sources that need no server: JSON, dialects, the key, the record of tasks in flight, back-off."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.answers import WALL_S, at
from support.constants import constants
from support.rae_server import PATHS
from tenacity import Future, RetryCallState, Retrying

from supervisor.cli.status import _facts
from supervisor.config.schema import Control, Token
from supervisor.linux.clock import SystemClock
from supervisor.sources import sanitize
from supervisor.sources.api_key import TokenError, token
from supervisor.sources.backoff import RETRY_AFTER_MAX_S, backoff_s
from supervisor.sources.errors import RequestError
from supervisor.sources.in_flight import NAME, SET_ASIDE, UNKNOWN, InFlightRecord, InFlightTask
from supervisor.sources.rae.dialects import DIALECTS, from_openapi
from supervisor.sources.rae.transport import Transport
from supervisor.tools.demo.control_node.api import Api
from supervisor.tools.demo.control_node.server import Request
from supervisor.tools.demo.control_node.store import ControlNode

ID = "7bc3cfb7-7654-4c30-a856-0f28b426b085"

# --- cleaning

TEXTS = st.text(st.characters(codec=None), max_size=8) | st.sampled_from(["\0", "\ud83d\ude00", "a\udcff", "\ud800"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=8) | st.just(object())
SOUND_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
SOUND = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | SOUND_TEXTS
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(LEAVES.filter(lambda key: key == key), inner, max_size=4)
    | st.tuples(inner, inner)
    | st.frozensets(TEXTS, max_size=3),
    max_leaves=12,
)


@given(VALUES)
def test_a_sanitized_value_encodes_and_stays_as_it_is(value: Any) -> None:
    cleaned = sanitize.sanitize(value)
    encoded = sanitize.encode(cleaned)
    assert b"\0" not in encoded
    assert b"\\u0000" not in encoded.replace(rb"\\", b"")
    assert json.loads(encoded) == cleaned
    assert sanitize.sanitize(cleaned) == cleaned


@given(st.recursive(SOUND, lambda inner: st.lists(inner) | st.dictionaries(SOUND_TEXTS, inner), max_leaves=8))
def test_a_good_value_is_not_changed(value: Any) -> None:
    assert sanitize.sanitize(value) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        ([float("inf"), -float("inf"), 1.5], [None, None, 1.5]),
        ("a\0b", "a\ufffdb"),
        ("x\ud800", "x\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        (b"caf\xe9", "caf\ufffd"),
        ({1: True, None: b"\xff"}, {"1": True, "None": "\ufffd"}),
        ((1, {2}), [1, [2]]),
        (object(), "<object>"),
        ([10**5000], ["<integer of 16610 bits>"]),
    ],
)
def test_what_the_server_cannot_store_is_replaced(value: Any, expected: Any) -> None:
    assert sanitize.sanitize(value) == expected


def test_endless_values_end() -> None:
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    sanitize.encode(sanitize.sanitize([loop, deep]))


@given(TEXTS)
def test_a_reason_is_one_line_and_never_empty(value: str) -> None:
    line = sanitize.reason(value)
    assert line.encode()
    assert "\n" not in line
    assert "\0" not in line


def test_a_long_reason_is_cut() -> None:
    assert len(sanitize.reason("x" * 10_000)) == sanitize.MAX_REASON_CHARS


# --- dialects


@pytest.mark.parametrize("name", "ABCD")
def test_each_dialect_is_told_by_its_openapi_document(name: str) -> None:
    api = Api(ControlNode(SystemClock()), **PATHS[name])  # type: ignore[arg-type]
    document = api(Request("GET", "/openapi.json", "", {}, b"", "")).value
    assert from_openapi(document) == DIALECTS[name]


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ({}, None),
        ([], None),
        ({"/x/nodes/register": {}}, None),
        ({"/x/nodes/register": {}, "/y/nodes/register": {}, "/x/tasks_poll": {}}, None),
        ({"/x/nodes/register": {}, "/x/tasks_poll": {}, "/x/tasks/poll": {}}, None),
        ({"/x/nodes/register": {}, "/x/tasks-poll": {}}, ("other", "/x/tasks-poll", False)),
        (
            {"/x/nodes/register": {}, "/x/tasks_poll": {}, "/x/tasks/{a}": {"get": {}}},
            ("other", "/x/tasks_poll", True),
        ),
        ({"//evil/nodes/register?": {}, "/x/tasks_poll": {}}, None),
    ],
)
def test_other_documents(paths: Any, found: tuple[str, str, bool] | None) -> None:
    dialect = from_openapi({"paths": paths})
    assert found == (None if dialect is None else (dialect.name, dialect.poll, dialect.lookup))


# --- the key


def write(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_the_key_comes_from_a_private_file_a_credential_or_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path / "key", "s3cret\n")
    assert token(Control(), {}) is None
    assert token(Control(token=Token(file=file)), {}) == "s3cret"
    assert token(Control(token=Token(credential="key")), {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == "s3cret"
    assert token(Control(token=Token(env="RAE_KEY")), {"RAE_KEY": "s3cret"}) == "s3cret"


@pytest.mark.parametrize(
    ("given", "environ", "mode", "content"),
    [
        (Token(file="{}/key"), {}, 0o640, "s3cret"),
        (Token(file="{}/key"), {}, 0o602, "s3cret"),
        (Token(file="{}/key"), {}, 0o600, ""),
        (Token(file="{}/key"), {}, 0o600, "s3cret line\ntwo"),
        (Token(file="{}/key"), {}, 0o600, "s3cret\u00e9"),
        (Token(file="{}/key"), {}, 0o600, "s3cret" * 5000),
        (Token(file="{}/none"), {}, 0o600, "s3cret"),
        (Token(file="{}"), {}, 0o600, "s3cret"),
        (Token(file="s3cret" * 50), {}, 0o600, ""),  # the key itself, too long for a name
        (Token(file="{}/key/s3cret"), {}, 0o600, ""),
        (Token(credential="key"), {}, 0o600, "s3cret"),
        (Token(credential="../key"), {"CREDENTIALS_DIRECTORY": "{}"}, 0o600, "s3cret"),
        (Token(credential="none"), {"CREDENTIALS_DIRECTORY": "{}"}, 0o600, "s3cret"),
        (Token(env="RAE_KEY"), {}, 0o600, "s3cret"),
        (Token(env="RAE_KEY"), {"RAE_KEY": " "}, 0o600, "s3cret"),
        (Token(file="{}/key", env="RAE_KEY"), {"RAE_KEY": "s3cret"}, 0o600, "s3cret"),
    ],
)
def test_a_key_that_cannot_be_trusted_is_refused_in_one_line(
    tmp_path: Path, given: Token, environ: dict[str, str], mode: int, content: str
) -> None:
    write(tmp_path / "key", content, mode)
    fill = str(tmp_path)
    settings = Control(token=Token(given.file and given.file.format(fill), given.credential, given.env))
    with pytest.raises(TokenError) as caught:
        token(settings, {name: value.format(fill) for name, value in environ.items()})
    assert str(caught.value).startswith("control.token")
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_key_that_belongs_to_another_user_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "key", "s3cret")
    os.chown(file, 12345, 0)
    with pytest.raises(TokenError, match="belongs to another user"):
        token(Control(token=Token(file=file)), {})


def test_a_credential_that_all_can_read_is_none(tmp_path: Path) -> None:
    """systemd's own are 0400, or 0440 where an ACL lets the service in."""
    settings, environ = Control(token=Token(credential="key")), {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    for mode in (0o400, 0o440):
        write(tmp_path / "key", "s3cret")
        (tmp_path / "key").chmod(mode)
        assert token(settings, environ) == "s3cret"
    (tmp_path / "key").chmod(0o444)
    with pytest.raises(TokenError, match="all users"):
        token(settings, environ)


# --- the note


def test_the_note_holds_ids_and_types_and_goes_when_all_is_delivered(tmp_path: Path) -> None:
    async def steps() -> None:
        notes = InFlightRecord(tmp_path / "state")
        assert await notes.load() == ((), "")
        await notes.put(InFlightTask(ID, "t", "node"))
        await notes.repost(ID, UNKNOWN)
        path = tmp_path / "state" / NAME
        assert json.loads(path.read_text()) == {
            "version": 1, "tasks": [{"id": ID, "type": "t", "node": "node", "repost": ""}]
        }  # fmt: skip
        assert path.stat().st_mode & 0o777 == 0o600
        again = InFlightRecord(tmp_path / "state")
        assert await again.load() == ((InFlightTask(ID, "t", "node", UNKNOWN, over=True),), "")
        await again.remove(ID)
        await again.check()
        assert os.listdir(tmp_path / "state") == []

    asyncio.run(steps())


def test_the_note_is_synced_file_and_folder_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    genuine = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    asyncio.run(InFlightRecord(tmp_path).put(InFlightTask(ID, "t")))
    assert synced == [str(tmp_path / f".{NAME}.new"), str(tmp_path)]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"version": 2, "tasks": []}',
        b'{"version": 1}',
        b'{"version": 1, "tasks": [{}]}',
        b'{"version": 1, "tasks": [{"id": "../../x", "type": "t"}]}',
        b'{"version": 1, "tasks": [{"id": "%s", "type": 1}]}' % ID.encode(),
        b'{"version": 1, "tasks": [{"id": "%s", "type": "t", "repost": "x"}]}' % ID.encode(),
        b'{"version": 1, "tasks": [{"id": "%s", "type": "t", "payload": {}}]}' % ID.encode(),
        b"[" * 60_000,
        b" " * 100_000,
    ],
)
def test_a_damaged_note_is_set_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    tasks, problem = asyncio.run(InFlightRecord(tmp_path).load())
    assert tasks == ()
    assert "damaged" in problem
    assert os.listdir(tmp_path) == [SET_ASIDE]


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_what_is_not_a_file_is_no_note(tmp_path: Path, kind: str) -> None:
    path = tmp_path / NAME
    {"fifo": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("/dev/zero"), "folder": path.mkdir}[kind]()
    tasks, problem = asyncio.run(InFlightRecord(tmp_path).load())
    assert tasks == ()
    assert "set aside" in problem


def test_a_note_that_cannot_be_written_is_an_error_and_stays_in_memory(tmp_path: Path) -> None:
    async def steps() -> None:
        notes = InFlightRecord(tmp_path / "file" / "state")
        (tmp_path / "file").write_text("")
        for work in (notes.put(InFlightTask(ID, "t")), notes.check()):
            with pytest.raises(OSError):
                await work
        assert ID in notes

    asyncio.run(steps())


# --- back-off


def waits(error: Exception, attempts: int) -> list[float]:
    state = RetryCallState(Retrying(), None, (), {})
    out = []
    for attempt in range(1, attempts + 1):
        state.attempt_number = attempt
        state.outcome = Future(attempt)
        state.outcome.set_exception(error)
        out.append(backoff_s(state))
    return out


def test_waits_grow_to_the_bound_jitter_and_are_never_nothing() -> None:
    with constants({"backoff_longest_s": 8.0}):
        many = [waits(RequestError("x"), 12) for _ in range(200)]
    assert all(0.1 <= wait_s <= min(8.0, 2.0**n) for run in many for n, wait_s in enumerate(run))
    assert max(run[-1] for run in many) > 6.0
    assert len({run[-1] for run in many}) > 100


@pytest.mark.parametrize(("asked_s", "least_s"), [(20.0, 20.0), (0.0, 0.1), (1e9, RETRY_AFTER_MAX_S)])
def test_retry_after_is_honoured_within_reason(asked_s: float, least_s: float) -> None:
    with constants({"backoff_longest_s": 5.0}):
        assert least_s <= waits(RequestError("x", retry_after_s=asked_s), 1)[0] <= max(least_s, 5.0)


# --- what people see


def test_a_key_or_a_password_is_in_no_text() -> None:
    settings = Control(url="http://anna:s3cret@127.0.0.1:1/rae/?k=s3cret")
    transport = Transport(settings, SystemClock(), "s3cret")
    assert transport.url == "http://127.0.0.1:1/rae"
    assert "s3cret" not in repr(transport)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ({}, ["control node http://h: up for 3 h"]),
        ({"error": "e", "error_at": at(120)}, ["control node http://h: up for 3 h", "last trouble 2 min ago: e"]),
        (
            {"link": "down", "reason": "e", "error": "e", "error_at": at(120), "next_try_s": 2.5, "outbox": 3},
            ["control node http://h: down for 3 h, e, next try in 2.5 s", "to deliver 3 outcomes"],
        ),
        (
            {"dialect": "B", "lost_polls": 2, "lost_poll_at": at(120)},
            [
                "control node http://h (dialect B): up for 3 h",
                "lost polls 2 since the start, the last 2 min ago: with each, the control node may have handed out a task that"
                " nobody has",
            ],
        ),
        (
            {"link": "down", "reason": "connecting", "error": "e", "error_at": at(120)},
            ["control node http://h: down for 3 h, connecting", "last trouble 2 min ago: e"],
        ),
    ],
)
def test_status_shows_the_link(source: dict[str, Any], lines: list[str]) -> None:
    link = {"url": "http://h", "link": "up", "since": at(10_800), "reason": "", "next_try_s": None, "outbox": 0}
    none = {"dialect": "", "lost_polls": 0, "lost_poll_at": None, "error": "", "error_at": None}
    shown_source = {**link, **none, **source}
    rest = {"task": None, "task_usage": None, "paused_until": None, "inhibitor": "i", "notes": [], "version": "v"}
    answer = {**rest, "source": shown_source}
    shown = [f"{name} {text}" for name, text in _facts(answer, WALL_S)]
    assert [line for line in shown if line.startswith(("control", "last", "to deliver", "lost"))] == lines
