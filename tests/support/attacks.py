"""What a hostile task tries, as one table: a name that says what is tried, and the Python that tries it.

This file is also the program that runs inside the sandbox: it reads the world to attack as JSON from stdin, tries everything,
each in a process of its own, and prints one JSON object: name → what was tried → what came of it. What begins with DONE got
through. Standard library only. Files of the kernel are opened, not written; still, run it in a sandbox or a box only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

Outcome = dict[str, str]
ATTACKS: dict[str, Callable[[dict[str, Any]], Outcome]] = {}
DONE = "DONE"
LIMIT_S = 40  # a task at idle priority beside busy processors reads all files that it sees
LEFT = "rae-left-4711"  # the name of whatever is left behind
KEY = 0x4711_2026
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [ctypes.c_long] * 4
_KEYCTL, _ADD_KEY = {"x86_64": (250, 248)}.get(os.uname().machine, (219, 217))
_SEIZE, _TIOCSTI = 0x4206, 0x5412


def attack(name: str) -> Callable[[Callable[[dict[str, Any]], Outcome]], Callable[[dict[str, Any]], Outcome]]:
    """Put a function into the table."""

    def put(function: Callable[[dict[str, Any]], Outcome]) -> Callable[[dict[str, Any]], Outcome]:
        ATTACKS[name] = function
        return function

    return put


def tried(what: Callable[..., Any], *arguments: Any) -> str:
    """Do it, and say what came of it."""
    try:
        return f"{DONE}: {what(*arguments)}"[:200]
    except OSError as error:
        return f"refused: {errno.errorcode.get(error.errno or 0, str(error))}"
    except ValueError as error:  # as setrlimit says it
        return f"refused: {error}"


def called(name: str, *arguments: Any) -> int:
    """A function of libc. Raises OSError."""
    _LIBC.syscall.restype = ctypes.c_long
    result = int(getattr(_LIBC, name)(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def opened(path: str, flags: int = os.O_WRONLY) -> str:
    """Open a file and close it again."""
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC))
    return path


def each(paths: list[str], what: Callable[[str], Any]) -> Outcome:
    """The same with each path."""
    return {path: tried(what, path) for path in paths}


def connected(address: str) -> str:
    """Connect to a socket of any kind."""
    last: OSError | None = None
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as peer:
            try:
                peer.settimeout(2)
                peer.connect(address)
                return "connected"
            except OSError as error:
                last = error
    raise last or OSError(0, "")


# --- T1: the cgroup, the control socket


def _cgroups(world: dict[str, Any]) -> list[str]:
    own = _read("/proc/self/cgroup").decode().rpartition("0::")[2].strip()
    mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
    near = [f"{mount}{path}" for mount in mounts for path in (own, os.path.dirname(own), "/rae.slice", "/system.slice", "")]
    return list(dict.fromkeys([*world["cgroups"], *near]))


@attack("moves into the cgroup of the node, of another task, or one of its own")
def _(world: dict[str, Any]) -> Outcome:
    found = each([f"{path}/cgroup.procs" for path in _cgroups(world)], opened)
    return {**found, **each([f"{path}/{LEFT}" for path in _cgroups(world)], os.mkdir)}


@attack("freezes, kills and limits by cgroup")
def _(world: dict[str, Any]) -> Outcome:
    names = ("cgroup.freeze", "cgroup.kill", "memory.max", "pids.max", "cpu.max", "cgroup.subtree_control")
    return each([f"{path}/{name}" for path in _cgroups(world) for name in names], opened)


@attack("speaks to the control socket")
def _(world: dict[str, Any]) -> Outcome:
    return each(world["control"], connected)


# --- T2: other programs of the person and of the machine


@attack("reaches the system bus, logind, systemd, the session's bus")
def _(world: dict[str, Any]) -> Outcome:
    user = f"/run/user/{world['uid']}"
    found = each(
        ["/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket", "/run/systemd/private", "/run/systemd/notify",
         "/run/systemd/journal/socket", f"{user}/bus", f"{user}/systemd/private", "/run/systemd/userdb/io.systemd.Multiplexer"],
        connected,
    )  # fmt: skip
    for line in ("loginctl unlock-sessions", "loginctl enable-linger", "systemctl poweroff --dry-run",
                 "systemd-run --user true", "systemd-run true", "busctl list"):  # fmt: skip
        found[line] = _ran(line.split())
    return found


def _ran(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=5)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"refused: {type(error).__name__}"
    return f"refused: exit code {done.returncode}" if done.returncode else f"{DONE}: {done.stdout[:100]!r}"


@attack("types into screen and tmux, by their sockets")
def _(world: dict[str, Any]) -> Outcome:
    return each([f"/tmp/tmux-{world['uid']}/default", *world["sockets"]], connected)


@attack("looks at the screen through the abstract socket of the X server")
def _(world: dict[str, Any]) -> Outcome:
    return each([f"\0{name}" for name in world["abstract"]], connected)


@attack("orders a container or another daemon to run something")
def _(world: dict[str, Any]) -> Outcome:
    names = ("docker.sock", "containerd/containerd.sock", "podman/podman.sock", "snapd.socket", "libvirt/libvirt-sock")
    found = each([*(f"/run/{name}" for name in names), "/var/lib/lxd/unix.socket", "/var/lib/incus/unix.socket"], connected)
    spool = ["/var/spool/cron/crontabs", "/var/spool/cron", "/var/spool/at", "/etc/cron.d", "/etc/systemd/system"]
    return {**found, **each([f"{folder}/{LEFT}" for folder in spool], lambda path: opened(path, os.O_WRONLY | os.O_CREAT))}


@attack("reads keys out of the keyrings of the session and the user")
def _(world: dict[str, Any]) -> Outcome:
    name = world["key_name"].encode()

    def found(ring: int) -> str:
        serial = called("syscall", _KEYCTL, 10, ring, b"user", name, 0)  # KEYCTL_SEARCH
        return f"key {serial}"

    def read(serial: int) -> str:
        text = ctypes.create_string_buffer(100)
        return str(text.raw[: called("syscall", _KEYCTL, 11, serial, text, 100)])  # KEYCTL_READ

    rings = {str(ring): tried(found, ring) for ring in (-1, -2, -3, -4, -5)}
    serials = {f"key {serial}": tried(read, serial) for serial in world["keys"]}
    link = {f"link {serial}": tried(called, "syscall", _KEYCTL, 8, serial, -2) for serial in world["keys"]}
    return {**rings, **serials, **link}


# --- T4: other processes


@attack("changes limits and scheduling of other processes")
def _(world: dict[str, Any]) -> Outcome:
    found = {}
    for pid in world["pids"]:
        found |= {
            f"prlimit {pid}": tried(resource.prlimit, pid, resource.RLIMIT_NOFILE, (3, 3)),
            f"nice {pid}": tried(os.setpriority, os.PRIO_PROCESS, pid, 19),
            f"scheduler {pid}": tried(os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0)),
            f"processors {pid}": tried(os.sched_setaffinity, pid, {0}),
            f"I/O class {pid}": tried(called, "syscall", 251 if _KEYCTL == 250 else 30, 1, pid, 3 << 13),
            f"oom {pid}": tried(opened, f"/proc/{pid}/oom_score_adj"),
        }
    return found


def _by_pidfd(pid: int) -> None:
    signal.pidfd_send_signal(os.pidfd_open(pid), 0)


@attack("signals and traces other processes, and reads their memory")
def _(world: dict[str, Any]) -> Outcome:
    found = {}
    for pid in world["pids"]:
        found |= {
            f"signal {pid}": tried(os.kill, pid, 0),
            f"signal by pidfd {pid}": tried(_by_pidfd, pid),
            f"trace {pid}": tried(called, "ptrace", _SEIZE, pid, 0, 0),
            **each([f"/proc/{pid}/mem", f"/proc/{pid}/environ", f"/proc/{pid}/fd/0"], lambda path: opened(path, os.O_RDONLY)),
        }
    return found


@attack("sees more processes than its own")
def _(world: dict[str, Any]) -> Outcome:
    seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    others = [pid for pid in seen if _read(f"/proc/{pid}/environ").find(world["secret"].encode()) >= 0]
    return {f"process {pid}": f"{DONE}: it is another's" for pid in others if pid not in (os.getpid(), os.getppid())}


# --- T5, T6, T11: files of the node and of the person


def _read(path: str) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(1 << 16)
    except OSError:
        return b""


@attack("reads the configuration, the key, the password, the person's files")
def _(world: dict[str, Any]) -> Outcome:
    return each([*world["secrets"], "/etc/shadow", "/etc/gshadow"], lambda path: opened(path, os.O_RDONLY))


@attack("finds a secret in any file that it sees")
def _(world: dict[str, Any]) -> Outcome:
    sought, found = world["secret"].encode(), {}
    skip = {"/proc", "/sys", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/dev", *world["large"]}
    for folder, names, files in os.walk("/"):
        names[:] = [name for name in names if os.path.join(folder, name) not in skip]
        for path in (os.path.join(folder, name) for name in files):
            if not stat.S_ISREG(os.lstat(path).st_mode) or sought not in _read(path):
                continue
            found[path] = f"{DONE}: it is there"
    return found


@attack("changes, replaces and removes files of state and logs, and the control socket")
def _(world: dict[str, Any]) -> Outcome:
    found = {}
    for folder in world["folders"]:
        path = f"{folder}/{LEFT}"
        found |= {
            f"write {path}": tried(opened, path, os.O_WRONLY | os.O_CREAT),
            f"FIFO {path}": tried(os.mkfifo, path),
            f"link {path}": tried(os.symlink, "/etc/passwd", path),
            f"chmod {folder}": tried(os.chmod, folder, 0),
            f"rename {folder}": tried(os.rename, folder, f"{folder}.{LEFT}"),
        }
    for path in [*world["files"], *world["control"]]:
        found |= {f"append {path}": tried(opened, path, os.O_WRONLY | os.O_APPEND)}
        found |= {f"remove {path}": tried(os.unlink, path)}
    return found


@attack("renames or closes the root of the work folders")
def _(world: dict[str, Any]) -> Outcome:
    root = world["workroot"]
    others = _others(root)
    return {
        "rename": tried(os.rename, root, f"{root}.{LEFT}"),
        "chmod": tried(os.chmod, root, 0),
        "other tasks": f"{DONE}: {others}" if others else "refused: none is seen",
    }


def _others(root: str) -> set[str]:
    try:
        return set(os.listdir(root)) - {os.path.basename(os.getcwd())}
    except OSError:
        return set()


# --- T8: what is left for the next task; looked for from outside afterwards


@attack("leaves files in every folder that can be written")
def _(world: dict[str, Any]) -> Outcome:
    folders = ["/", "/tmp", "/var/tmp", "/dev/shm", "/dev", "/dev/mqueue", "/run", "/run/lock", "/var/lock", "/home", "/root",
               f"/run/user/{world['uid']}", "/var/crash", "/usr/local", "/opt", "/srv", "/etc", *world["homes"]]  # fmt: skip
    left = each([f"{folder}/{LEFT}" for folder in folders], lambda path: opened(path, os.O_WRONLY | os.O_CREAT))
    return {f"{path} ({came})": "left" for path, came in left.items()}


@attack("leaves System V memory, semaphores and queues, and POSIX queues")
def _(world: dict[str, Any]) -> Outcome:
    left = [tried(called, "shmget", KEY, 4096, 0o1666), tried(called, "semget", KEY, 1, 0o1666),
            tried(called, "msgget", KEY, 0o1666),
            tried(called, "mq_open", f"/{LEFT}".encode(), os.O_CREAT | os.O_RDWR, 0o666, None)]  # fmt: skip
    return {f"{number}: {came}": "left" for number, came in enumerate(left)}


@attack("leaves keys in the keyrings of the user")
def _(world: dict[str, Any]) -> Outcome:
    left = [tried(called, "syscall", _ADD_KEY, b"user", LEFT.encode(), b"x", 1, ring) for ring in (-3, -4, -5)]
    return {f"{number}: {came}": "left" for number, came in enumerate(left)}


@attack("leaves pipes, links, closed folders and a false saved state in its work folder")
def _(world: dict[str, Any]) -> Outcome:
    os.mkfifo("rae-state.json")
    os.mkfifo(LEFT)
    os.symlink(world["secrets"][0], "link")
    os.symlink("/", "root")
    os.makedirs("closed/below")
    open("closed/below/file", "w").close()
    os.chmod("closed/below", 0)
    os.chmod("closed", 0)
    return {}


@attack("leaves processes behind: forks twice, new sessions, no environment, deaf to signals")
def _(world: dict[str, Any]) -> Outcome:
    sleeper = [sys.executable, "-I", "-S", "-c", "import signal, time\n[signal.signal(n, signal.SIG_IGN) for n in range(1, 32) "
               f"if n not in (9, 17, 19)]\ntime.sleep(1000)  # {LEFT}"]  # fmt: skip
    for way in range(4):
        if os.fork() == 0:
            if way & 1:
                os.setsid()
            if os.fork() == 0:
                os.setsid()
                _LIBC.prctl(1, 0, 0, 0, 0)
                for fd in range(3):
                    os.dup2(os.open(os.devnull, os.O_RDWR), fd)
                os.execve(sleeper[0], sleeper, {} if way & 2 else dict(os.environ))
            os._exit(0)
    return {}


# --- setuid programs, mounts, namespaces, the kernel, devices, the network


@attack("gains rights by setuid programs")
def _(world: dict[str, Any]) -> Outcome:
    status = dict(line.split(":\t", 1) for line in _read("/proc/self/status").decode().splitlines() if ":\t" in line)
    caps = {name: status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb") if int(status[name], 16)}
    found = {name: f"{DONE}: {value}" for name, value in caps.items()}
    if status["NoNewPrivs"].strip() != "1":
        found["no_new_privs"] = f"{DONE}: it may gain rights"
    for line in ("su -c true root", "sudo -n true", "pkexec true", "newgrp root", "mount -t tmpfs none /tmp"):
        if line.split()[0] not in ("su", "newgrp") or os.getuid():  # who counts as root changes to root
            found[line] = _ran(line.split())
    return found


@attack("mounts, unmounts, changes its root, makes and enters namespaces")
def _(world: dict[str, Any]) -> Outcome:
    os.makedirs("mounted", exist_ok=True)
    here = os.path.abspath("mounted").encode()
    kinds = (b"tmpfs", b"proc", b"sysfs", b"cgroup2", b"devpts", b"mqueue", b"overlay", b"fuse")
    found = {f"mount {kind.decode()}": tried(called, "mount", b"none", here, kind, 0, None) for kind in kinds}
    found |= {
        "bind": tried(called, "mount", b"/usr", here, None, 4096, None),
        "remount /usr": tried(called, "mount", b"none", b"/usr", None, 32 | 4096, None),
        "remount /": tried(called, "mount", b"none", b"/", None, 32, None),
        "unmount /proc": tried(called, "umount2", b"/proc", 2),
        "unmount /tmp": tried(called, "umount2", b"/tmp", 2),
        "chroot": tried(os.chroot, "."),
        "pivot_root": tried(called, "syscall", 155 if _KEYCTL == 250 else 41, b".", b"."),
    }
    flags = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x8000000, "cgroup": 0x2000000,
             "all with user": 0x10000000 | 0x20000 | 0x20000000 | 0x40000000}  # fmt: skip
    found |= {f"unshare {name}": tried(called, "unshare", flag) for name, flag in flags.items()}
    for pid in world["pids"]:
        found[f"enter {pid}"] = tried(_enter, pid)
    return found


def _enter(pid: int) -> int:
    return called("setns", os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), 0)


def _kernel_files() -> Iterator[str]:
    for top in ("/proc", "/sys"):
        for count, (folder, names, files) in enumerate(os.walk(top)):
            skip = folder == "/proc"
            names[:] = [n for n in names if not (skip and (n.isdigit() or n in ("self", "thread-self", "pressure")))]
            yield from (os.path.join(folder, name) for name in files)
            if count > 3000:
                break


@attack("sets the core pattern and any other setting of the kernel")
def _(world: dict[str, Any]) -> Outcome:
    known = ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper"]
    found = each(known, opened)
    for path in _kernel_files():
        if os.access(path, os.W_OK) and (came := tried(opened, path)).startswith(DONE):
            found[path] = came
    return found


@attack("makes system calls for administrators")
def _(world: dict[str, Any]) -> Outcome:
    return {
        "host name": tried(socket.sethostname, "x"),
        "clock": tried(called, "syscall", 227 if _KEYCTL == 250 else 112, 0, (ctypes.c_long * 2)(0, -1)),
        "module": tried(called, "syscall", 175 if _KEYCTL == 250 else 105, b"", 0, b""),
        "kernel log": tried(called, "klogctl", 5, ctypes.create_string_buffer(8), 0),  # SYSLOG_ACTION_CLEAR, by CAP_SYSLOG
        "swap": tried(called, "swapoff", b"/nothing"),
        "realtime": tried(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)),
        "priority": tried(os.nice, -5),
        "user": tried(os.setuid, 0) if os.getuid() else "refused: it is root's number, without rights",
        "a core file": tried(resource.setrlimit, resource.RLIMIT_CORE, (1 << 20, 1 << 20)),
    }


@attack("opens disks, memory, input devices and terminals")
def _(world: dict[str, Any]) -> Outcome:
    names = ["mem", "kmem", "port", "kmsg", "vda", "sda", "nvme0n1", "loop0", "fuse", "kvm", "net/tun", "uinput", "tty1",
             "vhost-vsock", "console", "tty", "input/event0", "input/mice", "mapper/control", "snapshot"]  # fmt: skip
    found = each([f"/dev/{name}" for name in names], lambda path: opened(path, os.O_RDWR | os.O_NOCTTY))
    found["mknod"] = tried(os.mknod, f"disk-{LEFT}", stat.S_IFBLK | 0o600, os.makedev(254, 0))
    found |= {f"type into {fd}": tried(fcntl.ioctl, fd, _TIOCSTI, b"x") for fd in range(3)}
    return found


@attack("uses the network")
def _(world: dict[str, Any]) -> Outcome:
    port = world["port"]
    return {
        "this machine": tried(socket.create_connection, ("127.0.0.1", port), 2),
        "the world": tried(socket.create_connection, ("192.0.2.1", 80), 2),
        "packets": tried(socket.socket, socket.AF_PACKET, socket.SOCK_RAW),
        "ping": tried(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1),
    }


@attack("uses files that the node left open")
def _(world: dict[str, Any]) -> Outcome:
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    links = {path: os.readlink(path) for path in paths if os.path.lexists(path)}
    fine = ("pipe:", "/dev/null", "/proc/")
    return {f"{path} {link}": f"{DONE}: open" for path, link in links.items() if not link.startswith(fine)}


# --- the program


def _attempt(function: Callable[[dict[str, Any]], Outcome], world: dict[str, Any]) -> Outcome:
    """One attack in a process of its own, so that what it does to itself troubles no other."""
    end_r, end_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end_r)
        try:
            came = function(world)
        except BaseException as error:
            came = {"broken": f"{DONE}? {type(error).__name__}: {error}"}
        os.write(end_w, json.dumps(came).encode()[:1 << 16])
        os._exit(0)
    os.close(end_w)
    text = b""
    while select.select([end_r], [], [], LIMIT_S)[0] and (part := os.read(end_r, 1 << 16)):
        text += part
        if text.endswith(b"}"):  # what it left behind may hold the pipe open
            break
    os.close(end_r)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    found: Outcome = json.loads(text) if text else {"broken": f"{DONE}? no answer within {LIMIT_S} s"}
    return found


def main() -> None:
    """Try everything."""
    world = json.load(sys.stdin)
    print(json.dumps({name: _attempt(function, world) for name, function in ATTACKS.items()}))


if __name__ == "__main__":
    main()
