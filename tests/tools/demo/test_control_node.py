"""The embedded control node: dialect B's contract, requeueing, and a strict server that answers loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.clock import ManualClock
from support.rae_server import in_loop, until

from supervisor.tools.demo.control_node.api import Api
from supervisor.tools.demo.control_node.main import main, parse_listen
from supervisor.tools.demo.control_node.server import MAX_BODY_BYTES, Reply, Request, Timeouts, listen
from supervisor.tools.demo.control_node.store import ControlNode

ROOT = Path(__file__).parents[3]
NIL = "00000000-0000-0000-0000-000000000000"
REGISTER = {"node_id": "n1", "api_key": "k", "capabilities": {"gpu": True}}


class Client:
    """Asks the API as a server would hand it over."""

    def __init__(self, **kwargs: Any) -> None:
        self.clock = ManualClock()
        self.node = ControlNode(self.clock, **kwargs)
        self.api = Api(self.node)

    def __call__(self, call: str, body: Any = None) -> Reply:
        method, _, target = call.partition(" ")
        path, _, query = target.partition("?")
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return self.api(Request(method, "/control" + path if path[1] in "nt" else path, query, {}, content, "127.0.0.9"))

    def registered(self, node_id: str = "n1") -> str:
        return str(self("POST /nodes/register", {**REGISTER, "node_id": node_id}).value["id"])

    def added(self, **task: Any) -> str:
        return str(self("POST /tasks", {"type": "t", "payload": {}, **task}).value["id"])

    def polled(self, node_id: str = "n1") -> str | None:
        value = self(f"GET /tasks_poll?node_id={node_id}").value
        return None if value is None else str(value["id"])


def error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"code": str(status), "message": message}}


def test_the_walk_of_the_contract() -> None:
    """A node registers, works and delivers, with the bodies that the contract shows."""
    c = Client()
    assert c("POST /nodes/heartbeat", {"node_id": "n1", "status": "ONLINE"}) == Reply(
        404, error(404, "Node n1 not found. Register first.")
    )
    assert c("GET /tasks_poll?node_id=n1") == Reply(404, error(404, "Node n1 not found."))
    node = c("POST /nodes/register", REGISTER)
    stamp = node.value["created_at"]
    assert stamp.endswith("Z")
    assert len(stamp) == len("2026-11-24T08:28:55.366707Z")
    assert {**node.value, "id": ""} == {
        "id": "", "node_id": "n1", "status": "ONLINE", "last_heartbeat": stamp, "capabilities": {"gpu": True},
        "ip_address": "127.0.0.9", "created_at": stamp, "updated_at": stamp,
    }  # fmt: skip
    assert c("GET /tasks_poll?node_id=n1") == Reply(200, None)
    made = c("POST /tasks", {"type": "t", "payload": {"a": 1}})
    task_id = made.value["id"]
    assert made.status == 201
    assert {**made.value, "id": "", "created_at": ""} == {
        "id": "", "type": "t", "status": "PENDING", "priority": 0, "payload": {"a": 1}, "result": None,
        "assigned_node_id": None, "error": None, "created_at": "", "started_at": None, "completed_at": None,
    }  # fmt: skip
    claimed = c("GET /tasks_poll?node_id=n1").value
    assert (claimed["status"], claimed["assigned_node_id"]) == ("PROCESSING", node.value["id"])
    assert claimed["started_at"] is not None
    done = c(f"POST /tasks/{task_id}/result", {"task_id": task_id, "result": {"x": 1}, "error": ""})
    assert (done.status, done.value["status"], done.value["error"]) == (200, "COMPLETED", "")
    assert c(f"GET /tasks/{task_id}").value == done.value
    late = c(f"POST /tasks/{task_id}/result", {"task_id": task_id, "result": {}, "error": "late"}).value
    assert (late["status"], late["error"], late["result"]) == ("FAILED", "late", {})


@pytest.mark.parametrize(
    ("call", "body", "status", "where"),
    [
        ("POST /nodes/register", {"node_id": "n", "api_key": "k"}, 422, ["body", "capabilities"]),
        ("POST /nodes/register", {**REGISTER, "capabilities": []}, 422, ["body", "capabilities"]),
        ("POST /nodes/register", {**REGISTER, "node_id": 5}, 422, ["body", "node_id"]),
        ("POST /nodes/register", None, 422, ["body"]),
        ("POST /nodes/register", [], 422, ["body"]),
        ("POST /nodes/heartbeat", {"node_id": "n1", "status": "ASLEEP"}, 422, ["body", "status"]),
        ("GET /tasks_poll", None, 422, ["query", "node_id"]),
        ("GET /tasks/poll?node_id=n1", None, 422, ["path", "task_id"]),
        ("GET /tasks/not-a-uuid", None, 422, ["path", "task_id"]),
        ("POST /tasks", {"type": "t"}, 422, ["body", "payload"]),
        ("POST /tasks", {"type": "t", "payload": {}, "priority": "high"}, 422, ["body", "priority"]),
        (f"POST /tasks/{NIL}/result", {"task_id": NIL}, 422, ["body", "result"]),
        (f"POST /tasks/{NIL}/result", {"task_id": NIL, "result": None}, 422, ["body", "result"]),
        (f"POST /tasks/{NIL}/result", {"task_id": NIL, "result": []}, 422, ["body", "result"]),
        (f"POST /tasks/{NIL}/result", {"task_id": "x", "result": {}}, 422, ["body", "task_id"]),
        (f"POST /tasks/{NIL}/result", {"task_id": NIL, "result": {}, "error": 7}, 422, ["body", "error"]),
    ],
)
def test_what_is_not_valid_is_a_422_that_says_where(call: str, body: Any, status: int, where: list[str]) -> None:
    reply = Client()(call, body)
    assert reply.status == status
    assert reply.value["detail"] == reply.value["error"]["details"]
    assert [fault["loc"] for fault in reply.value["detail"]] == [where]
    assert reply.value["error"]["message"] == "Validation Error"


@pytest.mark.parametrize(
    ("call", "body", "status", "value"),
    [
        ("POST /tasks", b'{"type":', 400, {"detail": "There was an error parsing the body"}),
        ("POST /tasks", b'{"type":"\xff"}', 400, {"detail": "There was an error parsing the body"}),
        ("POST /tasks", b"[" * 100_000, 400, {"detail": "There was an error parsing the body"}),
        ("GET /xyz", None, 404, {"detail": "Not Found"}),
        ("DELETE /tasks", None, 405, {"detail": "Method Not Allowed"}),
        (f"GET /tasks/{NIL}", None, 404, error(404, "Task not found")),
        (f"POST /tasks/{NIL}/result", {"task_id": NIL, "result": {}}, 404, error(404, f"Task {NIL} not found.")),
        (f"POST /tasks/{NIL}/result", {"task_id": NIL[:-1] + "1", "result": {}}, 400, error(400, "Task ID mismatch")),
        ("POST /tasks", {"type": "t\0", "payload": {}}, 500, None),
        ("POST /tasks", b'{"type":"t","payload":{"a":NaN}}', 500, None),
        ("POST /tasks", b'{"type":"t","payload":{"a":"\\ud800"}}', 500, None),
        ("GET /health", None, 200, {"status": "healthy"}),
    ],
)
def test_other_answers(call: str, body: Any, status: int, value: Any) -> None:
    reply = Client()(call, body)
    assert reply.status == status
    if value is not None:
        assert reply.value == value


@pytest.mark.parametrize("text", [b'"a\\u0000"', b"NaN", b"-Infinity", b"1e999", b'{"k":["\\udfff"]}', b'{"\\u0000":1}'])
def test_a_result_that_cannot_be_stored_is_a_500_and_leaves_the_task(text: bytes) -> None:
    c = Client()
    c.registered()
    task_id = c.added()
    assert c.polled() == task_id
    reply = c(f"POST /tasks/{task_id}/result", b'{"task_id":"%s","result":{"x":%s}}' % (task_id.encode(), text))
    assert (reply.status, reply.close, reply.value["error"]["message"]) == (500, True, "Internal Server Error")
    assert c(f"GET /tasks/{task_id}").value["status"] == "PROCESSING"


def test_claims_go_by_priority_then_age_and_each_task_goes_once() -> None:
    c = Client()
    c.registered()
    low, first, second, high = c.added(priority=-1), c.added(), c.added(), c.added(priority=5)
    assert [c.polled() for _ in range(5)] == [high, first, second, low, None]


def test_nodes_lists_those_online_and_heard_of_within_five_minutes() -> None:
    c = Client()
    for name in ("a", "b", "c"):
        c.registered(name)
    c("POST /nodes/heartbeat", {"node_id": "b", "status": "BUSY"})
    c.clock.go(299)
    c("POST /nodes/heartbeat", {"node_id": "c", "status": "ONLINE"})
    assert [node["node_id"] for node in c("GET /nodes").value] == ["a", "c"]
    c.clock.go(1)
    assert [node["node_id"] for node in c("GET /nodes").value] == ["c"]


def test_a_silent_nodes_task_is_pending_again_and_a_heartbeat_prevents_it() -> None:
    c = Client(requeue_after_s=120)
    c.registered("gone")
    c.registered("here")
    lost, kept = c.added(), c.added()
    assert (c.polled("gone"), c.polled("here")) == (lost, kept)
    c.clock.go(119)
    c("POST /nodes/heartbeat", {"node_id": "here", "status": "BUSY"})
    assert c.polled("here") is None
    c.clock.go(1)
    assert c.polled("here") == lost
    assert c(f"GET /tasks/{kept}").value["status"] == "PROCESSING"


def test_what_an_earlier_life_was_handed_and_never_knew_of_is_pending_again() -> None:
    c = Client()

    def born(life: str) -> None:
        c("POST /nodes/register", {**REGISTER, "capabilities": {"life": life}})

    born("first")
    lost, other = c.added(), c.added()
    assert c.polled("n1") == lost
    born("first")  # as after a link that flapped
    assert c.polled("n1") == other, "in one life two may be in flight: one that runs, one whose outcome is on its way"
    c(f"POST /tasks/{other}/result", {"task_id": other, "result": {}, "error": "preempted: by a crash"})
    born("second")
    assert c.polled("n1") == lost
    assert c.polled("n1") is None


def test_registering_again_updates_and_keeps_the_id() -> None:
    c = Client()
    first = c.registered()
    again = c("POST /nodes/register", {**REGISTER, "capabilities": {"ram": 1}, "ip_address": "10.0.0.1"}).value
    assert (again["id"], again["capabilities"], again["ip_address"]) == (first, {"ram": 1}, "10.0.0.1")


def test_the_openapi_document_shows_one_register_and_one_poll() -> None:
    paths = Client()("GET /openapi.json").value["paths"]
    assert [path for path in paths if path.endswith("/nodes/register")] == ["/control/nodes/register"]
    assert [path for path in paths if "poll" in path] == ["/control/tasks_poll"]
    assert set(paths["/control/tasks/{task_id}"]) == {"get"}


# --- the server


@contextlib.asynccontextmanager
async def served(handler: Any = None, timeouts: Timeouts | None = None) -> AsyncIterator[tuple[str, int]]:
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    api = handler or Api(ControlNode(ManualClock()))
    server = asyncio.ensure_future(listen(api, "127.0.0.1", 0, url.set_result, timeouts=timeouts))
    try:
        port = int((await url).rpartition(":")[2])
        yield "127.0.0.1", port
    finally:
        server.cancel()
        await asyncio.wait([server])


async def talk(address: tuple[str, int], content: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(content)
    answer = b""
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("content", "status"),
    [
        pytest.param(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n", 200, id="sound"),
        pytest.param(b"GET /health HTTP/1.1\r\nhost: [::1]:80\r\nconnection: close\r\n\r\n", 200, id="loopback by IPv6"),
        pytest.param(b"GET /health HTTP/1.1\r\nhost: evil.example\r\n\r\n", 403, id="a rebound name"),
        pytest.param(b"GET /health HTTP/1.1\r\nhost: localhost\r\norigin: http://x\r\n\r\n", 403, id="a browser's page"),
        pytest.param(b"GET /health HTTP/1.1\r\n\r\n", 400, id="no host"),
        pytest.param(b"\x16\x03\x01 garbage\r\n\r\n", 400, id="TLS"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000, 431, id="headers without end"),
        pytest.param(
            b"POST /control/tasks HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), 413,
            id="too large, by its length",
        ),
        pytest.param(b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nab", 408, id="a slow body"),
        pytest.param(
            b"POST /x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", 400, id="two lengths"
        ),
    ],
)  # fmt: skip
@in_loop
async def test_the_server_is_strict(content: bytes, status: int) -> None:
    async with served(timeouts=Timeouts(headers_s=2, body_s=0.1)) as address:
        assert (await talk(address, content)).split(b" ")[1] == b"%d" % status


@pytest.mark.parametrize("sent", ["host: evil.example", "origin: http://evil.example", "referer: http://evil.example/",
                                  "sec-fetch-site: cross-site", "sec-fetch-site: same-site"])  # fmt: skip
@in_loop
async def test_a_web_page_takes_no_task(sent: str) -> None:
    """An image's address is a GET, and a poll is one too."""
    client = Client()
    client.registered("n1")
    poll = "GET /control/tasks_poll?node_id=n1 HTTP/1.1\r\n"
    task_id = client.added()
    host = "" if sent.startswith("host:") else "host: localhost\r\n"
    async with served(client.api) as address:
        assert (await talk(address, f"{poll}{host}{sent}\r\n\r\n".encode())).startswith(b"HTTP/1.1 403")
        mine = f"{poll}host: localhost\r\nsec-fetch-site: none\r\nconnection: close\r\n\r\n"  # typed into the address bar
        assert task_id.encode() in await talk(address, mine.encode())


