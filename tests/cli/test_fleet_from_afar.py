"""Three nodes, each in a network of its own, and their operator, who sees and orders them with the fleet's keys alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.namespaces import Namespace, namespace
from support.nats_rig import KeyedFleet, keyed_fleet, needs_server
from support.running import RAE_NODE, NodeFolder, daemon
from support.waiting import until

from supervisor.sources.nats.admin.waking import Waker
from supervisor.sources.nats.connection import Connection

pytestmark = [needs_server, pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")]

NAMES = ("desk-1", "desk-2", "desk-3")
SLEEPERS = ("desk-4", "desk-5", "desk-6")
MAGIC = b"\xff" * 6
SERVER = "10.199.77.1"  # of ours; each node reaches it over its own cable


def as_operator(fleet: KeyedFleet, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """`rae-node` on the operator's machine."""
    env = {
        **os.environ, "RAE_FLEET_SERVER": fleet.url, "RAE_FLEET_USER": "operator",
        "RAE_FLEET_PASSWORD_FILE": str(fleet.keys / "passwords/operator"), "RAE_FLEET_CA_FILE": str(fleet.keys / "ca.pem"),
    }  # fmt: skip
    return subprocess.run([*RAE_NODE, *words], capture_output=True, text=True, input=text, timeout=60, env=env, cwd="/")


def make(folder: Path, fleet: KeyedFleet, name: str, **more: Any) -> NodeFolder:
    """A node with its own key. The person of desk-3 counts as there: nobody knows otherwise for its first hour."""
    shutil.copy(fleet.keys / "ca.pem", folder)
    shutil.copy(fleet.keys / "passwords" / name, folder)
    control = {"source": "nats", "url": fleet.url, "ca_file": "ca.pem", "token": {"file": name}}
    watched = {"detect_active_user": name == "desk-3", "idle_required_minutes": 60 if name == "desk-3" else 0.02}
    settings = {"node": {"id": name}, "control": control, "presence": {"sessions": False}, **more}
    return NodeFolder.make(folder, node=settings, runtime={"safety": watched})


def reach(network: Namespace) -> None:
    """The server, from there."""
    network.ip("route", "add", "default", "via", network.ours[0])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedFleet]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    subprocess.run(["ip", "addr", "replace", f"{SERVER}/32", "dev", "lo"], check=True)
    try:
        with keyed_fleet(tmp_path_factory.mktemp("fleet"), *NAMES, *SLEEPERS, host=SERVER) as one:
            yield one
    finally:
        subprocess.run(["ip", "addr", "del", f"{SERVER}/32", "dev", "lo"])


