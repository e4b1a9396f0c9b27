"""The doctor's cross-checks: `loginctl` and `nvidia-smi` beside the node's own sensors.

The tools are never a source: the node asks logind and the driver itself. Where both look at the same thing and differ,
one of them is wrong, and the check says which values differ. A missing tool is no fault; one that hangs is left behind.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from supervisor.sensors.presence.session_policy import Session
from supervisor.tools.doctor.external import first_line, run
from supervisor.tools.doctor.report import GPU, PERSON, Check

LOGINCTL_S: Final = 5.0
NVIDIA_SMI_S: Final = 15.0  # without persistence the driver is loaded for each question
AGAIN_S: Final = 0.5  # after a difference both are asked once more: something may have changed between the looks
NEAR_PERCENT: Final = 50.0  # two samples of a moment's load
NEAR_GIB: Final = 0.5  # nvidia-smi counts what the driver reserves elsewhere
NEAR_C: Final = 10.0

# loginctl's properties, and the node's own reading in the same form.
SESSION: Final[Mapping[str, Callable[[Session], str]]] = {
    "Name": lambda s: s.user,
    "Type": lambda s: s.type,
    "Class": lambda s: s.kind,
    "State": lambda s: s.state,
    "Active": lambda s: _flag(s.active),
    "Remote": lambda s: _flag(s.remote),
    "IdleHint": lambda s: _flag(s.idle),
    "LockedHint": lambda s: _flag(s.locked),
}


def _flag(value: bool) -> str:
    return "yes" if value else "no"


async def loginctl(known: Callable[[], Sequence[Session]], error: Callable[[], str]) -> Check:
    """`loginctl` sees the same sessions as the node. `known`: those of its last look; `error`: why it has none."""
    name, fix = "loginctl", "run `systemctl restart systemd-logind`; if they still differ, report it as a fault"
    if shutil.which("loginctl") is None:
        return Check(name, PERSON, None, "loginctl is not installed")
    for last in (False, True):
        theirs, trouble = await _loginctl()
        if trouble:
            return Check(name, PERSON, None, f"loginctl gives no answer: {trouble}")
        if own := error():
            reason = f"it sees {_count(theirs, 'session')}, the node sees none: {own}"
            return Check(name, PERSON, False, reason, "see the line of presence: logind")
        differ = sessions_differ(theirs, known())
        if not differ or last:
            break
        await asyncio.sleep(AGAIN_S)
    return Check.of(name, PERSON, "; ".join(differ), f"sees {_count(theirs, 'session')}, the same as the node", fix)


def _count(found: Mapping[str, object], what: str) -> str:
    return {0: f"no {what}", 1: f"1 {what}"}.get(len(found), f"{len(found)} {what}s")


async def _loginctl() -> tuple[dict[str, dict[str, str]], str]:
    """Sessions by id with their properties; or why there is no answer."""
    code, out, err = await run("loginctl", "--no-legend", "--no-pager", "list-sessions", timeout_s=LOGINCTL_S)
    if code:
        return {}, first_line(err, code)
    ids = [line.split()[0] for line in out.splitlines() if line.split()]
    if not ids:
        return {}, ""
    wanted = [f"--property={name}" for name in ("Id", *SESSION)]
    code, out, err = await run("loginctl", "--no-pager", "show-session", *wanted, *ids, timeout_s=LOGINCTL_S)
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in out.split("\n\n")]
    found = {block["Id"]: block for block in blocks if "Id" in block}
    return found, "" if found or not code else first_line(err, code)


def _seen_by_one(tool: str, theirs: Mapping[str, object], ours: Mapping[str, object], what: str = "") -> list[str]:
    lines = [f"{what}{name}: {tool} sees it, the node does not" for name in sorted(theirs.keys() - ours.keys())]
    return lines + [f"{what}{name}: the node sees it, {tool} does not" for name in sorted(ours.keys() - theirs.keys())]


def sessions_differ(theirs: Mapping[str, Mapping[str, str]], known: Sequence[Session]) -> list[str]:
    """The differences between loginctl and the node, a line each."""
    ours = {session.id: session for session in known}
    lines = _seen_by_one("loginctl", theirs, ours, "session ")
    for number in sorted(theirs.keys() & ours.keys()):
        for name, read in SESSION.items():
            value, own = theirs[number].get(name), read(ours[number])
            if value is not None and value != own:
                lines.append(f"session {number}: {name} is {value} by loginctl, {own} by the node")
    return lines


async def nvidia_smi(look: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]) -> Check:
    """`nvidia-smi` sees the same GPUs, loads and processes as the node. `look`: the node's own rows, made now."""
    name, fix = "nvidia-smi", "reboot if the driver was just upgraded; if they still differ, report it as a fault"
    if shutil.which("nvidia-smi") is None:
        return Check(name, GPU, None, "nvidia-smi is not installed")
    for last in (False, True):
        rows = [row for row in await look() if str(row.get("driver", "")) and row.get("uuid")]
        if not rows and (asleep := [row for row in await look() if row.get("power") == "suspended"]):
            return Check(name, GPU, None, f"{asleep[0].get('pci')} is asleep, and asking would wake it")
        theirs, trouble = await _nvidia_smi()
        if trouble:
            return Check(name, GPU, False if rows else None, f"nvidia-smi gives no answer: {trouble}", fix)
        differ = gpus_differ(theirs, rows)
        if not differ or last:
            break
    right = f"sees {_count(theirs, 'GPU')} with load and processes, the same as the node"
    return Check.of(name, GPU, "; ".join(differ), right, fix)


