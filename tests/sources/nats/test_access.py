"""Who may do what in a fleet: TLS, passwords, and the rights of each role, at a server configured by our own tool."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from support.nats_rig import KeyedFleet, NatsServer, Operator, gate_of, keyed_fleet, needs_server, node, operator, until
from support.ports import free_port
from support.recorded_events import Recorded

from states.ending import failed, handed_back, succeeded
from states.observation import Link
from supervisor.config.schema import Token
from supervisor.linux.clock import SystemClock
from supervisor.sources.errors import RequestError
from supervisor.sources.nats.admin import credentials, gate
from supervisor.sources.nats.admin.access import AccessError, server_of
from supervisor.sources.nats.connection import Connection, Server
from supervisor.sources.nats.source import NatsSource

pytestmark = [needs_server, pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedFleet]:
    with keyed_fleet(tmp_path_factory.mktemp("fleet"), "desk-1", "desk.2") as one:
        yield one


def test_private_files_are_private_and_running_again_keeps_keys(fleet: KeyedFleet, tmp_path: Path) -> None:
    for path in fleet.keys.rglob("*"):
        secret = path.suffix == ".key" or path.parent.name == "passwords" or path.name in ("users.conf", "users.json")
        if path.is_file() and secret:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    folder = tmp_path / "k"
    assert credentials.main([str(folder), "--node", "a"]) == 0
    before = {path.name: path.read_text() for path in (folder / "passwords").iterdir()}
    assert credentials.main([str(folder), "--node", "b", "--server", "x", "--server", "y", "--server", "z"]) == 0
    after = {path.name: path.read_text() for path in (folder / "passwords").iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"b", "routes"}
    assert (folder / "y.conf").read_text().count("nats-route://") == 3
    assert '"a"' in (folder / "users.conf").read_text()


def test_a_key_is_renewed_or_taken_away_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "k"
    assert credentials.main([str(folder), "--node", "a", "--node", "b"]) == 0
    old = {name: (folder / "passwords" / name).read_text() for name in ("a", "b", "gate")}
    assert credentials.main([str(folder), "--rotate", "a"]) == 0
    assert credentials.main([str(folder), "--rotate", "gate"]) == 0
    assert credentials.main([str(folder), "--revoke", "b"]) == 0
    users = (folder / "users.conf").read_text()
    for name, key in old.items():
        assert key.strip() not in users, name
    assert (folder / "passwords/a").read_text().strip() in users
    assert '"b"' not in users
    assert not (folder / "passwords/b").exists()
    capsys.readouterr()
    for wrong, why in (("b", "no such user; there are: a, bridge, gate, operator"), ("gate", "cannot do without it")):
        assert credentials.main([str(folder), "--revoke", wrong]) == 1
        assert why in capsys.readouterr().err


def test_keys_that_could_not_be_made_are_made_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tool that was not installed, or failed in the middle, leaves nothing that counts as a key."""
    argv = [str(tmp_path / "k"), "--server", "one", "--node", "a"]
    with monkeypatch.context() as bare:
        bare.setenv("PATH", str(tmp_path))
        assert credentials.main(argv) == 1
    assert "apt install openssl" in capsys.readouterr().err
    genuine = subprocess.run

    def fails(command: list[str], **options: Any) -> Any:
        if command[1] == "x509":
            raise subprocess.CalledProcessError(1, "openssl", stderr="it fails")
        return genuine(command, **options)

    with monkeypatch.context() as broken:
        broken.setattr(subprocess, "run", fails)
        assert credentials.main(argv) == 1
    assert "it fails" in capsys.readouterr().err
    assert credentials.main(argv) == 0
    ca, leaf = tmp_path / "k" / "ca.pem", tmp_path / "k" / "one.pem"
    subprocess.run(["openssl", "verify", "-CAfile", ca, leaf], check=True, capture_output=True)
    made = {path: path.read_bytes() for path in (tmp_path / "k").rglob("*") if path.is_file()}
    assert credentials.main(argv) == 0
    assert made == {path: path.read_bytes() for path in (tmp_path / "k").rglob("*") if path.is_file()}
    ca.unlink()
    assert credentials.main(argv) == 1
    assert "put it back" in capsys.readouterr().err
    assert (tmp_path / "k" / "ca.key").read_bytes() == made[tmp_path / "k" / "ca.key"], "nobody's key is thrown away"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"a": {}}'])
