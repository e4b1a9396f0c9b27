"""One task's process tree: freeze, thaw, signal, kill, count. By cgroup v2, or by walking /proc.

The shim uses it, which is the tree's subreaper, and the daemon. Standard library only, and little of it: a shim is started
for every task, so every task pays for what is imported here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STOPPED = "Tt"
_DEAD = "ZXx"
_KILL_ROUNDS = 5
_REQUEST_LIMIT_S = 0.02  # a caller on an event loop is not held up for longer
_EMPTY_AGAIN_S = 0.05  # the removal of a cgroup wakes nobody
_AT_ONCE_S = 0.001  # with free processors a tree is frozen by then; raising its priority would only cost time


def read(path: str) -> bytes:
    """Read a small kernel file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def write(path: str, text: str) -> None:
    """Write to a kernel file. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


class Process:
    """One process, by /proc/PID/stat."""

    __slots__ = ("cpu_s", "name", "pid", "ppid", "reaped_cpu_s", "started", "state")

    def __init__(self, pid: int, stat: bytes) -> None:
        fields = stat[stat.rindex(b")") + 2 :].split()
        self.pid = pid
        self.name = stat[stat.index(b"(") + 1 : stat.rindex(b")")]
        self.state = fields[0].decode()
        self.ppid = int(fields[1])
        self.cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        self.reaped_cpu_s = (int(fields[13]) + int(fields[14])) / _TICKS_PER_S
        self.started = int(fields[19])  # with the pid it identifies a process: pids are used again

    @property
    def running(self) -> bool:
        """Not stopped by a signal or a tracer."""
        return self.state not in _STOPPED

    @property
    def living(self) -> bool:
        """Not a zombie: it can still run, use memory, or wait in the kernel."""
        return self.state not in _DEAD

    def __str__(self) -> str:
        return f"{self.pid} (state {self.state})"


def look(pid: int) -> Process | None:
    """The process now, also a zombie; None: it is gone."""
    try:
        return Process(pid, read(f"/proc/{pid}/stat"))
    except (OSError, ValueError):
        return None


def look_alive(pids: Iterable[int]) -> list[Process]:
    """Those of the processes that are not dead."""
    return [process for pid in pids if (process := look(pid)) is not None and process.living]


def still(process: Process) -> Process | None:
    """The same process as it is now; None: it is dead."""
    now = look(process.pid)
    return now if now is not None and now.started == process.started and now.living else None


def descendants(root: int) -> list[Process]:
    """Every process below `root` (not itself), also zombies, by one walk over /proc.

    A process whose parent dies during the walk may be missed: repeat until nothing changes, or ask `waitpid`.
    """
    children: dict[int, list[Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := look(int(name))) is not None:
            children.setdefault(process.ppid, []).append(process)
    found, todo = [], [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += [process.pid for process in below]
    return found


def descends(pid: int, root: int) -> bool | None:
    """Whether a process is below `root`, by its parents; None: one of them is gone. A pid of 0 is a process of a pid namespace
    outside of this one."""
    while pid > 1:
        if (process := look(pid)) is None:
            return None
        pid = process.ppid
        if pid == root:
            return True
    return False


def _children(pid: int) -> list[int]:
    """The direct children, by the kernel's own list. Raises FileNotFoundError if the kernel has none."""
    threads = os.listdir(f"/proc/{pid}/task")
    return [int(child) for tid in threads for child in read(f"/proc/{pid}/task/{tid}/children").split()]


def quick_descendants(root: int) -> Iterator[int]:
    """The pids below `root`, parents first, each yielded before its children are read. Takes a tenth of a walk over /proc; good
    enough to count or to signal, but no proof that nothing is left."""
    try:
        todo = _children(root)
    except OSError:
        yield from (process.pid for process in descendants(root))
        return
    while todo:
        pid = todo.pop()
        yield pid
        try:
            todo += _children(pid)
        except OSError:
            continue  # it ended meanwhile


def send(process: Process, number: int) -> None:
    """Signal this process, and never a later one with the same pid: a pidfd fixes it, and then it is compared. Does nothing if
    the process is gone or may not be signalled."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if still(process) is not None:
            signal.pidfd_send_signal(fd, number)
    except OSError:
        pass
    finally:
        os.close(fd)


def environment(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty: it may not be read."""
    try:
        pairs = read(f"/proc/{pid}/environ").decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _stuck(process: Process, processes: list[Process]) -> bool:
    """It waits in the kernel for the child of its vfork, and that child is stopped; so it does not run either. A shell does
    this for each command. SIGSTOP takes effect only when the child runs on."""
    return process.state == "D" and any(child.ppid == process.pid and not child.running for child in processes)


