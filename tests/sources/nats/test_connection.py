"""The connection to a NATS server: whatever answers at that port is a RequestError in one line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.nats_rig import NatsServer, needs_server, node, operator, server
from support.rae_server import in_loop, until

from states.ending import succeeded
from states.observation import Link
from supervisor.sources.errors import RequestError
from supervisor.sources.nats import subjects
from supervisor.sources.nats.admin.access import AccessError, server_of
from supervisor.sources.nats.connection import Connection, Server
from supervisor.sources.nats.errors import Refused

__all__ = ["server"]  # a fixture
INFO = b'INFO {"server_id":"x","version":"2.10","max_payload":1048576,"headers":true,"proto":1}\r\n'

# What a server sends; None: it waits until the client sends something.
STRANGE: dict[str, list[bytes | None]] = {
    "ssh": [b"SSH-2.0-OpenSSH_9.2\r\n"],
    "http": [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    "nothing": [],
    "silence": [None, None, None],
    "not UTF-8": [b"\xff\xfe\x00\x01\r\n"],
    "an endless line": [b"INFO " + b"x" * 300_000 + b"\r\n"],
    "a list": [b"INFO [1]\r\n"],
    "null": [b"INFO null\r\n"],
    "no JSON": [b"INFO {nope\r\n"],
    "wrong types": [b'INFO {"max_payload":"x","headers":"y","connect_urls":7,"nonce":5}\r\n', None, b"PONG\r\n"],
    "hangs up": [INFO],
    "garbage after": [INFO, b"\x00\x00\x00\r\n"],
    "no PONG": [INFO, None, b"XONG\r\n"],
}


@contextlib.asynccontextmanager
async def saying(pieces: list[bytes | None]) -> AsyncIterator[str]:
    """A server that sends this and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            for piece in pieces:
                if piece is None:
                    await reader.read(1000)
                else:
                    writer.write(piece)
                    await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize("pieces", STRANGE.values(), ids=STRANGE.keys())
@in_loop
async def test_what_is_no_nats_server_is_an_error(pieces: list[bytes | None]) -> None:
    async with saying(pieces) as url:
        connection = Connection(Server(url, connect_timeout_s=1), name="test")
        try:
            with pytest.raises(RequestError) as caught:
                await connection.open()
        finally:
            await connection.close()
        assert url in caught.value.reason
        assert "\n" not in caught.value.reason
        assert "object" not in caught.value.reason
        if None in pieces[:1]:
            assert "no answer within 1 s" in caught.value.reason


@in_loop
async def test_what_breaks_the_library_ends_the_connection_and_stays_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """nats-py stops reading silently, and logs a traceback with what the server had sent."""
    lost: list[RequestError] = []
    header = b"NATS/1.0 \xff\xff\xff\r\n\r\n"
    odd = b"HMSG x 1 %d %d\r\n%s\r\n" % (len(header), len(header), header)
    async with saying([INFO, None, b"PONG\r\n", None, odd, None, None, None]) as url:
        connection = Connection(Server(url, connect_timeout_s=1), name="test", on_lost=lost.append)
        await connection.open()
        with pytest.raises(RequestError):
            await connection.request("x", timeout_s=600)
        assert [error.reason for error in lost] == [f"{url}: the connection was lost"]
        await connection.close()
    assert caplog.text == ""


@in_loop
async def test_a_port_where_nobody_listens_is_named() -> None:
    with pytest.raises(RequestError, match=r"^nats://127\.0\.0\.1:9 cannot be reached: connection refused$"):
        await Connection(Server("nats://127.0.0.1:9"), name="test").open()


@pytest.mark.parametrize("content", [None, "no certificate"])
@in_loop
async def test_a_ca_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(RequestError, match=r"control\.ca_file: .*ca\.pem cannot be used"):
        await Connection(Server("tls://127.0.0.1:4222", ca_file=str(file)), name="test").open()
    with pytest.raises(AccessError, match=r"--ca-file: .*ca\.pem cannot be used"):
        server_of("tls://127.0.0.1:4222", None, None, str(file), {})


