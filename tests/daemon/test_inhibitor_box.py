"""The block locks beside a real logind and a real polkit: seen by others, gone with the node, refused in words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.box_probe import Probe
from support.sysbox import SysBox
from support.waiting import until

RULE = "/etc/polkit-1/rules.d/50-test.rules"
ALLOW = """polkit.addRule(function(action, subject) {
  if (subject.user == "rae" && action.id.indexOf("org.freedesktop.login1.inhibit-block-") == 0) return "yes";
});
"""


# logind 252 follows a bus that restarts by ending and being started anew; 257 stays, and never comes back to the bus.
BUS = "restart dbus systemd-logind"


def blocks(box: SysBox) -> list[list[str]]:
    """Who, what and mode of the block locks that logind lists, by `systemd-inhibit`."""
    text = box.run("systemd-inhibit", "--list", "--no-legend", "--no-pager").stdout
    rows = [line.split() for line in text.splitlines() if line.split()[-1:] == ["block"]]
    return sorted([row[0], row[2], row[5], row[-1]] for row in rows)


def test_held_listed_released(box: SysBox) -> None:
    with Probe(box) as probe:
        assert probe.do("take", why="task t1 (command)")["held"]
        assert blocks(box) == [["rae-node", "root", kind, "block"] for kind in ("idle", "sleep")]
        assert probe.state()["present"] == "", "our own lock on idle is no sign of a person"
        assert "task t1 (command)" in box.run("systemd-inhibit", "--list", "--no-pager").stdout
        answer = probe.do("release")
        assert (answer["said"], answer["held"]) == ("locks released", False)
        assert blocks(box) == []


def test_gone_with_a_node_that_is_killed(box: SysBox) -> None:
    probe = Probe(box)
    probe.do("take", why="task t1")
    assert len(blocks(box)) == 2
    box.sh(f"kill -9 {probe.pid_inside}")
    until(lambda: not blocks(box), "no lock after kill -9")
    probe.__exit__(None, None, None)


@pytest.mark.parametrize("how", ["restart systemd-logind", "kill -s KILL systemd-logind", BUS])
def test_locks_over_a_restart_are_held_or_known_to_be_lost(box: SysBox, how: str) -> None:
    with Probe(box) as probe:
        probe.do("take", why="task t1")
        box.run("systemctl", "reset-failed")  # or systemd holds the restarts of other tests against it
        box.run("systemctl", *how.split())
        box.run("loginctl", "list-sessions")  # a logind that answers
        until(lambda: not (state := probe.state())["error"] and bool(state["lost"]) != state["held"], "a verdict")
        until(lambda: probe.state()["held"] == (len(blocks(box)) == 2), "the verdict is logind's")
        assert probe.do("release")["said"] == "locks released"
        assert blocks(box) == []
        assert probe.do("take", why="task t2")["held"]
        probe.do("release")


@pytest.fixture
def rae(box: SysBox) -> Iterator[str]:
    box.add_user("rae")
    yield "rae"
    box.run("rm", "-f", RULE)


def test_polkit_refuses_a_plain_user_in_words_until_a_rule_allows_it(box: SysBox, rae: str) -> None:
    with Probe(box, user=rae) as probe:
        answer = probe.do("take", why="task t1")
        assert answer["refused"] == (
            "polkit refuses the lock org.freedesktop.login1.inhibit-block-sleep to rae: run the installer, which puts"
            " the polkit rule in place, or set host.inhibitor to none in node.yaml"
        )
        assert not answer["held"]
        assert blocks(box) == []
        assert answer["delay_error"] == "", "delay locks are anybody's"
        box.run("tee", RULE, stdin=ALLOW)
        until(lambda: probe.do("take", why="task t2")["held"], "polkit has read the rule")
        assert blocks(box) == [["rae-node", "rae", kind, "block"] for kind in ("idle", "sleep")]
        probe.do("release")
        assert blocks(box) == []


def test_a_lock_on_sleep_keeps_another_user_from_suspending(box: SysBox, rae: str) -> None:
    box.add_user("anna")
    power = box.root / "sys/power/state"
    power.write_text("freeze mem")
    with Probe(box) as probe:
        probe.do("take", why="task t1")
        refused = box.run("systemctl", "--check-inhibitors=yes", "suspend", check=False)
        assert refused.returncode
        assert "Operation inhibited by" in refused.stderr
        assert box.run("systemctl", "suspend", user="anna", check=False).returncode
        assert power.read_text().strip() == "freeze mem"
        probe.do("release")
