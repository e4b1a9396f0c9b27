"""The link and the poll: four dialects, registering again, the truth in heartbeats, and servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from support import rae_server as s
from support.rae_rig import NODE_ID, running
from support.rae_server import RaeServer, in_loop, until

from states.observation import Link
from supervisor.embedded.control_node import serve
from supervisor.settings import ControlPaths
from supervisor.sources.base import Availability, Claim

SENTINEL = "sentinel-7f3a"


@pytest.mark.parametrize("openapi", [True, False], ids=["openapi", "probing"])
@pytest.mark.parametrize("dialect", "ABCD")
@in_loop
async def test_each_dialect_is_found_and_a_task_goes_round(tmp_path: Path, dialect: str, openapi: bool) -> None:
    """Fault 11: the shipped agent talks to no release after v2.9.0."""
    async with RaeServer(dialect, openapi=openapi).listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        assert rig.source.status.dialect == dialect
        assert await rig.poll() is None
        task_id = server.add("kind", {"a": 1}, 3)
        claim = await rig.claim()
        assert claim == Claim(task_id, "kind", {"a": 1}, 3)
        rig.source.settle(claim, {"x": 2}, None)
        await rig.delivered()
        assert server.task(task_id)["status"] == "COMPLETED"
        assert server.task(task_id)["result"] == {"x": 2}
        if not openapi and dialect == "A":
            assert not any(request.path == "/control/tasks/poll" for request in server.requests[:4]), "probing must not poll"


@in_loop
async def test_the_configuration_names_the_dialect_and_the_paths(tmp_path: Path) -> None:
    async with (
        RaeServer("C", openapi=False).listening() as server,
        running(server, tmp_path, dialect="C", paths=ControlPaths(poll="/v1/control/tasks_poll")) as rig,
    ):
        await rig.up()
        assert server.of("openapi") == server.of("nodes") == []


@pytest.mark.parametrize("fault", [s.silent, s.huge, s.half], ids=["silent", "huge", "half"])
@in_loop
async def test_without_a_usable_openapi_document_the_dialect_is_probed_for(tmp_path: Path, fault: s.Fault) -> None:
    async with RaeServer("C", always={"openapi": fault}).listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        assert rig.source.status.dialect == "C"


@in_loop
async def test_a_dialect_that_moves_is_found_again(tmp_path: Path) -> None:
    async with RaeServer("B").listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.dialect = "D"
        task_id = server.add()
        assert (await rig.claim()).id == task_id
        assert rig.source.status.dialect == "D"
        assert rig.source.status.link is Link.UP


@in_loop
async def test_a_dialect_that_was_mistaken_is_found_again(tmp_path: Path) -> None:
    """One bad answer to the probe makes B look like A, whose poll B reads as a look at a task."""
    async with RaeServer("B", openapi=False).listening() as server, running(server, tmp_path) as rig:
        server.faults["task"].append(s.status(405))
        await rig.up()
        assert rig.source.status.dialect == "A"
        assert await rig.poll() is None
        assert "422" in await rig.down()
        task_id = server.add()
        assert (await rig.claim()).id == task_id
        assert rig.source.status.dialect == "B"


@in_loop
async def test_a_name_for_this_node_that_would_burst_the_note_is_none(tmp_path: Path) -> None:
    async with RaeServer().listening() as server:
        server.faults["register"].append(s.raw(s.http(200, json.dumps({"id": "x" * 70_000}).encode())))
        async with running(server, tmp_path) as rig:
            assert "something else than the contract says" in await rig.down()
            await rig.up()


@in_loop
async def test_with_a_key_every_call_carries_it_and_no_text_does(tmp_path: Path) -> None:
    """Fault 10."""
    async with RaeServer("A", key=SENTINEL).listening() as server, running(server, tmp_path, token=SENTINEL) as rig:
        await rig.up()
        assert server.of("register")[0]["api_key"] == SENTINEL
        assert SENTINEL not in repr(rig.events) + repr(rig.source.status) + repr(vars(rig.source))


@pytest.mark.parametrize("token", [None, "wrong"])
@in_loop
async def test_a_refused_key_is_a_clear_reason(tmp_path: Path, token: str | None) -> None:
    async with RaeServer("B", key="right").listening() as server, running(server, tmp_path, token=token) as rig:
        reason = await rig.down()
        assert "control.token" in reason
        assert "401" in reason
        assert not rig.source.ask()


@in_loop
async def test_without_a_key_register_says_none(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        assert server.of("register") == [{"node_id": NODE_ID, "api_key": "none", "capabilities": {"gpu": True}}]
        assert "x-api-key" not in server.requests[-1].headers


@in_loop
async def test_started_before_the_server_it_registers_when_the_server_comes(tmp_path: Path) -> None:
    """Fault 3: registered once at start, and never again."""
    async with RaeServer().listening() as first:
        port = int(first.url.rpartition(":")[2])
    async with running(first.url, tmp_path) as rig:
        assert "connection refused" in await rig.down()
        assert not rig.source.ask()
        async with RaeServer().listening(port) as server:
            await rig.up()
            assert server.of("heartbeat")[0] == {"node_id": NODE_ID, "status": "BUSY"}, "register has said ONLINE"


@pytest.mark.parametrize("call", ["poll", "heartbeat"])
@in_loop
async def test_a_server_that_forgot_the_node_gets_it_registered_again(tmp_path: Path, call: str) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.node = type(server.node)(server.node._clock)
        task_id = server.add()
        if call == "poll":
            assert (await rig.claim()).id == task_id
        else:
            rig.source.announce(Availability.ONLINE)
            await until(lambda: server.node.nodes())
        assert rig.source.status.link is Link.UP
        assert len(server.of("register")) == 2


@in_loop
async def test_heartbeats_tell_the_truth_at_once_and_offline_at_the_end(tmp_path: Path) -> None:
    """Fault 2: always ONLINE, never BUSY or OFFLINE. The interval here is longer than the test."""
    async with RaeServer().listening() as server:
        async with running(server, tmp_path, heartbeat_s=600) as rig:
            await rig.up()
            for availability in (Availability.ONLINE, Availability.BUSY, Availability.ONLINE):
                rig.source.announce(availability)
                await until(lambda a=availability: server.of("heartbeat")[-1]["status"] == a)
            rig.source.announce(Availability.ONLINE)
        assert [body["status"] for body in server.of("heartbeat")] == ["BUSY", "ONLINE", "BUSY", "ONLINE", "OFFLINE"]


@in_loop
async def test_heartbeats_go_on_at_their_interval(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path, heartbeat_s=0.02):
        await until(lambda: len(server.of("heartbeat")) > 5)


@in_loop
async def test_it_never_polls_by_itself_and_holds_one_claim(tmp_path: Path) -> None:
    """Fault 2: polled every two seconds whatever was going on."""
    async with RaeServer().listening() as server, running(server, tmp_path, heartbeat_s=0.02) as rig:
        await rig.up()
        first, second = server.add(), server.add()
        await until(lambda: len(server.of("heartbeat")) > 5)
        assert server.of("poll") == []
        assert rig.source.ask()
        assert rig.source.asking
        assert not rig.source.ask(), "one is in flight"
        await until(lambda: rig.source.waiting)
        assert not rig.source.ask(), "one waits"
        assert not rig.source.asking
        waiting = rig.source.waiting
        assert waiting is not None
        assert waiting.id == first
        rig.source.hand_back(waiting, "user returned", "fail")
        assert rig.source.waiting is None
        assert rig.source.take() is None
        assert (await rig.claim()).id == second
        assert len(server.of("poll")) == 2


@in_loop
async def test_an_extra_answer_is_not_taken_for_the_next_one(tmp_path: Path) -> None:
    claim = {"id": "7bc3cfb7-7654-4c30-a856-0f28b426b085", "type": "t", "payload": {}}
    extra = s.http(200, b"null") + s.http(200, json.dumps(claim).encode())
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.faults["poll"].append(s.raw(extra))
        assert await rig.poll() is None
        assert await rig.poll() is None


@in_loop
async def test_a_lost_poll_is_said_and_a_new_life_gets_the_task_back(tmp_path: Path) -> None:
    """A server that looks at lives hands it out again; RAE's has no leases, and the journal names the loss."""
    async with RaeServer().listening() as server, running(server, tmp_path, capabilities={"life": "first"}) as rig:
        await rig.up()
        waits = server.add()
        first = await rig.claim()
        server.faults["poll"].append(s.acted_then_closed)
        lost = server.add()
        assert await rig.poll() is None
        await until(lambda: "poll-lost" in rig.names())
        await rig.up()
        server.always["result"] = s.status(503)
        rig.source.settle(first, {}, None)
        assert not rig.source.ask(), "the new life would take back what is on its way"
        server.always.clear()
        await rig.delivered()
        assert (await rig.claim()).id == lost
        assert server.task(waits)["status"] == "COMPLETED"
        assert len({body["capabilities"]["life"] for body in server.of("register")}) == 2


