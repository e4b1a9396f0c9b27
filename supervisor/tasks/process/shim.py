"""A task's shim: the small process between the daemon and one task. It outlives the daemon long enough to clean up.

The shim is the subreaper of the task's processes, so none of them can leave it by a double fork: while one lives, `waitpid`
has a child to wait for; when there is none, the tree is empty. When the daemon's end of the control socket closes, for any
reason, the shim kills the tree and wipes the task's folder. It is outside the task's cgroup and runs at ordinary priority,
so that it can stop a task that takes the whole machine.

A task runs as the same user and can kill its shim. Then its main process dies too (PDEATHSIG). The daemon sees the shim
end, and kills what is left by cgroup and by the mark in the environment.

In a unit of its own (see unit.py) systemd starts the shim, as the task's own user, and the socket is its stdin. There the shim
is frozen and killed together with the task, by the daemon. What the shim may signal is the task: nobody else has that user.

Control protocol: one JSON object a line.
In a unit the shim first sends {"cgroup": its own cgroup, "pid": its own pid}.
From the daemon: the start order (a Launch) together with the task's ends of three pipes, then any number of
{"stop": grace_s}, {"freeze": true}, {"thaw": true}, and in a unit {"disk": true}, {"helper": module} together with three
streams, and {"helper": null}.
To the daemon, where a rung is [RungName, seconds or null]:
- {"started": pid} or {"failed": reason};
- {"rung": rung} for each freeze and thaw, in their order;
- {"disk": bytes} for each {"disk": true}, in a unit;
- {"helper": pid} for a helper process that has started, and {"helper": 0} when it has ended or did not start;
- {"left": [process, …], "rungs": [rung, …]} for a kill that left something;
- last {"gone": wait status or null, "cpu_s": …, "rungs": …, "out_of_memory": bool, "state": saved text or null}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import stat
import time
from collections.abc import Mapping

from supervisor.tasks.process import landlock, process_tree
from supervisor.tasks.process.rungs import RungName

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
FREEZE_LIMIT_S = 1.0  # a tree at idle priority on a busy machine took 1.7 s at worst
HASTY_FREEZE_LIMIT_S = 0.25  # without a grace: killing does not need the freeze
KILL_LIMIT_S = 3.0  # then what is left is reported, and killed again
_AGAIN_S = 0.5
STATE_FILE, STATE_MOST = "rae-state.json", 1 << 16
_CHECK_S = 0.02  # between two checks for that file
_LIBC = ctypes.PyDLL(None, use_errno=True)  # PyDLL: the child of `_fork_into` must find the interpreter lock held
_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}  # ioprio_set(2)
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}  # keyctl(2)
_KEYCTL_JOIN_SESSION_KEYRING = 1
_IOPRIO_IDLE = 3 << 13  # IOPRIO_CLASS_IDLE, as IOPRIO_PRIO_VALUE makes it
_SYS_CLONE3, _CLONE_INTO_CGROUP = 435, 1 << 33  # the same on every architecture (clone(2))


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _fork_into(cgroup: str | None) -> tuple[int, bool]:
    """Fork; the child is born in the cgroup if the kernel can do that. Moving it there later takes some 35 ms, because the
    kernel waits for all processors. Returns the pid as fork does, and whether the child must still enter the cgroup."""
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


def be_polite(*, for_good: bool = False) -> None:
    """Give this process the lowest priority for processor and disk; `for_good`: nobody has to raise it again.

    For the kernel, SCHED_IDLE includes the idle I/O class (get_task_ioprio in block/ioprio.c), and a stop that must hurry
    leaves both at once. A plain user cannot leave SCHED_IDLE again, and then a stop would take seconds. So for a plain user
    only the disk gets the idle class, and the processor nice 19."""
    try:
        if not for_good:
            os.setpriority(os.PRIO_PROCESS, 0, 19)
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        if (call := _SYS_IOPRIO_SET.get(os.uname().machine)) is not None:
            _LIBC.syscall(call, 1, 0, _IOPRIO_IDLE)  # if refused, nice 19 gives the lowest level of the ordinary class
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 19)


def _become_task(launch: Mapping[str, object], parent: int, enter: str | None, *, in_unit: bool) -> None:
    """Between fork and exec: everything that a task is born with. Raises OSError if a task must not run without it."""
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
    closed = launch["closed"]
    assert isinstance(closed, list)
    landlock.enter([*closed, *(() if in_unit else (landlock.INPUT,))], mounts=bool(launch["sandbox"]))
    if (call := _SYS_KEYCTL.get(os.uname().machine)) is not None:
        _LIBC.syscall(call, _KEYCTL_JOIN_SESSION_KEYRING, None)  # a new one: the service's may lead to a person's keys
    if enter is not None:
        process_tree.write(f"{enter}/cgroup.procs", "0")
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))  # the node's own, see linux/precedence.py
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # 1, not 0: with 0 the kernel still feeds a piped core handler
    for path, value in (("/proc/self/oom_score_adj", "1000"), ("/proc/self/autogroup", "19")):
        with contextlib.suppress(OSError):
            process_tree.write(path, value)
    be_polite(for_good=in_unit)  # the unit's cgroup is raised instead
    os.umask(0o077)
    os.chdir(str(launch["workdir"]))
    argv, environment = launch["argv"], launch["environment"]
    assert isinstance(argv, list)
    assert isinstance(environment, dict)
    os.execvpe(argv[0], argv, environment)  # noqa: S606 - argv comes from node.yaml, and no shell is wanted


class Shim:
    """One task's tree, from its start until it is empty. `streams`: the task's stdin, stdout and stderr."""

    def __init__(self, control: int, launch: Mapping[str, object], streams: list[int], *, in_unit: bool = False) -> None:
        self.control, self.launch, self.streams, self.in_unit = control, launch, streams, in_unit
        cgroup = str(launch["cgroup"]) if launch["cgroup"] else None
        self.cgroup = None if in_unit else cgroup  # that the task must enter
        self.sandbox = str(launch["sandbox"]).encode()
        notice = launch["notice"]
        self.notice = (int(notice[0]), float(notice[1])) if isinstance(notice, list) else None  # signal, seconds
        self.state_file = f"{launch['workdir']}/{STATE_FILE}"
        self.tree = OwnUnit(os.getpid(), cgroup) if in_unit and cgroup else process_tree.tree_of(os.getpid(), cgroup)
        self.daemon_lost = False
        self.main: int | None = None
        self.status: int | None = None
        self.rungs: list[tuple[str, float | None]] = []
        self.asked_s: float | None = None  # the first stop order
        self.kill_at_s: float | None = None
        self.term_at_s: float | None = None  # while the notice runs
        self.frozen = False  # by a freeze order
        self.noticed = False
        self.helper: int | None = None
        self._handed: list[int] = []  # streams that came with an order not yet carried out
        self._buffer = b""
        self._wake_r, wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for name in ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "TSTP"):  # only the daemon's orders count
            signal.signal(getattr(signal, f"SIG{name}"), signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_w, warn_on_full_buffer=False)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        with contextlib.suppress(OSError):  # where permitted: it must run before a tree of hundreds does
            os.setpriority(os.PRIO_PROCESS, 0, -10)
            process_tree.write("/proc/self/autogroup", "-10")

    def send(self, **message: object) -> None:
        """Send a message to the daemon. A lost daemon is noticed by reading, not here."""
        data = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self.control, data) :]

    def orders(self) -> list[dict[str, object]]:
        """The daemon's orders; blocks until there is one, or until the daemon's end is closed."""
        try:
            data, streams = _read(self.control)
        except OSError:
            data, streams = b"", []
        if not data:
            self.daemon_lost = True
        self._handed += streams
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def start(self) -> bool:
        """Start the task; returns whether it runs. Our copies of its streams are closed, so that they end with its last
        process."""
        for fd, stream in zip(self.streams, (0, 1, 2), strict=True):
            os.dup2(fd, stream)
            os.close(fd)
        failed_r, failed_w = os.pipe2(os.O_CLOEXEC)
        shim = os.getpid()
        pid, outside = _fork_into(self.cgroup)
        if pid == 0:
            try:
                _become_task(self.launch, shim, self.cgroup if outside else None, in_unit=self.in_unit)
            except OSError as error:
                os.write(failed_w, (error.strerror or "unknown error").encode())
            except BaseException as error:  # noqa: BLE001 - a forked child must not go on as a second shim
                os.write(failed_w, f"{type(error).__name__}: {error}".encode())
            finally:
                os._exit(127)
        self.main = pid
        os.close(failed_w)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.close(null)
        failed = os.read(failed_r, 4096)  # empty: a successful exec has closed it
        os.close(failed_r)
        if failed:
            os.waitpid(pid, 0)
            self.send(failed=failed.decode(errors="replace"))
            return False
        self.send(started=pid)
        return True

    def reap(self) -> bool:
        """Reap what has ended, and note how the main process ended; returns whether the kernel says that no child is left."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return False
                if pid == self.main:
                    self.status, self.main = status, None
                elif pid == self.helper:
                    self.helper = None
                    self.send(helper=0)
        except ChildProcessError:
            return True

    def note(self, name: RungName) -> None:
        """Note a step of the stop with its time since the order."""
        if self.asked_s is not None:
            self.rungs.append((name, time.monotonic() - self.asked_s))

    def stop(self, grace_s: float) -> None:
        """Freeze at once. Then send the notice if there is one, then SIGTERM; kill when `grace_s` seconds are over. A later
        order can only shorten the grace."""
        now_s = time.monotonic()
        if self.asked_s is not None:
            self.kill_at_s = min(now_s + grace_s, self.kill_at_s or now_s)
            return
        self.asked_s = now_s
        self.end_helper()
        frozen = self.tree.freeze(FREEZE_LIMIT_S if grace_s > 0 else HASTY_FREEZE_LIMIT_S)
        self.note(RungName.FROZEN if frozen else RungName.NOT_FROZEN)
        self.kill_at_s = time.monotonic() + grace_s
        if grace_s > 0 and self.notice is not None:
            self.noticed, self.term_at_s = True, time.monotonic() + min(self.notice[1], grace_s)
            self.signal(self.notice[0], RungName.NOTICE)
        elif grace_s > 0:
            self.signal(signal.SIGTERM, RungName.TERM)

    def signal(self, number: int, name: RungName) -> None:
        """Signal the frozen tree, then let it run at the lowest priority to obey."""
        self.tree.signal(number, self.sandbox)
        self.tree.relax()
        self.tree.thaw()
        self.note(name)

    def check_notice(self) -> None:
        """While the notice runs: send SIGTERM when the state is saved or the time is up."""
        if self.term_at_s is None:
            return
        saved = os.path.lexists(self.state_file)
        if saved or time.monotonic() >= self.term_at_s:
            self.term_at_s = None
            self.note(RungName.STATE_SAVED if saved else RungName.NO_STATE)
            self.tree.freeze(FREEZE_LIMIT_S)
            self.signal(signal.SIGTERM, RungName.TERM)

    def state(self) -> str | None:
        """The state that the task saved after the notice: the text of a plain file of limited length."""
        if not self.noticed:
            return None
        try:
            fd = os.open(self.state_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size > STATE_MOST:
                self.rungs.append((RungName.STATE_TOO_LARGE, None))
                return None
            return os.read(fd, STATE_MOST).decode()
        except (OSError, UnicodeDecodeError):
            return None
        finally:
            os.close(fd)

    def freeze(self) -> RungName:
        """Freeze the tree until it is thawed or stopped. If that takes too long, let it run on."""
        if self.asked_s is not None:
            return RungName.BEING_STOPPED
        self.frozen = self.tree.freeze(FREEZE_LIMIT_S)
        if self.frozen:
            return RungName.FROZEN
        self.tree.relax(idle=True)
        self.tree.thaw()
        return RungName.THAWED_AGAIN

    def thaw(self) -> RungName:
        """Let a frozen tree run on, at the lowest priority again."""
        if self.asked_s is not None or not self.frozen:
            return RungName.WAS_NOT_FROZEN if self.asked_s is None else RungName.BEING_STOPPED
        self.frozen = False
        self.tree.relax(idle=True)
        self.tree.thaw()
        return RungName.THAWED

    def kill(self) -> bool:
        """SIGKILL until nothing is left, for at most KILL_LIMIT_S seconds; returns whether nothing is left."""
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
        """Wait until a child ends or `limit_s` has passed; with `control` also until the daemon sends something, which is
        what is returned."""
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        if control and not self.daemon_lost:
            poll.register(self.control, select.POLLIN)
        ready = poll.poll(None if limit_s is None else max(0.0, limit_s) * 1000 + 1)
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)
        return any(fd == self.control for fd, _ in ready)

    def run(self) -> None:
        """Until the tree is empty: obey the daemon; kill what outlives the main process; without a daemon kill everything."""
        while True:
            limit_s = None if self.kill_at_s is None else self.kill_at_s - time.monotonic()
            if self.wait(limit_s if limit_s is None or self.term_at_s is None else min(limit_s, _CHECK_S)):
                self.obey(self.orders())
            if self.reap():
                return
            self.check_notice()
            time_is_up = self.kill_at_s is not None and time.monotonic() >= self.kill_at_s
            main_ended = self.main is None and self.asked_s is None  # the grace of a stop is for the whole tree
            if time_is_up or main_ended:
                self.note(RungName.KILL)
                if self.kill():
                    return
                self.send(left=[str(process) for process in self.tree.living()], rungs=self.rungs)
                self.kill_at_s = time.monotonic() + _AGAIN_S

    def obey(self, orders: list[dict[str, object]]) -> None:
        """Carry out orders. A lost daemon is an order to stop."""
        for order in orders:
            if "freeze" in order or "thaw" in order:
                begun_s = time.monotonic()
                name = self.freeze() if "freeze" in order else self.thaw()
                timed = name in (RungName.FROZEN, RungName.THAWED, RungName.THAWED_AGAIN)
                self.send(rung=(name, time.monotonic() - begun_s if timed else None))
            elif "disk" in order:
                self.measure_disk()
            elif "helper" in order:
                module = order["helper"]
                self.start_helper(str(module)) if module else self.end_helper()
            else:
                grace_s = order["stop"]
                self.stop(grace_s if isinstance(grace_s, int | float) else 0.0)
        if self.daemon_lost:
            self.stop(0.0)

    def start_helper(self, module: str) -> None:
        """Start a helper process of the daemon (see helper_main) beside the task, with the streams that came with the order.
        Its end is not the task's end, and it does not outlive the task."""
        from supervisor.linux import helper_main

        streams, self._handed = self._handed[:3], self._handed[3:]
        moves = [(os.POSIX_SPAWN_DUP2, fd, stream) for fd, stream in zip(streams, (0, 1, 2), strict=False)]
        argv, pid = helper_main.command(module), 0
        if self.asked_s is None and self.helper is None:
            defaults = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
            with contextlib.suppress(OSError):
                pid = os.posix_spawn(argv[0], argv, os.environ, file_actions=moves, setsid=True, setsigdef=defaults)
                self.helper = pid
        for fd in streams:
            os.close(fd)
        self.send(helper=pid)

    def end_helper(self) -> None:
        """Kill it; `reap` sees its end."""
        if self.helper is not None:
            os.kill(self.helper, signal.SIGKILL)

    def measure_disk(self) -> None:
        """Send how much the task has written to disk, in a unit; by a thread, for that may take seconds."""
        from threading import Thread

        from supervisor.tasks import usage

        def walk() -> None:
            self.send(disk=usage.disk("/var/tmp", self.tree.pids()) + usage.disk("/tmp", ()))  # noqa: S108 - the unit's own

        Thread(target=walk, daemon=True).start()

    def finish(self) -> None:
        """The last message: how the task ended."""
        self.note(RungName.GONE)
        cpu_s, out_of_memory, state = self.tree.cpu_s(), self.tree.out_of_memory(), self.state()
        self.tree.remove()
        self.send(gone=self.status, cpu_s=cpu_s, rungs=self.rungs, out_of_memory=out_of_memory, state=state)


