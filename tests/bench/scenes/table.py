"""The sources of presence, in the order in which they are played."""

from __future__ import annotations

import os
from collections.abc import Callable

from scenes.agent import in_ext_idle, in_mutter, in_sway, in_x11, typing_by_agent
from scenes.devices import gaming, idle_detect, touching_devices
from scenes.logind import filming, logging_in, unlocking
from scenes.stage import Scene
from scenes.terminals import opening, typing, typing_elsewhere
from support import sysbox
from support.displays import missing

from supervisor.daemon.loop import BUSY_S


def needs(*programs: str) -> Callable[[], str]:
    """What this machine lacks, asked when it is played."""
    return lambda: missing(*programs)


def needs_root() -> str:
    """Only root may take another user's part."""
    return "" if os.geteuid() == 0 else "needs root"


BOX = "systemd-logind in a box"
AGENT = "session agent"
SCENES = (
    Scene("session unlocked", f"{BOX}, SetLockedHint", unlocking, lacks=sysbox.unavailable),
    Scene("new graphical session", f"{BOX}; the login by PAM is in both figures", logging_in, 0.1, lacks=sysbox.unavailable),
    Scene("film: idle is blocked", "a logind of ours on a real bus", filming),
    Scene("key in X", f"Xvfb, a real key by xdotool, {AGENT}", in_x11, 0.5, lacks=needs("Xvfb", "xdotool")),
    Scene("key in Wayland, sway", f"sway, wtype (its start is in both figures), {AGENT}", in_sway(True), 0.25,
          lacks=needs("sway", "swaymsg", "wtype")),
    Scene("pointer in Wayland, sway", f"sway (org_kde_kwin_idle), its own virtual pointer, {AGENT}", in_sway(False), 0.5,
          lacks=needs("sway", "swaymsg")),
    Scene("ext-idle-notify v1", f"a compositor of ours on the real wire, {AGENT}", in_ext_idle(1), 0.5),
    Scene("ext-idle-notify v2", f"the same, with input notifications, {AGENT}", in_ext_idle(2), 0.5),
    Scene("key in GNOME", f"mutter, the virtual keyboard of its remote desktop, {AGENT}", in_mutter, 0.5,
          lacks=needs("mutter")),
    Scene("key on own terminal", f"a real pty, {AGENT}", typing_by_agent, 0.1,
          "without the agent its access time tells, in 8-s steps (see below)"),
    Scene("key on a terminal", "a real pty that the daemon may watch", typing),
    Scene("key on another's terminal", f"a real pty; access times, a look each {BUSY_S:g} s", typing_elsewhere, 0.04,
          lacks=needs_root),
    Scene("new terminal", "a real /dev/pts", opening),
    Scene("input devices", "pipes of struct input_event: keyboard, mouse, touch, tablet, gamepad in turn", touching_devices),
    Scene("idle_detect", f"its shared memory; a look each {BUSY_S:g} s", idle_detect, 0.025,
          "it only adds signs: stale or gone, it says nothing, and the others count"),
    Scene("foreign GPU process", "NVML stand-in under the real pynvml", gaming, 0.1),
)  # fmt: skip
