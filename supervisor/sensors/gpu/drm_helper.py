"""Reads AMD and Intel GPUs for the daemon, in a process that can be abandoned: a driver can hang during a read.

It reads sysfs and the DRM part of /proc/PID/fdinfo, nothing else. The answer to `look` is `{"at_s": float, "devices": [...]}`;
`at_s` is of CLOCK_MONOTONIC. A device has `pci, driver, asleep, error, percent, idle_ms, total, used, clients
[{pid, kind, used, busy, engine_ns}], hidden [pid]`. Nothing else is read of a GPU that is asleep, so that it stays so.
`percent` is amdgpu's own; Intel's drivers report instead for how many milliseconds each part has been idle since boot. Sizes
are bytes, null where the driver reports none; an `error` is a file that exists and cannot be read. A client's `used` is its
part of the GPU's own memory; `busy` is whether it holds or has done anything; `engine_ns` is for how long it has kept the GPU
busy so far, null where its driver does not count that; `kind` is `c` where it is in the kernel's own list of compute processes
(KFD), which everybody may read. `hidden` are processes that have the right to open the GPU, and that may not be looked into:
another user's, or protected. That they have it open is not known. Root's own are left out; process 1 stands for all that a
/proc mounted with hidepid does not even list.
"""

from __future__ import annotations

import errno
import glob
import itertools
import os
import re
import struct
import time
from typing import TYPE_CHECKING, Any, Final

from supervisor.linux.small_files import read_small
from supervisor.sensors.gpu.pci_gpus import PciGpus, asleep, driver, is_drm

if TYPE_CHECKING:
    from supervisor.linux.helper_main import Replies

# Below the device's folder: what i915, xe and old i915 report.
IDLE: Final = ("drm/card*/gt/gt*/rc6_residency_ms", "tile*/gt*/gtidle/idle_residency_ms", "drm/card*/power/rc6_residency_ms")
# What is in a memory region; the older key for it; and a key that includes what was moved out.
SIZES: Final = ("resident", "memory", "total")
OWN_MEMORY: Final = re.compile(r"drm-(resident|memory|total)-((?:vram|local)[0-9]*)")
ANY_MEMORY: Final = re.compile(r"drm-(?:resident|memory|total)-(?!cycles-).+")
WORK: Final = re.compile(r"drm-(?:engine|cycles)-(?!capacity-).+")
BUSY_NS: Final = re.compile(r"drm-engine-(?!capacity-).+")
TIME: Final = re.compile(r"[0-9]+ ns")
UNITS: Final = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
ACL_USER, ACL_GROUP = 0x02, 0x08
NO_ACL: Final = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOENT)
BROKERS: Final = ("systemd-logind", "elogind-daemon", "seatd")  # they open devices for others
GONE: Final = (FileNotFoundError, ProcessLookupError)


def text(path: str) -> str:
    """A small file's text, stripped.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(1 << 16).strip()


def fields(path: str) -> dict[str, str]:
    """The `key: value` lines of a file. Raises OSError if it cannot be read."""
    pairs = (line.split(":", 1) for line in text(path).splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def number(path: str, *, optional: bool = True) -> int | None:
    """The number in a file; None: there is no such file.

    Raises:
        ValueError: it cannot be read, or holds no number.
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
    """A number with its unit, as in fdinfo: `1024 KiB`; 0 if it is none."""
    amount, _, unit = value.strip().partition(" ")
    return int(amount) * UNITS.get(unit.strip().upper(), 1) if amount.isdecimal() else 0


