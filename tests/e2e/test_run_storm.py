"""A whole daemon behind a proxy that plays every fault at random: its tasks get done, and it says nothing but the truth."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
from support.running import RAE_NODE, NodeFolder, control_node, daemon
from support.storm import QUICK, stormy
from support.waiting import until

TASKS = 12
LIMIT_S = 120.0


def test_a_daemon_in_a_storm_does_its_tasks_and_stops_in_order(tmp_path: Path) -> None:
    with control_node() as control, stormy(int(control.url.rpartition(":")[2]), 5) as (url, proxy):
        folder = NodeFolder.make(tmp_path / "n", url, node={"work": {"run_minutes": 1}}, **QUICK)
        with daemon(folder) as node:
            posted = [control.add("echo", {"n": n}) for n in range(TASKS)]

            def lost() -> set[str]:
                return {line["task"] for line in folder.journal() if line.get("event") == "outcome-lost"}

            def left() -> set[str]:
                told = lost()
                return {i for i in posted if i not in told and control.task(i)["status"] not in ("COMPLETED", "FAILED")}

            until(lambda: not left(), lambda: f"{left()} settled; {node.look().get('source')}", LIMIT_S)
            source = node.ask()["source"]
            assert source["error"], "there was trouble, and it can be read"
            assert source["error_at"]
            proxy.calm = True
            until(lambda: node.ask()["source"]["link"] == "up", "the link, in the end")
            assert node.stop() == 0
        assert "Traceback" not in node.said
        assert sum(proxy.faults.values()) > TASKS
        assert all(len(outcomes) == 1 for task, outcomes in proxy.outcomes.items() if task not in lost())
        done = [task for task in map(control.task, posted) if task["status"] == "COMPLETED"]
        assert [task["result"] for task in done] == [task["payload"] for task in done]
        assert len(done) >= TASKS / 2
        assert control.call("GET", "/control/nodes") == [], "it said OFFLINE"
        folder.replays_clean()


def test_a_resolver_that_never_answers_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """glibc asks on for ten seconds and more; the node is gone at once."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("needs root and a mount namespace, to have a resolver of its own")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
        address = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
        try:
            mute.bind((address, 53))
        except OSError as error:
            pytest.skip(f"cannot listen on {address}:53: {error.strerror}")
        resolver = tmp_path / "resolv.conf"
        resolver.write_text(f"nameserver {address}\n")
        folder = NodeFolder.make(tmp_path / "n", "https://control.example.org:8000")
        inside = ("unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolver))
        with daemon(folder, argv=(*inside, *RAE_NODE, "run")) as node:
            node.wait_for("READY")
            until(lambda: "not resolved within" in node.look().get("source", {}).get("error", ""), "a reason")
            began_s = time.monotonic()
            assert node.stop() == 0
            assert time.monotonic() - began_s < 9  # not the time that glibc asks