@in_loop
async def test_a_chunked_body_is_bounded_too() -> None:
    head = b"POST /control/tasks HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    async with served() as address:
        answer = await talk(address, head + b"1000000\r\n" * 1 + b" " * 0x1000000 + (b"\r\n1000000\r\n" + b" " * 0x1000000) * 4)
    assert answer.startswith(b"HTTP/1.1 413")


@in_loop
async def test_a_slow_client_is_let_go_and_a_quick_one_keeps_its_connection() -> None:
    async with served(timeouts=Timeouts(headers_s=0.1)) as address:
        assert await talk(address, b"GET /health HT") == b""
    async with served() as address:
        reader, writer = await asyncio.open_connection(*address)
        for _ in range(3):
            writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b'"healthy"}')
        writer.close()


@in_loop
async def test_a_fault_in_the_handler_is_a_500_without_its_text() -> None:
    def broken(request: Request) -> Reply:
        raise RuntimeError("sentinel-payload")

    async with served(broken) as address:
        answer = await talk(address, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert b" 500 " in answer
    assert b"sentinel" not in answer


@in_loop
async def test_it_reports_its_url_and_refuses_other_addresses() -> None:
    urls: list[str] = []
    api = Api(ControlNode(ManualClock()))
    server = asyncio.ensure_future(listen(api, "127.0.0.1", 0, urls.append))
    await until(lambda: urls)
    host, port = parse_listen(urls[0].removeprefix("http://"))
    with pytest.raises(OSError):
        await listen(api, host, port, urls.append)
    server.cancel()
    with pytest.raises(ValueError):
        await listen(api, "0.0.0.0", 0, urls.append)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("localhost:0", ("127.0.0.1", 0)),
        ("[::1]:9", ("::1", 9)),
        ("127.8.8.8:1", ("127.8.8.8", 1)),
        ("0.0.0.0:1", None),
        ("192.168.1.1:80", None),
        ("[::]:80", None),
        ("example.org:80", None),
        ("127.0.0.1", None),
        (":80", None),
        ("127.0.0.1:70000", None),
        ("127.0.0.1:x", None),
        ("", None),
    ],
)
def test_only_loopback_is_listened_on(text: str, expected: tuple[str, int] | None, capsys: pytest.CaptureFixture[str]) -> None:
    if expected is not None:
        assert parse_listen(text) == expected
    else:
        assert main(text, 120) == 2
        assert capsys.readouterr().err.count("\n") == 1


RUN = "import sys; from supervisor.tools.demo.control_node.main import main; sys.exit(main(sys.argv[1], 120))"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_its_url_first_and_ends_in_order(signum: int) -> None:
    argv = [sys.executable, "-c", RUN]
    with subprocess.Popen([*argv, "127.0.0.1:0"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        url = one.stdout.readline().strip()
        address = url.removeprefix("http://")
        assert url.startswith("http://127.0.0.1:")
        second = subprocess.run([*argv, address], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (second.returncode, second.stdout, second.stderr.count("\n")) == (1, "", 1)
        os.kill(one.pid, signum)
        rest, log = one.communicate(timeout=60)
    assert (one.returncode, rest, log) == (0, "", "")
