"""The machine's power supply: what the kernel shows, and what UPower says.

The kernel knows a laptop's batteries. UPower also knows an uninterruptible power supply on USB, which is no power supply to the
kernel. If one of the two says that the machine runs on a battery, it does. A UPower that runs and does not answer is unknown.
Without UPower the kernel alone is asked.

sysfs is read here and not through psutil, because psutil takes a wireless mouse's battery for the machine's own.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from supervisor.linux.dbus import BusError, SystemBus
from supervisor.sensors.base import Wake
from supervisor.sensors.host.bus_value import BusValue

UPOWER: Final = "org.freedesktop.UPower"
UPOWER_PATH: Final = "/org/freedesktop/UPower"
DISPLAY_PATH: Final = f"{UPOWER_PATH}/devices/DisplayDevice"  # all batteries and UPSs of the machine together


@dataclass(frozen=True, slots=True)
class Power:
    """The machine's power supply; `percent` is the mean of its batteries, None without one. `source`: who says so."""

    on_battery: bool = False
    discharging: bool = False
    percent: float | None = None
    source: str = ""


class UPower:
    """UPower's word; made before the shared bus is started, which its owner stops."""

    def __init__(self, bus: SystemBus) -> None:
        self._bus = bus
        self._power: BusValue[Power | str] = BusValue(bus, UPOWER, self._is_cause, self._read, Power(), Power())

    async def start(self, wake: Wake) -> None:
        """Ask for the first time; returns with the answer, or after two seconds."""
        await self._power.start(wake)

    async def stop(self) -> None:
        await self._power.stop()

    def power(self) -> Power:
        """On battery or not; not, where there is no UPower.

        Raises:
            ValueError: it does not say.
        """
        if isinstance(value := self._power.value, str):
            raise ValueError(value)
        return value

    def _is_cause(self, path: str, changed: Collection[str]) -> bool:
        """A battery that charges changes each half minute: only one that is in use matters."""
        in_use = self._power.value != Power()
        return (path == UPOWER_PATH and "OnBattery" in changed) or (path == DISPLAY_PATH and in_use and "Percentage" in changed)

    async def _read(self) -> Power | str:
        try:
            on_battery = (await self._bus.properties(UPOWER, UPOWER_PATH, UPOWER)).get("OnBattery")
            if on_battery is not True:
                return Power() if on_battery is False else "UPower does not say whether the machine runs on a battery"
            device = await self._bus.properties(UPOWER, DISPLAY_PATH, f"{UPOWER}.Device")
        except BusError as error:
            if self._bus.owner(UPOWER):
                return str(error)
            return Power()
        return Power(True, True, _percent(device), "UPower")


def _percent(device: dict[str, Any]) -> float | None:
    percent = device.get("Percentage")
    return percent if isinstance(percent, float) and device.get("IsPresent") is True else None


def both(kernel: Power, upower: Power) -> Power:
    """What either says; the kernel's percentage, where it has one."""
    if not upower.on_battery or kernel.on_battery:
        return kernel
    return Power(True, True, upower.percent if kernel.percent is None else kernel.percent, upower.source)


def power(sys_root: Path) -> Power:
    """The machine's power, from its own supplies; those of mice and headsets are not its own.

    Raises:
        OSError: a supply cannot be read.
        ValueError: there is a battery, and its use or its charge is unknown.
    """
    folder = sys_root / "class/power_supply"
    supplies = sorted(folder.iterdir()) if folder.is_dir() else []
    plugged = unplugged = False
    batteries: list[tuple[str, str, str]] = []
    for supply in supplies:
        kind = read_text(supply / "type")
        if not kind or read_text(supply / "scope") == "Device":
            continue
        if kind in ("Battery", "UPS"):
            if read_text(supply / "present") != "0":
                batteries.append((supply.name, read_text(supply / "status"), read_text(supply / "capacity")))
        else:
            # An unused charger reports 0 too, so only the mains' 0 means that the machine is unplugged.
            online = read_text(supply / "online")
            plugged = plugged or online not in ("0", "")
            unplugged = unplugged or (kind == "Mains" and online == "0")
    if not batteries:
        return Power()
    discharging = any(status == "Discharging" for _, status, _ in batteries)
    if not (plugged or unplugged or discharging) and any(s in ("Unknown", "") for _, s, _ in batteries):
        raise ValueError(f"{batteries[0][0]} does not say whether it is in use")
    on_battery = not plugged and (unplugged or discharging)
    charges = [float(capacity) for _, _, capacity in batteries if capacity]
    if not charges and (on_battery or discharging):
        raise ValueError(f"{batteries[0][0]} does not say how full it is")
    return Power(on_battery, discharging, sum(charges) / len(charges) if charges else None)


def read_text(path: Path) -> str:
    """A small file's text; empty if there is none.

    Raises:
        OSError: it is there and cannot be read.
    """
    try:
        return path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
