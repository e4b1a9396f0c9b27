"""Looks at AMD and Intel GPUs for the daemon, in a process that may be left behind: a driver can hang under a read (R12).

It reads sysfs and the DRM part of /proc/PID/fdinfo, and nothing else. How it is started, and ends: `answering`. The
answer to `look` is `{"at_s": float, "devices": [...]}`; `at_s` is of a clock that only goes forward. A device has `pci, driver,
asleep, error, percent, idle_ms, total, used, clients [{pid, vram, busy}], hidden [pid]`. A GPU that is asleep is not
read any further, so that it sleeps on (T15). `percent` is amdgpu's own; Intel's tell instead for how many milliseconds
they have been idle since boot, the busiest part of each. Sizes are bytes, null where the driver does not say. `vram` is
what a process holds of the GPU's own memory, `busy` whether it holds or has done anything at all. `hidden` are processes
that may have the GPU open and cannot be looked into (T16): another user's, or protected, with the right to open it. Root's
own are not among them: the totals count them.
"""

from __future__ import annotations

import glob
import os
import re
import struct
import time
from typing import Any, Final

from supervisor.agents import answering

DRIVERS: Final = ("amdgpu", "i915", "xe")
CARD: Final = re.compile(r"card[0-9]+")
IDLE: Final = ("gt/gt*/rc6_residency_ms", "device/tile*/gt*/gtidle/idle_residency_ms", "power/rc6_residency_ms")
OWN_MEMORY: Final = re.compile(r"drm-(?:memory|resident|total)-(?:vram|local)[0-9]*")
ANY_MEMORY: Final = re.compile(r"drm-(?:memory|resident|total)-.+")
WORK: Final = re.compile(r"drm-(?:engine|cycles)-(?!capacity-).+")
UNITS: Final = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
ACL_USER, ACL_GROUP = 0x02, 0x08


def text(path: str) -> str:
    """A small file's text, stripped.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(1 << 16).strip()


def number(path: str) -> int | None:
    """A file that holds a number; None: there is no such file, or no number in it."""
    try:
        return int(text(path))
    except (OSError, ValueError):
        return None


def size(value: str) -> int:
    """A number with its unit, as fdinfo writes it: `1024 KiB`; 0 where it is none."""
    amount, _, unit = value.strip().partition(" ")
    return int(amount) * UNITS.get(unit.strip().upper(), 1) if amount.isdecimal() else 0


class Rights:
    """Who may open a device's nodes, by mode and access list."""

    def __init__(self, nodes: list[str]) -> None:
        self._all = False
        self._users: set[int] = set()
        self._groups: set[int] = set()
        for node in nodes:
            try:
                st = os.stat(node)
            except OSError:
                continue
            self._all = self._all or bool(st.st_mode & 0o006)
            self._users.add(st.st_uid)
            if st.st_mode & 0o060:
                self._groups.add(st.st_gid)
            self._read_acl(node)

    def _read_acl(self, node: str) -> None:
        try:
            acl = os.getxattr(node, "system.posix_acl_access")
        except OSError:
            return
        for tag, bits, who in struct.iter_unpack("<HHI", acl[4 : len(acl) - (len(acl) - 4) % 8]):
            if bits & 6 and tag in (ACL_USER, ACL_GROUP):
                (self._users if tag == ACL_USER else self._groups).add(who)

    def may(self, uid: int, groups: set[int]) -> bool:
        """Whether such a process may open one of them."""
        return self._all or uid in self._users or bool(groups & self._groups)


def who(folder: str) -> tuple[int, set[int]] | None:
    """A process's effective user and all its groups; None: it is gone."""
    try:
        fields = dict(line.split(":", 1) for line in text(f"{folder}/status").splitlines() if ":" in line)
        groups = {int(fields["Gid"].split()[1]), *map(int, fields.get("Groups", "").split())}
        return int(fields["Uid"].split()[1]), groups
    except (OSError, KeyError, ValueError, IndexError):
        return None


