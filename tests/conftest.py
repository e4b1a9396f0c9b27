"""Fixtures for the whole tree, and how its tests are shared out among workers (`pytest -n 2 --dist loadgroup`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support import shared, sysbox

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a box. Keep tests that share a fixture of their module on one worker, in their order."""
    for item in items:
        if {"box", "wheels"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.box)
        if _shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def _shares_a_fixture(item: pytest.Item) -> bool:
    info = getattr(item, "_fixtureinfo", None)
    used = info.name2fixturedefs.values() if info else ()
    return any(definition.scope == "module" for definitions in used for definition in definitions)
