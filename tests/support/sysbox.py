"""A real systemd as PID 1 of a new pid namespace, with D-Bus, logind, journald, polkit, on a throw-away overlay of /.

It needs root, overlayfs and a cgroup2 mount, boots in about half a second, stops in less than a tenth, and changes
nothing of the machine around it:

    with SysBox(tmp_path) as box:
        box.sh("systemctl start foo")
        box.run(box.python, "-c", "print(1)", user="anna").stdout

/tmp and /run are empty inside; files go in by `box.share` (/mnt/share inside) or `binds`. The checkout and the virtual
environment are where they are outside, and any user inside may read them. `layer` is an ext4 image with more packages
(tests/desktops/layer.sh): its folder `up` lies over / in this box alone. Resource limits (MemoryMax=, CPUQuota=) have
no effect where the machine around it holds the controllers.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import pytest
from support.waiting import until

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
TOOLS = ("unshare", "setpriv", "nsenter", "runuser", "ip", "busctl", "loginctl", "dbus-daemon", "useradd", "script")
FILES = {
    "systemd": "lib/systemd/systemd",
    "logind": "lib/systemd/systemd-logind",
    "polkitd": "usr/lib*/**/polkitd",
    "libpam-systemd": "usr/lib*/**/security/pam_systemd.so",
}


def cgroup2_root() -> Path | None:
    """Where cgroup2 is mounted, or None."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    return None


def unavailable() -> str:
    """Why no box can be had here; empty when one can."""
    if os.geteuid() != 0:
        return "a box needs root"
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"a box needs {', '.join(missing)}"
    if lacking := [name for name, paths in FILES.items() if not any(Path("/").glob(paths))]:
        return f"a box needs the packages of {', '.join(lacking)}"
    root = cgroup2_root()
    if root is None:
        return "a box needs cgroup2 mounted"
    if not os.access(root, os.W_OK):
        return "a box needs a cgroup2 that it may write to"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "a box needs overlayfs in the kernel"
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--cgroup", "--net", "true"]
    probe = subprocess.run(namespaces, capture_output=True, text=True)
    return f"no namespaces here: {probe.stderr.strip()}" if probe.returncode else ""


def refuse(reason: str) -> NoReturn:
    """No box, no proof: the test fails, and says what would help; where it is known that none can be had, it is skipped."""
    if os.environ.get("RAE_NO_BOX") == "1":
        pytest.skip(f"RAE_NO_BOX=1, {reason}")
    pytest.fail(
        f"{reason}. A real systemd is needed to prove what the service does; run as root on a machine (or a privileged"
        " container) that allows it, or set RAE_NO_BOX=1 to go without that proof.",
        pytrace=False,
    )


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _seen(path: Path) -> tuple[str, str, str]:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return "", "", ""
    link = os.readlink(path) if path.is_symlink() else ""
    return stat.filemode(found.st_mode), str(found.st_uid), link


def _ancestors(path: Path) -> list[Path]:
    return [path, *path.parents][:-1]


