"""A task's shim: the small process between the daemon and one task, which outlives the daemon long enough to clean up.

It is the subreaper of the task's processes, so that none of them can leave its sight by a double fork: as long as one
lives, `waitpid` has a child to wait for, and when it has none the tree is proven empty. The daemon holds the other end of
its control socket. When that end closes, however the daemon ended, the tree is killed and the task's folder wiped (R2,
R6). It stands outside the task's cgroup and runs at ordinary priority, so that it can stop a task that hogs the machine.

A task runs as the same user and can kill its shim. Its main process then dies with it (PDEATHSIG), and the daemon,
which sees the shim end, clears away what is left by cgroup and by the mark in the environment.

Control protocol, one JSON object a line. From the daemon: the start order (see `Shim.start`), then any number of
{"stop": grace_s}, {"freeze": true} and {"thaw": true}. To the daemon: {"started": pid} or {"failed": reason}, {"left": [..]}
for a kill that left something, an {"ice": words, "ok": bool} for each freeze and thaw, in their order, and last
{"gone": wait status or null, "cpu_s": …, "rungs": …, "over": [limits at which the kernel ended it],
"state": text that it has saved, or null}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import stat
import time
from collections.abc import Mapping

from supervisor.tasks.process import landlock, process_tree

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
FREEZE_LIMIT_S = 1.0  # a tree at idle priority beside a busy person took 1.7 s at worst; killing does not need the freeze
KILL_LIMIT_S = 3.0  # then what is left is reported, and tried again
_AGAIN_S = 0.5
STATE_FILE, STATE_MOST = "rae-state.json", 1 << 16
_LOOK_S = 0.02  # for that file, while it is waited for
_LIBC = ctypes.PyDLL(None, use_errno=True)  # PyDLL: the child of `_fork_into` must find the interpreter lock held
_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}  # ioprio_set(2)
_IOPRIO_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, as IOPRIO_PRIO_VALUE makes it
_SYS_CLONE3, _CLONE_INTO_CGROUP = 435, 1 << 33  # one number on every architecture (clone(2))


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _fork_into(cgroup: str | None) -> tuple[int, bool]:
    """Fork, the child born in the cgroup where the kernel can do that: to move it there takes some 35 ms, for the kernel
    waits for all processors. Returns what fork does, and whether the cgroup is still to be entered."""
    if cgroup is None:
        return os.fork(), False
    folder = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, its size, tls, set_tid, its size, cgroup
        arguments = (ctypes.c_uint64 * 11)(_CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, folder)
        pid: int = _LIBC.syscall(_SYS_CLONE3, ctypes.byref(arguments), ctypes.sizeof(arguments))
    finally:
        os.close(folder)
    return (os.fork(), True) if pid < 0 else (pid, False)


def be_polite() -> None:
    """Put this process last in line for processor and disk.

    To the kernel whoever is SCHED_IDLE is of the idle I/O class too, and leaves both at once when a stop must hurry
    (get_task_ioprio in block/ioprio.c). A plain user may not leave SCHED_IDLE again: then only the disk is idle's, and the
    processor nice 19's, for a stop must not take seconds."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 19)
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        if (call := _SYS_IOPRIO_SET.get(os.uname().machine)) is not None:
            _LIBC.syscall(call, 1, 0, _IOPRIO_IDLE)  # refused, it stays at what nice 19 is: the lowest of the ordinary class
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 19)


