"""One session, as logind describes it: asked by the daemon, and by the session agent. Light, since the agent is small."""

from __future__ import annotations

from typing import Any, Final

from supervisor.linux.dbus import LOGIN1, BusError, SystemBus

SESSION: Final = "org.freedesktop.login1.Session"
GONE: Final = ("org.freedesktop.DBus.Error.UnknownObject", "org.freedesktop.login1.NoSuchSession")


async def session_properties(bus: SystemBus, path: str) -> dict[str, Any] | None:
    """All properties of a session that was listed; None: it has ended since.

    Raises:
        BusError: logind does not tell.
    """
    try:
        return await bus.properties(LOGIN1, path, SESSION)
    except BusError as error:
        if error.name in GONE:
            return None
        raise