class ProcessTree:
    """The processes below `root`, which is their subreaper: found by walking /proc, stopped by SIGSTOP."""

    PATIENCE_S = 0.02  # between two kills: a walk would only take processor time from the dying processes

    def __init__(self, root: int) -> None:
        self.root = root
        self._was_idle = False  # in the idle class before `hurry`

    def pids(self) -> frozenset[int]:
        """The processes now."""
        return frozenset(quick_descendants(self.root))

    def living(self) -> list[Process]:
        """The living processes, by a whole walk."""
        return [process for process in descendants(self.root) if process.living]

    def nearest(self) -> list[Process]:
        """The living among the root's own children, by one read. A process that only forks and ends is faster than every walk,
        but its child always becomes a child of the subreaper."""
        try:
            return look_alive(_children(self.root))
        except OSError:
            return self.living()

    def threads(self) -> list[int]:
        """The threads of all processes."""
        found: list[int] = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                found += map(int, os.listdir(f"/proc/{pid}/task"))
        return found

    def hurry(self) -> None:
        """Give the tree ordinary priority, if permitted: a process of low priority also reacts slowly. Call it after the order,
        so that the tree does not compete with the sender."""
        self._set_priority(0)

    def relax(self, *, idle: bool = False) -> None:
        """Give the tree the lowest priority again. With `idle` also the idle class, if it had that: then it may wait long for
        the processor, so a tree that must end soon stays without."""
        self._set_priority(19, idle=idle and self._was_idle)

    def _set_priority(self, nice: int, *, idle: bool = False) -> None:
        threads = self.threads()
        for tid in threads:
            try:
                if os.sched_getscheduler(tid) != os.SCHED_OTHER:
                    self._was_idle = True
                    os.sched_setscheduler(tid, os.SCHED_OTHER, os.sched_param(0))
                os.setpriority(os.PRIO_PROCESS, tid, nice)
                if idle:
                    os.sched_setscheduler(tid, os.SCHED_IDLE, os.sched_param(0))
            except ProcessLookupError:
                continue
            except OSError:  # a plain user may not raise priority
                break
        for leader in sorted(threads)[:1]:  # the task's own session; later ones never had a lower priority
            with contextlib.suppress(OSError):
                write(f"/proc/{leader}/autogroup", str(nice))

    def freeze(self, limit_s: float) -> bool:
        """Stop everything, within `limit_s` seconds; returns whether all is stopped. The proof is one walk without a
        running process, or two if processes were born meanwhile."""
        until_s = time.monotonic() + limit_s
        rounds = quiet = 0
        while quiet < (2 if rounds > 1 else 1):
            living = self.living()
            running = [process for process in living if process.running]
            loose = any(not _stuck(process, living) for process in running)
            if loose:
                rounds, quiet = rounds + 1, 0
            else:
                quiet += 1
            for process in running if rounds < 2 else [*running, *filter(lambda process: process.running, self.nearest())]:
                with contextlib.suppress(OSError):  # no pidfd: the walk was just now, and this must be fast
                    os.kill(process.pid, signal.SIGSTOP)
            if loose and time.monotonic() > until_s:
                return False
            if loose and rounds == 1:
                self.hurry()
        return True

    def request_freeze(self) -> None:
        """Give the order to freeze, and do not wait; `freeze` by the shim confirms it. The shim may have to wait for the
        processor behind the very tree that it is to stop."""
        until_s = time.monotonic() + _REQUEST_LIMIT_S
        for pid in quick_descendants(self.root):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
            if time.monotonic() > until_s:
                break

    def thaw(self) -> None:
        """Let the tree run on."""
        self.signal(signal.SIGCONT)

    def signal(self, number: int, spare: bytes = b"") -> None:
        """Signal every process once, except those named `spare`. Misses none only if the tree is frozen."""
        for process in self.living():
            if not spare or process.name != spare:
                send(process, number)

    def kill(self) -> None:
        """SIGKILL for every process; repeat until `living` is empty."""
        self.signal(signal.SIGKILL)
        for _ in range(_KILL_ROUNDS):
            for process in self.nearest():
                send(process, signal.SIGKILL)

    def kill_first(self) -> None:
        """The first kill, the fastest way."""
        self.kill()

    def cpu_s(self) -> float:
        """CPU seconds of the tree, and of what the subreaper has reaped."""
        root = look(self.root)
        used_s = sum(process.cpu_s + process.reaped_cpu_s for process in look_alive(self.pids()))
        return used_s + (root.reaped_cpu_s if root else 0.0)

    def memory(self) -> int | None:
        """Bytes of memory and swap, by the kernel's count; None: it does not count them for this tree."""
        return None

    def out_of_memory(self) -> bool:
        """The kernel has killed a process at the tree's memory limit."""
        return False

    def remove(self) -> None:
        """Remove what contains an empty tree."""


