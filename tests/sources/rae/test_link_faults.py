"""What the node does with each fault on the way to the control node; docs/control-node.md has the same table."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support import rae_server as s
from support.bad_answers import SENTINEL, TABLE, Bad
from support.rae_rig import in_made_time, running
from support.rae_server import RaeServer, in_loop, until

from states.ending import handed_back, succeeded
from states.observation import Link
from supervisor.sources.base import Availability
from supervisor.sources.errors import MIB

ROOT = Path(__file__).resolve().parents[3]
SHORT = {"max_answer_bytes": MIB, "total_timeout_s": 0.4, "read_timeout_s": 0.2, "patient_s": 0.4}

BAD = pytest.mark.parametrize("bad", TABLE.values(), ids=TABLE.keys())


@BAD
@in_made_time
async def test_a_bad_answer_to_a_poll(tmp_path: Path, bad: Bad) -> None:
    """Never a claim, never repeated by itself; the link is down with a reason in words, then up again; nothing is quoted."""
    async with RaeServer().listening() as server, running(server, tmp_path, **SHORT) as rig:
        await rig.up()
        server.faults["poll"].append(bad.fault)
        assert await rig.poll() is None
        if not bad.up:
            reason = await rig.down()
            assert server.url in reason
            assert "\n" not in reason
        await rig.up()
        assert len(server.of("poll")) == 1 + bad.up, "asked again only where nothing can have been handed out"
        assert ("poll-lost" in rig.names()) is bad.lost
        assert await rig.poll() is None
        assert SENTINEL not in repr(rig.events)


@pytest.mark.parametrize("call", ["register", "heartbeat"])
@BAD
@in_made_time
async def test_a_bad_answer_to_register_or_a_heartbeat(tmp_path: Path, bad: Bad, call: str) -> None:
    async with RaeServer().listening() as server:
        server.faults[call] += [bad.fault, bad.fault]
        async with running(server, tmp_path, **SHORT) as rig:
            if not (bad.beats and call == "heartbeat"):
                assert server.url in await rig.down()
                assert rig.source.status.error
            await rig.up()
        assert SENTINEL not in repr(rig.events)


@BAD
@in_made_time
async def test_a_bad_answer_to_a_result(tmp_path: Path, bad: Bad) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path, **SHORT) as rig:
        await rig.up()
        task_id = server.add()
        claim = await rig.claim()
        server.faults["result"].append(bad.fault)
        rig.source.settle(claim, succeeded({"x": 1}))
        await rig.delivered()
        task = server.task(task_id)
        expected = {"again": ("COMPLETED", 0), "failed": ("FAILED", 0), "lost": ("PROCESSING", 1)}[bad.result]
        assert (task["status"], rig.names().count("outcome-lost")) == expected
        if bad.result == "failed":
            assert "refused the result" in task["error"] or "too large" in task["error"]
        assert rig.note == []


@BAD
@in_made_time
async def test_a_bad_answer_to_a_post_again(tmp_path: Path, bad: Bad) -> None:
    """A task given back ends in one of two ways, and the server's own task says which: posted again, or only failed."""
    async with RaeServer().listening() as server, running(server, tmp_path, **SHORT) as rig:
        await rig.up()
        task_id = server.add("kind", {"a": 1})
        claim = await rig.claim()
        server.faults["create"].append(bad.fault)
        rig.source.hand_back(claim, handed_back("user returned"), "resubmit")
        await rig.delivered()
        task = server.task(task_id)
        assert task["status"] == "FAILED"
        if "could not be resubmitted" in task["error"]:
            assert "repost-refused" in rig.names()
            return
        again = re.fullmatch(r"preempted: user returned; resubmitted as (\S+)", task["error"])
        assert again
        assert server.task(again[1])["payload"] == {"a": 1}
        posts = len(server.of("create"))
        assert posts == 2
        assert ("repost-repeated" in rig.names()) is bad.lost


def test_the_documents_have_this_table() -> None:
    cells = re.findall(r"^\| \*([^*|]+)\*", (ROOT / "docs/control-node.md").read_text(), re.MULTILINE)
    assert sorted(TABLE) == sorted(name for cell in cells for name in cell.split(" · "))