class SysBox:
    """One system. `base` is a scratch folder; `binds` are "src:dst[:ro]"; `logind_conf` goes into [Login]."""

    def __init__(
        self, base: Path, *, binds: Sequence[str] = (), net: bool = False, suspend: bool = True, logind_conf: str = "",
        layer: Path | None = None,
    ) -> None:
        self.base, self.share = Path(base), Path(base) / "share"
        for folder in (self.base / "m", self.share):
            folder.mkdir(parents=True, exist_ok=True)
        self.share.chmod(0o777)
        (self.base / "logind.conf").write_text(f"[Login]\n{logind_conf}\n" if logind_conf else "")
        self.net, self.suspend, self.layer = net, suspend, layer
        self.pid = 0
        self.state = ""
        self.python = sys.executable
        self.env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "TERM": "dumb", "HOME": "/root",
            "PYTHONPATH": f"{REPO}:{REPO}/tests", "PYTHONDONTWRITEBYTECODE": "1",
        }
        needed = [Path(p).resolve() for p in (REPO, sys.prefix, sys.base_prefix)]
        # What lies on a mount of its own is not in the overlay, and the box has a /tmp and a /run of its own.
        own = (Path("/tmp"), Path("/run"))
        elsewhere = {
            str(p) for p in needed if p.stat().st_dev != os.stat("/").st_dev or any(p.is_relative_to(q) for q in own)
        }
        self.binds = [*binds, *(f"{p}:{p}:ro" for p in sorted(elsewhere))]
        self.open = sorted({str(p) for q in needed if str(q) not in elsewhere for p in _ancestors(q)})
        root = cgroup2_root()
        assert root is not None, unavailable()
        for old in root.glob("sdbox-*-*"):  # left by a run that was killed
            if not os.path.exists(f"/proc/{old.name.split('-')[1]}"):
                self._remove(old)
        self.cgroup = root / f"sdbox-{os.getpid()}-{id(self):x}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 60.0) -> SysBox:
        """Boot; returns when systemd says that it runs. Call it from the main thread: the box dies with the thread."""
        self.cgroup.mkdir()
        env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "BOX_BASE": str(self.base),
            "BOX_BINDS": "\n".join(self.binds),
            "BOX_OPEN": "\n".join(self.open),
            "BOX_SUSPEND": "1" if self.suspend else "",
            "BOX_LAYER": str(self.base / "layer/up") if self.layer else "",
        }
        unshare = "unshare --mount --propagation private --pid --fork --kill-child=KILL --uts --ipc --cgroup"
        inner = f"{unshare} {'' if self.net else '--net'} bash {shlex.quote(str(HERE / 'sysbox_inner.sh'))}"
        # What is written inside lives as long as this outer process: 129, by SIGHUP, is how a reboot ends.
        disk = f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(self.base / 'm'))}"
        if self.layer:
            below = self.base / "layer"
            below.mkdir(exist_ok=True)
            disk += f" && mount -o loop,ro {shlex.quote(str(self.layer))} {shlex.quote(str(below))}"
        loop = f"{disk} && while {inner}; [ $? = 129 ]; do :; done"
        outer = f"unshare --mount --propagation private sh -c {shlex.quote(loop)}"
        enter = f'echo $$ > "$0/cgroup.procs" && exec setpriv --pdeathsig KILL {outer}'
        with (self.base / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", enter, str(self.cgroup)],
                env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        return self._wait_up(timeout_s)

    def reboot(self, timeout_s: float = 60.0) -> SysBox:
        """Down in order, and up again: what is on disk stays, /run and /tmp are new. Units wanted by multi-user.target
        start only if something made the box's own target want that."""
        before = self.pid
        self.run("systemctl", "reboot", check=False)
        until(lambda: not os.path.exists(f"/proc/{before}"), "the box down", timeout_s)
        return self._wait_up(timeout_s)

    def _wait_up(self, timeout_s: float) -> SysBox:
        assert self._process
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and self._process.poll() is None:
            inside = [pid for outside in _children(self._process.pid) for pid in _children(outside)]
            if inside and os.path.exists(f"/proc/{inside[0]}/root/run/systemd/private"):
                self.pid = inside[0]
                self.state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if self.state in ("running", "degraded"):
                    return self
            time.sleep(0.02)
        log_text = (self.base / "log").read_text(errors="replace")
        self.stop()
        raise RuntimeError(f"the box did not boot (state {self.state or 'unknown'}): {log_text[-2000:]}")

    def stop(self) -> None:
        """Kill everything inside and leave nothing behind."""
        if self.cgroup.exists():
            (self.cgroup / "cgroup.kill").write_text("1")
        if self._process is not None:
            self._process.wait(60)
        for _ in range(200):
            self._remove(self.cgroup)
            if not self.cgroup.exists():
                return
            time.sleep(0.02)

    def __enter__(self) -> SysBox:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @staticmethod
    def _remove(cgroup: Path) -> None:
        for folder, _, _ in os.walk(cgroup, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:  # still populated: the next round, or the next run, takes it
                continue

    @property
    def root(self) -> Path:
        """The box's / as seen from outside; its files and sockets can be used through it."""
        return Path(f"/proc/{self.pid}/root")

    def changes(self, *places: str) -> dict[str, tuple[str, str, str]]:
        """What the box has made, changed or removed below these folders: path → (mode, owner, where a link leads).

        It reads the box's own layer of the overlay, so nothing that happens on the machine meanwhile can be seen.
        """
        assert self._process
        layer = Path(f"/proc/{self._process.pid}/root{self.base}/m/up")
        names = {line.split(":")[2]: line.split(":")[0] for line in (self.root / "etc/passwd").read_text().splitlines()}
        found = {}
        walks = (walk for place in places for walk in os.walk(layer / place.lstrip("/")))
        for path in (Path(folder, name) for folder, folders, files in walks for name in (*folders, *files)):
            inside = Path("/") / path.relative_to(layer)
            mode, owner, link = seen = _seen(path)
            if seen != _seen(inside) or mode[0] != "d":
                found[str(inside)] = (mode, names.get(owner, owner), link)
        return found

    @property
    def bus_address(self) -> str:
        """The box's system bus for a client outside. What needs the caller's pid (Inhibit) is called from inside."""
        return f"unix:path={self.root}/run/dbus/system_bus_socket"

    def argv(self, *command: str, user: str | None = None, env: Mapping[str, str] | None = None) -> list[str]:
        """The command line that runs `command` inside, as root or as `user`."""
        inner = ["runuser", "-u", user, "--", *command] if user else list(command)
        settings = [f"{name}={value}" for name, value in {**self.env, **(env or {})}.items()]
        namespaces = ["-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        enter = ["nsenter", "-t", str(self.pid), *namespaces, "env", "-i", *settings, *inner]
        return ["sh", "-c", f'echo $$ > "$0/cgroup.procs" && exec {shlex.join(enter)}', str(self.cgroup)]

    def run(
        self, *command: str, user: str | None = None, check: bool = True, timeout_s: float = 60.0, stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command inside to its end; `check`: a non-zero exit is an AssertionError that holds what it wrote."""
        argv = self.argv(*command, user=user, env=env)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, input=stdin)
        assert not check or done.returncode == 0, f"{command} -> {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def sh(self, script: str, **options: Any) -> str:
        """Run a bash script inside, stopping at the first error; what it printed."""
        return self.run("bash", "-ec", script, **options).stdout

    def popen(
        self, *command: str, user: str | None = None, env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command inside."""
        return subprocess.Popen(self.argv(*command, user=user, env=env), **options)

    def show(self, unit: str, *properties: str, user: str | None = None) -> dict[str, str]:
        """`systemctl show`, of the system's manager or of a user's."""
        scope = ["--user", "-M", f"{user}@"] if user else []
        text = self.run("systemctl", *scope, "show", unit, *[f"-p{name}" for name in properties]).stdout
        return dict(line.split("=", 1) for line in text.splitlines())

    def add_user(self, name: str, *, linger: bool = False) -> int:
        """Make a user, once; with `linger`, wait for the user's manager. Returns the uid."""
        if self.run("id", "-u", name, check=False).returncode:
            self.run("useradd", "-m", "-s", "/bin/bash", name)
        if linger:
            self.run("loginctl", "enable-linger", name)
            ask, up = ["systemctl", "--user", "-M", f"{name}@", "is-system-running"], ("running", "degraded")
            until(lambda: self.run(*ask, check=False).stdout.strip() in up, f"{name}'s manager")
        return int(self.run("id", "-u", name).stdout)

    def open_session(
        self, user: str, kind: str = "wayland", seat: str = "seat0", session_class: str = "user"
    ) -> tuple[str, str]:
        """A real PAM session with logind, which lives as long as the unit that is returned; and the session's id."""
        self.add_user(user)
        unit = f"session-of-{user}-{time.monotonic_ns()}"
        settings = {"XDG_SESSION_TYPE": kind, "XDG_SESSION_CLASS": session_class, "XDG_SEAT": seat}
        note = self.root / f"tmp/{unit}.id"
        inside = f"echo $XDG_SESSION_ID > /tmp/{unit}.tmp; mv /tmp/{unit}.tmp /tmp/{unit}.id; exec sleep infinity"
        self.run(
            "systemd-run", "-q", f"--unit={unit}", f"-pUser={user}", "-pPAMName=login",
            *(f"-E{name}={value}" for name, value in settings.items() if value),
            "sh", "-c", inside,
        )
        until(note.exists, f"the session of {user}")
        return unit, note.read_text().strip()

    def close_session(self, unit: str, session: str) -> None:
        """Log out, and wait until logind has forgotten the session."""
        self.run("systemctl", "stop", unit)
        until(lambda: session not in self.sessions(), f"session {session} gone")

    def sessions(self) -> list[str]:
        """Ids of the sessions that logind lists."""
        return [line.split()[0] for line in self.run("loginctl", "list-sessions", "--no-legend").stdout.splitlines()]

    def session_call(self, session: str, method: str, *arguments: str) -> str:
        """Call a method of org.freedesktop.login1.Session as root: session_call(id, "SetIdleHint", "b", "true")."""
        call = ["busctl", "call", "--json=short", "org.freedesktop.login1"]
        manager = ["/org/freedesktop/login1", "org.freedesktop.login1.Manager", "GetSession", "s", session]
        path = json.loads(self.run(*call, *manager).stdout)["data"][0]
        return self.run(*call, path, "org.freedesktop.login1.Session", method, *arguments).stdout