def test_an_operator_sees_and_orders_nodes_that_have_no_listening_port(fleet: KeyedFleet, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        networks = {name: stack.enter_context(namespace()) for name in NAMES}
        nodes = {}
        for name, network in networks.items():
            reach(network)
            (folder := tmp_path / name).mkdir()
            argv = [*network.prefix, *RAE_NODE, "run"]
            nodes[name] = stack.enter_context(daemon(make(folder, fleet, name), argv=argv))

        def says(*words: str) -> str:
            done = as_operator(fleet, "fleet", *words)
            assert done.returncode == 0, done.stderr
            return done.stdout

        def becomes(name: str, *texts: str) -> None:
            until(lambda: all(text in says("why", name) for text in texts), lambda: says("why", name), 60)

        for name in ("desk-1", "desk-2"):
            nodes[name].wait_for("READY")
        task = as_operator(fleet, "submit", "-", "--wait", text='{"type": "echo", "payload": {"n": 1}}')
        assert task.returncode == 0, task.stderr
        worker = next(name for name in ("desk-1", "desk-2") if "echo" in says("log", name))
        log = says("log", worker, "-n", "50")
        assert [text for text in ("IDLE_WAIT → READY", "READY → RUNNING", "link: delivered") if text not in log] == [], log

        said = {words: says(*words) for words in (("pause", "desk-1", "2h"), ("drain", "desk-2"))}
        assert set(said.values()) == {"desk-1: stored\n", "desk-2: stored\n"}
        becomes("desk-1", "DISABLED", "Paused by its operator, 2 h to go", "> no  automation_on")
        becomes("desk-2", "DISABLED", "over the fleet")
        says("resume", "desk-2")
        nodes["desk-2"].wait_for("READY")
        says("disable-until-told", "desk-2")
        becomes("desk-2", "until `rae-node fleet enable`")
        says("enable", "desk-2")
        nodes["desk-2"].wait_for("READY")
        assert "operator: fleet disable-until-told" in says("log", "desk-2")
        says("resume", "desk-1")
        becomes("desk-1", "READY")

        # whose person is there: no order makes it work
        becomes("desk-3", "IDLE_WAIT", "> no  user_away", "in use by its person")
        says("pause", "desk-3")
        becomes("desk-3", "DISABLED")
        says("resume", "desk-3")
        becomes("desk-3", "IDLE_WAIT", "in use by its person")
        assert nodes["desk-3"].folder.cli("pause").returncode == 0
        assert as_operator(fleet, "fleet", "resume", "desk-3").returncode == 1
        becomes("desk-3", "DISABLED")
        assert not [d for d in nodes["desk-3"].folder.decisions() if d["to"] in ("READY", "RUNNING")]

        absent = as_operator(fleet, "fleet", "why", "desk-9")
        assert (absent.returncode, absent.stderr) == (1, "no node desk-9 is there now; there are: desk-1, desk-2, desk-3\n")
        answer = json.loads(says("why", "desk-3", "--json"))
        assert {guard["name"]: guard["ok"] for guard in answer["guards"]}["user_away"] is False
        assert json.loads(says("log", "desk-3", "--json", "-n", "1"))["lines"][0]["text"]
        for network in networks.values():
            there = [*network.prefix, "ss", "-Hltunp"]
            assert subprocess.run(there, capture_output=True, text=True, check=True).stdout == ""


def test_a_sleeping_node_is_woken_by_another_in_its_network(fleet: KeyedFleet, tmp_path: Path) -> None:
    """By the operator, and by the gate for tasks that only it can run."""
    with namespace() as network:
        reach(network)
        argv = [*network.prefix, *RAE_NODE, "run"]
        wanted = {"work": {"wake": True, "run_minutes": 0}}
        folders = {name: tmp_path / name for name in SLEEPERS}
        for folder in folders.values():
            folder.mkdir()
        only = {"tasks": {"special": {"argv": ["/bin/cat"]}}}
        mac = json.loads(network.ip("-json", "link", "show", "cable0"))[0]["address"]
        packet = MAGIC + bytes.fromhex(mac.replace(":", "")) * 16

        @contextlib.contextmanager
        def woken() -> Iterator[None]:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
                wire.settimeout(20)
                wire.bind((network.cards[0], 0x0800))
                yield
                frames = until(lambda: [frame for frame in [wire.recv(2000)] if packet in frame], "the packet on the wire", 20)
                assert frames[0][:6] == MAGIC

        with daemon(make(folders["desk-4"], fleet, "desk-4", **wanted, **only), argv=argv) as sleeper:
            until(lambda: sleeper.look().get("source", {}).get("link") == "up", "its link", 60)
            until(lambda: "desk-4" in as_operator(fleet, "fleet").stdout, "its entry", 60)
            absent = as_operator(fleet, "fleet", "wake", "desk-6")
            assert (absent.returncode, "needs work.wake: true in its node.yaml; known: desk-4" in absent.stderr) == (1, True)
            assert "does not sleep" in as_operator(fleet, "fleet", "wake", "desk-4").stderr
            assert sleeper.stop() == 0
        nobody = as_operator(fleet, "fleet", "wake", "desk-4")
        assert (nobody.returncode, "no node that is there" in nobody.stderr) == (1, True), nobody
        with daemon(make(folders["desk-5"], fleet, "desk-5", **wanted), argv=argv) as helper:
            until(lambda: helper.look().get("source", {}).get("link") == "up", "its link", 60)
            with woken():
                until(lambda: as_operator(fleet, "fleet", "wake", "desk-4").returncode == 0, "the packet is sent", 60)
            assert "link: woke" in as_operator(fleet, "fleet", "log", "desk-5").stdout

            async def look() -> list[str]:
                said: list[str] = []
                connection = Connection(fleet.as_user("gate"), name="gate")
                await connection.open()
                waker = Waker(connection, said.append)
                for now_s in (0.0, 60.0):  # the second is too soon after the first
                    await waker.look(now_s)
                await connection.close()
                return said

            assert asyncio.run(look()) == []
            task = as_operator(fleet, "submit", "-", text='{"type": "special", "payload": {}}')
            assert task.returncode == 0, task.stderr
            with woken():
                assert asyncio.run(look()) == ["desk-5 wakes desk-4: tasks of the type special wait"]
