"""Input devices as signs of the person: when a key, a pointer, a touch, a pen, a gamepad or the lid was last used.

Other readers of the devices in /dev/input still get every event. What was read is overwritten at once, and only the time is
kept: no key, no value, no position leaves this file. Where the service's user may not read devices, this source has nothing
to say, which is no error: other sources see the person too. No device at all is "no source", never "idle".

A moving mouse sends a thousand events a second. The first event after a rest wakes the loop. Then no device wakes it, and all
are emptied once a second, until a second has passed without a sign. So a person at work costs one short look a second.

Devices come and go by inotify; a change of rights counts, since udev sets them after a node appears. None of these is a sign:
a wireless mouse disappears without a person. A device that a key remapper has grabbed sends us nothing; the remapper has a
device of its own.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from states.observation import NEVER
from supervisor.linux.clock import Clock
from supervisor.linux.inotify import Event, Watcher, flags
from supervisor.sensors.base import Presence, PresenceSensor, Quality, Wake
from supervisor.sensors.presence import evdev

QUIET_S: Final = 1.0  # after a sign, until devices may wake the loop again
SETTLED_S: Final = 0.3  # a look that finds nothing this long after a sign lets them wake it at once
DRIFT_S: Final = 0.1  # a gamepad that drifts is read no more often; the kernel keeps its events meanwhile
BUMP_PIXELS: Final = 16
BUMP_REST_S: Final = 900.0  # a motion may be a bump only after so long a rest
BUMP_SAME_S: Final = 0.25  # motion that follows so soon belongs to the same bump
BUMP_AGAIN_S: Final = 1.0  # motion after that, but within this time, is a person
BUFFER: Final = 64 * evdev.EVENT.size
BLIND_SIGN: Final = "no input device could be read until just now"
ROUNDS: Final = 16  # buffers read in one look; more than the kernel keeps

_MASK: Final = 0x40104593  # EVIOCSMASK
_ABS: Final = 0x80184540  # EVIOCGABS(0)
WANTED: Final = sum(1 << kind for kind in (*evdev.USED, evdev.EV_SW))


def axis_range(fd: int, code: int) -> evdev.Axis | None:
    """The range of a device's axis; None: it is not known."""
    try:
        answer = fcntl.ioctl(fd, _ABS + code, bytes(24))
    except OSError:
        return None
    _, least, most, *_ = struct.unpack("6i", answer)
    return evdev.Axis(least, most)


def only_wanted(fd: int) -> str:
    """Let the kernel leave out all events that are no sign, such as those of a light that a program blinks: they would wake the
    loop. Returns why it refuses, empty if it does not."""
    wanted = (ctypes.c_ulong * 1)(WANTED)  # the kernel takes whole longs only
    try:
        fcntl.ioctl(fd, _MASK, struct.pack("IIQ", evdev.EV_SYN, ctypes.sizeof(wanted), ctypes.addressof(wanted)))
    except OSError as error:
        return error.strerror or str(error)
    return ""


class _Open:
    """A device that is being read. `unmasked`: why the kernel sends all its events; empty: it does not."""

    def __init__(self, device: evdev.Device, fd: int, unmasked: str) -> None:
        self.device, self.fd, self.unmasked = device, fd, unmasked
        self.bump_at_s, self.bump_over = NEVER, False