@in_loop
async def test_a_lost_poll_is_a_loss_where_lives_are_not_told(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.faults["poll"].append(s.acted_then_closed)
        server.add()
        assert await rig.poll() is None
        await rig.up()
        assert await rig.poll() is None, "the server has handed it out"
        assert rig.names().count("poll-lost") == 1


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True], ids=["seconds", "a date"])
@in_loop
async def test_retry_after_is_waited_for_by_all_requests(tmp_path: Path, status: int, as_date: bool) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.add()
        claim = await rig.claim()
        asked = formatdate(time.time() + 2.5, usegmt=True) if as_date else "1"  # a date has whole seconds
        server.faults["poll"].append(s.status(status, {"detail": "slow down"}, retry_after=asked))
        began_s = time.monotonic()
        assert await rig.poll() is None
        await until(lambda: rig.source.status.next_try_s)
        calls = len(server.calls)
        rig.source.settle(claim, {}, None)
        assert str(status) in rig.source.status.reason
        await rig.up()
        await rig.delivered()
        assert server.times_s[calls] - began_s >= 0.99, "whatever comes next, the outcome too"


@pytest.mark.parametrize("asked", ["soon", "-5", "1e9", "", "Tue, 99 Nov 2026 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 -0000"])
@in_loop
async def test_a_retry_after_that_says_nothing_is_none(tmp_path: Path, asked: str) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        server.faults["poll"].append(s.status(429, {}, retry_after=asked))
        assert await rig.poll() is None
        await rig.down()
        await rig.up()