class OwnUnit(process_tree.CgroupTree):
    """The task's unit, seen from inside: everything that this user may signal. Only the daemon can freeze it."""

    def freeze(self, limit_s: float) -> bool:
        """The daemon has done it, and has thawed us again."""
        return True

    def thaw(self) -> None:
        """By the daemon."""

    def hurry(self) -> None:
        """By the daemon."""

    def relax(self, *, idle: bool = False) -> None:
        """By the daemon."""

    def signal(self, number: int, spare: bytes = b"") -> None:
        """Signal every other process of this user, newborn ones too: the kernel walks (kill(2), pid -1)."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)

    def kill(self) -> None:
        """See `signal`."""
        self.signal(signal.SIGKILL)

    def kill_first(self) -> None:
        """See `signal`."""
        self.signal(signal.SIGKILL)

    def remove(self) -> None:
        """By systemd."""


def _read(control: int) -> tuple[bytes, list[int]]:
    """What the daemon has sent, and the streams that came with it; blocks. Raises OSError."""
    with socket.socket(fileno=os.dup(control)) as connection:
        data, streams, _, _ = socket.recv_fds(connection, 65536, 3)
    for fd in streams:
        os.set_inheritable(fd, False)
    return data, streams


def _receive(control: int) -> tuple[bytes, list[int]]:
    """The start order, and the task's streams that came with it; empty: the daemon is lost."""
    line, streams = _read(control)
    while line and not line.endswith(b"\n"):
        if not (part := os.read(control, 65536)):
            return b"", streams
        line += part
    return line, streams


