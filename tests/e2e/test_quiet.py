"""An idle node does nothing: no polling, no process but its helpers. The bench watches for a minute, this test shortly."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from bench import quiet

pytestmark = pytest.mark.slow

SERVICE, GPU = "daemon.main", "sensors.gpu.nvml_helper"
LINES = """\
10  1.000100 epoll_wait(4,  <unfinished ...>
11  1.100100 newfstatat(AT_FDCWD, "/dev/full", {st_mode=S_IFCHR|0666, ...}, 0) = 0 <0.000012>
10  2.000100 <... epoll_wait resumed>[], 11, 6212) = 0 <1.000000>
10  2.000200 epoll_wait(4, [], 11, 0) = 0 <0.000010>
10  2.000300 clone3({flags=CLONE_VM|CLONE_THREAD, exit_signal=0}, 88) = 12 <0.000050>
12  2.100400 poll([{fd=3, events=POLLIN}], 1, 100) = 0 (Timeout) <0.100000>
11  2.000500 vfork( <unfinished ...>
13  2.000600 execve("/bin/true", ["true"], 0x7 /* 1 var */) = 0 <0.000300>
11  3.000600 read(0, "1", 4096) = 1 <0.900000>
11  3.000700 +++ exited with 0 +++
"""


def test_what_strace_says_is_counted() -> None:
    traces = quiet.read(LINES.splitlines(), {10: SERVICE, 11: GPU})
    assert set(traces) == {SERVICE, GPU}
    service, helper = traces[SERVICE], traces[GPU]
    assert (dict(service.wakes), service.threads, service.processes) == ({2: 2}, 1, 0)
    assert service.calls == {"epoll_wait": 2, "clone3": 1, "poll": 1}
    assert (helper.processes, sum(helper.wakes.values())) == (2, 1)


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_nothing_polls_and_nothing_is_started() -> None:
    traces, below = asyncio.run(quiet.watch(8.0, settled_s=5.0))
    assert below == [GPU]
    assert {SERVICE, GPU, quiet.AGENT} == set(traces)
    assert sum(trace.processes for trace in traces.values()) == 0
    for name, trace in traces.items():
        assert max(trace.wakes.values(), default=0) <= 20, (name, trace)  # in one second
        assert sum(trace.wakes.values()) <= 24, (name, trace)  # of which the start's last retries are most