class Looker:
    """One look after the other."""

    def __init__(self, sys_root: str, proc_root: str, dev_root: str) -> None:
        self._drm, self._proc, self._dri = f"{sys_root}/class/drm", proc_root, f"{dev_root}/dri"

    def look(self) -> dict[str, Any]:
        """What all GPUs look like now."""
        devices = [self._device(card) for card in self._cards()]
        awake = [device for device in devices if not device["asleep"]]
        if awake:
            self._processes({device["pci"]: device for device in awake})
        for device in devices:
            device.pop("nodes")
        return {"at_s": time.monotonic(), "devices": devices}

    def _cards(self) -> list[str]:
        try:
            names = sorted(name for name in os.listdir(self._drm) if CARD.fullmatch(name))
        except OSError:
            return []
        return [f"{self._drm}/{name}" for name in names if self._driver(f"{self._drm}/{name}") in DRIVERS]

    @staticmethod
    def _driver(card: str) -> str:
        return os.path.basename(os.path.realpath(f"{card}/device/driver"))

    def _device(self, card: str) -> dict[str, Any]:
        folder = os.path.realpath(f"{card}/device")
        try:
            nodes = [f"{self._dri}/{name}" for name in os.listdir(f"{folder}/drm")]
        except OSError:
            nodes = [f"{self._dri}/{os.path.basename(card)}"]
        answer: dict[str, Any] = {
            "pci": os.path.basename(folder), "driver": self._driver(card), "asleep": False, "error": "", "percent": None,
            "idle_ms": None, "total": None, "used": None, "clients": [], "hidden": [], "nodes": nodes,
        }  # fmt: skip
        try:
            if text(f"{folder}/power/runtime_status") == "suspended":
                return answer | {"asleep": True}
        except OSError:
            pass  # without runtime PM it is awake
        answer |= {"total": number(f"{folder}/mem_info_vram_total"), "used": number(f"{folder}/mem_info_vram_used")}
        if answer["driver"] == "amdgpu":
            try:
                answer["percent"] = int(text(f"{folder}/gpu_busy_percent"))
            except OSError as error:
                answer["error"] = f"gpu_busy_percent cannot be read: {error.strerror}"
            except ValueError:
                answer["error"] = "gpu_busy_percent holds no number"
        else:
            idle = [number(path) for pattern in IDLE for path in glob.glob(f"{glob.escape(card)}/{pattern}")]
            answer["idle_ms"] = min((value for value in idle if value is not None), default=None)
        return answer

    def _processes(self, devices: dict[str, dict[str, Any]]) -> None:
        rights = {pci: Rights(device["nodes"]) for pci, device in devices.items()}
        seen: set[tuple[str, str]] = set()
        for name in os.listdir(self._proc):
            if not name.isdecimal() or int(name) == os.getpid():
                continue
            folder = f"{self._proc}/{name}"
            try:
                opened = os.listdir(f"{folder}/fd")
            except PermissionError:
                owner = who(folder)
                for pci, device in devices.items():
                    if owner is not None and owner[0] != 0 and rights[pci].may(*owner):
                        device["hidden"].append(int(name))
                continue
            except OSError:
                continue  # it has ended
            for pci, client in self._clients(folder, opened, devices, seen):
                devices[pci]["clients"].append({"pid": int(name)} | client)

    def _clients(
        self, folder: str, opened: list[str], devices: dict[str, dict[str, Any]], seen: set[tuple[str, str]]
    ) -> list[tuple[str, dict[str, Any]]]:
        """What a process has of each GPU; a context that several descriptors share is counted once."""
        found: dict[str, dict[str, Any]] = {}
        for fd in opened:
            try:
                if "/dri/" not in os.readlink(f"{folder}/fd/{fd}"):
                    continue
                fields = dict(line.split(":", 1) for line in text(f"{folder}/fdinfo/{fd}").splitlines() if ":" in line)
            except OSError:
                continue
            known = {key.strip(): value.strip() for key, value in fields.items() if key.startswith("drm-")}
            pci = known.get("drm-pdev", "")
            context = (pci, known.get("drm-client-id", f"{folder}/{fd}"))
            if pci not in devices or context in seen:
                continue
            seen.add(context)
            own: dict[str, int] = {}
            for key, value in known.items():
                if OWN_MEMORY.fullmatch(key):  # one region is told in several ways: the largest of them
                    region = key.rsplit("-", 1)[1]
                    own[region] = max(own.get(region, 0), size(value))
            used = any(size(v) > 0 for k, v in known.items() if ANY_MEMORY.fullmatch(k) or WORK.fullmatch(k))
            there = found.setdefault(pci, {"vram": 0, "busy": False})
            there["vram"] += sum(own.values())
            there["busy"] = there["busy"] or used
        return list(found.items())


def main(arguments: list[str]) -> None:
    """Answer until stdin ends; `arguments`: the parent's pid, and the roots of sysfs, /proc and /dev."""
    answering.die_with(int(arguments[0]))
    answering.answer({"look": Looker(*arguments[1:4]).look})
