"""The node on a real systemd as people meet it: journald's fields, the log files, and who may say a word without root."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
from support.running import NodeFolder
from support.sysbox import SysBox
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.box]

CONFIG = "/mnt/share/node"


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SysBox]:
    """A node run by systemd as anna, with journald beside it; bob is in her group, carl is not."""
    with SysBox(tmp_path_factory.mktemp("people")) as box:
        for name in ("anna", "bob", "carl"):
            box.add_user(name)
        box.run("usermod", "-aG", "anna", "bob")
        NodeFolder.make(box.share / "node", node={"metrics": {"file": "run/rae_node.prom"}})
        box.run("chown", "-R", "anna:anna", CONFIG)
        box.run(
            "systemd-run", "-q", "--unit=rae-node", "-pType=notify", "-pUser=anna", "-pStandardError=journal",
            "-EPYTHONPATH=" + box.env["PYTHONPATH"], box.python, "-m", "supervisor.daemon.main", "--config", CONFIG,
        )
        until(lambda: '"READY"' in cli(box, "anna", "status", "--json")[1], lambda: box.sh("journalctl -o cat"), 30)
        yield box


def cli(box: SysBox, user: str, *words: str) -> tuple[int, str, str]:
    done = box.run(box.python, "-m", "supervisor.cli.main", *words, "--config", CONFIG, user=user, check=False)
    return done.returncode, done.stdout, done.stderr


def test_decisions_reach_journald_with_their_fields(box: SysBox) -> None:
    lines = [json.loads(line) for line in box.sh("journalctl -u rae-node -o json RAE_KIND=decision").splitlines()]
    assert [line["RAE_ROW"] for line in lines[:2]] == ["switched-on", "safe"]
    last = lines[1]
    assert last["MESSAGE"] == "IDLE_WAIT → READY: safe"
    assert (last["RAE_FROM"], last["RAE_TO"], last["RAE_GUARD_USER_AWAY"]) == ("IDLE_WAIT", "READY", "ok")
    assert (last["PRIORITY"], last["SYSLOG_IDENTIFIER"], last["_SYSTEMD_UNIT"]) == ("6", "rae-node", "rae-node.service")
    verbose = box.sh("journalctl -u rae-node -o verbose RAE_ROW=safe")
    print(verbose)
    assert "    RAE_TO=READY\n" in verbose
    said = box.sh("journalctl -u rae-node -o cat").splitlines()
    assert said.count("IDLE_WAIT → READY: safe") == 1, "nothing is said twice"


def test_the_log_files_lie_beside_each_other(box: SysBox) -> None:
    names = box.sh(f"ls {CONFIG}/logs").split()
    assert [name[:9] for name in names] == ["decisions", "rae-node-"]
    assert "  IDLE_WAIT → READY: safe\n" in box.sh(f"cat {CONFIG}/logs/rae-node-*.log")


def test_anybody_who_collects_metrics_may_read_them(box: SysBox) -> None:
    collect = ["cat", f"{CONFIG}/run/rae_node.prom"]
    until(lambda: 'rae_node_state{state="READY"} 1.0\n' in box.run(*collect, user="carl").stdout, "READY there too")


def test_members_of_the_nodes_group_say_a_word_without_root(box: SysBox) -> None:
    code, out, errors = cli(box, "carl", "pause", "2h")
    assert (code, out) == (1, "")
    assert "only root, the node's user and members of its group" in errors
    code, out, errors = cli(box, "bob", "pause", "2h")
    assert (code, errors) == (0, "")
    assert out.startswith("paused until ")
    assert cli(box, "carl", "status")[1].startswith("DISABLED: paused until "), "anybody may look"
    assert cli(box, "bob", "resume")[0] == 0
    until(lambda: cli(box, "carl", "status")[1].startswith("READY:"), "READY again", 30)


def test_a_journald_that_hangs_or_is_gone_stops_nothing(box: SysBox) -> None:
    journald = int(box.run("systemctl", "show", "-P", "MainPID", "systemd-journald").stdout)
    box.run("kill", f"-{signal.SIGSTOP}", str(journald))
    try:
        for _ in range(6):
            assert cli(box, "bob", "pause")[0] == 0
            assert cli(box, "bob", "resume")[0] == 0
    finally:
        box.run("kill", f"-{signal.SIGCONT}", str(journald))
    box.run("systemctl", "kill", "-s", "KILL", "systemd-journald")
    assert cli(box, "bob", "pause")[0] == 0
    assert cli(box, "bob", "resume")[0] == 0
    until(lambda: cli(box, "carl", "status")[1].startswith("READY:"), "READY again", 30)
    until(lambda: "operator: resume" in box.sh("journalctl -b -o cat -n 50"), "journald is back, and hears us")


def test_who_sits_at_the_machine_pauses_it_and_ends_that_pause_and_no_other(box: SysBox) -> None:
    """carl is in no group. At the desk he may; over the network, and once he has left, he may not."""
    unit, number = box.open_session("carl", kind="x11")
    remote, far = box.open_session("dora", kind="tty", seat="")
    try:
        until(lambda: cli(box, "carl", "pause", "2h")[0] == 0, "the node has seen his session", 30)
        assert "paused by carl until " in cli(box, "anna", "status")[1]
        assert "only root, the node's user and members of its group" in cli(box, "dora", "resume")[2]
        assert cli(box, "carl", "pause", "1h")[0] == 0
        assert cli(box, "carl", "resume")[0] == 0
        assert cli(box, "bob", "pause")[0] == 0
        for words in (("resume",), ("pause", "1m")):
            code, _, errors = cli(box, "carl", *words)
            assert (code, "the operator has paused the node; it stays paused" in errors) == (1, True)
        assert cli(box, "bob", "resume")[0] == 0
        said = [json.loads(line) for line in box.sh(f"cat {CONFIG}/logs/decisions-*.jsonl").splitlines()]
        assert [line.get("by") for line in said if line["kind"] == "operator"][-5:] == ["carl", "carl", "carl", None, None]
    finally:
        box.close_session(unit, number)
        box.close_session(remote, far)
    until(lambda: cli(box, "carl", "pause")[0] == 1, "he has left", 30)
    assert cli(box, "bob", "resume")[0] == 0