class CgroupTree(ProcessTree):
    """The same with a cgroup v2 of its own: the kernel freezes and kills, and misses no newborn process."""

    PATIENCE_S = 0.1

    def __init__(self, root: int, path: str) -> None:
        super().__init__(root)
        self.path = path
        self._lifted: dict[str, str] = {}  # the limits that `lift` removed, by file

    def hurry(self) -> None:
        """See ProcessTree; first `lift`."""
        self.lift()
        super().hurry()

    def lift(self) -> None:
        """Remove the cgroup's limits of the cpu controller, by two writes: a cgroup that is idle, or has used up its share of
        this period, gets no processor to react with."""
        for name, free in (("cpu.idle", "0"), ("cpu.max", "max")):
            with contextlib.suppress(OSError):
                before = read(f"{self.path}/{name}").decode().strip()
                if before.split()[0] != free:
                    write(f"{self.path}/{name}", free)
                    self._lifted[name] = before

    def relax(self, *, idle: bool = False) -> None:
        """See ProcessTree; then set the cgroup's limits again."""
        super().relax(idle=idle)
        for name, value in self._lifted.items():
            with contextlib.suppress(OSError):
                write(f"{self.path}/{name}", value)
        self._lifted.clear()

    def memory(self) -> int | None:
        """See ProcessTree. Without the pages of files, which can be read again."""
        try:
            counts = dict(line.split() for line in read(f"{self.path}/memory.stat").decode().splitlines())
        except (OSError, ValueError):
            return None
        swap = 0
        with contextlib.suppress(OSError, ValueError):  # the kernel may not account for it
            swap = int(read(f"{self.path}/memory.swap.current"))
        return int(counts["anon"]) + int(counts["shmem"]) + swap

    def out_of_memory(self) -> bool:
        """See ProcessTree."""
        try:
            counts = dict(line.split() for line in read(f"{self.path}/memory.events").decode().splitlines())
        except (OSError, ValueError):
            return False
        return int(counts.get("oom_kill", "0")) > 0

    def wait_empty(self, limit_s: float) -> bool:
        """Wait until no process is left in the cgroup, at most `limit_s` seconds; returns whether that is so. By the kernel's
        own word, for the whole subtree. Blocks."""
        until_s = time.monotonic() + limit_s
        try:
            fd = os.open(f"{self.path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            while b"populated 1" in os.pread(fd, 256, 0):
                if (left_s := until_s - time.monotonic()) <= 0:
                    return False
                poll.poll(min(left_s, _EMPTY_AGAIN_S) * 1000)
            return True
        except OSError as error:
            return error.errno == errno.ENODEV  # the cgroup was removed
        finally:
            os.close(fd)

    def _groups(self) -> list[str]:
        """This cgroup and those below it that the task made, deepest first."""
        return [folder for folder, _, _ in os.walk(self.path, topdown=False)]

    def _members(self, kind: str) -> list[int]:
        found: list[int] = []
        for folder in self._groups():
            try:
                found += map(int, read(f"{folder}/{kind}").split())
            except OSError:
                continue
        return [number for number in found if number > 0]  # 0: in another pid namespace

    def pids(self) -> frozenset[int]:
        """The members of the cgroup now."""
        return frozenset(self._members("cgroup.procs"))

    def living(self) -> list[Process]:
        """The members, and processes that left the cgroup but still descend from the shim."""
        return list({process.pid: process for process in [*super().living(), *look_alive(self.pids())]}.values())

    def threads(self) -> list[int]:
        """The members' threads, by one read a cgroup."""
        return self._members("cgroup.threads")

    def freeze(self, limit_s: float) -> bool:
        """Order the freeze, and wait until the kernel reports it done; raise the priority if it is not done at once."""
        try:
            self.lift()
            write(f"{self.path}/cgroup.freeze", "1")
            fd = os.open(f"{self.path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return super().freeze(limit_s)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            began_s = time.monotonic()
            ends_s = [began_s + _AT_ONCE_S, began_s + limit_s]
            while b"frozen 1" not in os.pread(fd, 256, 0):
                if (left_s := ends_s[0] - time.monotonic()) > 0:
                    poll.poll(left_s * 1000)
                elif len(ends_s) > 1:
                    ends_s.pop(0)
                    self.hurry()
                else:
                    return False
            return True
        except OSError:
            return False
        finally:
            os.close(fd)

    def request_freeze(self) -> None:
        """See ProcessTree; by one write."""
        with contextlib.suppress(OSError):
            write(f"{self.path}/cgroup.freeze", "1")

    def thaw(self) -> None:
        """See ProcessTree."""
        try:
            write(f"{self.path}/cgroup.freeze", "0")
        except OSError:
            super().thaw()

    def kill(self) -> None:
        """The kernel's kill for the members, walks for processes that left the cgroup."""
        self.kill_first()
        super().kill()

    def kill_first(self) -> None:
        """The kernel's kill: no walk."""
        with contextlib.suppress(OSError):
            write(f"{self.path}/cgroup.kill", "1")

    def cpu_s(self) -> float:
        """By the cgroup's own count, which needs no controller."""
        try:
            for line in read(f"{self.path}/cpu.stat").splitlines():
                if line.startswith(b"usage_usec "):
                    return int(line.split()[1]) / 1e6
        except OSError:
            pass
        return super().cpu_s()

    def remove(self) -> None:
        """Remove the empty cgroup and those below it. One that is not empty is left to the next sweep."""
        for folder in self._groups():
            try:
                os.rmdir(folder)
            except OSError:
                continue


def tree_of(root: int, cgroup: str | None) -> ProcessTree:
    """The tree below `root`; by its cgroup, if it has one."""
    return CgroupTree(root, cgroup) if cgroup else ProcessTree(root)
