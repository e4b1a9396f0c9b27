"""What holds a task's processes together: a cgroup of its own where one is delegated to us, else its shim's tree (R19, R23).

`detect` proves before it promises: a cgroup counts only when a real process was put into a new one, frozen and killed
there. `sweep` clears away, at start, what a crash has left.

Controllers limit a cgroup's children only where it holds no process itself, so this process first moves into a leaf,
`supervisor`, below the cgroup that is delegated to it. Which controllers there are is for whoever delegates to say.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from supervisor.tasks.executors.base import StopFailed
from supervisor.tasks.process import landlock, process_tree
from supervisor.tasks.process.process_tree import CgroupTree, Process, ProcessTree

TASK_VARIABLE = "RAE_NODE_TASK"
SHIM_VARIABLE = "RAE_NODE_SHIM"  # the task's mark and the daemon's pid
CGROUP_VARIABLE = "RAE_NODE_CGROUP"
LEAF: Final = "supervisor"
CONTROLLERS: Final = ("cpu", "memory", "pids")
_PREFIX = "rae-task-"
_PROBE = "rae-probe-"
_PROBE_LIMIT_S = 2.0
_ORPHAN_SHIM_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a task may use, as far as its cgroup has the controller for it.

    Args:
        cpu_percent: of all processors together.
        memory_bytes: of its processes together; None: no limit.
        processes: at a time; None: no limit. The kernel counts threads, so it is held to a multiple.
        swap: whether their memory may be written to disk. What comes out of VRAM may not (R6).
    """

    cpu_percent: float = 100.0
    memory_bytes: int | None = None
    processes: int | None = None
    swap: bool = True

    def files(self, controllers: frozenset[str]) -> dict[str, str]:
        """What is written where in the task's cgroup. Idle: it comes after everything else of its parent's."""
        said: dict[str, str] = {}
        if "cpu" in controllers:
            said["cpu.idle"] = "1"
            if self.cpu_percent < 100:
                said["cpu.max"] = f"{int(self.cpu_percent / 100 * (os.cpu_count() or 1) * _PERIOD_US)} {_PERIOD_US}"
        if "memory" in controllers:
            said["memory.oom.group"] = "1"
            if not self.swap:
                said["memory.swap.max"] = "0"
            if self.memory_bytes is not None:
                said["memory.max"] = str(self.memory_bytes)
        if "pids" in controllers and self.processes is not None:
            said["pids.max"] = str(max(_THREADS_LEAST, self.processes * _THREADS_EACH))
        return said


_PERIOD_US = 100_000
_THREADS_EACH, _THREADS_LEAST = 16, 1024


class Containment(Protocol):
    """How tasks are held."""

    cpu_percent: float
    """Of all processors together, for a task that is placed from now on; held where there is a cpu controller."""

    def describe(self) -> str:
        """One honest line for `doctor`: what holds tasks, and what that cannot hold."""
        ...

    def place(self, mark: str, bounds: Bounds = ...) -> str | None:
        """Make the cgroup for one task and return its path; None where the shim's tree is the place.

        Args:
            mark: the task's mark, see `task_mark`.
            bounds: what it may use; held as far as there are controllers.

        Raises:
            OSError: it could not be made.
        """
        ...

    def sweep(self, root: Path, limit_s: float = 5.0) -> int:
        """Kill what a crash has left of this node's tasks, and remove their cgroups; returns how many processes that
        were. Blocks, for `limit_s` at most. Idempotent. Tasks whose daemon lives are left alone.

        Args:
            root: the folder of the work folders: it is what makes a node's tasks its own.

        Raises:
            StopFailed: something is still alive.
        """
        ...


def node_mark(root: Path) -> str:
    """What the tasks of the node with this folder of work folders are known by, in names and environments."""
    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]


def task_mark(workdir: Path) -> str:
    """What one task's processes are known by: the node's mark and the work folder's random name."""
    return f"{node_mark(workdir.parent)}.{workdir.name}"