class Rights:
    """Who may open a device's nodes, by mode and access list."""

    def __init__(self, nodes: list[str]) -> None:
        self._everybody = not nodes
        self._users: set[int] = set()
        self._groups: set[int] = set()
        for node in nodes:
            try:
                st = os.stat(node)
            except OSError:  # not in our /dev: its rights are unknown, so anybody may
                self._everybody = True
                continue
            self._everybody = self._everybody or bool(st.st_mode & 0o006)
            self._users.add(st.st_uid)
            if st.st_mode & 0o060:
                self._groups.add(st.st_gid)
            self._read_acl(node)

    def _read_acl(self, node: str) -> None:
        try:
            acl = os.getxattr(node, "system.posix_acl_access")
        except OSError as error:
            self._everybody = self._everybody or error.errno not in NO_ACL
            return
        for tag, bits, who in struct.iter_unpack("<HHI", acl[4 : len(acl) - (len(acl) - 4) % 8]):
            if bits & 6 and tag in (ACL_USER, ACL_GROUP):
                (self._users if tag == ACL_USER else self._groups).add(who)

    def allow(self, uid: int, groups: set[int]) -> bool:
        """Whether such a process may open one of them."""
        return self._everybody or uid in self._users or bool(groups & self._groups)


def owner_of(folder: str) -> tuple[int, set[int]] | None:
    """A process's effective uid and all its groups; None: it has ended, also if it is not reaped yet."""
    try:
        status = fields(f"{folder}/status")
        if status.get("State", "").startswith("Z") and status.get("Threads") == "1":
            return None
        groups = {int(status["Gid"].split()[1]), *map(int, status.get("Groups", "").split())}
        return int(status["Uid"].split()[1]), groups
    except (*GONE, KeyError, ValueError, IndexError):
        return None


def files_of(folder: str) -> tuple[str, list[str]]:
    """The folder with a process's `fd` and `fdinfo`, and the descriptors: another thread's, if the first thread has ended."""
    opened = os.listdir(f"{folder}/fd")
    threads = os.listdir(f"{folder}/task") if not opened else []
    for thread in threads if len(threads) > 1 else []:
        if opened := os.listdir(f"{folder}/task/{thread}/fd"):
            return f"{folder}/task/{thread}", opened
    return folder, opened


