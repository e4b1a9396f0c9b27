"""Looks at AMD and Intel GPUs for the daemon, in a process that may be left behind: a driver can hang under a read (R12).

It reads sysfs and the DRM part of /proc/PID/fdinfo, and nothing else. How it is started, and ends: `answering`. The
answer to `look` is `{"at_s": float, "devices": [...]}`; `at_s` is of a clock that only goes forward. A device has `pci, driver,
asleep, error, percent, idle_ms, total, used, clients [{pid, vram, busy}], hidden [pid]`. A GPU that is asleep is not
read any further, so that it sleeps on (T15). `percent` is amdgpu's own; Intel's tell instead for how many milliseconds
each of their parts has been idle since boot. Sizes are bytes, null where the driver does not say; what is there and cannot
be read is an `error`. `vram` is what a process holds of the GPU's own memory, `busy` whether it holds or has done anything
at all. `hidden` are processes that may have the GPU open and cannot be looked into (T16): another user's, or protected,
with the right to open it. Root's own are not among them: the totals count them.
"""

from __future__ import annotations

import errno
import glob
import itertools
import os
import re
import struct
import time
from typing import Any, Final

from supervisor.linux import helper_main

DRIVERS: Final = ("amdgpu", "i915", "xe")
CARD: Final = re.compile(r"card[0-9]+")
IDLE: Final = ("gt/gt*/rc6_residency_ms", "device/tile*/gt*/gtidle/idle_residency_ms", "power/rc6_residency_ms")
TOLD: Final = ("resident", "memory", "total")  # what is in a region, the older word for it, and also what was moved out
OWN_MEMORY: Final = re.compile(r"drm-(resident|memory|total)-((?:vram|local)[0-9]*)")
ANY_MEMORY: Final = re.compile(r"drm-(?:resident|memory|total)-(?!cycles-).+")
WORK: Final = re.compile(r"drm-(?:engine|cycles)-(?!capacity-).+")
UNITS: Final = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
ACL_USER, ACL_GROUP = 0x02, 0x08
NO_LIST: Final = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT)
BROKERS: Final = ("systemd-logind", "elogind-daemon", "seatd")  # they open devices for others
GONE: Final = (FileNotFoundError, ProcessLookupError)
UNSHOWN: Final = "other users' processes are hidden: mount /proc without hidepid"


def text(path: str) -> str:
    """A small file's text, stripped.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(1 << 16).strip()


def number(path: str, *, optional: bool = True) -> int | None:
    """A file that holds a number; None: there is no such file.

    Raises:
        ValueError: it cannot be read, or holds no number, in words.
    """
    try:
        return int(text(path))
    except OSError as error:
        if optional and isinstance(error, FileNotFoundError):
            return None
        raise ValueError(f"{os.path.basename(path)} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{os.path.basename(path)} holds no number") from None


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
            except OSError:  # not in our /dev, so who may is not known: anybody (R12)
                self._all = True
                continue
            self._all = self._all or bool(st.st_mode & 0o006)
            self._users.add(st.st_uid)
            if st.st_mode & 0o060:
                self._groups.add(st.st_gid)
            self._read_acl(node)

    def _read_acl(self, node: str) -> None:
        try:
            acl = os.getxattr(node, "system.posix_acl_access")
        except OSError as error:
            self._all = self._all or error.errno not in NO_LIST
            return
        for tag, bits, who in struct.iter_unpack("<HHI", acl[4 : len(acl) - (len(acl) - 4) % 8]):
            if bits & 6 and tag in (ACL_USER, ACL_GROUP):
                (self._users if tag == ACL_USER else self._groups).add(who)

    def may(self, uid: int, groups: set[int]) -> bool:
        """Whether such a process may open one of them."""
        return self._all or uid in self._users or bool(groups & self._groups)


def who(folder: str) -> tuple[int, set[int]] | None:
    """A process's effective user and all its groups; None: it has ended, if only its parent has not taken note."""
    try:
        fields = dict(line.split(":", 1) for line in text(f"{folder}/status").splitlines() if ":" in line)
        if fields.get("State", "").split()[:1] == ["Z"] and fields.get("Threads", "").strip() == "1":
            return None
        groups = {int(fields["Gid"].split()[1]), *map(int, fields.get("Groups", "").split())}
        return int(fields["Uid"].split()[1]), groups
    except (*GONE, KeyError, ValueError, IndexError):
        return None


def files_of(folder: str) -> tuple[str, list[str]]:
    """Where a process's files are told (`fd` and `fdinfo` in that folder), and their numbers: where its first thread has
    ended they are another's."""
    opened = os.listdir(f"{folder}/fd")
    threads = os.listdir(f"{folder}/task") if not opened else []
    for thread in threads if len(threads) > 1 else []:
        if opened := os.listdir(f"{folder}/task/{thread}/fd"):
            return f"{folder}/task/{thread}", opened
    return folder, opened


