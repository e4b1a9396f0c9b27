"""People at their desks in a box: real logins with logind, a desktop each, and the hand that touches it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator

from support.sysbox import SysBox
from support.waiting import until


@contextlib.contextmanager
def session(box: SysBox, user: str, kind: str, seat: str = "seat0") -> Iterator[tuple[str, dict[str, str]]]:
    """A session of `user`'s: its number, and the environment of its programs. Everything of the user ends with it."""
    unit, number = box.open_session(user, kind=kind, seat=seat)
    uid = box.run("id", "-u", user).stdout.strip()
    runtime = f"/run/user/{uid}"
    env = {
        "HOME": f"/home/{user}", "XDG_RUNTIME_DIR": runtime, "WLR_BACKENDS": "headless", "WLR_LIBINPUT_NO_DEVICES": "1",
        "WLR_RENDERER": "pixman", "SWAYSOCK": f"{runtime}/sway.sock", "WAYLAND_DISPLAY": "wayland-1",
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={runtime}/bus",
    }  # fmt: skip
    try:
        yield number, env
    finally:
        box.close_session(unit, number)
        leave(box, uid)


def leave(box: SysBox, uid: str) -> None:
    """End the user's manager: logind keeps it for ten seconds after the last session."""
    box.run("systemctl", "stop", f"user@{uid}.service")
    until(lambda: not (box.root / f"run/user/{uid}").exists(), "the end of the user's manager", 30)


@contextlib.contextmanager
def sway(box: SysBox, user: str, env: dict[str, str]) -> Iterator[Callable[[], object]]:
    """A real compositor; what is yielded presses a key there."""
    (box.root / f"home/{user}/sway.conf").write_text("output HEADLESS-1 resolution 320x240\nxwayland disable\n")
    settings = [f"-E{name}={value}" for name, value in env.items() if name != "WAYLAND_DISPLAY"]
    start = ["systemd-run", "-q", "--unit=sway", "--collect", f"-pUser={user}", "-pKillSignal=SIGKILL", *settings]
    box.run(*start, "sway", "-c", f"/home/{user}/sway.conf")
    try:
        until(lambda: box.run("swaymsg", "-q", user=user, env=env, check=False).returncode == 0, "sway", 30)
        yield lambda: box.run("wtype", "a", user=user, env=env)
    finally:
        box.run("systemctl", "stop", "sway")


@contextlib.contextmanager
def xvfb(box: SysBox, user: str, env: dict[str, str]) -> Iterator[Callable[[], object]]:
    """A real X server, not yet told to the user's manager; what is yielded presses a key there."""
    start = ["Xvfb", ":7", "-screen", "0", "320x240x24", "-nolisten", "tcp"]
    server = box.popen(*start, user=user, env=env, stderr=subprocess.DEVNULL)
    try:
        until((box.root / "tmp/.X11-unix/X7").exists, "Xvfb", 30)
        yield lambda: box.run("xdotool", "key", "a", user=user, env={**env, "DISPLAY": ":7"})
    finally:
        box.run("pkill", "-KILL", "-x", "Xvfb", check=False)  # the box's own
        server.send_signal(signal.SIGCONT)  # a program that enters the box, or changes the user, stops with its child
        box.run("pkill", "-CONT", "-x", "runuser", check=False)
        server.wait(10)


def tell_manager(box: SysBox, user: str, **values: str) -> None:
    """As a desktop does when it starts."""
    box.run("systemctl", "--user", "-M", f"{user}@", "set-environment", *(f"{k}={v}" for k, v in values.items()))


@contextlib.contextmanager
def pty_login(box: SysBox, user: str) -> Iterator[Callable[[], object]]:
    """A login on a pty of its own, as sshd makes it; what is yielded types a line there."""
    box.add_user(user)
    login = box.popen(
        "script", "-qfec", f"login -f {user}", "/dev/null",
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert login.stdin
    keys = login.stdin

    def type_line() -> None:
        keys.write(b"true\n")
        keys.flush()

    try:
        yield type_line
    finally:
        login.communicate(b"exit\n")


# A login as sshd makes one without a terminal: PAM with the remote host, a session for the user, and a connection whose bytes
# it answers. It runs as root, as sshd's own part of a login does. Arguments: user, host, port.
REMOTE = """
import ctypes, socket, sys
user, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
pam, handle = ctypes.CDLL("libpam.so.0"), ctypes.c_void_p()
nobody_asks = (ctypes.c_void_p * 2)()
assert pam.pam_start(b"login", user.encode(), nobody_asks, ctypes.byref(handle)) == 0
for item, value in ((3, b"ssh"), (4, host.encode())):  # PAM_TTY, PAM_RHOST
    assert pam.pam_set_item(handle, item, ctypes.c_char_p(value)) == 0
server = socket.create_server(("127.0.0.1", port))
client = socket.create_connection(("127.0.0.1", port), source_address=(host, 0))
end, _ = server.accept()
assert pam.pam_open_session(handle, 0) == 0
print("open", flush=True)
for line in sys.stdin:
    client.sendall(line.encode())
    end.sendall(end.recv(4096))
pam.pam_close_session(handle, 0)
"""


@contextlib.contextmanager
def remote_login(box: SysBox, user: str, host: str = "127.0.0.7", port: int = 2022) -> Iterator[Callable[[], object]]:
    """A remote login without a terminal, as `ssh -T` has one; what is yielded sends a line over its connection."""
    box.add_user(user)
    login = box.popen("/usr/bin/python3", "-c", REMOTE, user, host, str(port), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert login.stdin
    assert login.stdout
    keys = login.stdin

    def send() -> None:
        keys.write(b"a line\n")
        keys.flush()

    try:
        assert login.stdout.readline() == b"open\n"
        yield send
    finally:
        keys.close()
        login.wait(30)
        login.stdout.close()