def main(control: int, workdir: str) -> None:
    """Run one task; wipe `workdir` if the daemon is lost."""
    os.set_inheritable(control, False)
    try:
        line, streams = _receive(control)
    except OSError:
        line, streams = b"", []
    if line:
        _run(Shim(control, json.loads(line), streams))
    from pathlib import Path

    from supervisor.tasks.workdir import Workdir

    with contextlib.suppress(OSError, ValueError):
        Workdir(Path(workdir).parent).wipe(Path(workdir))


def _run(shim: Shim) -> None:
    if shim.start():
        shim.run()
        shim.finish()
    while not shim.daemon_lost:  # until the daemon has closed its end, or is lost: only then nobody else wipes
        shim.orders()


def main_in_unit() -> None:
    """Run one task in the unit that systemd made for it. The end of this process ends the unit, with all that is left in it."""
    control = os.dup(0)
    _prctl(_PR_SET_DUMPABLE, 0)  # so that the task, which has the same user, cannot read or change this process
    own = next(line[3:] for line in process_tree.read("/proc/self/cgroup").decode().splitlines() if line.startswith("0::"))
    os.write(control, json.dumps({"cgroup": own, "pid": os.getpid()}).encode() + b"\n")
    line, streams = _receive(control)
    if line:
        launch = json.loads(line)
        os.mkdir(launch["workdir"], 0o700)
        _run(Shim(control, launch, streams, in_unit=True))
    os._exit(0)
