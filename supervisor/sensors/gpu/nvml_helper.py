"""Calls NVML for the daemon, in a process that can be abandoned: a driver call can hang in the kernel.

A stuck thread would keep the daemon from restarting, and an open NVML handle keeps a laptop's GPU awake; the end of this
process closes every handle.

The answer to `look` is `{"library": bool, "driver": str, "error": str, "devices": [...]}`. With `error` nothing is known of
any GPU; `library` is false if libnvidia-ml.so.1 does not load. A device has `uuid, name, minor, pci, percent, total, used,
reserved, temperature_c, throttled, xids, mig, processes [{pid, kind, used, percent}], error`. Sizes are bytes; `total` is null
for a GPU without memory of its own; `pci` is its address as in sysfs; kind is `c` (compute), `g` (graphics) or `cg`. A
process's `percent` is how busy it kept the GPU lately, null where the driver does not report it. `throttled` names what lowers
the clocks. `xids` are the numbers of the faults that the driver reported since this process subscribed, the newest last. With
`error` the device's other fields prove nothing.

`release` lets the driver go between looks; its answer is `{"released": bool}`.
"""

from __future__ import annotations

import _ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pynvml as nvml

if TYPE_CHECKING:
    from supervisor.linux.helper_main import Replies

# What the driver's codes mean to the machine's owner; other codes keep NVML's own text.
ERRORS: Final[dict[int, str]] = {
    3: "not supported by this GPU or driver",
    4: "no permission to ask the NVIDIA driver: look at the access rights of /dev/nvidia*",
    9: "the NVIDIA driver is not loaded: load or install it (`nvidia-smi` shows the state)",
    10: "the NVIDIA driver timed out",
    12: "libnvidia-ml.so.1 does not load",
    13: "the NVIDIA driver is too old for this call",
    15: "the GPU is lost, it has fallen off the bus or must be reset: reboot",
    16: "the GPU must be reset before it can be used",
    17: "the operating system blocked the NVIDIA driver",
    18: "NVIDIA driver and library are of different versions (an update was installed): reboot",
    999: "the NVIDIA driver reports an unknown error",
}

# The reasons for lower clocks that matter: not idleness, and not a configured limit.
THROTTLES: Final[dict[int, str]] = {
    nvml.nvmlClocksEventReasonSwPowerCap: "power cap",
    nvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    nvml.nvmlClocksEventReasonSwThermalSlowdown: "heat",
    nvml.nvmlClocksEventReasonHwThermalSlowdown: "heat (hardware)",
    nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
}
MAX_EVENTS: Final = 16  # of one device in one look


def error_text(error: nvml.NVMLError) -> str:
    """An NVML error on one line, with its number."""
    code = int(error.value)
    return f"{ERRORS.get(code) or str(error)} (NVML error {code})"


def optional(call: Callable[..., Any], *arguments: Any) -> Any:
    """The call's result, or None if this GPU or driver does not support it."""
    try:
        return call(*arguments)
    except nvml.NVMLError:
        return None


def memory(handle: Any) -> dict[str, int | None]:
    """VRAM in bytes. The call's second form reports what the driver reserves; the first form includes it in `used`. A GPU that
    uses the system's memory supports neither form, or reports nothing at all."""
    try:
        info, reserved = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2), True
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported, nvml.NVMLError_ArgumentVersionMismatch):
        try:
            info, reserved = nvml.nvmlDeviceGetMemoryInfo(handle), False
        except nvml.NVMLError_NotSupported:
            return {"total": None, "used": 0, "reserved": None}
    if not info.total and not info.used:
        return {"total": None, "used": 0, "reserved": None}
    return {"total": int(info.total), "used": int(info.used), "reserved": int(info.reserved) if reserved else None}


def address(handle: Any) -> str:
    """Its PCI address as in sysfs, which has four digits of the domain where NVML has eight; empty if it has none."""
    info = optional(nvml.nvmlDeviceGetPciInfo, handle)
    text = "" if info is None else str(info.busId.decode() if isinstance(info.busId, bytes) else info.busId).lower()
    return text[4:] if len(text) == len("00000000:01:00.0") and text.startswith("0000") else text


def processes(handle: Any) -> list[dict[str, Any]]:
    """Each process with a context, once: games are only in the graphics list, CUDA processes only in the compute list."""
    found: dict[int, dict[str, Any]] = {}
    for kind, call in (
        ("c", nvml.nvmlDeviceGetComputeRunningProcesses),
        ("g", nvml.nvmlDeviceGetGraphicsRunningProcesses),
    ):
        for process in call(handle):
            known = found.setdefault(int(process.pid), {"pid": int(process.pid), "kind": "", "used": None})
            known["kind"] += kind if kind not in known["kind"] else ""
            if process.usedGpuMemory is not None:  # both lists report the process's whole use
                known["used"] = max(known["used"] or 0, int(process.usedGpuMemory))
    return list(found.values())


