"""What keeps a task's processes together: a cgroup of its own where one is delegated to us, else the process tree below its
shim.

Controllers limit a cgroup's children only if the cgroup itself has no process. So this process first moves into a leaf,
`supervisor`, below the cgroup that is delegated to it. Which controllers there are is decided by the one who delegates.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from supervisor.sensors.gpu.grant import NOTHING
from supervisor.tasks.executors.base import StopFailed
from supervisor.tasks.process import landlock, process_tree
from supervisor.tasks.process.process_tree import CgroupTree, Process, ProcessTree
from supervisor.tasks.process.sandbox import Offer

TASK_VARIABLE = "RAE_NODE_TASK"
SHIM_VARIABLE = "RAE_NODE_SHIM"  # the task's mark and the daemon's pid
CGROUP_VARIABLE = "RAE_NODE_CGROUP"
LEAF: Final = "supervisor"
CONTROLLERS: Final = ("cpu", "memory", "pids")
_PREFIX = "rae-task-"
_PROBE = "rae-probe-"
_PROBE_LIMIT_S = 2.0
_ORPHAN_SHIM_LIMIT_S = 2.0
_PERIOD_US = 100_000
_THREADS_EACH, _THREADS_LEAST = 16, 1024
_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a task may use; enforced if its cgroup has the controller. None: no limit."""

    cpu_percent: float = 100.0  # of all processors together
    memory_bytes: int | None = None  # of its processes together
    processes: int | None = None  # the kernel counts threads, so it gets a multiple
    swap: bool = True  # memory may be written to disk; memory that was VRAM may not

    def files(self, controllers: frozenset[str]) -> dict[str, str]:
        """What is written to which file of the task's cgroup. With cpu.idle it runs after everything else of its parent."""
        files: dict[str, str] = {}
        if "cpu" in controllers:
            files["cpu.idle"] = "1"
            if self.cpu_percent < 100:
                files["cpu.max"] = f"{int(self.cpu_percent / 100 * (os.cpu_count() or 1) * _PERIOD_US)} {_PERIOD_US}"
        if "memory" in controllers:
            files["memory.oom.group"] = "1"
            if not self.swap:
                files["memory.swap.max"] = "0"
            if self.memory_bytes is not None:
                files["memory.max"] = str(self.memory_bytes)
        if "pids" in controllers and self.processes is not None:
            files["pids.max"] = str(max(_THREADS_LEAST, self.processes * _THREADS_EACH))
        return files


def node_mark(root: Path) -> str:
    """The mark of all tasks of the node with this folder of work folders, in names and environments."""
    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]


def task_mark(workdir: Path) -> str:
    """The mark of one task's processes: the node's mark and the random name of the work folder."""
    return f"{node_mark(workdir.parent)}.{workdir.name}"


class Containment(ABC):
    """How tasks are contained."""

    def __init__(self, base: str | None) -> None:
        self.base = base
        """The delegated cgroup below which the tasks' cgroups are made; None: there is none."""
        self.cpu_percent = 100.0
        """Of all processors together, for tasks that start from now on; enforced if there is a cpu controller."""
        self.offer = Offer()
        """The sandboxes of this machine, for tasks that start from now on."""
        self.gpus = NOTHING
        """What tasks that start from now on get of the GPUs."""

    @abstractmethod
    def summary(self) -> str:
        """One line for `doctor`: what contains tasks, and what that cannot do."""

    def place(self, mark: str, bounds: Bounds = Bounds()) -> str | None:
        """Make the cgroup of the task with this mark, see `task_mark`; returns its path, or None where tasks have none. Raises
        OSError."""
        return None

    def sweep(self, root: Path, limit_s: float = 5.0) -> int:
        """Kill what a crash has left of the tasks with work folders in `root`, and remove their cgroups; returns the number of
        processes. Leaves tasks alone whose daemon lives. May be repeated. Blocks, for `limit_s` at most. Raises StopFailed if
        something is still alive."""
        mark = node_mark(root)
        begun_s = time.monotonic()
        killed: set[int] = set()
        known: list[Process] = []
        while True:
            found, cgroups, orphans = _leftovers(mark, self.base)
            known = _merge(known, [*found.values(), *orphans])
            if not known:
                break
            elapsed_s = time.monotonic() - begun_s
            if elapsed_s > limit_s:
                raise StopFailed("left by a crash and still alive: " + ", ".join(map(str, known)))
            killed |= found.keys()
            if not orphans or elapsed_s > _ORPHAN_SHIM_LIMIT_S:  # a shim that lost its daemon is already killing its tree
                for cgroup in cgroups:
                    cgroup.kill_first()
                for process in known:
                    process_tree.send(process, signal.SIGKILL)
            time.sleep(0.02)
        for cgroup in cgroups:
            cgroup.remove()
        return len(killed)


