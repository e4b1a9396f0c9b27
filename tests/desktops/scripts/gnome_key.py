"""One key press by Mutter's RemoteDesktop interface (the person's session bus); prints CLOCK_BOOTTIME right before it."""

import time

from gi.repository import Gio, GLib

NAME, PATH = "org.gnome.Mutter.RemoteDesktop", "/org/gnome/Mutter/RemoteDesktop"
SHIFT = 42
bus = Gio.bus_get_sync(Gio.BusType.SESSION)


def call(path, iface, member, args=None):
    return bus.call_sync(NAME, path, iface, member, args, None, 0, 5000)


session = call(PATH, NAME, "CreateSession").unpack()[0]
call(session, f"{NAME}.Session", "Start")
time.sleep(0.3)
print(time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)
for down in (True, False):
    call(session, f"{NAME}.Session", "NotifyKeyboardKeycode", GLib.Variant("(ub)", (SHIFT, down)))
time.sleep(0.2)
