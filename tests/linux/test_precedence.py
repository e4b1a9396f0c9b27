"""The loop goes before all other programs while a task runs, alone, and never for long (R4): in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

STORY = """
import os, subprocess, sys, time
from supervisor.linux.precedence import LONGEST_S, Precedence
names = {os.SCHED_RR: "first", os.SCHED_OTHER: "in line"}
def say(what):
    print(what, names[os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK])
loop = Precedence()
loop.request(False); say("at rest")
loop.request(True); say("with a task")
loop.request(True); say("still")
child = "import os; print('child', {0: 'in line'}.get(os.sched_getscheduler(0), 'first'))"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout, end="")
loop.request(False); say("after it")
loop.request(True); say("next task")
until_s = time.thread_time() + 10 * LONGEST_S
while time.thread_time() < until_s and os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR:
    pass
say("computed too long")
time.sleep(0.01)
loop.request(True); say("next tick"); loop.request(False)
"""
FIRST = """at rest in line
with a task first
still first
child in line
after it in line
next task first
computed too long in line
next tick first
"""


def told(*before: str) -> str:
    done = subprocess.run([*before, sys.executable, "-c", STORY], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_goes_first_alone_and_not_for_long() -> None:
    if subprocess.run(["chrt", "-r", "1", "true"], capture_output=True).returncode:
        pytest.skip("this account has no real-time priority (LimitRTPRIO=1 gives the service one)")
    assert told() == FIRST


def test_without_the_right_to_it_nothing_changes() -> None:
    without = ["setpriv", "--bounding-set=-sys_nice", "--inh-caps=-sys_nice"] if os.geteuid() == 0 else []
    assert told("prlimit", "--rtprio=0:0", *without) == FIRST.replace("first", "in line")