def _become_task(order: Mapping[str, object], parent: int, enter: str | None) -> None:
    """Between fork and exec: everything that a task is born with. Raises OSError where a task must not run without it."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(127)  # the shim ended before the line above
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if not order.get("spare"):  # a sandbox makes mounts of its own, and keeps its processes among themselves
        landlock.enter()
    if enter is not None:
        process_tree.write(f"{enter}/cgroup.procs", "0")
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # 1, not 0: at 0 a piped core handler is still fed (R6)
    for path, value in (("/proc/self/oom_score_adj", "1000"), ("/proc/self/autogroup", "19")):
        with contextlib.suppress(OSError):
            process_tree.write(path, value)
    be_polite()
    os.umask(0o077)
    os.chdir(str(order["cwd"]))
    argv, env = order["argv"], order["env"]
    assert isinstance(argv, list)
    assert isinstance(env, dict)
    os.execvpe(argv[0], argv, env)  # noqa: S606 - argv comes from node.yaml, and a shell is what is not wanted


class Shim:
    """One task's tree from start to empty."""

    def __init__(self, control: int) -> None:
        self.control = control
        self.daemon_lost = False
        self.main: int | None = None
        self.status: int | None = None
        self.rungs: list[str] = []
        self.asked_s: float | None = None  # when a stop was ordered first
        self.kill_at_s: float | None = None
        self.frozen = False  # by a freeze order
        self.notice: tuple[int, float] | None = None  # signal, seconds: a word before the end
        self.term_at_s: float | None = None  # it was given
        self.noticed = False
        self.state_file = ""
        self.spare = b""  # the name of what must not end before the task in it does: its sandbox
        self.tree = process_tree.tree_of(os.getpid(), None)
        self._buffer = b""
        self._wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for name in ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "TSTP"):  # the daemon's word alone counts
            signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        with contextlib.suppress(OSError):  # where it is permitted: it must get its turn before a tree of hundreds
            os.setpriority(os.PRIO_PROCESS, 0, -10)
            process_tree.write("/proc/self/autogroup", "-10")

    def tell(self, **message: object) -> None:
        """Say something to the daemon; a daemon that is gone is noticed by reading."""
        data = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self.control, data) :]

    def orders(self) -> list[dict[str, object]]:
        """What the daemon has said; blocks until there is something, or its end is closed."""
        try:
            data = os.read(self.control, 65536)
        except OSError:
            data = b""
        if not data:
            self.daemon_lost = True
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def start(self, order: Mapping[str, object]) -> bool:
        """Start the task: {"argv": [...], "env": {...}, "cwd": path, "cgroup": path or null, "spare": name, "notice": [signal,
        seconds] or null}. Our standard streams become the task's, and are closed here, so that they end when the task's
        last process does."""
        cgroup = str(order["cgroup"]) if order["cgroup"] else None
        self.spare = str(order.get("spare", "")).encode()
        self.state_file = f"{order['cwd']}/{STATE_FILE}"
        notice = order.get("notice")
        self.notice = (int(notice[0]), float(notice[1])) if isinstance(notice, list) else None
        self.tree = process_tree.tree_of(os.getpid(), cgroup)
        said_r, said_w = os.pipe2(os.O_CLOEXEC)
        shim = os.getpid()
        pid, outside = _fork_into(cgroup)
        if pid == 0:
            try:
                _become_task(order, shim, cgroup if outside else None)
            except OSError as error:
                os.write(said_w, (error.strerror or "unknown error").encode())
            except BaseException as error:  # noqa: BLE001 - a forked child must not go on as a second shim
                os.write(said_w, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(127)
        self.main = pid
        os.close(said_w)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.close(nothing)
        said = os.read(said_r, 4096)  # nothing: closed by a successful exec
        os.close(said_r)
        if said:
            os.waitpid(pid, 0)
            self.tell(failed=said.decode(errors="replace"))
            return False
        self.tell(started=pid)
        return True

    def reap(self) -> bool:
        """Collect what has ended, and note the main process's end; whether nothing at all is left, by the kernel's word."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return False
                if pid == self.main:
                    self.status, self.main = status, None
        except ChildProcessError:
            return True

    def rung(self, text: str) -> None:
        """Note a step of the stop with its time since the order."""
        if self.asked_s is not None:
            self.rungs.append(f"{text} {(time.monotonic() - self.asked_s) * 1000:.0f} ms")

    def stop(self, grace_s: float) -> None:
        """Freeze at once; then the notice where one is wanted, SIGTERM with the rest of `grace_s` seconds to obey, and the
        kill. A later order can only shorten it."""
        now_s = time.monotonic()
        if self.asked_s is not None:
            self.kill_at_s = min(now_s + grace_s, self.kill_at_s or now_s)
            return
        self.asked_s = now_s
        frozen = self.tree.freeze(FREEZE_LIMIT_S)
        self.rung("frozen" if frozen else "not frozen")
        self.kill_at_s = time.monotonic() + grace_s
        if grace_s > 0 and self.notice is not None:
            self.noticed, self.term_at_s = True, time.monotonic() + min(self.notice[1], grace_s)
            self.say(self.notice[0], "notice")
        elif grace_s > 0:
            self.say(signal.SIGTERM, "term")

    def say(self, number: int, name: str) -> None:
        """Signal the frozen tree and let it run on, last in line, to obey."""
        self.tree.signal(number, self.spare)
        self.tree.relax()
        self.tree.thaw()
        self.rung(name)

    def saved(self) -> None:
        """While the notice runs: once the state is there, or the time is up, SIGTERM."""
        if self.term_at_s is None:
            return
        there = os.path.lexists(self.state_file)
        if there or time.monotonic() >= self.term_at_s:
            self.term_at_s = None
            self.rung("state saved" if there else "no state")
            self.tree.freeze(FREEZE_LIMIT_S)
            self.say(signal.SIGTERM, "term")

    def state(self) -> str | None:
        """What the task has saved: a plain file of bounded length, as text."""
        if not self.noticed:
            return None
        try:
            fd = os.open(self.state_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            seen = os.fstat(fd)
            if not stat.S_ISREG(seen.st_mode) or seen.st_size > STATE_MOST:
                self.rungs.append(f"its state is not a file of at most {STATE_MOST} bytes")
                return None
            return os.read(fd, STATE_MOST).decode()
        except (OSError, UnicodeDecodeError):
            return None
        finally:
            os.close(fd)

    def freeze(self) -> tuple[bool, str]:
        """Freeze the tree until it is thawed or stopped; what cannot be frozen in time runs on."""
        if self.asked_s is not None:
            return False, "it is being stopped"
        begun_s = time.monotonic()
        self.frozen = self.tree.freeze(FREEZE_LIMIT_S)
        took_ms = (time.monotonic() - begun_s) * 1000
        if not self.frozen:
            self.tree.relax(idle=True)
            self.tree.thaw()
        return self.frozen, f"{'frozen' if self.frozen else 'not frozen, and thawed again after'} {took_ms:.0f} ms"

    def thaw(self) -> tuple[bool, str]:
        """Let a frozen tree run on, last in line again."""
        if self.asked_s is not None or not self.frozen:
            return True, "was not frozen" if self.asked_s is None else "it is being stopped"
        begun_s = time.monotonic()
        self.frozen = False
        self.tree.relax(idle=True)
        self.tree.thaw()
        return True, f"thawed {(time.monotonic() - begun_s) * 1000:.0f} ms"

    def kill(self) -> bool:
        """SIGKILL until nothing is left, for at most KILL_LIMIT_S seconds."""
        until_s = time.monotonic() + KILL_LIMIT_S
        pause_s = self.tree.PATIENCE_S
        self.tree.kill_first()
        self.tree.hurry()
        while True:
            again_s = time.monotonic() + pause_s
            while (left_s := again_s - time.monotonic()) > 0:
                if self.reap():
                    return True
                self.wait(left_s, control=False)
            if time.monotonic() > until_s:
                return self.reap()
            self.tree.kill()
            pause_s = min(pause_s * 2, 0.2)

    def wait(self, limit_s: float | None, *, control: bool = True) -> bool:
        """Until a child ends, `limit_s` has passed, or (True) the daemon has something to say."""
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        if control and not self.daemon_lost:
            poll.register(self.control, select.POLLIN)
        ready = poll.poll(None if limit_s is None else max(0.0, limit_s) * 1000 + 1)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)
        return any(fd == self.control for fd, _ in ready)

    def keep(self) -> None:
        """Until the tree is empty: obey the daemon, kill what outlives the main process, kill all without a daemon."""
        while True:
            limit_s = None if self.kill_at_s is None else self.kill_at_s - time.monotonic()
            if self.wait(limit_s if limit_s is None or self.term_at_s is None else min(limit_s, _LOOK_S)):
                self.obey(self.orders())
            if self.reap():
                return
            self.saved()
            over = self.kill_at_s is not None and time.monotonic() >= self.kill_at_s
            alone = self.main is None and self.asked_s is None  # a stop's grace is for the whole tree
            if over or alone:
                self.rung("kill")
                if self.kill():
                    return
                self.tell(left=[str(process) for process in self.tree.living()], rungs=", ".join(self.rungs))
                self.kill_at_s = time.monotonic() + _AGAIN_S

    def obey(self, orders: list[dict[str, object]]) -> None:
        """Carry out orders, and the stop that is implied when the daemon is lost."""
        for order in orders:
            if "freeze" in order or "thaw" in order:
                ok, words = self.freeze() if "freeze" in order else self.thaw()
                self.tell(ice=words, ok=ok)
                continue
            grace_s = order.get("stop")
            self.stop(grace_s if isinstance(grace_s, int | float) else 0.0)
        if self.daemon_lost:
            self.stop(0.0)

    def finish(self) -> None:
        """The last word: how it ended."""
        self.rung("gone")
        cpu_s, over, state = self.tree.cpu_s(), self.tree.over(), self.state()
        self.tree.remove()
        self.tell(gone=self.status, cpu_s=cpu_s, rungs=", ".join(self.rungs), over=over, state=state)


def main(control: int, workdir: str) -> None:
    """Keep one task; `workdir` is wiped if the daemon is lost."""
    os.set_inheritable(control, False)
    shim = Shim(control)
    waiting: list[dict[str, object]] = []
    while not waiting and not shim.daemon_lost:
        waiting = shim.orders()
    if waiting and shim.start(waiting[0]):
        shim.obey(waiting[1:])
        shim.keep()
        shim.finish()
    while not shim.daemon_lost:  # until the daemon has let go, or is lost: then nobody else may be there to wipe
        shim.orders()
    from pathlib import Path

    from supervisor.tasks.workdir import Workdir

    with contextlib.suppress(OSError, ValueError):
        Workdir(Path(workdir).parent).wipe(Path(workdir))