@needs_server
@pytest.mark.parametrize("short", [0, 20, 27])
@in_loop
async def test_what_only_its_header_makes_too_large_is_refused_and_costs_no_connection(server: NatsServer, short: int) -> None:
    """For the server, which hangs up on it, the header counts as well."""
    async with operator(server.url) as fleet:
        with pytest.raises(Refused):
            await fleet.connection.store("rae.results.x", b"x" * (fleet.connection.max_payload - short), "x")
        assert fleet.connection.up
        assert await fleet.connection.store("rae.results.x", b"x" * (fleet.connection.max_payload - 28), "x")


@needs_server
@in_loop
async def test_a_result_that_only_its_header_makes_too_large_is_a_failure_with_that_reason(
    server: NatsServer, tmp_path: Path
) -> None:
    """The next one is not held up, and the link stays."""
    async with operator(server.url) as fleet, node(server.url, tmp_path) as rig:
        task = await fleet.submit()
        claim = await rig.claim()
        empty = json.dumps(
            {"id": task, "type": "echo", "node": "node-1", "status": "COMPLETED", "result": {"x": ""}, "error": None},
            separators=(",", ":"),
        )
        rig.source.settle(claim, succeeded({"x": "y" * (fleet.connection.max_payload - len(empty))}))
        assert "too large" in str((await fleet.settled(task)).error)
        assert rig.source.status.link is Link.UP
        assert "down" not in rig.names()[1:]


@contextlib.asynccontextmanager
async def answering(server: NatsServer, subject: str, answer: bytes, headers: Any = None) -> AsyncIterator[Connection]:
    """A connection to a server where this answer comes in place of JetStream's."""
    from nats.aio.client import Client

    liar = Client()
    await liar.connect([server.url])

    async def say(msg: Any) -> None:
        await liar.publish(msg.reply, answer, headers=headers)

    await liar.subscribe(subject, cb=say)
    await liar.flush()
    connection = Connection(Server(server.url), name="test")
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()
        await liar.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[NatsServer]:
    """A server without JetStream."""
    config = tmp_path / "plain.conf"
    one = NatsServer(tmp_path / "plain", config=config)
    config.write_text(f'listen: "127.0.0.1:{one.port}"\n')
    try:
        yield one.start()
    finally:
        one.kill()


@needs_server
@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"error": "no"}',
        b'{"error": {"code": "x", "description": 7}}',
        b'{"error": {"code": 1e999}}',
        b'{"error": {"description": "' + b"\\u001b[31m\\n" * 5000 + b'"}}',
    ],
    ids=["nothing", "a list", "not UTF-8", "nested without end", "a word", "wrong types", "a huge code", "many words"],
)
@in_loop
async def test_a_strange_answer_is_an_error_of_one_short_line(plain: NatsServer, answer: bytes) -> None:
    async with answering(plain, "rae.results.*", answer) as connection:
        with pytest.raises(RequestError) as caught:
            await connection.store("rae.results.x", b"{}", "x")
        assert len(caught.value.reason) < 400
        assert caught.value.reason.isprintable()


@needs_server
@pytest.mark.parametrize("status", ["404", "408"])
@in_loop
async def test_a_server_that_has_no_patience_is_no_busy_loop(plain: NatsServer, status: str) -> None:
    """It answers at once that there is nothing, although it was asked to wait."""
    async with answering(plain, subjects.next_subject("s", "c"), b"", {"Status": status}) as connection:
        assert connection._client is not None
        end_s = time.monotonic() + 1.5
        found = await connection.pull("s", "c", linger_s=lambda: end_s - time.monotonic(), stop=asyncio.Event())
        assert found is None
        assert connection._client.stats["out_msgs"] < 10


