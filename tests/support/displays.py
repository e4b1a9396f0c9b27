"""Real displays for tests and benches: Xvfb, headless sway and Mutter, an ext-idle-notify compositor of ours; and who
touches them.

Each is a context manager that starts the program and ends it. `touch` is one act of a person, by a program that is
started for it; `hand` gives a function that touches at once, for whoever measures. What a display lacks on this machine
is told by `missing`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.waiting import until

NOBODY = 65534
MUTTER_REMOTE = "org.gnome.Mutter.RemoteDesktop"
KEY_A = 30
Hand = Callable[[], Awaitable[None]]


def missing(*programs: str) -> str:
    """Why a display cannot be had here; empty when it can."""
    lacking = [program for program in programs if not shutil.which(program)]
    return f"needs {', '.join(lacking)}" if lacking else ""


class Display:
    """A display server, as a process."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[Any] | None = None

    def start(self) -> Self:
        raise NotImplementedError

    def touch(self) -> None:
        raise NotImplementedError

    async def hand(self) -> Hand:
        """What touches it at once: no program has to start first. It is gone with the display."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it as a crash does; once is enough."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.communicate()
            self.process = None

    def hang(self) -> None:
        """It does nothing from now on, and does not close anything."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Xvfb(Display):
    """A real X server without a screen. `cookie`: a file that its clients must show (made by `start`)."""

    def __init__(self, cookie: Path | None = None) -> None:
        super().__init__()
        self.cookie, self.name = cookie, ""
        self._xdotool: subprocess.Popen[bytes] | None = None

    def start(self) -> Xvfb:
        read, write = os.pipe()
        argv = ["Xvfb", "-displayfd", str(write), "-screen", "0", "320x240x24", "-nolisten", "tcp", "-noreset"]
        key = os.urandom(16)
        if self.cookie is not None:
            self.cookie.write_bytes(_xauth("", key))
            argv += ["-auth", str(self.cookie)]
        self.process = subprocess.Popen(argv, pass_fds=[write], stderr=subprocess.DEVNULL)
        os.close(write)
        with os.fdopen(read) as told:
            number = told.readline().strip()
        assert number, "Xvfb did not start"
        if self.cookie is not None:
            self.cookie.write_bytes(_xauth(number, key))
        self.name = f":{number}"
        return self

    def touch(self) -> None:
        """The pointer moves."""
        self.xdotool("mousemove_relative", "1", "0")

    def xdotool(self, *argv: str) -> None:
        subprocess.run(["xdotool", *argv], env=self._env, check=True)

    @property
    def _env(self) -> dict[str, str]:
        return {"DISPLAY": self.name, "PATH": os.environ["PATH"], "XAUTHORITY": str(self.cookie or os.devnull)}

    async def hand(self) -> Hand:
        """A key, by an xdotool that takes its orders from a pipe."""
        self._xdotool = typist = subprocess.Popen(["xdotool", "-"], stdin=subprocess.PIPE, env=self._env, bufsize=0)
        assert typist.stdin
        order = typist.stdin

        async def press() -> None:
            order.write(b"key a\n")

        return press

    def stop(self) -> None:
        if self._xdotool is not None:
            self._xdotool.kill()
            self._xdotool.communicate()
            self._xdotool = None
        super().stop()


def _xauth(number: str, key: bytes) -> bytes:
    def counted(raw: bytes) -> bytes:
        return len(raw).to_bytes(2, "big") + raw

    local = (256).to_bytes(2, "big") + counted(socket.gethostname().encode())
    return local + counted(number.encode()) + counted(b"MIT-MAGIC-COOKIE-1") + counted(key)


class Sway(Display):
    """A real compositor without a screen; sway 1.7 offers org_kde_kwin_idle. It refuses root, which lends it to nobody.
    `runtime` is its XDG_RUNTIME_DIR."""

    def __init__(self) -> None:
        super().__init__()
        self.runtime = runtime = Path(tempfile.mkdtemp(prefix="sway-"))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(runtime, NOBODY, NOBODY)
            self._as = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(runtime), "XDG_RUNTIME_DIR": str(runtime), "WLR_BACKENDS": "headless",
            "WLR_LIBINPUT_NO_DEVICES": "1", "WLR_RENDERER": "pixman", "SWAYSOCK": str(runtime / "sway.sock"),
        }
        self.socket = runtime / "wayland-1"

    def start(self) -> Sway:
        config = self.runtime / "sway.conf"
        config.write_text("output HEADLESS-1 resolution 320x240\nxwayland disable\n")
        self.process = subprocess.Popen(
            ["sway", "-c", str(config)], env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._as
        )
        until(lambda: self.socket.exists() and self._answers(), "sway")
        return self

    def stop(self) -> None:
        super().stop()
        shutil.rmtree(self.runtime, ignore_errors=True)

    def _answers(self) -> bool:
        return subprocess.run(["swaymsg", "-q", "-t", "get_version"], env=self.env, capture_output=True).returncode == 0

    def touch(self) -> None:
        """The pointer moves."""
        subprocess.run(["swaymsg", "-q", "seat", "seat0", "cursor", "move", "1", "1"], env=self.env, check=True)

    async def hand(self) -> Hand:
        """The pointer moves, by an order over sway's own socket."""
        orders = socket.socket(socket.AF_UNIX)
        orders.connect(self.env["SWAYSOCK"])
        order = b"seat seat0 cursor move 1 1"

        async def move() -> None:
            orders.sendall(b"i3-ipc" + struct.pack("=II", len(order), 0) + order)  # the answers fit into the buffer

        return move

    def key(self) -> None:
        """A key, by a virtual keyboard."""
        subprocess.run(["wtype", "a"], env={**self.env, "WAYLAND_DISPLAY": self.socket.name}, check=True)