@in_loop
async def test_neither_the_operator_nor_the_end_waits_for_a_retry_after(tmp_path: Path) -> None:
    async with RaeServer().listening() as server:
        async with running(server, tmp_path) as rig:
            await rig.up()
            server.add()
            claim = await rig.claim()
            for end in (False, True):
                server.faults["poll"].append(s.status(429, {}, retry_after="3000"))
                assert await rig.poll() is None
                await until(lambda: rig.source.status.next_try_s)
                if not end:
                    rig.source.resume()
                    await rig.up()
            rig.source.settle(claim, {"x": 1}, None)
        assert server.task(claim.id)["status"] == "COMPLETED"
        assert server.of("heartbeat")[-1]["status"] == "OFFLINE"


@in_loop
async def test_no_second_holds_more_requests_than_are_allowed(tmp_path: Path) -> None:
    """Also where each of them is due: heartbeats every 20 ms, a poll whenever one may be made."""
    async with RaeServer().listening() as server, running(server, tmp_path, heartbeat_s=0.02, max_requests_per_sec=4) as rig:
        await rig.up()
        times = server.times_s
        while len(times) < 12:
            await rig.poll()
    # what a request takes on its way may differ by a little
    assert all(later - earlier > 0.9 for earlier, later in zip(times, times[4:], strict=False))


@in_loop
async def test_one_request_of_a_kind_is_in_flight(tmp_path: Path) -> None:
    """The link's heartbeat and the one that tells whether the server is sound are one kind."""
    flying: set[str] = set()
    twice: list[str] = []

    async def slow(x: s.Exchange) -> None:
        kind = server.kind(server.requests[-1])
        twice.extend([kind] if kind in flying else [])
        flying.add(kind)
        await asyncio.sleep(0.03)
        flying.discard(kind)
        x.writer.write(x.genuine())

    server = RaeServer(always={"heartbeat": slow, "register": slow, "result": s.status(500)})
    async with server.listening(), running(server, tmp_path, heartbeat_s=0.01) as rig:
        await rig.up()
        server.add()
        rig.source.settle(await rig.claim(), {}, "failed")
        await until(lambda: len(server.of("result")) > 4)
        assert not twice
        server.always.clear()


@in_loop
async def test_a_dead_server_is_not_hammered(tmp_path: Path) -> None:
    dead = RaeServer(always={"register": s.status(503)})
    async with dead.listening() as server, running(server, tmp_path, backoff_max_sec=60) as rig:
        await rig.down()
        await until(lambda: rig.source.status.next_try_s)
        assert len(server.of("register")) == 1
        server.always.clear()
        rig.source.resume()
        await rig.up()


@in_loop
async def test_without_retry_one_failure_gives_the_link_up_until_resumed(tmp_path: Path) -> None:
    """R21 with retry_on_disconnect false; a finished result waits and is delivered after all."""
    async with RaeServer().listening() as server, running(server, tmp_path, retry=False, heartbeat_s=0.01) as rig:
        await rig.up()
        task_id = server.add()
        claim = await rig.claim()
        server.faults["heartbeat"].append(s.status(500))
        await until(lambda: rig.source.status.link is Link.LOST)
        assert "retry_on_disconnect" in rig.source.status.reason
        assert not rig.source.ask()
        rig.source.settle(claim, {"done": True}, None)
        calls = len(server.calls)
        await asyncio.sleep(0)
        assert (rig.source.status.outbox, len(server.calls)) == (1, calls)
        rig.source.resume()
        await rig.up()
        await rig.delivered()
        assert server.task(task_id)["status"] == "COMPLETED"