@needs_server
@in_loop
async def test_an_unreadable_answer_is_not_taken_for_an_empty_one(plain: NatsServer) -> None:
    async with answering(plain, "$JS.API.DIRECT.GET.>", b"", {"Status": "408", "Description": "Bad Request"}) as connection:
        with pytest.raises(RequestError):
            await connection.last(subjects.RESULTS, "rae.results.x")
        with pytest.raises(RequestError):
            await connection.last_of_each(subjects.NODES_STREAM)
    same = {"Nats-Sequence": "5", "Nats-Subject": "a"}
    async with answering(plain, "$JS.API.DIRECT.GET.>", b"x", same) as connection:
        with pytest.raises(RequestError):
            async with asyncio.timeout(5):
                await connection.last_of_each(subjects.NODES_STREAM)


@needs_server
@pytest.mark.parametrize("how", ["the server dies", "the node closes it"])
@in_loop
async def test_a_request_ends_with_its_connection(plain: NatsServer, how: str) -> None:
    """Renewals and deliveries do not wait for an answer that cannot come."""
    connection = Connection(Server(plain.url), name="test")
    await connection.open()
    await connection.listen("mute", lambda data: None)
    asking = asyncio.create_task(connection.request("mute", timeout_s=600))
    with pytest.raises(RequestError):
        await connection.request("nobody")  # by now the other request is at the server
    plain.kill() if how == "the server dies" else await connection.close()
    with pytest.raises(RequestError) as caught:
        await asking
    assert caught.value.reason.startswith(f"{plain.url} gives no answer for mute")
    assert caught.value.reason.endswith(": the connection was lost")
    await connection.close()


@needs_server
@in_loop
async def test_what_the_library_raises_is_an_error_of_the_request(plain: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a fault of the library while a connection ends would count as a fault of ours, and cost a result."""
    from nats.aio.client import Client

    async def fails(*of: Any, **more: Any) -> None:
        raise AssertionError("sentinel-7f3a")

    connection = Connection(Server(plain.url), name="test")
    await connection.open()
    for what in ("request", "subscribe"):
        monkeypatch.setattr(Client, what, fails)
    with pytest.raises(RequestError, match="AssertionError") as asked:
        await connection.request("x")
    with pytest.raises(RequestError, match="AssertionError") as pulled:
        await connection.pull("s", "c", linger_s=lambda: 0.0, stop=asyncio.Event())
    assert "sentinel" not in asked.value.reason + pulled.value.reason
    await connection.close()


@needs_server
@in_loop
async def test_no_answer_in_time_is_an_error_with_the_time(plain: NatsServer) -> None:
    connection = Connection(Server(plain.url), name="test")
    await connection.open()
    await connection.listen("mute", lambda data: None)
    with pytest.raises(RequestError) as caught:
        await connection.request("mute", timeout_s=0.2)
    assert caught.value.reason == f"{plain.url} gives no answer for mute within 0.2 s"
    await connection.close()


@needs_server
@pytest.mark.parametrize("how", ["close fails", "open is cancelled"])
@in_loop
async def test_nothing_of_a_connection_goes_on_after_it(plain: NatsServer, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """nats-py leaves its own tasks behind when its close fails: one for each subscription and three more."""
    from nats.aio.client import Client

    async def fails(self: Client) -> None:
        raise OSError("x")

    before, genuine, asked = asyncio.all_tasks(), Client.connect, asyncio.Event()
    connection = Connection(Server(plain.url), name="test")
    if how == "close fails":
        monkeypatch.setattr(Client, "close", fails)
        await connection.open()
        await connection.listen("x", lambda data: None)
        await connection.close()
    else:

        async def connect(self: Client, *of: Any, **more: Any) -> None:
            await genuine(self, *of, **more)
            asked.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(Client, "connect", connect)
        opening = asyncio.create_task(connection.open())
        await asked.wait()
        opening.cancel()
    await until(lambda: asyncio.all_tasks() == before, lambda: f"all ended, not {asyncio.all_tasks() - before}", 5)
