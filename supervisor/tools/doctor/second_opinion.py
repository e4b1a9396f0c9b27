"""The doctor's cross-checks: what `loginctl` (R9) and `nvidia-smi` (R10) say, beside what the node's own sensors say.

They are never a source: the node asks logind and the driver itself. Where both look at the same thing and say something
else, one of them is wrong, and the check says which values differ. A missing tool is no fault, and one that hangs is left.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from supervisor.sensors.presence.session_policy import Session
from supervisor.tools.doctor.doctor import run
from supervisor.tools.doctor.report import GPU, PERSON, Check

LOGINCTL_S: Final = 5.0
NVIDIA_SMI_S: Final = 15.0  # without persistence the driver is loaded for each question
AGAIN_S: Final = 0.5  # what changed between two looks is asked once more
NEAR_PERCENT: Final = 50.0  # two samples of a moment's load
NEAR_GIB: Final = 0.5  # nvidia-smi counts what the driver reserves elsewhere
NEAR_C: Final = 10.0

# loginctl's properties, and how the node's own reading of them is written there.
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
    """`loginctl` sees the very sessions that the node sees. `known`: those of its last look; `error`: why it has none."""
    name, mend = "loginctl", "run `systemctl restart systemd-logind`; if they still differ, report it as a fault"
    if shutil.which("loginctl") is None:
        return Check(name, PERSON, None, "loginctl is not installed")
    for last in (False, True):
        said, trouble = await _loginctl()
        if trouble:
            return Check(name, PERSON, None, f"loginctl cannot tell: {trouble}")
        if own := error():
            reason = f"it sees {_count(said)}, the node cannot see any: {own}"
            return Check(name, PERSON, False, reason, "see the line of presence: logind")
        differ = sessions_differ(said, known())
        if not differ or last:
            break
        await asyncio.sleep(AGAIN_S)
    return Check(name, PERSON, not differ, "; ".join(differ) or f"sees {_count(said)}, the same as the node", mend)


def _count(sessions: Mapping[str, object]) -> str:
    return {0: "no session", 1: "1 session"}.get(len(sessions), f"{len(sessions)} sessions")


async def _loginctl() -> tuple[dict[str, dict[str, str]], str]:
    """Sessions by id with their properties; or why there is no answer."""
    code, out, err = await run("loginctl", "--no-legend", "--no-pager", "list-sessions", timeout_s=LOGINCTL_S)
    if code:
        return {}, (err.strip().splitlines() or [f"exit {code}"])[0]
    ids = [line.split()[0] for line in out.splitlines() if line.split()]
    if not ids:
        return {}, ""
    wanted = [f"--property={name}" for name in ("Id", *SESSION)]
    code, out, err = await run("loginctl", "--no-pager", "show-session", *wanted, *ids, timeout_s=LOGINCTL_S)
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in out.split("\n\n")]
    found = {block["Id"]: block for block in blocks if "Id" in block}
    return found, "" if found or not code else (err.strip().splitlines() or [f"exit {code}"])[0]


def sessions_differ(said: Mapping[str, Mapping[str, str]], known: Sequence[Session]) -> list[str]:
    """What loginctl says otherwise than the node, a line each."""
    ours = {session.id: session for session in known}
    lines = [f"session {number}: loginctl sees it, the node does not" for number in sorted(said.keys() - ours.keys())]
    lines += [f"session {number}: the node sees it, loginctl does not" for number in sorted(ours.keys() - said.keys())]
    for number in sorted(said.keys() & ours.keys()):
        for name, read in SESSION.items():
            theirs, own = said[number].get(name), read(ours[number])
            if theirs is not None and theirs != own:
                lines.append(f"session {number}: {name} is {theirs} by loginctl, {own} by the node")
    return lines


async def nvidia_smi(look: Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]) -> Check:
    """`nvidia-smi` sees the very GPUs, loads and processes that the node sees. `look`: the node's own rows, made now."""
    name, mend = "nvidia-smi", "reboot if the driver was just upgraded; if they still differ, report it as a fault"
    if shutil.which("nvidia-smi") is None:
        return Check(name, GPU, None, "nvidia-smi is not installed")
    for last in (False, True):
        rows = [row for row in await look() if str(row.get("driver", "")) and row.get("uuid")]
        if not rows and (asleep := [row for row in await look() if row.get("power") == "suspended"]):
            return Check(name, GPU, None, f"{asleep[0].get('pci')} is asleep, and asking would wake it")
        said, trouble = await _nvidia_smi()
        if trouble:
            return Check(name, GPU, False if rows else None, f"nvidia-smi cannot tell: {trouble}", mend)
        differ = gpus_differ(said, rows)
        if not differ or last:
            break
    sees = {0: "no GPU", 1: "1 GPU"}.get(len(said), f"{len(said)} GPUs")
    return Check(name, GPU, not differ, "; ".join(differ) or f"sees {sees} with load and processes as the node does", mend)


async def _nvidia_smi() -> tuple[dict[str, dict[str, Any]], str]:
    """GPUs by UUID: percent, used_gb, temperature_c (None: not told), pids; or why there is no answer."""
    ask = ("nvidia-smi", "--format=csv,noheader,nounits")
    code, out, err = await run(
        *ask, "--query-gpu=uuid,utilization.gpu,memory.used,temperature.gpu", timeout_s=NVIDIA_SMI_S
    )
    if code:
        return {}, ((err or out).strip().splitlines() or [f"exit {code}"])[0]
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


def gpus_differ(said: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What nvidia-smi says otherwise than the node, a line each; what one of both does not tell is no difference."""
    ours = {str(row["uuid"]): row for row in rows}
    lines = [f"{uuid}: nvidia-smi sees it, the node does not" for uuid in sorted(said.keys() - ours.keys())]
    lines += [f"{uuid}: the node sees it, nvidia-smi does not" for uuid in sorted(ours.keys() - said.keys())]
    near = (("percent", "%", NEAR_PERCENT), ("used_gb", "GiB", NEAR_GIB), ("temperature_c", "°C", NEAR_C))
    for uuid in sorted(said.keys() & ours.keys()):
        for name, unit, within in near:
            theirs, own = said[uuid].get(name), ours[uuid].get(name)
            if theirs is not None and own is not None and abs(theirs - own) > within:
                lines.append(f"{uuid}: {theirs:.1f} {unit} by nvidia-smi, {own:.1f} {unit} by the node")
        hidden = said[uuid].get("pids", set()) - {process["pid"] for process in ours[uuid].get("processes", ())}
        lines += [f"{uuid}: nvidia-smi sees process {pid}, the node does not" for pid in sorted(hidden)]
    return lines