class TreeContainment:
    """No cgroup: the shim, as subreaper, and walks over /proc.

    Args:
        reason: why there is no cgroup.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.cpu_percent = 100.0
        self.walls = landlock.describe(landlock.abi())

    def describe(self) -> str:
        """See Containment."""
        return (
            f"process tree below a subreaper ({self.reason}); freezing takes longer under load, and a task that kills its "
            f"shim and clears its environment could stay behind: give the service Delegate=yes; {self.walls}"
        )

    def place(self, mark: str, bounds: Bounds = Bounds()) -> str | None:
        """See Containment."""
        return None

    def sweep(self, root: Path, limit_s: float = 5.0) -> int:
        """See Containment."""
        return _sweep(node_mark(root), None, limit_s)


class CgroupContainment:
    """A fresh cgroup v2 for every task.

    Args:
        base: the delegated cgroup below which they are made.
        controllers: those that are enabled for its children.
        lacking: why there are not more of them, in words.
    """

    def __init__(self, base: str, controllers: frozenset[str] = frozenset(), lacking: str = "not delegated") -> None:
        self.base = base
        self.controllers = controllers
        self.lacking = lacking
        self.cpu_percent = 100.0
        self.walls = landlock.describe(landlock.abi())

    def describe(self) -> str:
        """See Containment."""
        had = [name for name in CONTROLLERS if name in self.controllers]
        missing = [name for name in CONTROLLERS if name not in self.controllers]
        said = [f"limited by the kernel: {', '.join(had)}"] if had else []
        said += [f"not by it: {', '.join(missing)} ({self.lacking}); the node itself looks once a second"] if missing else []
        tried = "tried: a process was frozen and killed there"
        return f"a cgroup v2 of its own for each task, below {self.base} ({tried}); {'; '.join(said)}; {self.walls}"

    def place(self, mark: str, bounds: Bounds = Bounds()) -> str | None:
        """See Containment."""
        path = f"{self.base}/{_PREFIX}{mark}"
        os.mkdir(path)
        for name, value in bounds.files(self.controllers).items():
            try:
                process_tree.write(f"{path}/{name}", value)
            except OSError as error:
                if name == "cpu.idle":  # Linux 5.15
                    with contextlib.suppress(OSError):
                        process_tree.write(f"{path}/cpu.weight", "1")
                elif name != "memory.oom.group":
                    os.rmdir(path)
                    raise OSError(error.errno, f"{name}: {error.strerror}") from None
        return path

    def sweep(self, root: Path, limit_s: float = 5.0) -> int:
        """See Containment."""
        return _sweep(node_mark(root), self.base, limit_s)


def detect(mountinfo: str = "/proc/self/mountinfo", membership: str = "/proc/self/cgroup") -> Containment:
    """The best that this process may use, tried with a real process (takes some milliseconds, blocks at most 2 s).

    Args:
        mountinfo: where the cgroup v2 mount is found.
        membership: where our own place in it is found.
    """
    try:
        base, at_root = _delegated(mountinfo, membership)
        _probe(base)
    except OSError as error:
        return TreeContainment(f"no cgroup v2 to use: {error.strerror or error}")
    return CgroupContainment(base, *_divide(base, at_root=at_root))


def _divide(base: str, *, at_root: bool) -> tuple[frozenset[str], str]:
    """Move into the leaf, and enable the controllers for the tasks' cgroups beside it; which there are, and why not more.
    At the root, which is not ours alone, everything stays as it is found."""
    try:
        offered = frozenset(process_tree.read(f"{base}/cgroup.controllers").decode().split()) & frozenset(CONTROLLERS)
        if not at_root:
            _into_leaf(base)
            for name in offered - _enabled(base):
                process_tree.write(f"{base}/cgroup.subtree_control", f"+{name}")
        enabled = _enabled(base) & offered
    except OSError as error:
        busy = error.errno in (errno.EBUSY, errno.EOPNOTSUPP)
        return frozenset(), "others' processes are in that cgroup too" if busy else error.strerror or str(error)
    with contextlib.suppress(OSError):
        process_tree.write(f"{base}/{LEAF}/cpu.weight", "10000")
    return enabled, "not enabled at the root" if at_root and offered - enabled else "not delegated"


def _enabled(base: str) -> frozenset[str]:
    return frozenset(process_tree.read(f"{base}/cgroup.subtree_control").decode().split())


def _into_leaf(base: str) -> None:
    """This process and all that descend from it, out of `base` into its leaf; those born meanwhile in the next round."""
    leaf = f"{base}/{LEAF}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(leaf)
    for _ in range(_ROUNDS):
        ours = {os.getpid(), *(process.pid for process in process_tree.descendants(os.getpid()) if process.living)}
        there = ours & {int(word) for word in process_tree.read(f"{base}/cgroup.procs").split()}
        if not there:
            return
        for pid in there:
            with contextlib.suppress(ProcessLookupError):
                process_tree.write(f"{leaf}/cgroup.procs", str(pid))


_ROUNDS = 20


def _refuse(reason: str) -> OSError:
    return OSError(0, reason)


def _delegated(mountinfo: str, membership: str) -> tuple[str, bool]:
    """Our own cgroup's folder, if it is ours to divide, and whether it is the root of all that we see. Raises OSError with
    the reason otherwise."""
    try:
        place = next(line[3:] for line in Path(membership).read_text().splitlines() if line.startswith("0::"))
    except StopIteration:
        raise _refuse("this process is in none") from None
    for line in Path(mountinfo).read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            seen_root, mount = before.split()[3:5]
            break
    else:
        raise _refuse("none is mounted")
    if seen_root != "/" and (place + "/").startswith(seen_root + "/"):
        place = place[len(seen_root) :] or "/"
    if "/.." in place:
        raise _refuse("its own is outside of what it can see")
    own = mount + place.rstrip("/")
    for folder in (own, os.path.dirname(own)) if os.path.basename(own) == LEAF else (own,):  # we are there already
        if _is_ours(folder, at_root=place == "/"):
            return folder, place == "/"
    raise _refuse(f"{own} is not delegated to uid {os.geteuid()}")


def _is_ours(folder: str, *, at_root: bool) -> bool:
    """Delegated: writable to a plain user only if it was given to them. Root may write everywhere, so root needs the mark
    that systemd leaves, or to stand at the root of all it sees, as in a container."""
    if not all(os.access(f"{folder}/{name}", os.W_OK) for name in ("", "cgroup.procs")):
        return False
    if os.geteuid() != 0 or at_root:
        return True
    for attribute in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(folder, attribute) == b"1":
                return True
    return False


def _probe(base: str) -> None:
    """Put a process into a new cgroup, freeze it, kill it, remove the cgroup. Raises OSError with what did not work."""
    _clear_probes(base)
    path = f"{base}/{_PROBE}{os.getpid()}-{os.urandom(4).hex()}"
    os.mkdir(path)
    tree = CgroupTree(os.getpid(), path)
    try:
        for name in ("cgroup.freeze", "cgroup.kill"):
            if not os.access(f"{path}/{name}", os.W_OK):
                raise _refuse(f"{name} is missing there (Linux 5.14 is needed)")
        nowhere = subprocess.DEVNULL
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere) as victim:
            try:
                process_tree.write(f"{path}/cgroup.procs", str(victim.pid))
                if not tree.freeze(_PROBE_LIMIT_S):
                    raise _refuse("freezing does not work there")
                process_tree.write(f"{path}/cgroup.kill", "1")
                victim.wait(_PROBE_LIMIT_S)
            except subprocess.TimeoutExpired:
                raise _refuse("killing does not work there") from None
            finally:
                tree.thaw()
                victim.kill()
    finally:
        tree.remove()


def _clear_probes(base: str) -> None:
    """A daemon that was killed while it probed has left its cgroup there, and a frozen process in it."""
    for name in os.listdir(base):
        pid = name.removeprefix(_PROBE).partition("-")[0]
        if name.startswith(_PROBE) and pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
            with contextlib.suppress(OSError):
                process_tree.write(f"{base}/{name}/cgroup.kill", "1")
            left, until_s = CgroupTree(os.getpid(), f"{base}/{name}"), time.monotonic() + _PROBE_LIMIT_S
            left.remove()
            while os.path.exists(f"{base}/{name}") and time.monotonic() < until_s:  # what was killed takes a moment to die
                time.sleep(0.01)
                left.remove()


def clear(tree: ProcessTree, mark: str, limit_s: float) -> list[str]:
    """Kill one task's tree without its shim's help; returns what is left, in words. Blocks.

    Args:
        tree: the grip on it, by the pid of its shim, which is not reaped yet.
        mark: see `task_mark`; finds what was orphaned, by the environment.
        limit_s: how long to try.
    """
    until_s = time.monotonic() + limit_s
    known: list[Process] = []  # a dying process has no environment left to be found by, but is not dead yet
    while True:
        tree.kill()
        known = _known(known, [*tree.living(), *_marked(mark)])
        for process in known:
            process_tree.send(process, signal.SIGKILL)
        if not known or time.monotonic() > until_s:
            break
        time.sleep(0.01)
    tree.remove()
    return [str(process) for process in known]


def _known(before: list[Process], found: list[Process]) -> list[Process]:
    """What was known before and is not dead, and what was found now."""
    now = [process for known in before if (process := process_tree.still(known)) is not None]
    return list({process.pid: process for process in [*now, *found]}.values())


def _marked(mark: str, variable: str = TASK_VARIABLE) -> list[Process]:
    """The living processes whose environment began with this mark, or a mark below it."""
    wanted = mark.encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            value = process_tree.environment(int(name)).get(variable.encode(), b"")
            if value == wanted or value.startswith(wanted + b"."):
                process = process_tree.look(int(name))
                if process is not None and process.living:
                    found.append(process)
    return found


def _leftovers(mark: str, base: str | None) -> tuple[dict[int, Process], list[CgroupTree], list[Process]]:
    """Processes, cgroups and shims of this node whose daemon is gone."""
    spared: set[int] = set()
    busy: set[str] = set()
    orphans = []
    for shim in _marked(mark, SHIM_VARIABLE):
        daemon = process_tree.environment(shim.pid).get(SHIM_VARIABLE.encode(), b"").rpartition(b".")[2].decode()
        if str(shim.ppid) == daemon:
            spared |= {process.pid for process in process_tree.descendants(shim.pid)}
            busy.add(process_tree.environment(shim.pid).get(CGROUP_VARIABLE.encode(), b"").decode())
        else:
            orphans.append(shim)
    found = {process.pid: process for process in _marked(mark) if process.pid not in spared}
    for shim in orphans:
        found |= {process.pid: process for process in process_tree.descendants(shim.pid) if process.living}
    groups = []
    if base is not None:
        for name in os.listdir(base):
            path = f"{base}/{name}"
            if name.startswith(f"{_PREFIX}{mark}.") and path not in busy:
                groups.append(CgroupTree(0, path))
                members = [process_tree.look(pid) for pid in groups[-1].pids()]
                found |= {member.pid: member for member in members if member is not None and member.living}
    return found, groups, orphans


def _sweep(mark: str, base: str | None, limit_s: float) -> int:
    """See Containment.sweep."""
    begun_s = time.monotonic()
    killed: set[int] = set()
    known: list[Process] = []
    while True:
        found, groups, orphans = _leftovers(mark, base)
        known = _known(known, [*found.values(), *orphans])
        if not known:
            break
        elapsed_s = time.monotonic() - begun_s
        if elapsed_s > limit_s:
            raise StopFailed("left by a crash and still alive: " + ", ".join(str(process) for process in known))
        killed |= found.keys()
        if not orphans or elapsed_s > _ORPHAN_SHIM_LIMIT_S:  # a shim that lost its daemon is at this very work
            for group in groups:
                group.kill_first()
            for process in known:
                process_tree.send(process, signal.SIGKILL)
        time.sleep(0.02)
    for group in groups:
        group.remove()
    return len(killed)