class Utilisation:
    """How busy each process has kept a device since the last look."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def of(self, uuid: str, handle: Any) -> dict[int, int] | None:
        """Percent by pid, without processes that did nothing. None: this GPU or driver does not report it."""
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(handle, self._seen.get(uuid, 0))
        except nvml.NVMLError as error:  # the binding also raises for "success, no samples"
            return {} if error.value in (nvml.NVML_SUCCESS, nvml.NVML_ERROR_NOT_FOUND) else None
        first = uuid not in self._seen
        self._seen[uuid] = max((int(s.timeStamp) for s in samples), default=self._seen.get(uuid, 0))
        if first:  # of unknown age: the driver keeps older samples
            return None
        newest: dict[int, tuple[int, int]] = {}
        for sample in samples:
            newest[int(sample.pid)] = max(newest.get(int(sample.pid), (0, 0)), (int(sample.timeStamp), int(sample.smUtil)))
        return {pid: percent for pid, (_, percent) in newest.items()}


def throttled(handle: Any) -> list[str]:
    """What lowers the clocks, as text; nothing if this driver does not report it."""
    reasons = optional(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:
        reasons = optional(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return [reason for bit, reason in THROTTLES.items() if (reasons or 0) & bit]


class Faults:
    """The driver's reports of faults (Xid), one event set per device."""

    def __init__(self) -> None:
        self._sets: dict[str, Any] = {}
        self._numbers: dict[str, list[int]] = {}

    def of(self, uuid: str, handle: Any) -> list[int]:
        """The numbers of the device's faults so far, each once, the newest last."""
        if uuid not in self._sets:
            self._sets[uuid] = self._subscribe(handle)
        events, numbers = self._sets[uuid], self._numbers.setdefault(uuid, [])
        for _ in range(MAX_EVENTS if events is not None else 0):
            try:
                event = nvml.nvmlEventSetWait_v2(events, 0)
            except nvml.NVMLError:  # a timeout: there are no more
                break
            if event.eventType == nvml.nvmlEventTypeXidCriticalError and int(event.eventData) not in numbers:
                numbers.append(int(event.eventData))
        return list(numbers)

    @staticmethod
    def _subscribe(handle: Any) -> Any:
        try:
            events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError:
            return None
        return events


def device(index: int, faults: Faults, utilisation: Utilisation) -> dict[str, Any]:
    answer: dict[str, Any] = {"uuid": "", "error": ""}
    what = "cannot be opened"
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        what = "its UUID cannot be read"
        answer["uuid"] = str(nvml.nvmlDeviceGetUUID(handle))
        answer["name"] = str(optional(nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU")
        answer["minor"], answer["pci"] = optional(nvml.nvmlDeviceGetMinorNumber, handle), address(handle)
        mode = optional(nvml.nvmlDeviceGetMigMode, handle)
        answer["mig"] = bool(mode and mode[0])
        answer["temperature_c"] = optional(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        answer["throttled"] = throttled(handle)
        answer["xids"] = faults.of(answer["uuid"], handle)
        what = "its memory cannot be read"
        answer |= memory(handle)
        what = "its processes cannot be listed"
        answer["processes"] = processes(handle)
        if (busy := utilisation.of(answer["uuid"], handle)) is not None:
            for process in answer["processes"]:
                process["percent"] = busy.get(process["pid"], 0)
        what = "its utilisation cannot be read" + (" while MIG is on" if answer["mig"] else "")
        answer["percent"] = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError as error:
        answer["error"] = f"{what}: {error_text(error)}"
    return answer


class Reader:
    """NVML, initialised at the first look and again after each failure."""

    def __init__(self) -> None:
        self._driver: str | None = None
        self._faults, self._utilisation = Faults(), Utilisation()

    def look(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"library": True, "driver": "", "error": "", "devices": []}
        try:
            if self._driver is None:
                nvml.nvmlInit()
                self._faults, self._utilisation = Faults(), Utilisation()
                self._driver = str(optional(nvml.nvmlSystemGetDriverVersion) or "")
            answer["driver"] = self._driver
            answer["devices"] = [
                device(index, self._faults, self._utilisation) for index in range(nvml.nvmlDeviceGetCount())
            ]
        except nvml.NVMLError_LibraryNotFound as error:
            answer |= {"library": False, "error": error_text(error)}
        except nvml.NVMLError as error:
            self._driver = None
            answer["error"] = error_text(error)
        return answer

    def release(self) -> dict[str, Any]:
        """Let go of the driver and unload NVML, until the next look. `released` false: it is still in this process."""
        self._faults, self._utilisation = Faults(), Utilisation()
        optional(nvml.nvmlShutdown)  # frees the event sets too
        self._driver = None
        library, nvml.nvmlLib = nvml.nvmlLib, None
        nvml._nvmlGetFunctionPointer_cache.clear()  # of the library that goes
        if library is not None:
            _ctypes.dlclose(library._handle)
        return {"released": b"libnvidia-ml" not in _maps()}


def _maps() -> bytes:
    with open("/proc/self/maps", "rb") as file:
        return file.read()


def replies() -> Replies:
    """The functions by request; see helper_main."""
    reader = Reader()
    return {"look": reader.look, "release": reader.release}