class TreeContainment(Containment):
    """No cgroup, for this reason: the shim, as subreaper, and walks over /proc."""

    def __init__(self, reason: str) -> None:
        super().__init__(None)
        self.reason = reason

    def summary(self) -> str:
        """See Containment."""
        return (
            f"process tree below a subreaper ({self.reason}); freezing takes longer under load, and a task that kills its shim "
            f"and clears its environment could survive; {landlock.summary(landlock.abi())}"
        )


class CgroupContainment(Containment):
    """A new cgroup v2 for every task. `controllers` are enabled below `base`; `missing_because`: why the others are not."""

    base: str

    def __init__(self, base: str, controllers: frozenset[str] = frozenset(), missing_because: str = "not delegated") -> None:
        super().__init__(base)
        self.controllers = controllers
        self.missing_because = missing_because

    def summary(self) -> str:
        """See Containment."""
        enabled = ", ".join(name for name in CONTROLLERS if name in self.controllers)
        missing = ", ".join(name for name in CONTROLLERS if name not in self.controllers)
        parts = [f"a cgroup v2 of its own for each task, below {self.base} (tried: a process was frozen and killed there)"]
        parts += [f"limited by the kernel: {enabled}"] if enabled else []
        parts += [f"not by it: {missing} ({self.missing_because}); the node itself looks once a second"] if missing else []
        return "; ".join([*parts, landlock.summary(landlock.abi())])

    def place(self, mark: str, bounds: Bounds = Bounds()) -> str:
        """See Containment."""
        path = f"{self.base}/{_PREFIX}{mark}"
        os.mkdir(path)
        for name, value in bounds.files(self.controllers).items():
            try:
                process_tree.write(f"{path}/{name}", value)
            except OSError as error:
                if name == "cpu.idle":  # new in Linux 5.15
                    with contextlib.suppress(OSError):
                        process_tree.write(f"{path}/cpu.weight", "1")
                elif name != "memory.oom.group":
                    os.rmdir(path)
                    raise OSError(error.errno, f"{name}: {error.strerror}") from None
        return path


def detect(mountinfo: str = "/proc/self/mountinfo", membership: str = "/proc/self/cgroup") -> Containment:
    """The best containment that this process may use, tested with a real process. Takes some milliseconds, 2 s at most. The
    files name the cgroup v2 mount, and our own cgroup in it."""
    try:
        base, at_root = _delegated(mountinfo, membership)
        _probe(base)
    except OSError as error:
        return TreeContainment(f"no cgroup v2 to use: {error.strerror or error}")
    return CgroupContainment(base, *_enable_controllers(base, at_root=at_root))


def _enable_controllers(base: str, *, at_root: bool) -> tuple[frozenset[str], str]:
    """Move into the leaf, and enable the controllers for the tasks' cgroups beside it. Returns which are enabled, and why not
    more. The root is not ours alone, so nothing is changed there."""
    try:
        offered = frozenset(process_tree.read(f"{base}/cgroup.controllers").decode().split()) & frozenset(CONTROLLERS)
        if not at_root:
            _move_into_leaf(base)
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


def _move_into_leaf(base: str) -> None:
    """Move this process and its descendants from `base` into its leaf; processes born meanwhile follow in the next round."""
    leaf = f"{base}/{LEAF}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(leaf)
    for _ in range(_ROUNDS):
        ours = {os.getpid(), *(process.pid for process in process_tree.descendants(os.getpid()) if process.living)}
        there = ours & {int(pid) for pid in process_tree.read(f"{base}/cgroup.procs").split()}
        if not there:
            return
        for pid in there:
            with contextlib.suppress(ProcessLookupError):
                process_tree.write(f"{leaf}/cgroup.procs", str(pid))


def _delegated(mountinfo: str, membership: str) -> tuple[str, bool]:
    """The folder of our own cgroup, if it is delegated to us, and whether it is the root of all that we see. Raises OSError
    with the reason otherwise."""
    try:
        own = next(line[3:] for line in Path(membership).read_text().splitlines() if line.startswith("0::"))
    except StopIteration:
        raise OSError(0, "this process is in none") from None
    for line in Path(mountinfo).read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            seen_root, mount = before.split()[3:5]
            break
    else:
        raise OSError(0, "none is mounted")
    if seen_root != "/" and (own + "/").startswith(seen_root + "/"):
        own = own[len(seen_root) :] or "/"
    if "/.." in own:
        raise OSError(0, "its own is outside of what it can see")
    folder = mount + own.rstrip("/")
    for candidate in (folder, os.path.dirname(folder)) if os.path.basename(folder) == LEAF else (folder,):  # in it already
        if _is_ours(candidate, at_root=own == "/"):
            return candidate, own == "/"
    raise OSError(0, f"{folder} is not delegated to uid {os.geteuid()}")