class Mutter(Display):
    """GNOME's real compositor without a screen, on a session bus at `bus`; `runtime` is its XDG_RUNTIME_DIR."""

    def __init__(self, bus: str, runtime: Path) -> None:
        super().__init__()
        self.bus, self.runtime = bus, runtime
        self._let_go: Callable[[], None] = lambda: None
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(runtime), "XDG_RUNTIME_DIR": str(runtime),
            "DBUS_SESSION_BUS_ADDRESS": bus, "GSETTINGS_BACKEND": "memory", "LIBGL_ALWAYS_SOFTWARE": "1",
            "MUTTER_DEBUG_RESET_IDLETIME": "1",
        }

    def start(self) -> Mutter:
        argv = ["mutter", "--headless", "--wayland", "--no-x11", "--virtual-monitor", "320x240"]
        self.process = subprocess.Popen(argv, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: self._call("GetIdletime") == 0, "mutter", 30)
        return self

    def stop(self) -> None:
        self._let_go()
        super().stop()

    def _call(self, member: str) -> int:
        name = "org.gnome.Mutter.IdleMonitor"
        argv = ["busctl", f"--address={self.bus}", "call", name, "/org/gnome/Mutter/IdleMonitor/Core", name, member]
        return subprocess.run(argv, capture_output=True).returncode

    def touch(self) -> None:
        """As if somebody had touched something."""
        assert self._call("ResetIdletime") == 0

    async def hand(self) -> Hand:
        """A key, by the virtual keyboard of a remote desktop."""
        from dbus_fast import BusType, Message, MessageType
        from dbus_fast.aio import MessageBus

        bus = await MessageBus(bus_address=self.bus, bus_type=BusType.SYSTEM).connect()
        self._let_go = bus.disconnect

        async def ask(path: str, interface: str, member: str, signature: str = "", *body: object) -> list[Any]:
            answer = await bus.call(Message(MUTTER_REMOTE, path, interface, member, signature=signature, body=list(body)))
            assert answer is not None
            assert answer.message_type is MessageType.METHOD_RETURN, answer.body
            return answer.body

        (session,) = await ask(f"/{MUTTER_REMOTE.replace('.', '/')}", MUTTER_REMOTE, "CreateSession")
        of = f"{MUTTER_REMOTE}.Session"
        await ask(session, of, "Start")

        async def press() -> None:
            for down in (True, False):
                await bus.send(
                    Message(MUTTER_REMOTE, session, of, "NotifyKeyboardKeycode", signature="ub", body=[KEY_A, down])
                )

        return press


class IdleServer(Display):
    """ext-idle-notify-v1 as newer compositors offer it, by `support.idle_compositor`; version 2 has input notifications."""

    def __init__(self, path: Path, version: int = 1, *, inhibit_silently: bool = False) -> None:
        super().__init__()
        self.socket, self.version, self.inhibit_silently = path, version, inhibit_silently

    def start(self) -> IdleServer:
        argv = [sys.executable, "-m", "support.idle_compositor", str(self.socket), str(self.version)]
        self.process = subprocess.Popen(
            argv + ["silent"] * self.inhibit_silently, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == b"ready\n"
        return self

    def say(self, letters: str) -> None:
        """a: a touch. i, u: an inhibitor comes, goes. n: a new seat, o: one less. x: nonsense to all clients."""
        assert self.process
        assert self.process.stdin
        self.process.stdin.write(letters.encode())
        self.process.stdin.flush()

    def touch(self) -> None:
        self.say("a")

    async def hand(self) -> Hand:
        async def touch() -> None:
            self.say("a")

        return touch


def environment(**more: str) -> Mapping[str, str]:
    """An environment without any display of the machine around the tests."""
    kept = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY")}
    return {**kept, **more}
