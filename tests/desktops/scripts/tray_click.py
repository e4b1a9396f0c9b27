"""As the person, on their bus: what the tray has of the node's icon, a click in its menu, and a picture of the screen.

tray_click.py show | click LABEL | picture FILE
"""

import sys

import gi

gi.require_version("Gio", "2.0")
from gi.repository import Gio, GLib  # noqa: E402

WATCHER, ITEM, MENU = "org.kde.StatusNotifierWatcher", "org.kde.StatusNotifierItem", "com.canonical.dbusmenu"
BUS = Gio.bus_get_sync(Gio.BusType.SESSION)


def call(name, path, interface, member, body=None):
    """The answer, as Python values."""
    return BUS.call_sync(name, path, interface, member, body, None, Gio.DBusCallFlags.NONE, 5000).unpack()


def properties(name, path, interface):
    """All of an interface."""
    return call(name, path, "org.freedesktop.DBus.Properties", "GetAll", GLib.Variant("(s)", (interface,)))[0]


def ours():
    """The node's item among those that the tray shows: its name on the bus, its path and its properties."""
    for entry in properties(WATCHER, "/StatusNotifierWatcher", WATCHER)["RegisteredStatusNotifierItems"]:
        name, slash, path = entry.partition("/")
        if (seen := properties(name, slash + path, ITEM))["Id"] == "rae-node":
            return name, seen
    sys.exit("no item of the node in the tray")


def entries(name, path):
    """The menu: labels by number."""
    found = call(name, path, MENU, "GetLayout", GLib.Variant("(iias)", (0, -1, [])))[1][2]
    return {number: shown.get("label", "") for number, shown, _ in found}


def picture(file):
    """Of an X screen."""
    gi.require_version("Gdk", "3.0")
    from gi.repository import Gdk

    root = Gdk.get_default_root_window()
    Gdk.pixbuf_get_from_window(root, 0, 0, root.get_width(), root.get_height()).savev(file, "png", [], [])


def main(verb, *rest):
    if verb == "picture":
        picture(*rest)
    elif verb == "show":
        host = properties(WATCHER, "/StatusNotifierWatcher", WATCHER)["IsStatusNotifierHostRegistered"]
        name, seen = ours()
        labels = entries(name, seen["Menu"]).values()
        print("|".join((str(host), seen["Status"], seen["IconName"], seen["ToolTip"][3], *labels)))
    elif verb == "click":
        name, seen = ours()
        number = next(n for n, label in entries(name, seen["Menu"]).items() if label == rest[0])
        call(name, seen["Menu"], MENU, "Event", GLib.Variant("(isvu)", (number, "clicked", GLib.Variant("i", 0), 0)))


main(*sys.argv[1:])