def test_a_damaged_list_of_users_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "users.json").write_text(content)
    assert credentials.main([str(tmp_path), "--node", "b"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path / 'users.json'}: ")
    assert (tmp_path / "users.json").read_text() == content


@pytest.mark.parametrize("content", [None, "{", "[]", '{"streams": [{}], "consumers": []}'])
def test_a_file_without_definitions_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    file = tmp_path / "streams.json"
    if content is not None:
        file.write_text(content)
    assert gate.main(["--server", "nats://127.0.0.1:9", "--file", str(file)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--file: {file}: ")


def test_a_node_works_with_its_own_rights(fleet: KeyedFleet, tmp_path: Path) -> None:
    async def work() -> None:
        key = fleet.as_user("desk.2").password
        async with (
            operator("", server=fleet.as_user("operator"), made=True) as boss,
            node(fleet.url, tmp_path, node_id="desk.2", token=key, ca_file=str(fleet.keys / "ca.pem")) as rig,
        ):
            await rig.up()
            task = await boss.submit()
            rig.source.settle(await rig.claim(), succeeded({"n": 1}))
            assert (await boss.settled(task)).node == "desk.2"
            await boss.submit()
            claim = await rig.claim()
            rig.source.hand_back(claim, handed_back("back", 7), "resubmit")
            await rig.saw("handed-back")
            assert "place-lost" not in rig.names()
            claim = await rig.claim()
            assert claim.payload == {"rae_state": 7}
            rig.source.settle(claim, failed("failed"))
            await boss.raw(b"poison", task_id=str(uuid4()))
            assert await rig.poll() is None
            await rig.saw("dead-letter")
            await rig.delivered()
            from supervisor.sources.nats.admin.overview import overview

            seen = await overview(boss.connection)
            assert [n["node"] for n in seen["nodes"]] == ["desk.2"]
            assert seen["tasks"]["waiting"] == seen["tasks"]["running"] == 0

    asyncio.run(asyncio.wait_for(work(), 90))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"password": "wrong"}, "refuses this user's key"),
        ({"user": "desk.2"}, "refuses this user's key"),
        ({"password": None}, "refuses this user's key"),
        ({"ca_file": None}, "cannot be reached: its certificate is not trusted: .* \\(control.ca_file names the CA\\)"),
        ({"url": "tls://localhost:%PORT%"}, "cannot be reached: its certificate is not trusted: Hostname mismatch"),
    ],
)
def test_an_unknown_user_is_refused(fleet: KeyedFleet, changes: dict[str, Any], why: str) -> None:
    given = {k: v.replace("%PORT%", str(fleet.server.port)) if isinstance(v, str) else v for k, v in changes.items()}

    async def work() -> None:
        with pytest.raises(RequestError, match=why):
            await Connection(fleet.as_user("desk-1", **given), name="x").open()

    asyncio.run(asyncio.wait_for(work(), 60))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "refuses this user's key: check --user and --password-file"),
        ({"user": None, "password": None}, "refuses this user's key: give --user and --password-file"),
        ({"ca": None}, "its certificate is not trusted: .* (--ca-file names the CA)"),
    ],
    ids=["wrong", "none", "no CA"],
)
def test_a_message_to_an_operator_names_options_not_settings(
    fleet: KeyedFleet, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    file = tmp_path / "key"
    file.write_text("wrong\n")
    file.chmod(0o600)
    given = {"user": "operator", "password": file, "ca": fleet.keys / "ca.pem", **changes}

    async def work() -> None:
        with pytest.raises(RequestError) as caught:
            await Connection(server_of(fleet.url, given["user"], given["password"], given["ca"], {}), name="x").open()
        assert re.search(re.escape(why).replace(r"\.\*", ".*"), caught.value.reason), caught.value.reason
        assert "control." not in caught.value.reason

    asyncio.run(asyncio.wait_for(work(), 60))


@pytest.mark.parametrize("asks", [True, False], ids=["asks for a key", "asks for none"])
@pytest.mark.parametrize("token", ["very-secret", None], ids=["a key", "no key"])
def test_no_key_is_sent_in_the_clear_to_a_server_without_tls(tmp_path: Path, token: str | None, asks: bool) -> None:
    """Somebody in the middle who answers first, without TLS: he gets no key, and hands out no task."""
    got = bytearray()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = {"server_id": "x", "version": "2.9.10", "proto": 1, "max_payload": 1 << 20, "auth_required": asks}
        later = {**info, "tls_required": True}
        writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
        while data := await reader.read(4096):
            got.extend(data)
            writer.write(b"PONG\r\nINFO " + json.dumps(later).encode() + b"\r\n")
        writer.close()

    async def work() -> None:
        server = await asyncio.start_server(impostor, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        user = "desk-1" if token else ""
        with pytest.raises(RequestError, match="no TLS"):
            await Connection(Server(f"tls://127.0.0.1:{port}", user, token), name="x").open()
        async with node(f"tls://127.0.0.1:{port}", tmp_path, token=token) as rig:
            await until(lambda: "no TLS" in rig.source.status.reason, lambda: rig.source.status.reason)
            assert rig.source.status.link is Link.DOWN
        server.close()

    asyncio.run(asyncio.wait_for(work(), 60))
    assert b"very-secret" not in got
    assert b"PUB" not in got


def test_an_operator_connects_by_options_or_environment(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("abc\n")
    file.chmod(0o600)
    environ = {"RAE_FLEET_SERVER": "tls://a:1,tls://b:1", "RAE_FLEET_USER": "boss", "RAE_FLEET_PASSWORD_FILE": str(file)}
    assert server_of(None, None, None, None, environ) == Server("tls://a:1,tls://b:1", "boss", "abc")
    assert server_of("nats://127.0.0.1:1", None, None, None, {}) == Server("nats://127.0.0.1:1")
    for url in ("nats://example.org:4222", "http://127.0.0.1", "nats://a:b@127.0.0.1:1", "tls://", "nats://127.0.0.1:1,nats://8.8.8.8:1"):
        with pytest.raises(AccessError, match="--server"):
            server_of(url, None, None, None, {})
    file.chmod(0o644)
    with pytest.raises(AccessError, match=r"--password-file: .* can be read or changed by others"):
        server_of(None, None, None, None, environ)
    with pytest.raises(AccessError, match="needs --password-file"):
        server_of(None, "boss", None, None, {})


def test_three_servers_start_from_the_tools_own_files_as_the_readme_says(tmp_path: Path) -> None:
    """TLS between them too; streams in three copies; an operator and a node come in by what the tool has written for them."""
    root = Path(__file__).resolve().parents[3]
    keys, hosts = tmp_path / "keys", ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    words = [word for host in hosts for word in ("--server", host)]
    tool = [str(root / "deploy/fleet/credentials"), str(keys), *words, "--node", "desk-1", "--store", str(tmp_path / "js-%h")]
    subprocess.run(tool, check=True, capture_output=True)
    ports = free_port(), free_port()
    servers = []
    try:
        for host in hosts:
            conf = keys / f"{host}.conf"
            text = conf.read_text().replace("%h", host).replace("0.0.0.0", host)
            for port, free in zip((":4222", ":6222"), ports, strict=True):
                text = text.replace(port, f":{free}")
            conf.write_text(text)
            prefix = ("env", "-C", str(keys))
            servers.append(NatsServer(tmp_path, name=host, host=host, port=ports[0], config=conf, prefix=prefix))
        for server in servers:
            server.start()
        url = ",".join(f"tls://{host}:{ports[0]}" for host in hosts)
        async def work() -> None:
            def secret(name: str) -> str:
                return (keys / "passwords" / name).read_text().strip()

            ca = str(keys / "ca.pem")
            boss = Server(url, "operator", secret("operator"), ca)
            async with (
                operator("", server=boss, made=True) as fleet,
                node(url, tmp_path, node_id="desk-1", token=secret("desk-1"), ca_file=ca) as rig,
            ):
                await rig.up()
                servers[0].kill()
                task = await _persist(fleet)
                rig.source.settle(await rig.claim(), succeeded({"n": 3}))
                assert (await fleet.settled(task)).result == {"n": 3}

        with gate_of(url, keys, "--replicas", "3"):
            asyncio.run(asyncio.wait_for(work(), 90))
    finally:
        for server in servers:
            server.kill()


async def _persist(fleet: Operator) -> str:
    """Submit while a server ends: the same id, through any server that is there."""
    task = str(uuid4())
    for _ in range(100):
        try:
            if not fleet.connection.up:
                await fleet.connection.close()
                fresh = Connection(fleet.connection._server, name="operator")
                await fresh.open()
                fleet.connection = fresh
            return await fleet.submit("echo", {}, task)
        except RequestError:
            await asyncio.sleep(0.2)
    raise AssertionError("no server took the task")


AWAY = {
    "nothing": {}, "url": {"url": "{url}/"}, "servers": {"url": "tls://127.0.0.1:9,{url}"}, "ca_file": {"ca_file": "{copy}"},
    "token": {"token": "right"},
}  # fmt: skip


@pytest.mark.parametrize("changed", AWAY, ids=lambda name: f"other {name}")
def test_what_is_not_delivered_moves_over_to_a_link_with_other_settings(
    fleet: KeyedFleet, tmp_path: Path, changed: str
) -> None:
    """With the server away, or the key refused. The task runs once: its lease moves over, too."""

    async def work() -> None:
        key = tmp_path / "key"
        key.touch(0o600)
        key.write_text((fleet.keys / "passwords/desk-1").read_text())
        (copy := tmp_path / "ca.pem").write_bytes((fleet.keys / "ca.pem").read_bytes())
        control = {"ca_file": str(fleet.keys / "ca.pem"), "token": Token(file=str(key))}
        async with (
            operator("", server=fleet.as_user("operator"), made=True) as boss,
            node(fleet.url, tmp_path, node_id="desk-1", **control) as rig,
        ):
            task = await boss.submit()
            claim = await rig.claim()
            old = rig.source
            await old._connection.close()
            old._link.fail(RequestError("it is away"))
            if changed == "token":
                key.write_text("wrong")
            old.settle(claim, succeeded({"x": 1}))
            other = {name: value.format(url=fleet.url, copy=copy) for name, value in AWAY[changed].items() if name != "token"}
            settings = replace(old._settings, control=msgspec.structs.replace(old._settings.control, **other))
            new = NatsSource(settings, SystemClock(), Recorded())
            await new.take_over(old)
            assert [len(source._outbox) for source in (old, new)] == [0, 1]
            await old.stop(1.0)
            await new.start(lambda: None)
            try:
                if changed == "token":
                    await until(lambda: "refuses" in new.status.reason, lambda: str(new.status))
                    key.write_text((fleet.keys / "passwords/desk-1").read_text())
                    new.resume()
                assert (await boss.settled(task)).result == {"x": 1}
                await until(lambda: new.status.outbox == 0, lambda: str(new.status))
                assert "undelivered" not in rig.names()
                assert new.counts["done"] == 1
            finally:
                await new.stop(2.0)

    asyncio.run(asyncio.wait_for(work(), 60))
