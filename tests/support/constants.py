"""Other values for the product's constants: in this process for a while, or in a daemon that a test starts.

A constant is no setting, so node.yaml cannot shorten it for a test. As a script this file runs a module of the product
with other constants: `python -I constants.py '{"settle_s": 0}' supervisor.cli.main run …`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

WHERE = {
    "connect_timeout_s": "supervisor.sources.rae.transport.CONNECT_TIMEOUT_S",
    "read_timeout_s": "supervisor.sources.rae.transport.READ_TIMEOUT_S",
    "total_timeout_s": "supervisor.sources.rae.transport.TOTAL_TIMEOUT_S",
    "patient_s": "supervisor.sources.rae.transport.PATIENT_S",
    "lost_poll_first_s": "supervisor.sources.rae.source.LOST_POLL_FIRST_S",
    "max_answer_bytes": "supervisor.sources.rae.transport.MAX_ANSWER_BYTES",
    "max_requests_per_sec": "supervisor.sources.rae.transport.MAX_REQUESTS_PER_SEC",
    "backoff_longest_s": "supervisor.sources.backoff.LONGEST_S",
    "look_interval_s": "supervisor.daemon.wiring.LOOK_INTERVAL_S",
    "vram_release_s": "supervisor.sensors.gpu.ownership.VRAM_RELEASE_S",
    "settle_s": "supervisor.sensors.sensor_set.SETTLE_S",
}
LIMITS = ("max_age_person_s", "max_age_gpu_s")  # of the record that the configuration becomes


@contextlib.contextmanager
def constants(values: Mapping[str, Any]) -> Iterator[None]:
    """These values while the context lasts."""
    with contextlib.ExitStack() as undo:
        for name, value in values.items():
            if name not in LIMITS:
                module, _, attribute = WHERE[name].rpartition(".")
                place = importlib.import_module(module)
                undo.callback(setattr, place, attribute, getattr(place, attribute))
                setattr(place, attribute, value)
        if limits := {name: value for name, value in values.items() if name in LIMITS}:
            place = importlib.import_module("supervisor.config.load")
            limits_of = place.limits_of
            undo.callback(setattr, place, "limits_of", limits_of)
            place.limits_of = lambda *settings: replace(limits_of(*settings), **limits)
        yield


def split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(constants, settings) of what a test wants otherwise."""
    known = {name: value for name, value in values.items() if name in WHERE or name in LIMITS}
    return known, {name: value for name, value in values.items() if name not in known}


def with_constants(argv: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """A command `PYTHON … -m MODULE …`, `PYTHON … -c CODE …` or `PYTHON SCRIPT.py …`, run with these values."""
    if not values:
        return list(argv)
    own = [__file__, json.dumps(dict(values))]
    if "-m" in argv:
        at = len(argv) - 1 - list(argv)[::-1].index("-m")
        return [*argv[:at], *own, *argv[at + 1 :]]
    at = argv.index("-c") if "-c" in argv else 1
    return [*argv[:at], *own, *argv[at:]]


if __name__ == "__main__":
    with constants(json.loads(sys.argv[1])):
        module = sys.argv[2]
        del sys.argv[1:3]
        if module.endswith(".py"):
            runpy.run_path(module, run_name="__main__")
        elif module == "-c":
            exec(sys.argv.pop(1), {"__name__": "__main__"})
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