class Reader:
    """Reads all GPUs, again for each request."""

    def __init__(self, sys_root: str, proc_root: str, dev_root: str) -> None:
        self._pci, self._proc, self._dri = PciGpus(sys_root, is_drm), proc_root, f"{dev_root}/dri"
        self._kfd = f"{sys_root}/class/kfd/kfd"

    def look(self) -> dict[str, Any]:
        folders = self._pci.present()
        devices = {pci: self._device(pci, folder) for pci, folder in folders.items()}
        at_s = time.monotonic()  # when the idle times were read; processes take longer
        awake = {pci: device for pci, device in devices.items() if not device["asleep"]}
        if awake:
            self._read_processes(awake, {pci: Rights(self._nodes(folders[pci])) for pci in awake})
        return {"at_s": at_s, "devices": list(devices.values())}

    def _nodes(self, folder: str) -> list[str]:
        try:
            return [f"{self._dri}/{name}" for name in os.listdir(f"{folder}/drm")]
        except OSError:
            return []

    def _device(self, pci: str, folder: str) -> dict[str, Any]:
        answer: dict[str, Any] = {
            "pci": pci, "driver": driver(folder), "asleep": asleep(folder),
            "error": "", "percent": None, "idle_ms": {}, "total": None, "used": None, "clients": [], "hidden": [],
        }  # fmt: skip
        if answer["asleep"]:
            return answer
        try:
            answer |= {"total": number(f"{folder}/mem_info_vram_total"), "used": number(f"{folder}/mem_info_vram_used")}
            if answer["driver"] == "amdgpu":
                answer["percent"] = number(f"{folder}/gpu_busy_percent", optional=False)
            else:
                answer["idle_ms"] = self._idle(folder)
        except ValueError as error:
            answer["error"] = str(error)
        return answer

    @staticmethod
    def _idle(folder: str) -> dict[str, int | None]:
        """How long each part of an Intel GPU has been idle, by its file, which depends on the driver."""
        for pattern in IDLE:
            if paths := sorted(glob.glob(f"{glob.escape(folder)}/{pattern}")):
                return {path.removeprefix(f"{folder}/"): number(path, optional=False) for path in paths}
        return {}

    def _read_processes(self, devices: dict[str, dict[str, Any]], rights: dict[str, Rights]) -> None:
        if self._proc_hides():
            for device in devices.values():
                device["hidden"].append(1)
        seen: set[tuple[str, str]] = set()
        # A context that logind or seatd has opened for a compositor is open in both, and the compositor's: brokers come last.
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
                for pci, client in self._clients(place, opened, devices, seen).items():
                    devices[pci]["clients"].append({"pid": pid} | client)
            except PermissionError:
                owner = owner_of(folder)
                for pci, device in devices.items():
                    if owner is not None and owner[0] != 0 and rights[pci].allow(*owner):
                        device["hidden"].append(pid)
            except GONE:
                continue
        self._add_compute(devices)

    def _add_compute(self, devices: dict[str, dict[str, Any]]) -> None:
        """The kernel's list of compute processes, for AMD's."""
        gpus = {}
        for node in glob.glob(f"{glob.escape(self._kfd)}/topology/nodes/*"):
            known = dict(line.split(" ", 1) for line in read_small(f"{node}/properties").splitlines() if " " in line)
            place, domain = int(known.get("location_id", "0")), int(known.get("domain", "0"))
            pci = f"{domain:04x}:{place >> 8:02x}:{place >> 3 & 31:02x}.{place & 7}"
            gpus[read_small(f"{node}/gpu_id")] = devices.get(pci)
        for path in glob.glob(f"{glob.escape(self._kfd)}/proc/*/vram_*"):
            pid, held = path.split("/")[-2].partition("_")[0], read_small(path)
            device = gpus.get(path.rpartition("_")[2])
            if device is None or not pid.isdecimal():
                continue
            client = next((c for c in device["clients"] if c["pid"] == int(pid)), None)
            if client is None:
                client = {"pid": int(pid), "used": 0, "engine_ns": None}
                device["clients"].append(client)
            size_now = int(held) if held.isdecimal() else 0
            client |= {"kind": "c", "busy": True, "used": max(client["used"], size_now)}

    def _proc_hides(self) -> bool:
        """Whether /proc, if it is a real one, hides other users' processes: process 1 always exists."""
        return os.path.lexists(f"{self._proc}/self") and not read_small(f"{self._proc}/1/status")

    def _clients(
        self, folder: str, opened: list[str], devices: dict[str, dict[str, Any]], seen: set[tuple[str, str]]
    ) -> dict[str, dict[str, Any]]:
        """What a process has of each GPU. A context that several descriptors share counts once.

        Raises:
            PermissionError: not all of it can be read.
        """
        found: dict[str, dict[str, Any]] = {}
        for fd in opened:
            try:
                if "/dri/" not in os.readlink(f"{folder}/fd/{fd}"):
                    continue
                known = fields(f"{folder}/fdinfo/{fd}")
            except GONE:
                continue  # closed by now
            pci = known.get("drm-pdev", "")
            context = (pci, known.get("drm-client-id", f"{folder}/{fd}"))
            if pci not in devices or context in seen:
                continue
            seen.add(context)
            regions: dict[str, dict[str, int]] = {}
            for key, value in known.items():
                if match := OWN_MEMORY.fullmatch(key):
                    regions.setdefault(match[2], {})[match[1]] = size(value)
            busy = any(size(v) > 0 for k, v in known.items() if ANY_MEMORY.fullmatch(k) or WORK.fullmatch(k))
            client = found.setdefault(pci, {"used": 0, "busy": False, "engine_ns": None})
            spent = [int(v.split()[0]) for k, v in known.items() if BUSY_NS.fullmatch(k) and TIME.fullmatch(v)]
            if spent:
                client["engine_ns"] = (client["engine_ns"] or 0) + sum(spent)
            client["used"] += sum(next(region[kind] for kind in SIZES if kind in region) for region in regions.values())
            client["busy"] = client["busy"] or busy
        return found


def replies(sys_root: str, proc_root: str, dev_root: str) -> Replies:
    """The functions by request; see helper_main."""
    return {"look": Reader(sys_root, proc_root, dev_root).look}
