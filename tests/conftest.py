"""Fixtures for the whole tree, and how its tests are shared out among workers (`pytest -n 2`)."""

from __future__ import annotations

import functools
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from support import shared, sysbox

# A file that uses any of these starts whole programs, and is not in `make check`.
PROGRAMS: Final = re.compile(
    r"subprocess|support\.(running|nats_rig|fleet_rig|displays|sysbox|installed|terminal|login1|gpu_rig|trees)|import uml"
)

# Where the tests run in the background of a script, SIGINT is ignored, and programs that they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine makes an example slow; that is no fault of the product.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is made once a run lies where all workers find it."""
    shared.begin(tmp_path_factory)


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sysbox.SysBox]:
    """A real systemd with logind, D-Bus and polkit, booted once for each worker. Tests leave it as they found it."""
    if reason := sysbox.unavailable():
        sysbox.refuse(reason)
    settings = "IdleAction=ignore\nInhibitDelayMaxSec=10s"
    with sysbox.SysBox(tmp_path_factory.mktemp("box"), logind_conf=settings) as system:
        yield system


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The project and what it needs, as wheels, for an installation in a box without network."""
    from support.installed import make_wheels

    return shared.once("wheels", make_wheels)


@pytest.fixture(scope="session")
def site(wheels: Path) -> Path:
    """The packages that an installation has, for installations that do without pip."""
    from support.installed import make_site

    return shared.once("site", lambda folder: make_site(folder, wheels))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses a box, and what may start whole programs. On several workers the dearest begin first, so that no
    worker is left with one of them at the end."""
    for item in items:
        if _starts_programs(item.path):
            item.add_marker(pytest.mark.slow)
        if {"box", "wheels"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.box)
    if hasattr(config, "workerinput"):
        items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    """Boxes; files that make something for all their tests; whole programs and deep tests; anything else."""
    if item.get_closest_marker("box"):
        return 0
    if _shares_fixtures(item.path):
        return 1
    return 2 if item.get_closest_marker("slow") or item.get_closest_marker("deep") else 3


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of a file that makes something for all of them run on one worker, in their order. Any other test runs wherever a
    worker is free."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFixture(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if _shares_fixtures(config.rootpath / file) else nodeid

    config.option.loadscopereorder = False  # the order of the items holds
    return ByFixture(config, log)


@functools.cache
def _shares_fixtures(file: Path) -> bool:
    return '@pytest.fixture(scope="module")' in file.read_text()


@functools.cache
def _starts_programs(file: Path) -> bool:
    return bool(PROGRAMS.search(file.read_text()))