class Looker:
    """One look after the other."""

    def __init__(self, sys_root: str, proc_root: str, dev_root: str) -> None:
        self._drm, self._proc, self._dri = f"{sys_root}/class/drm", proc_root, f"{dev_root}/dri"

    def look(self) -> dict[str, Any]:
        """What all GPUs look like now."""
        devices = [self._device(card) for card in self._cards()]
        at_s = time.monotonic()  # of the idle times; processes take longer
        awake = [device for device in devices if not device["asleep"]]
        if awake:
            self._processes({device["pci"]: device for device in awake})
        for device in devices:
            device.pop("nodes")
        return {"at_s": at_s, "devices": devices}

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
            "idle_ms": {}, "total": None, "used": None, "clients": [], "hidden": [], "nodes": nodes,
        }  # fmt: skip
        try:
            if text(f"{folder}/power/runtime_status") == "suspended":
                return answer | {"asleep": True}
        except OSError:
            pass  # without runtime PM it is awake
        try:
            answer |= {"total": number(f"{folder}/mem_info_vram_total"), "used": number(f"{folder}/mem_info_vram_used")}
            if answer["driver"] == "amdgpu":
                answer["percent"] = number(f"{folder}/gpu_busy_percent", optional=False)
            else:
                answer["idle_ms"] = self._idle(card)
        except ValueError as error:
            answer["error"] = str(error)
        return answer

    @staticmethod
    def _idle(card: str) -> dict[str, int | None]:
        """How long each part of an Intel GPU has been idle, by its file: that of its kind of driver."""
        for pattern in IDLE:
            if paths := sorted(glob.glob(f"{glob.escape(card)}/{pattern}")):
                return {path.removeprefix(f"{card}/"): number(path, optional=False) for path in paths}
        return {}

    def _processes(self, devices: dict[str, dict[str, Any]]) -> None:
        rights = {pci: Rights(device["nodes"]) for pci, device in devices.items()}
        seen: set[tuple[str, str]] = set()
        if not self._shown():
            for device in devices.values():
                device["error"] = device["error"] or UNSHOWN
            return
        # A context that logind or seatd has opened for a compositor is open in both, and the latter's: they come last.
        last: list[int] = []
        pids = sorted((int(name) for name in os.listdir(self._proc) if name.isdecimal()), reverse=True)
        for pid in itertools.chain(pids, last):
            if pid == os.getpid():
                continue
            folder = f"{self._proc}/{pid}"
            try:
                place, opened = files_of(folder)
                if opened and pid not in last and text(f"{folder}/comm") in BROKERS:
                    last.append(pid)
                    continue
                for pci, client in self._clients(place, opened, devices, seen):
                    devices[pci]["clients"].append({"pid": pid} | client)
            except PermissionError:
                owner = who(folder)
                for pci, device in devices.items():
                    if owner is not None and owner[0] != 0 and rights[pci].may(*owner):
                        device["hidden"].append(pid)
            except GONE:
                continue

    def _shown(self) -> bool:
        """Whether /proc, if it is one, shows other users' processes: the first one is always there."""
        try:
            return not os.path.lexists(f"{self._proc}/self") or bool(text(f"{self._proc}/1/status"))
        except (*GONE, PermissionError):
            return False

    def _clients(
        self, folder: str, opened: list[str], devices: dict[str, dict[str, Any]], seen: set[tuple[str, str]]
    ) -> list[tuple[str, dict[str, Any]]]:
        """What a process has of each GPU; a context that several descriptors share is counted once.

        Raises:
            PermissionError: not all of it can be read.
        """
        found: dict[str, dict[str, Any]] = {}
        for fd in opened:
            try:
                if "/dri/" not in os.readlink(f"{folder}/fd/{fd}"):
                    continue
                fields = dict(line.split(":", 1) for line in text(f"{folder}/fdinfo/{fd}").splitlines() if ":" in line)
            except GONE:
                continue  # closed by now
            known = {key.strip(): value.strip() for key, value in fields.items() if key.startswith("drm-")}
            pci = known.get("drm-pdev", "")
            context = (pci, known.get("drm-client-id", f"{folder}/{fd}"))
            if pci not in devices or context in seen:
                continue
            seen.add(context)
            own: dict[str, dict[str, int]] = {}
            for key, value in known.items():
                if told := OWN_MEMORY.fullmatch(key):
                    own.setdefault(told[2], {})[told[1]] = size(value)
            used = any(size(v) > 0 for k, v in known.items() if ANY_MEMORY.fullmatch(k) or WORK.fullmatch(k))
            there = found.setdefault(pci, {"used": 0, "busy": False})
            there["used"] += sum(next(region[how] for how in TOLD if how in region) for region in own.values())
            there["busy"] = there["busy"] or used
        return list(found.items())


def replies(sys_root: str, proc_root: str, dev_root: str) -> helper_main.Replies:
    """The functions by request; see helper_main."""
    return {"look": Looker(sys_root, proc_root, dev_root).look}