@in_loop
async def test_without_retry_no_server_at_start_gives_the_link_up(tmp_path: Path) -> None:
    async with running("http://127.0.0.1:9", tmp_path, retry=False) as rig:
        await until(lambda: rig.source.status.link is Link.LOST)


@pytest.mark.parametrize(
    ("control", "names"),
    [
        ({"url": "ftp://127.0.0.1:1"}, "control.url"),
        ({"url": "http://[bad"}, "control.url"),
        ({"url": "nonsense"}, "control.url"),
        ({"url": "https://127.0.0.1:1", "ca_file": "/nonexistent/ca.pem"}, "control.ca_file"),
        ({"url": "https://127.0.0.1:1", "ca_file": __file__}, "control.ca_file"),
        ({"url": "http://127.0.0.1:9"}, "connection refused"),
    ],
)
@in_loop
async def test_what_is_set_wrong_is_named(tmp_path: Path, control: dict[str, Any], names: str) -> None:
    async with running("", tmp_path, **control) as rig:
        assert names in await rig.down()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own CA, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    argv += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(argv, check=True, capture_output=True, timeout=30)
    return cert, key


@in_loop
async def test_tls_is_checked_against_the_ca_that_is_set(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """Fault 10: the shipped agent has no TLS settings."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with RaeServer().listening(tls=context) as server:
        async with running(server, tmp_path, ca_file=str(certificate[0])) as rig:
            await rig.up()
        async with running(server, tmp_path) as rig:
            assert "control.ca_file" in await rig.down()
        async with running(server.url.replace("https", "http"), tmp_path) as rig:
            await rig.down()
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    plain = asyncio.ensure_future(serve("127.0.0.1", 0, ready=url.set_result))
    async with running((await url).replace("http", "https"), tmp_path) as rig:
        assert "TLS" in await rig.down()
    plain.cancel()


@in_loop
async def test_something_else_at_the_url_is_said(tmp_path: Path) -> None:
    always = {kind: s.status(404, {"detail": "Not Found"}) for kind in ("openapi", "nodes")}
    async with RaeServer(always=always).listening() as server, running(server, tmp_path) as rig:
        assert "control.paths" in await rig.down()


@in_loop
async def test_proxy_variables_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()


@in_loop
async def test_the_status_says_since_when_and_where(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        assert rig.source.status.link is Link.DOWN
        await rig.up()
        up = rig.source.status
        assert (up.url, up.dialect, up.outbox, up.next_try_s) == (server.url, "B", 0, None)
        server.faults["poll"].append(s.closed)
        await rig.poll()
        await rig.down()
        await rig.up()
        assert rig.source.status.since_s >= up.since_s
        again = rig.source.status
        assert (again.link, again.reason) == (Link.UP, "")
        assert "broke off" in again.error, "the last trouble stays to be read"
        assert up.error_s is None
        assert again.error_s is not None
        assert again.error_s <= again.since_s
    assert rig.source.status.reason == "stopped"
    assert all(event["kind"] == "link" for event in rig.events)


@in_loop
async def test_cookies_are_neither_kept_nor_sent(tmp_path: Path) -> None:
    """A gateway that sets one with each answer would make every request a little longer, until none is taken any more."""
    async with RaeServer().listening() as server:
        for n in range(5):
            server.faults["heartbeat"].append(s.status(200, {}, set_cookie=f"session{n}={'x' * 100}; Path=/"))
        async with running(server, tmp_path, heartbeat_s=0.02) as rig:
            await rig.up()
            await until(lambda: len(server.of("heartbeat")) > 8)
        assert not [request for request in server.requests if "cookie" in request.headers]


@in_loop
async def test_a_poll_that_is_cut_by_the_end_of_the_node_is_said(tmp_path: Path) -> None:
    async with RaeServer(always={"poll": s.silent}).listening() as server:
        async with running(server, tmp_path, stop_s=0.2, read_timeout_sec=20, total_timeout_sec=20) as rig:
            await rig.up()
            assert rig.source.ask()
            await until(lambda: server.of("poll"))
        assert rig.names().count("poll-lost") == 1


@in_loop
async def test_nodes_that_are_told_to_come_back_later_do_not_come_back_as_one(tmp_path: Path) -> None:
    async with RaeServer(always={"register": s.status(503, {}, retry_after="100")}).listening() as server:
        waits = []
        for n in range(8):
            async with running(server, tmp_path / str(n), stop_s=0.1) as rig:
                await until(lambda: rig.source.status.next_try_s, "a next try")
                waits.append((rig.source.status.next_try_s or 0.0) - rig.source._clock.now_s())
        assert all(99 < wait_s <= 110 for wait_s in waits)
        assert max(waits) - min(waits) > 0.5