def _is_ours(folder: str, *, at_root: bool) -> bool:
    """It is delegated to us. A plain user can write there only if it was delegated. Root can write everywhere; so for root
    systemd's mark of delegation counts, or being at the root of all that we see, as in a container."""
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
    _remove_old_probes(base)
    path = f"{base}/{_PROBE}{os.getpid()}-{os.urandom(4).hex()}"
    os.mkdir(path)
    tree = CgroupTree(os.getpid(), path)
    try:
        for name in ("cgroup.freeze", "cgroup.kill"):
            if not os.access(f"{path}/{name}", os.W_OK):
                raise OSError(0, f"{name} is missing there (Linux 5.14 is needed)")
        null = subprocess.DEVNULL
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=null, stderr=null) as victim:
            try:
                process_tree.write(f"{path}/cgroup.procs", str(victim.pid))
                if not tree.freeze(_PROBE_LIMIT_S):
                    raise OSError(0, "freezing does not work there")
                process_tree.write(f"{path}/cgroup.kill", "1")
                victim.wait(_PROBE_LIMIT_S)
            except subprocess.TimeoutExpired:
                raise OSError(0, "killing does not work there") from None
            finally:
                tree.thaw()
                victim.kill()
    finally:
        tree.remove()


def _remove_old_probes(base: str) -> None:
    """A daemon that was killed during its probe has left a cgroup, with a frozen process in it."""
    for name in os.listdir(base):
        pid = name.removeprefix(_PROBE).partition("-")[0]
        if not name.startswith(_PROBE) or not pid.isdecimal() or os.path.exists(f"/proc/{pid}"):
            continue
        path = f"{base}/{name}"
        with contextlib.suppress(OSError):
            process_tree.write(f"{path}/cgroup.kill", "1")
        until_s = time.monotonic() + _PROBE_LIMIT_S
        while os.path.exists(path) and time.monotonic() < until_s:  # what was killed takes a moment to die
            CgroupTree(os.getpid(), path).remove()
            time.sleep(0.01)


def clear(tree: ProcessTree, mark: str, limit_s: float) -> list[str]:
    """Kill one task's tree without its shim, which must not be reaped yet, and orphans by their mark; returns what is left
    after `limit_s` (pid and state). Blocks."""
    until_s = time.monotonic() + limit_s
    known: list[Process] = []  # a dying process has lost its environment, by which it was found, but is not dead yet
    while True:
        tree.kill()
        known = _merge(known, [*tree.living(), *_marked(mark)])
        for process in known:
            process_tree.send(process, signal.SIGKILL)
        if not known or time.monotonic() > until_s:
            break
        time.sleep(0.01)
    tree.remove()
    return [str(process) for process in known]


def _merge(before: list[Process], found: list[Process]) -> list[Process]:
    """The processes known before that are not dead, and those found now."""
    now = [process for known in before if (process := process_tree.still(known)) is not None]
    return list({process.pid: process for process in [*now, *found]}.values())


def _marked(mark: str, variable: str = TASK_VARIABLE) -> list[Process]:
    """The living processes whose environment has this mark, or a mark below it."""

    def has_mark(pid: int) -> bool:
        value = process_tree.environment(pid).get(variable, "")
        return value == mark or value.startswith(f"{mark}.")

    return process_tree.look_alive(int(name) for name in os.listdir("/proc") if name.isdigit() and has_mark(int(name)))


def _leftovers(mark: str, base: str | None) -> tuple[dict[int, Process], list[CgroupTree], list[Process]]:
    """Processes, cgroups and shims of this node whose daemon is gone."""
    spared: set[int] = set()
    busy: set[str] = set()
    orphans = []
    for shim in _marked(mark, SHIM_VARIABLE):
        variables = process_tree.environment(shim.pid)
        if str(shim.ppid) == variables.get(SHIM_VARIABLE, "").rpartition(".")[2]:
            spared |= {process.pid for process in process_tree.descendants(shim.pid)}
            busy.add(variables.get(CGROUP_VARIABLE, ""))
        else:
            orphans.append(shim)
    found = {process.pid: process for process in _marked(mark) if process.pid not in spared}
    for shim in orphans:
        found |= {process.pid: process for process in process_tree.descendants(shim.pid) if process.living}
    cgroups = []
    for name in os.listdir(base) if base is not None else ():
        path = f"{base}/{name}"
        if name.startswith(f"{_PREFIX}{mark}.") and path not in busy:
            cgroups.append(CgroupTree(0, path))
            found |= {member.pid: member for member in process_tree.look_alive(cgroups[-1].pids())}
    return found, cgroups, orphans
