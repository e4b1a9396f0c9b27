"""What a film player does: Inhibit on a bus name, held until killed. saver_hold.py [--player] [name path [interface]]

--player: it says by MPRIS too that it plays, as players and browsers do.
"""

import sys

from gi.repository import Gio, GLib

SAVER = ("org.freedesktop.ScreenSaver", "/org/freedesktop/ScreenSaver")
PLAYER = """<node><interface name="org.mpris.MediaPlayer2.Player"><property name="PlaybackStatus" type="s" access="read"/>
</interface><interface name="org.mpris.MediaPlayer2"><property name="Identity" type="s" access="read"/></interface></node>"""
SAYS = {"PlaybackStatus": "Playing", "Identity": "filmplayer"}
words = sys.argv[1:]
player = "--player" in words
name, path, *rest = [word for word in words if word != "--player"] or SAVER
iface = rest[0] if rest else name
if iface == "org.gnome.SessionManager":
    args = GLib.Variant("(susu)", ("filmplayer", 0, "Playing a film", 8))  # 8: the session shall not idle
else:
    args = GLib.Variant("(ss)", ("filmplayer", "Playing a film"))
bus = Gio.bus_get_sync(Gio.BusType.SESSION)
if player:
    for interface in Gio.DBusNodeInfo.new_for_xml(PLAYER).interfaces:
        bus.register_object(
            "/org/mpris/MediaPlayer2", interface, None, lambda *asked: GLib.Variant("s", SAYS[asked[4]]), None
        )
    Gio.bus_own_name_on_connection(bus, "org.mpris.MediaPlayer2.filmplayer", Gio.BusNameOwnerFlags.NONE, None, None)
print(bus.call_sync(name, path, iface, "Inhibit", args, None, Gio.DBusCallFlags.NO_AUTO_START, 5000).unpack(), flush=True)
GLib.MainLoop().run()
