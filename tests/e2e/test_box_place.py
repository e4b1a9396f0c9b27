"""In the very place that the shipped unit makes, as an ordinary user, on a real systemd: the wall by Landlock for types with
`sandbox: none`, and bubblewrap, which the unit forbids: there a task has a unit of its own.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support.installed import boot
from support.sysbox import REPO, SysBox

from supervisor.tasks.process import bubblewrap, landlock

pytestmark = [pytest.mark.slow, pytest.mark.box]
# What makes no place, but runs something; ProtectHome= may hide the interpreter of these tests.
NOT_PLACE = (
    "Type", "NotifyAccess", "Exec", "User", "SupplementaryGroups", "Restart", "Timeout", "Watchdog", "LoadCredential",
    "KillMode", "OOM", "RuntimeDirectory", "StateDirectory", "ProtectHome",
)  # fmt: skip
LOOK = """
import json
from supervisor.tasks.process import bubblewrap, landlock
from supervisor.tasks.process.containment import detect
held = detect()
print(json.dumps({
    "held": held.summary(), "landlock": landlock.abi(),
    "bubblewrap": bubblewrap.tried().fault,
}))
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SysBox]:
    """A box with the service's user and folders."""
    with boot(tmp_path_factory.mktemp("place")) as box:
        box.add_user("anna")
        box.sh("mkdir -p /opt/rae-node/workdir /opt/rae-node/logs; chown -R anna /opt/rae-node")
        yield box


def look(box: SysBox, *more: str) -> dict[str, Any]:
    """What a process finds in that place, with these settings beside the unit's."""
    service = (REPO / "deploy/rae-node.service").read_text().partition("[Service]")[2].partition("[Install]")[0]
    settings = [line for line in service.splitlines() if "=" in line and not line.startswith(("#", *NOT_PLACE))]
    properties = [f"-p{line}" for line in [*settings, "RuntimeMaxSec=30", *more]]
    runner = ["systemd-run", "-q", "--wait", "--pipe", "--collect", "-pUser=anna", "--unit=place"]
    # PrivateTmp= hides a checkout that lies in /tmp.
    mine = {str(p) for p in (REPO, sys.prefix, sys.base_prefix) if str(p).startswith("/tmp/")}
    properties += [f"-pBindReadOnlyPaths={path}" for path in sorted(mine)]
    environment = [f"-E{name}={value}" for name, value in box.env.items()]
    done = box.run(*runner, *properties, *environment, box.python, "-c", LOOK)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_wall_by_landlock_stands_there_too(box: SysBox) -> None:
    if not landlock.abi():
        pytest.skip("no Landlock in this kernel")
    found = look(box)
    assert found["landlock"] == landlock.abi()
    assert found["held"].endswith(landlock.summary(landlock.abi()))


def test_bubblewrap_is_tried_and_refused_there(box: SysBox) -> None:
    if not shutil.which(bubblewrap.NAME):
        pytest.skip("no bubblewrap here")
    assert look(box)["bubblewrap"].startswith("bubblewrap does not work here (No permissions to create new namespace")
