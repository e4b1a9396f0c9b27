"""Fixtures for the whole tree: `box`, a real systemd with logind, D-Bus and polkit, booted once a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support import sysbox

# How long an example takes is the machine's business.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sysbox.SysBox]:
    """The shared system; tests that use it carry the marker `box` and leave it as they found it."""
    if reason := sysbox.unavailable():
        sysbox.refuse(reason)
    settings = "IdleAction=ignore\nInhibitDelayMaxSec=10s"
    with sysbox.SysBox(tmp_path_factory.mktemp("box"), logind_conf=settings) as system:
        yield system


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project and what it needs, as wheels, for an installation in a box without network."""
    from support.installed import make_wheels

    return make_wheels(tmp_path_factory.mktemp("wheels") / "wheels")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses a box is marked so by itself."""
    for item in items:
        if {"box", "wheels"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.box)
