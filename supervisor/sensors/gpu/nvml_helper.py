"""Holds NVML for the daemon, in a process that may be left behind: a driver call can hang in the kernel (R12).

A stuck thread would keep the daemon from being restarted, and an open NVML handle keeps a laptop's GPU awake; the end
of this process closes every handle. How it is started, and ends: `answering`.

The answer to `look` is `{"library": bool, "driver": str, "error": str, "devices": [...]}`. `error` (in words) says that nothing
can be said of any GPU; `library` is false when libnvidia-ml.so.1 does not load. A device has `uuid, name, percent,
total, used, reserved, temperature_c, throttled, xids, mig, processes [{pid, kind, used, percent}], error`: sizes in bytes,
kind `c` (compute), `g` (graphics) or `cg`, a process's `percent` how busy it has kept the GPU of late, null where the
driver does not say; `throttled` says in words what holds its clocks down, `xids` are the numbers of the faults that the
driver has reported since this process asked it to, the newest last; the kernel's log is not read. With `error` the
device's other fields prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pynvml as nvml

from supervisor.linux import helper_main

# What the driver's codes mean to the machine's owner; other codes keep NVML's own words.
WORDS: Final[dict[int, str]] = {
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

# What holds the clocks down, where that is of interest: not idleness, and not what somebody has set.
THROTTLES: Final[dict[int, str]] = {
    nvml.nvmlClocksEventReasonSwPowerCap: "power cap",
    nvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    nvml.nvmlClocksEventReasonSwThermalSlowdown: "heat",
    nvml.nvmlClocksEventReasonHwThermalSlowdown: "heat (hardware)",
    nvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake",
}
EVENTS: Final = 16  # faults taken from a device at one look


def words(error: nvml.NVMLError) -> str:
    """An NVML error in one line, with its number."""
    code = int(error.value)
    return f"{WORDS.get(code) or str(error)} (NVML error {code})"


def optional(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call says, or None where this GPU or driver cannot."""
    try:
        return call(*arguments)
    except nvml.NVMLError:
        return None


def memory(handle: Any) -> dict[str, int | None]:
    """VRAM in bytes. The call's second form tells what the driver itself reserves; in the first it is in `used`."""
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported, nvml.NVMLError_ArgumentVersionMismatch):
        info = nvml.nvmlDeviceGetMemoryInfo(handle)
        return {"total": int(info.total), "used": int(info.used), "reserved": None}
    return {"total": int(info.total), "used": int(info.used), "reserved": int(info.reserved)}


def processes(handle: Any) -> list[dict[str, Any]]:
    """Every process with a context, once: games are in the graphics list only, CUDA in the compute list only."""
    found: dict[int, dict[str, Any]] = {}
    for kind, call in (
        ("c", nvml.nvmlDeviceGetComputeRunningProcesses),
        ("g", nvml.nvmlDeviceGetGraphicsRunningProcesses),
    ):
        for process in call(handle):
            known = found.setdefault(int(process.pid), {"pid": int(process.pid), "kind": "", "used": None})
            known["kind"] += kind if kind not in known["kind"] else ""
            if process.usedGpuMemory is not None:  # both lists tell the process's whole use: not to be added up
                known["used"] = max(known["used"] or 0, int(process.usedGpuMemory))
    return list(found.values())


class Utilisation:
    """How busy each process has kept a device since the last look."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def of(self, uuid: str, handle: Any) -> dict[int, int] | None:
        """Percent by pid; a process that did nothing is not in it. None: this GPU or driver does not tell."""
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(handle, self._seen.get(uuid, 0))
        except nvml.NVMLError as error:  # the binding takes "done, there is nothing" for an error, too
            return {} if error.value in (nvml.NVML_SUCCESS, nvml.NVML_ERROR_NOT_FOUND) else None
        first = uuid not in self._seen
        self._seen[uuid] = max((int(s.timeStamp) for s in samples), default=self._seen.get(uuid, 0))
        if first:  # of unknown age: the driver keeps some from before
            return None
        newest: dict[int, tuple[int, int]] = {}
        for sample in samples:
            newest[int(sample.pid)] = max(newest.get(int(sample.pid), (0, 0)), (int(sample.timeStamp), int(sample.smUtil)))
        return {pid: percent for pid, (_, percent) in newest.items()}


def throttled(handle: Any) -> list[str]:
    """What holds the clocks down, in words; nothing where this driver cannot say."""
    reasons = optional(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:
        reasons = optional(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return [said for bit, said in THROTTLES.items() if (reasons or 0) & bit]


class Faults:
    """The driver's own reports of faults (Xid), one event set a device."""

    def __init__(self) -> None:
        self._sets: dict[str, Any] = {}
        self._told: dict[str, list[int]] = {}

    def told(self, uuid: str, handle: Any) -> list[int]:
        """The numbers of the device's faults so far, each once, the last new one last; none where this driver reports none."""
        if uuid not in self._sets:
            self._sets[uuid] = self._subscribe(handle)
        events, told = self._sets[uuid], self._told.setdefault(uuid, [])
        for _ in range(EVENTS if events is not None else 0):
            try:
                event = nvml.nvmlEventSetWait_v2(events, 0)
            except nvml.NVMLError:  # a timeout: no more of them
                break
            if event.eventType == nvml.nvmlEventTypeXidCriticalError and int(event.eventData) not in told:
                told.append(int(event.eventData))
        return list(told)

    @staticmethod
    def _subscribe(handle: Any) -> Any:
        try:
            events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
        except nvml.NVMLError:
            return None
        return events


def device(index: int, faults: Faults, utilisation: Utilisation) -> dict[str, Any]:
    """One GPU as it is now."""
    answer: dict[str, Any] = {"uuid": "", "error": ""}
    what = "cannot be opened"
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        what = "its UUID cannot be read"
        answer["uuid"] = str(nvml.nvmlDeviceGetUUID(handle))
        answer["name"] = str(optional(nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU")
        mode = optional(nvml.nvmlDeviceGetMigMode, handle)
        answer["mig"] = bool(mode and mode[0])
        answer["temperature_c"] = optional(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        answer["throttled"] = throttled(handle)
        answer["xids"] = faults.told(answer["uuid"], handle)
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
        answer["error"] = f"{what}: {words(error)}"
    return answer


class Looker:
    """NVML, initialised at the first look and again after each failure."""

    def __init__(self) -> None:
        self._driver: str | None = None
        self._faults, self._utilisation = Faults(), Utilisation()

    def look(self) -> dict[str, Any]:
        """What all GPUs look like now."""
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
            answer |= {"library": False, "error": words(error)}
        except nvml.NVMLError as error:
            self._driver = None
            answer["error"] = words(error)
        return answer


def replies() -> helper_main.Replies:
    """The functions by request; see helper_main."""
    return {"look": Looker().look}
