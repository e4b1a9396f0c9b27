"""Three nodes, each in a network of its own, and their operator, who sees and orders them with the fleet's keys alone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.namespaces import namespace
from support.nats_rig import KeyedFleet, keyed_fleet, needs_server
from support.running import RAE_NODE, NodeFolder, daemon
from support.waiting import until

pytestmark = [needs_server, pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")]

NAMES = ("desk-1", "desk-2", "desk-3")
SERVER = "10.199.77.1"  # of ours; each node reaches it over its own cable


def as_operator(fleet: KeyedFleet, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """`rae-node` on the operator's machine."""
    env = {
        **os.environ, "RAE_FLEET_SERVER": fleet.url, "RAE_FLEET_USER": "operator",
        "RAE_FLEET_PASSWORD_FILE": str(fleet.keys / "passwords/operator"), "RAE_FLEET_CA_FILE": str(fleet.keys / "ca.pem"),
    }  # fmt: skip
    return subprocess.run([*RAE_NODE, *words], capture_output=True, text=True, input=text, timeout=60, env=env, cwd="/")


def make(folder: Path, fleet: KeyedFleet, name: str) -> NodeFolder:
    """A node with its own key. The person of desk-3 counts as there: nobody knows otherwise for its first hour."""
    shutil.copy(fleet.keys / "ca.pem", folder)
    shutil.copy(fleet.keys / "passwords" / name, folder)
    control = {"source": "nats", "url": fleet.url, "ca_file": "ca.pem", "token": {"file": name}}
    watched = {"detect_active_user": name == "desk-3", "idle_required_minutes": 60 if name == "desk-3" else 0.02}
    settings = {"node": {"id": name}, "control": control, "presence": {"sessions": False}}
    return NodeFolder.make(folder, node=settings, runtime={"safety": watched})


def test_an_operator_sees_and_orders_nodes_that_have_no_listening_port(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        networks = {name: stack.enter_context(namespace()) for name in NAMES}
        subprocess.run(["ip", "addr", "add", f"{SERVER}/32", "dev", "lo"], check=True)
        stack.callback(subprocess.run, ["ip", "addr", "del", f"{SERVER}/32", "dev", "lo"])
        for network in networks.values():
            network.ip("route", "add", "default", "via", network.ours[0])
        fleet = stack.enter_context(keyed_fleet(tmp_path, *NAMES, host=SERVER))
        nodes = {}
        for name, network in networks.items():
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