# --- before any answer


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """A port whose queue is full: a connection to it is neither accepted nor refused."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@in_loop
async def test_no_connection_in_time(tmp_path: Path) -> None:
    with deaf() as url:
        async with running(url, tmp_path, connect_timeout_s=0.1) as rig:
            assert "no connection within 0.1 s" in await rig.down()


@pytest.mark.parametrize(
    ("url", "says"),
    [("http://nobody.invalid:8000", "cannot be resolved"), ("http://127.0.0.1:9", "connection refused")],
)
@in_loop
async def test_no_connection_at_all(tmp_path: Path, url: str, says: str) -> None:
    async with running(url, tmp_path, total_timeout_s=10, connect_timeout_s=10) as rig:
        assert says in await rig.down()
        await until(lambda: rig.source.status.next_try_s is not None)
        assert not rig.source.ask()


@in_loop
async def test_a_resolver_that_hangs_holds_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread of its own waits, whatever is tried meanwhile; neither the workers nor the end wait for it."""
    free, asked = threading.Event(), []

    def hangs(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        free.wait(60)
        raise socket.gaierror(socket.EAI_AGAIN, "x")

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    try:
        async with running("http://control.test:8000", tmp_path, connect_timeout_s=0.05) as rig:
            assert "not resolved within 0.05 s" in await rig.down()
            began_s = rig.source.status.error_s
            await until(lambda: rig.source.status.error_s != began_s, "another try")
        assert asked == ["control.test"]
        assert [t.daemon for t in threading.enumerate() if t.name == "_look_up"] == [True]
    finally:
        free.set()


@in_loop
async def test_each_address_of_a_name_is_tried_and_the_server_is_called_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.9", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    async with RaeServer().listening() as server:
        port = server.url.rpartition(":")[2]
        async with running(f"http://control.test:{port}/", tmp_path) as rig:
            await rig.up()
            assert rig.source.status.url == f"http://control.test:{port}"
        assert {request.headers["host"] for request in server.requests} == {f"control.test:{port}"}


@in_loop
async def test_each_request_has_a_connection_of_its_own_and_says_so(tmp_path: Path) -> None:
    async with RaeServer().listening() as server, running(server, tmp_path) as rig:
        await rig.up()
        await rig.poll()
        assert {request.headers["connection"] for request in server.requests} == {"close"}


@pytest.mark.parametrize("call", ["register", "heartbeat", "poll", "result"])
@in_loop
async def test_without_retry_one_failure_of_any_call_gives_the_link_up(tmp_path: Path, call: str) -> None:
    """R21, retry_on_disconnect false."""
    async with RaeServer().listening() as server, running(server, tmp_path, retry=False) as rig:
        if call != "register":
            await rig.up()
            server.add()
            claim = await rig.claim()
        else:
            server.faults["register"].append(s.closed)
        server.faults[call].append(s.closed)
        if call == "heartbeat":
            rig.source.announce(Availability.ONLINE)
        elif call == "poll":
            assert rig.source.ask()
        elif call == "result":
            rig.source.settle(claim, succeeded({}))
        await until(lambda: rig.source.status.link is Link.LOST)
        calls = len(server.calls)
        assert not rig.source.ask()
        await asyncio.sleep(0.1)
        assert len(server.calls) == calls, "nothing is tried until resumed"
        server.faults.clear()
        rig.source.resume()
        await rig.up()
        await rig.delivered()


# --- TLS


@dataclass(frozen=True)
class Authority:
    """A CA of our own, and certificates that it signed, each with its key in the same file."""

    ca: Path
    leaf: Path


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Authority]:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates")
    folder = tmp_path_factory.mktemp("tls")
    made = {}
    for name, san, dates in (
        ("right", "IP:127.0.0.1,DNS:localhost", ()),
        ("other name", "DNS:elsewhere.example", ()),
        ("expired", "IP:127.0.0.1", ("-startdate", "20200101000000Z", "-enddate", "20200102000000Z")),
    ):
        made[name] = _authority(folder / name.replace(" ", "-"), san, dates)
    return made


def _authority(stem: Path, san: str, dates: tuple[str, ...]) -> Authority:
    ca, ca_key, leaf, key, request = (stem.with_suffix(end) for end in (".ca", ".ca.key", ".pem", ".key", ".csr"))
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    certify = ["openssl", "ca", "-batch", "-notext", "-config", str(stem.with_suffix(".cnf")), "-in", str(request)]
    stem.with_suffix(".cnf").write_text(
        f"[ca]\ndefault_ca = a\n[a]\ndatabase = {stem}.index\nnew_certs_dir = {stem.parent}\nrand_serial = yes\n"
        f"certificate = {ca}\nprivate_key = {ca_key}\ndefault_md = sha256\ndefault_days = 2\npolicy = p\n"
        f"x509_extensions = e\n[p]\ncommonName = supplied\n[e]\nsubjectAltName = {san}\n"
    )
    Path(f"{stem}.index").write_text("")
    for argv in (
        [*new, "-x509", "-days", "2", "-subj", "/CN=test CA", "-keyout", str(ca_key), "-out", str(ca)],
        [*new, "-subj", "/CN=control", "-keyout", str(key), "-out", str(request)],
        [*certify, "-out", str(leaf), *dates],
    ):  # fmt: skip
        subprocess.run(argv, check=True, capture_output=True, timeout=30)
    leaf.write_bytes(leaf.read_bytes() + key.read_bytes())
    return Authority(ca, leaf)


@pytest.mark.parametrize(
    ("leaf", "ca", "problem"),
    [
        ("right", "right", None),
        ("right", "expired", "not trusted"),
        ("right", None, "not trusted"),
        ("other name", "other name", "not trusted"),
        ("expired", "expired", "not trusted"),
    ],
    ids=["its own CA", "another CA", "the system's CAs", "another name", "expired"],
)
@in_loop
async def test_the_certificate_is_verified(
    tmp_path: Path, authorities: dict[str, Authority], leaf: str, ca: str | None, problem: str | None
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authorities[leaf].leaf)
    given = {} if ca is None else {"ca_file": str(authorities[ca].ca)}
    async with RaeServer().listening(tls=context) as server, running(server, tmp_path, **given) as rig:
        if problem is None:
            await rig.up()
            server.add()
            assert await rig.poll() is not None
        else:
            assert problem in await rig.down()
            assert server.requests == [], "nothing was sent, so no key either"


@pytest.mark.parametrize(("leaf", "sound"), [("right", True), ("other name", False)])
@in_loop
async def test_the_certificate_must_be_of_the_name_in_the_url(
    tmp_path: Path, authorities: dict[str, Authority], leaf: str, sound: bool
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authorities[leaf].leaf)
    async with RaeServer().listening(tls=context) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        async with running(url, tmp_path, ca_file=str(authorities[leaf].ca)) as rig:
            if sound:
                await rig.up()
            else:
                assert "not trusted" in await rig.down()


@pytest.mark.filterwarnings("ignore:.*TLSv1_1 is deprecated")
@in_loop
async def test_an_old_tls_is_refused(tmp_path: Path, authorities: dict[str, Authority]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(authorities["right"].leaf)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    given = {"ca_file": str(authorities["right"].ca)}
    async with RaeServer().listening(tls=context) as server, running(server, tmp_path, **given) as rig:
        assert "TLS" in await rig.down()