async def _nvidia_smi() -> tuple[dict[str, dict[str, Any]], str]:
    """GPUs by UUID: percent, used_gb, temperature_c (None: not available), pids; or why there is no answer."""
    ask = ("nvidia-smi", "--format=csv,noheader,nounits")
    code, out, err = await run(
        *ask, "--query-gpu=uuid,utilization.gpu,memory.used,temperature.gpu", timeout_s=NVIDIA_SMI_S
    )
    if code:
        return {}, first_line(err or out, code)
    found: dict[str, dict[str, Any]] = {}
    for line in out.splitlines():
        uuid, *values = (part.strip() for part in line.split(","))
        if uuid.startswith(("GPU-", "MIG-")) and len(values) == 3:
            percent, used_mib, temperature_c = map(_number, values)
            used_gb = None if used_mib is None else used_mib / 1024
            found[uuid] = {"percent": percent, "used_gb": used_gb, "temperature_c": temperature_c, "pids": set()}
    code, out, _ = await run(*ask, "--query-compute-apps=gpu_uuid,pid", timeout_s=NVIDIA_SMI_S)
    for line in out.splitlines() if code == 0 else ():
        uuid, _, pid = (part.strip() for part in line.partition(","))
        if uuid in found and pid.isdecimal():
            found[uuid]["pids"].add(int(pid))
    return found, ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # [N/A], [Not Supported]


def gpus_differ(theirs: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The differences between nvidia-smi and the node, a line each. A value that one of them lacks is no difference."""
    ours = {str(row["uuid"]): row for row in rows}
    lines = _seen_by_one("nvidia-smi", theirs, ours)
    near = (("percent", "%", NEAR_PERCENT), ("used_gb", "GiB", NEAR_GIB), ("temperature_c", "°C", NEAR_C))
    for uuid in sorted(theirs.keys() & ours.keys()):
        for name, unit, within in near:
            value, own = theirs[uuid].get(name), ours[uuid].get(name)
            if value is not None and own is not None and abs(value - own) > within:
                lines.append(f"{uuid}: {value:.1f} {unit} by nvidia-smi, {own:.1f} {unit} by the node")
        hidden = theirs[uuid].get("pids", set()) - {process["pid"] for process in ours[uuid].get("processes", ())}
        lines += [f"{uuid}: nvidia-smi sees process {pid}, the node does not" for pid in sorted(hidden)]
    return lines
