"""The bubblewrap sandbox from inside: what a task sees and may do; and what happens where it cannot be had (R4, R6)."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from support.task_bench import Bench, contained, run
from support.trees import until_async

from supervisor.config.schema import TaskType
from supervisor.tasks.executors.base import StartFailed
from supervisor.tasks.process import bubblewrap, sandbox
from supervisor.tasks.process.containment import Containment, TreeContainment
from supervisor.tasks.process.rungs import RungName

__all__ = ["contained"]
HERE = sandbox.look()
LOOK = """
import json, os, socket, sys
def tries(what):
    try:
        return what() and "" or ""
    except OSError as error:
        return error.strerror
port = int(sys.argv[1])
print(json.dumps({
    "processes": len([n for n in os.listdir("/proc") if n.isdigit()]), "cwd": os.getcwd(), "uid": os.getuid(),
    "usr": tries(lambda: open("/usr/x", "w")), "own": tries(lambda: open("x", "w")),
    "home": os.path.exists("/home"), "root": os.path.exists("/root"), "var": os.path.exists("/var"), "tmp": os.listdir("/tmp"),
    "net": tries(lambda: socket.create_connection(("127.0.0.1", port), 1)), "run": os.path.exists("/run"),
    "more": tries(lambda: open("/" + sys.argv[2])), "nnp": [l.split()[1] for l in open("/proc/self/status") if "NoNew" in l],
    "caps": [l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff")],
    "fds": sorted(os.listdir("/proc/self/fd"), key=int)[:-1], "umask": os.umask(0), "mark": os.environ["RAE_NODE_TASK"][:3],
}))
"""


@pytest.fixture
def sandboxed() -> None:
    """Skips where there is no sandbox."""
    if why := HERE.bubblewrap.fault:
        pytest.skip(why)


@pytest.mark.usefixtures("sandboxed")
@pytest.mark.parametrize("network", [False, True])
def test_what_a_task_sees(contained: Containment, tmp_path: Path, network: bool) -> None:
    secret = tmp_path / "given"
    secret.write_text("x")

    async def body(bench: Bench) -> None:
        contained.offer = HERE
        with socket.create_server(("127.0.0.1", 0)) as server:
            argv = ["/usr/bin/python3", "-I", "-S", "-c", LOOK, str(server.getsockname()[1]), str(secret)[1:]]
            fields: dict[str, Any] = {"sandbox": "bubblewrap", "sandbox_network": network}
            for read in ([], [str(secret)]):
                bench.ended.clear()
                error, seen = await bench.outcome(*argv, sandbox_read=read, **fields)
                assert error is None, seen
                assert len(seen.pop("mark")) == 3
                assert seen == {
                    "processes": 2, "cwd": str(bench.folder), "uid": os.getuid(),
                    "usr": "Read-only file system", "own": "",
                    "home": False, "root": False, "var": False, "run": True,
                    "tmp": seen["tmp"], "net": "" if network else "Connection refused", "more": "" if read else seen["more"],
                    "nnp": ["1"], "caps": ["0000000000000000"], "fds": ["0", "1", "2"], "umask": 0o077,
                }  # fmt: skip
                assert bool(seen["more"]) is not bool(read)
                bench.work.wipe(bench.folder)

    run(contained, tmp_path, body)


def outcome(root: Path, argv: list[str], offer: sandbox.Offer = HERE, **fields: Any) -> Any:
    """What a task in bubblewrap prints."""
    found: list[Any] = []

    async def body(bench: Bench) -> None:
        bench.contained.offer = offer
        error, result = await bench.outcome(*argv, sandbox="bubblewrap", **fields)
        assert error is None, result
        found.append(result)

    run(TreeContainment("by choice"), root, body)
    return found[0]


@pytest.mark.usefixtures("sandboxed")
def test_the_node_s_own_is_hidden_below_a_readable_path(tmp_path: Path) -> None:
    """Also where a link leads to it, and where the work folder lies in the middle of it."""
    models = tmp_path / "models"
    own = [models / "node" / "state", models / "node" / "deep" / "key", tmp_path / "elsewhere", tmp_path / "work"]
    for path in (*own[:1], models / "node" / "deep", tmp_path / "elsewhere", tmp_path / "work" / "another"):
        path.mkdir(parents=True)
    own[1].write_text("s3cret")
    (own[0] / "note").write_text("s3cret")
    (own[2] / "node.yaml").write_text("s3cret")
    (models / "weights").write_text("open")
    (tmp_path / "link").symlink_to(own[2])
    script = tmp_path / "script.py"
    script.write_text(
        "import json, os, sys\n"
        "found = {}\n"
        "def text(path):\n"
        "    try:\n"
        "        return open(path).read()\n"
        "    except OSError as error:\n"
        "        return error.strerror\n"
        "for top in json.load(sys.stdin)['look']:\n"
        "    for folder, names, files in os.walk(top):\n"
        "        found.update((f'{folder}/{name}', text(f'{folder}/{name}')) for name in files)\n"
        "        found.update((f'{folder}/{name}', None) for name in names)\n"
        "print(json.dumps(found))\n"
    )
    offer = sandbox.Offer(bubblewrap=HERE.bubblewrap, hidden=tuple(map(str, own)))
    payload = {"look": [str(tmp_path)]}
    read = [str(models), str(tmp_path / "link"), str(tmp_path / "elsewhere")]
    seen = outcome(tmp_path, ["/usr/bin/python3", "-I", str(script)], offer, sandbox_read=read, payload=payload)
    (task,) = (path for path in seen if Path(path).parent == tmp_path / "work")  # its own work folder, no other's
    names = ["models", "models/node", "models/node/deep", "models/node/state", "elsewhere", "link", "work", Path(task).name]
    files = {"models/weights": "open", "models/node/deep/key": "Permission denied", "script.py": script.read_text()}
    assert {str(Path(p).relative_to(tmp_path)).removeprefix("work/"): text for p, text in seen.items()} == {
        **dict.fromkeys(names), **files
    }


@pytest.mark.usefixtures("sandboxed")
def test_what_it_writes_to_memory_is_bounded(tmp_path: Path) -> None:
    """Elsewhere than in the work folder, nothing can be written at all."""
    if "--disable-userns" not in HERE.bubblewrap.options:
        pytest.skip("an old bubblewrap")
    fill = """
import json, os
def room(folder):
    try:
        with open(f"{folder}/x", "wb", buffering=0) as file:
            for count in range(64):
                file.write(bytes(1 << 20))
    except OSError as error:
        return f"{count} MiB: {error.strerror}" if "count" in locals() else error.strerror
    return "all"
folders = ["/", "/dev", "/run", "/usr", "/etc", "/tmp", "/dev/shm", "/opt", "/proc", os.getcwd()]
print(json.dumps({folder: room(folder) for folder in folders}))
"""
    seen = outcome(tmp_path, ["/usr/bin/python3", "-I", "-S", "-c", fill], max_memory_gb=1 / 32)
    sized = {folder: seen.pop(folder) for folder in ("/tmp", "/dev/shm")}
    assert sized == dict.fromkeys(sized, "8 MiB: No space left on device")
    assert seen.pop("/proc") == "No such file or directory"
    assert seen.popitem()[1] == "all"
    assert seen == dict.fromkeys(seen, "Read-only file system")


@pytest.mark.usefixtures("sandboxed")
def test_a_polite_stop_reaches_the_task_in_it(contained: Containment, tmp_path: Path) -> None:
    async def body(bench: Bench) -> None:
        contained.offer = HERE
        goodbye = "trap 'sleep 0.2; echo \"{}\"; exit 0' TERM; touch up; while :; do sleep 0.01; done"
        task = await bench.start("sh", "-c", goodbye, sandbox="bubblewrap")
        await until_async((bench.folder / "up").exists)
        assert (await task.freeze()).name is RungName.FROZEN
        await task.thaw()
        assert [rung.name for rung in await task.stop(10)] == ["frozen", "term", "gone"]
        assert (task.error, task.result) == (None, {})
        bench.ended.clear()
        task = await bench.start("sh", "-c", "touch up; setsid sleep 1000 & sleep 1000", sandbox="bubblewrap")
        await until_async((bench.folder / "up").exists)
        await until_async(lambda: len(task.pids()) >= 4)
        await task.stop(0)
        assert not task.alive

    run(contained, tmp_path, body)


def test_without_it_the_type_fails_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    monkeypatch.setenv("PATH", str(fake))
    contained = TreeContainment("by choice")

    async def body(bench: Bench) -> None:
        async def refused() -> str:
            contained.offer = sandbox.look()
            with pytest.raises(StartFailed) as failed:
                await bench.start("/bin/true", sandbox="bubblewrap")
            return str(failed.value)

        install = "install it (apt-get install bubblewrap), or set sandbox: auto"
        assert await refused() == f"sandbox: bubblewrap is not here: {install}"
        (fake / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2; exit 1\n")
        (fake / "bwrap").chmod(0o755)
        assert await refused() == (
            "sandbox: bubblewrap does not work here (No permissions to create a new namespace): "
            "let this user make user namespaces, or set sandbox: auto"
        )
        (fake / "bwrap").write_text("#!/bin/sh\nexec /bin/sleep 1000\n")
        monkeypatch.setattr(bubblewrap, "TRY_S", 0.2)
        assert "bubblewrap did not answer within 0.2 s" in await refused()

    run(contained, tmp_path, body)


@pytest.mark.usefixtures("sandboxed")
@pytest.mark.parametrize(("refuses", "options", "missing"), [
    ("--disable-userns", ("--unshare-user",), "a task may make namespaces of its own: bubblewrap 0.8 forbids that"),
    ("--unshare-user", (), "a task has no user namespace of its own"),
])  # fmt: skip
def test_an_older_one_is_used_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str, options: tuple[str, ...], missing: str
) -> None:
    """One that does not know an option. Where a plain user has no other way, it does not work without a user namespace."""
    real = shutil.which("bwrap")
    old = tmp_path / "bwrap"
    unknown = f'case "$*" in *{refuses}*) echo "bwrap: Unknown option {refuses}" >&2; exit 1;; esac'
    old.write_text(f'#!/bin/sh\n{unknown}\nexec {real} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert bubblewrap.tried() == bubblewrap.Found("", options, missing)


def test_the_lent_gpus_nodes_are_let_in(tmp_path: Path) -> None:
    line = bubblewrap.argv(TaskType(), tmp_path, HERE.bubblewrap, devices=["/dev/nvidia1"])
    assert json.dumps(["--dev-bind-try", "/dev/nvidia1", "/dev/nvidia1"])[1:-1] in json.dumps(line)
    assert not [part for part in line if "nvidia" in part and part != "/dev/nvidia1"]
