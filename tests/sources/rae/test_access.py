"""The way in: keys and certificates, what is set wrong and said, and what of the surroundings changes nothing."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import rae_server as s
from support.clock import ManualClock
from support.rae_rig import NODE_ID, running
from support.rae_server import RaeServer, in_loop, until

from states.ending import succeeded
from states.observation import Link
from supervisor.config.schema import Token
from supervisor.tools.demo.control_node.api import Api
from supervisor.tools.demo.control_node.server import listen
from supervisor.tools.demo.control_node.store import ControlNode

SENTINEL = "sentinel-7f3a"


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


@pytest.mark.parametrize("at_first", ["wrong", "", None], ids=["wrong", "empty", "not there"])
@in_loop
async def test_a_key_that_is_corrected_is_taken_without_a_restart(tmp_path: Path, at_first: str | None) -> None:
    """Whatever waits is not lost with it: the reason names the file, and each try reads it again."""
    key = tmp_path / "key"

    def write(text: str) -> None:
        key.touch(0o600)
        key.write_text(text)

    if at_first is not None:
        write(at_first)
    token = Token(file=str(key))
    async with RaeServer("B", key="right").listening() as server, running(server, tmp_path / "s", token_from=token) as rig:
        reason = await rig.down()
        assert "control.token.file" in reason
        assert at_first is None or str(key) in reason
        assert ("401" in reason) == (at_first == "wrong")
        write("right")
        await rig.up()
        server.add()
        claim = await rig.claim()
        server.key = "newer"
        rig.source.settle(claim, succeeded({"x": 1}))
        await until(lambda: rig.source.status.link is Link.DOWN)
        write("newer")
        await rig.delivered()
        assert server.task(claim.id)["status"] == "COMPLETED"


@pytest.mark.parametrize(
    ("token", "names"),
    [(Token(env="RAE_TEST_KEY"), "RAE_TEST_KEY"), (Token(credential="rae-key"), "control.token.credential names (rae-key)")],
    ids=["env", "credential"],
)
@in_loop
async def test_a_refused_key_is_named_by_where_it_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: Token, names: str
) -> None:
    (tmp_path / "rae-key").touch(0o600)
    (tmp_path / "rae-key").write_text(SENTINEL)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("RAE_TEST_KEY", SENTINEL)
    async with RaeServer("A", key="right").listening() as server, running(server, tmp_path / "s", token_from=token) as rig:
        reason = await rig.down()
        assert names in reason
        assert "restart the service" in reason
        assert SENTINEL not in repr(rig.events)


@in_loop
async def test_without_a_key_register_says_none(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        assert server.of("register") == [{"node_id": NODE_ID, "api_key": "none", "capabilities": {"gpu": True}}]
        assert "x-api-key" not in server.requests[-1].headers


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
    plain = asyncio.ensure_future(listen(Api(ControlNode(ManualClock())), "127.0.0.1", 0, url.set_result))
    async with running((await url).replace("http", "https"), tmp_path) as rig:
        assert "TLS" in await rig.down()
    plain.cancel()


@in_loop
async def test_proxy_variables_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()


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
