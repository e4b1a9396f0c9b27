"""Reads one session from logind; for the daemon and for the session agent, which must stay small."""

from __future__ import annotations

from typing import Any, Final

from supervisor.linux.dbus import LOGIN1, BusError, SystemBus

TERMINAL_TYPES: Final = ("tty", "unspecified", "web")  # every other type is graphical, also one we do not know
LOGIN_SCREENS: Final = ("greeter", "lock-screen")  # classes: no person, but a touch there is one
SESSION: Final = "org.freedesktop.login1.Session"
GONE: Final = ("org.freedesktop.DBus.Error.UnknownObject", "org.freedesktop.login1.NoSuchSession")


def is_nobody(kind: str) -> bool:
    """Whether a class of sessions is no person's, and shows nothing that a person could touch."""
    return kind == "none" or kind.split("-")[0] in ("background", "manager")


async def session_properties(bus: SystemBus, path: str) -> dict[str, Any] | None:
    """All properties of a session that logind has listed; None: it has ended since.

    Raises:
        BusError: logind does not answer.
    """
    try:
        return await bus.properties(LOGIN1, path, SESSION)
    except BusError as error:
        if error.name in GONE:
            return None
        raise
