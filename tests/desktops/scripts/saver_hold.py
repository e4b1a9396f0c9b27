"""What a film player does: Inhibit on a bus name, held until killed. saver_hold.py [name path [interface]]"""

import sys

from gi.repository import Gio, GLib

SAVER = ("org.freedesktop.ScreenSaver", "/org/freedesktop/ScreenSaver")
name, path, *rest = sys.argv[1:] or SAVER
iface = rest[0] if rest else name
if iface == "org.gnome.SessionManager":
    args = GLib.Variant("(susu)", ("filmplayer", 0, "Playing a film", 8))  # 8: the session shall not idle
else:
    args = GLib.Variant("(ss)", ("filmplayer", "Playing a film"))
bus = Gio.bus_get_sync(Gio.BusType.SESSION)
print(bus.call_sync(name, path, iface, "Inhibit", args, None, Gio.DBusCallFlags.NO_AUTO_START, 5000).unpack(), flush=True)
GLib.MainLoop().run()