class InputDevices(PresenceSensor):
    """The newest use of all readable input devices. No timer at rest; events wake the loop.

    required: without a readable device this source is in error, which blocks; otherwise only `details` says so.
    ignore_bumps: one short motion of a pointer after a long rest is no sign.
    on_lid: called when the lid was opened or closed.
    mask: has the kernel send an open device's signs only (its descriptor); why it refuses.
    axis_of: the range of an axis of an open device (its descriptor).
    """

    name = "input"

    def __init__(
        self,
        clock: Clock,
        *,
        required: bool = False,
        ignore_bumps: bool = False,
        on_lid: Callable[[], None] = lambda: None,
        dev_root: Path = Path("/dev"),
        sys_root: Path = Path("/sys"),
        mask: Callable[[int], str] = only_wanted,
        axis_of: Callable[[int, int], evdev.Axis | None] = axis_range,
    ) -> None:
        self._clock, self.required, self._ignore_bumps = clock, required, ignore_bumps
        self._dev, self._folder, self._sys = dev_root, dev_root / "input", sys_root / "class/input"
        self._mask, self._axis_of, self._on_lid = mask, axis_of, on_lid
        self._buffer = bytearray(BUFFER)
        self._devices: dict[str, _Open] = {}
        self._unreadable: dict[str, str] = {}  # devices that a person uses and that may not be read, and why
        self._sign_at_s, self._sign = NEVER, ""
        self._blind = False  # the last report was an error
        self._started = self._listening = False
        self._timer: asyncio.TimerHandle | None = None
        self._resting: dict[str, asyncio.TimerHandle] = {}  # devices that sent no sign, until they are read again
        self._wake: Wake = lambda: None
        self._watcher = Watcher(self._changed)

    async def start(self, wake: Wake) -> None:
        self._wake = wake
        self._watcher.open()
        self._started = self._listening = True
        self._look_for_devices()

    async def stop(self) -> None:
        self._started = False
        for node in list(self._devices):
            self._close(node)
        if self._timer is not None:
            self._timer.cancel()
        self._watcher.close()

    def latest(self, now_s: float) -> Presence:
        """The newest sign. Costs one `read` a device."""
        if self._started and str(self._folder) not in self._watcher.watched:  # no event reports new devices
            self._look_for_devices()
        used = self._empty_all(now_s)
        if not used and not self._listening and now_s - self._sign_at_s >= SETTLED_S:
            self._listen()
        error = ""
        if self.required and not self._sees:
            self._blind = True
            error = f"no input device can be read: {self._remedy()}, or set presence.input to auto in node.yaml"
        sign = self._sign or ("" if self._sees else "no source: no input device can be read")
        quality = Quality.EVENT if self._sees else Quality.UNKNOWN
        return Presence(self.name, now_s, self._sign_at_s, sign, error=error, quality=quality, hands=True)

    def details(self) -> dict[str, list[str]]:
        """Each device that a person uses, whether it is read or not; nothing of what it sent."""
        lines = []
        for _, opened in sorted(self._devices.items()):
            refused = f"; the kernel refuses a filter for it ({opened.unmasked}): other events wake the node too"
            lines.append(f"{opened.device.label}: read, only the time of use is kept{refused if opened.unmasked else ''}")
        lines += [f"{node}: not read ({why})" for node, why in sorted(self._unreadable.items())]
        if self._unreadable:
            lines.append(f"to see these too: {self._remedy()}")
        return {"input devices": lines or ["no input device: this source sees nobody"]}

    @property
    def _sees(self) -> bool:
        """Whether a device is read that shows a person at work; a lid does not."""
        return any(opened.device.kind is not evdev.Kind.LID for opened in self._devices.values())

    def _remedy(self) -> str:
        return "add the service's user to group input" if self._unreadable else "there is none in /dev/input"

    # --- listening

    def _listen(self) -> None:
        """Call `_used` at the next event of any device."""
        self._listening = True
        for node, opened in self._devices.items():
            if node not in self._resting:
                asyncio.get_running_loop().add_reader(opened.fd, self._used, node)

    def _used(self, node: str) -> None:
        """A device has sent something, or has rested. After a sign wake the loop, and ignore all devices for a while. A device
        that sends no sign rests alone."""
        sign = self._empty(node, self._clock.now_s())
        loop = asyncio.get_running_loop()
        if sign:
            self._wake()
            self._listening = False
            for device in self._devices.values():
                loop.remove_reader(device.fd)
            self._calm_later()
        elif sign is False and (opened := self._devices.get(node)) is not None:
            rest_s = BUMP_SAME_S if opened.device.kind is evdev.Kind.POINTER else DRIFT_S
            loop.remove_reader(opened.fd)
            self._resting[node] = loop.call_later(rest_s, self._rested, node)

    def _rested(self, node: str) -> None:
        self._resting.pop(node, None)
        if not self._listening:
            return
        self._used(node)
        if (opened := self._devices.get(node)) is not None and self._listening:
            opened.bump_over = True
            if opened.device.kind is evdev.Kind.POINTER and (timer := self._resting.pop(node, None)) is not None:
                timer.cancel()  # the rest of the bump has been read: what comes now is a new motion
            if node not in self._resting:
                asyncio.get_running_loop().add_reader(opened.fd, self._used, node)

    def _calm_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(QUIET_S, self._calm)

    def _calm(self) -> None:
        """Listen again when nobody has touched anything for a while."""
        if self._empty_all(self._clock.now_s()):
            self._calm_later()
        elif not self._listening:
            self._listen()

    # --- reading

    def _empty_all(self, now_s: float) -> bool:
        """Read what all devices have sent; returns whether any of it is a sign."""
        found = [self._empty(node, now_s) for node in list(self._devices)]
        return any(found)

    def _empty(self, node: str, now_s: float) -> bool | None:
        """Read what one device has sent, and overwrite it; returns whether it is a sign; None: it sent nothing."""
        opened, sign = self._devices[node], None
        try:
            for _ in range(ROUNDS):
                size = os.readv(opened.fd, [self._buffer])
                if size == 0:
                    self._close(node)
                    break
                sign = self._is_sign(opened, memoryview(self._buffer)[:size], now_s) or bool(sign)
                if size < BUFFER:
                    break
        except BlockingIOError:
            pass
        except OSError:  # unplugged
            self._close(node)
        finally:
            self._buffer[:] = bytes(BUFFER)
        if sign:
            self._sign_at_s, self._sign = now_s, f"user active on {opened.device.label}"
            if opened.device.kind is evdev.Kind.LID:
                self._on_lid()
        return sign

    def _is_sign(self, opened: _Open, data: memoryview, now_s: float) -> bool:
        if opened.device.kind is evdev.Kind.LID:
            return evdev.lid_moved(data)
        if opened.device.kind is evdev.Kind.GAMEPAD:
            return evdev.pressed(data, lambda code: self._axis_of(opened.fd, code))
        if not evdev.used(data):
            return False
        if opened.device.kind is evdev.Kind.POINTER and self._ignore_bumps:
            return self._is_no_bump(opened, data, now_s)
        return True

    def _is_no_bump(self, opened: _Open, data: memoryview, now_s: float) -> bool:
        """HTCondor's filter: a short motion after a long rest counts when another follows within a second."""
        since_s = now_s - opened.bump_at_s
        again = opened.bump_over and since_s <= BUMP_AGAIN_S
        if again or now_s - self._sign_at_s < BUMP_REST_S or not evdev.bumped(data, BUMP_PIXELS):
            opened.bump_at_s = NEVER
            return True
        if since_s > BUMP_AGAIN_S:
            opened.bump_at_s, opened.bump_over = now_s, False
        return False

    # --- devices come and go

    def _changed(self, events: list[Event]) -> None:
        if any(event.overflow or event.path.startswith(str(self._folder)) for event in events):
            self._look_for_devices()

    def _look_for_devices(self) -> None:
        """Watch /dev/input, or wait for it to be made; open what has come."""
        watched = str(self._folder) in self._watcher.watched
        if not watched and not self._watcher.add(self._folder, flags.CREATE | flags.ATTRIB | flags.DELETE):
            self._watcher.add(self._dev, flags.CREATE | flags.ONLYDIR)
        self._find()
        if self._listening:
            self._listen()

    def _find(self) -> None:
        """Open new devices, and close those that are gone."""
        try:
            nodes = {name for name in os.listdir(self._folder) if name.startswith("event")}
        except OSError:
            nodes = set()
        for node in [node for node, opened in self._devices.items() if node not in nodes or self._is_another(node, opened)]:
            self._close(node)
        self._unreadable = {node: why for node, why in self._unreadable.items() if node in nodes}
        for node in sorted(nodes - self._devices.keys()):
            device = evdev.describe(self._sys, node)
            if device is None or device.kind is evdev.Kind.NONE:
                continue
            try:
                fd = os.open(self._folder / node, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
            except OSError as error:
                self._unreadable[node] = f"{device.kind} '{device.name}': {error.strerror or error}"
                continue
            self._unreadable.pop(node, None)
            self._devices[node] = _Open(device, fd, self._mask(fd))
        if self._blind and self._sees:  # somebody may have used one meanwhile
            self._blind, self._sign_at_s, self._sign = False, self._clock.now_s(), BLIND_SIGN

    def _is_another(self, node: str, opened: _Open) -> bool:
        try:
            return not os.path.samestat(os.fstat(opened.fd), os.stat(self._folder / node))
        except OSError:
            return True

    def _close(self, node: str) -> None:
        if (opened := self._devices.pop(node, None)) is not None:
            asyncio.get_running_loop().remove_reader(opened.fd)
            os.close(opened.fd)
        if (timer := self._resting.pop(node, None)) is not None:
            timer.cancel()
