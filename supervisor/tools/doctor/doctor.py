"""One list of live checks of an installed node, for `doctor`, `report` and `verify`.

No check changes anything. What only the service's user can see, inside the service's sandbox, is checked there: `inside`
starts a transient unit with the unit's own sandbox. Without root or systemd it comes as close to that as it can.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from supervisor import VERSION
from supervisor.config.feasibility import never_ready
from supervisor.config.load import Config, ConfigErrors, load
from supervisor.linux.clock import iso
from supervisor.linux.control_socket import DaemonDown, DaemonUnresponsive, ask
from supervisor.tools.doctor import task_units
from supervisor.tools.doctor.account import is_root, roots_equal
from supervisor.tools.doctor.external import run, sandboxed, show, unit_lines
from supervisor.tools.doctor.report import AUTOMATION, BOOT, UNATTENDED, Check
from supervisor.tools.history.dry_run import dry_run

UNIT: Final = "rae-node.service"
SESSION_UNIT: Final = Path("/etc/systemd/user/rae-node-session.service")
AGENT: Final = Path("/opt/rae-node/agent")
EXEC: Final = "/usr/bin/python3 /opt/rae-node/agent/auto_runner.py"
SCRIPTS: Final = {"auto_runner.py": "usage: ", "check_user_idle.py": "", "check_gpu_load.py": ""}
INSTALL: Final = "run `sudo make install`, or `sudo apt-get install --reinstall rae-node`"

# What the unit must be, in the form of `systemctl show`, and why.
REQUIRED: Final[Mapping[str, tuple[str, str]]] = {
    "Type": ("notify", "systemd must know whether the node works"),
    "Restart": ("always", "it must come back after a crash"),
    "RestartUSec": ("15s", "as required"),
    "StartLimitIntervalUSec": ("0", "otherwise a node that fails often stays dead"),
    "KillMode": ("mixed", "no task may survive"),
    "WatchdogSignal": ("9", "an abort would write a core"),
    "LimitCORE": ("1", "cores hold task data"),
    "NotifyAccess": ("main", "only the node itself may notify"),
    "NeedDaemonReload": ("no", "the file was changed: run systemctl daemon-reload"),
}
_PROPERTIES: Final = (
    "LoadState", "LoadError", "FragmentPath", "DropInPaths", "UnitFileState", "ActiveState", "SubState", "MainPID", "NRestarts",
    "User", "SupplementaryGroups", "ExecStart", *REQUIRED,
)


async def examine(folder: Path) -> list[Check]:
    """Every check of the node whose configuration is in `folder`."""
    checks = [program()]
    try:
        config = load(folder)
    except ConfigErrors as errors:
        fix = "fix the file; `rae-node config check` shows when it is sound"
        checks += [Check("configuration", AUTOMATION, False, str(problem), fix) for problem in errors.problems]
        return [*checks, *unit(await unit_properties()), *await scripts()]
    properties, verified = await asyncio.gather(unit_properties(), unit_verified())

    async def in_units() -> tuple[list[Check], list[Check]]:
        """One after the other: the second makes the state folder, and the first would see it half made."""
        return await inside(config, properties), await task_units.programs(config, properties)

    (found, programs), called, tasks, user = await asyncio.gather(
        in_units(), scripts(), task_units.checks(properties, INSTALL), asyncio.to_thread(account, properties)
    )
    return [
        *checks, *settings(config), *unit(properties), *tasks, user, boot(config, properties), verified, session_agent(),
        *called, rehearsal(config), *found, *programs, *ollama(config), checkpoint(config), waking(config, properties),
        listeners(properties),
        daemon(config, properties),
    ]


def program() -> Check:
    """Which package `supervisor` this is; other projects use that name too."""
    home, isolated = Path(__file__).parents[2], bool(sys.flags.isolated)
    how = "isolated" if isolated else "not isolated (python -I): another `supervisor` may be imported"
    return Check("program", UNATTENDED, True, f"rae-node {VERSION} from {home}, {how}")


def settings(config: Config) -> Iterator[Check]:
    """Both files are sound, automation is on, and READY can be reached."""
    yield Check("configuration", AUTOMATION, True, f"{config.folder}: runtime.yaml and node.yaml are sound")
    automation = config.runtime.automation
    fix = "set automation.enabled to true in runtime.yaml"
    yield Check("automation", AUTOMATION, automation.enabled, f"automation.enabled is {str(automation.enabled).lower()}", fix)
    switched_on = replace(config.runtime, automation=replace(automation, enabled=True))
    never = "; ".join(never_ready(switched_on, config.node))
    yield Check.of("READY", UNATTENDED, never, "can be reached with these settings", "change the setting named")


# --- systemd


async def unit_properties() -> dict[str, str]:
    """The unit as systemd knows it; only `trouble` where systemd cannot be asked."""
    return (await show([UNIT], _PROPERTIES))[UNIT]


def unit(says: Mapping[str, str]) -> Iterator[Check]:
    """The unit is installed as required, according to systemd."""
    if trouble := says.get("trouble"):
        yield Check("unit", BOOT, False, f"systemd cannot be asked: {trouble}", "the service needs systemd")
        return
    if says.get("LoadState") != "loaded":
        reason = says.get("LoadError", "").partition(" ")[2].strip('"') or says.get("LoadState", "unknown")
        yield Check("unit", BOOT, False, f"{UNIT}: {reason}", INSTALL)
        return
    wrong = [
        f"{name} is {says.get(name)}, not {want} ({why})" for name, (want, why) in REQUIRED.items() if says.get(name) != want
    ]
    if f"argv[]={EXEC} ;" not in says.get("ExecStart", ""):
        wrong.append(f"ExecStart is not {EXEC}")
    # systemd shows it only for a running unit
    if not any(line.partition("=")[0] == "WatchdogSec" for line in unit_lines(says)):
        wrong.append("WatchdogSec is off: nothing would notice a hang")
    right = f"{says['FragmentPath']}, as {says['User']}, as required"
    yield Check.of("unit", BOOT, "; ".join(wrong), right, f"see `systemctl cat {UNIT}`, or {INSTALL}")
    dead = says.get("ActiveState") == "failed"
    reason = f"{says.get('ActiveState')} ({says.get('SubState')}), restarted {says.get('NRestarts')} times by systemd"
    yield Check("service", UNATTENDED, not dead, reason, f"see `journalctl -u {UNIT}`")


def account(says: Mapping[str, str]) -> Check:
    """The service does not run as root, and its user is not root's equal. Asks sudo, which may take seconds."""
    name, user = "service's account", says.get("User", "")
    if says.get("LoadState") != "loaded":
        return Check(name, UNATTENDED, None, "no service is installed")
    if is_root(user):
        reason = f"the service runs as root ({f'User={user}' if user else 'no User='}): what takes it over owns the machine"
        return Check(name, UNATTENDED, False, reason, f"{INSTALL}: it takes the account rae-node, or --user NAME")
    equal = roots_equal(user, says.get("SupplementaryGroups", "").split())
    return Check(name, UNATTENDED, True, "; ".join(equal) or f"{user}, not root's equal", warning=bool(equal))


def boot(config: Config, says: Mapping[str, str]) -> Check:
    """It starts again after a reboot: the unit is enabled, and automation.auto_start agrees."""
    wanted, state = config.runtime.automation.auto_start, says.get("UnitFileState") or "not installed"
    if not wanted:
        fix = "set automation.auto_start to true in runtime.yaml, then `sudo rae-node enable`"
        return Check("enabled", BOOT, False, f"automation.auto_start is false, and the unit is {state}", fix)
    return Check("enabled", BOOT, state == "enabled", f"the unit is {state}", "run `sudo rae-node enable`")


async def unit_verified() -> Check:
    """systemd finds no fault in the units; with the exposure level of their sandboxes."""
    folder = Path("/etc/systemd/system")
    if not shutil.which("systemd-analyze") or not (folder / UNIT).exists():
        return Check("unit files", BOOT, None, "not installed here, or no systemd-analyze")
    files = [str(folder / name) for name in (UNIT, *task_units.FILES) if (folder / name).exists()]
    (_, out, err), *levels = await asyncio.gather(
        run("systemd-analyze", "verify", *files), _exposure(UNIT), _exposure(task_units.SERVICES[False])
    )
    faults = [*(out + err).strip().splitlines(), ""]
    right = f"systemd finds no fault; exposure {levels[0]}, of a task {levels[1]}"
    return Check.of("unit files", BOOT, faults[0], right, INSTALL)


async def _exposure(name: str) -> str:
    _, out, _ = await run("systemd-analyze", "security", "--no-pager", name)
    return next((line.partition(": ")[2] for line in out.splitlines() if "exposure level" in line), "unknown")


def session_agent() -> Check:
    """The session agent, which reports how long each person has been idle, is enabled for every session."""
    if not SESSION_UNIT.exists():
        return Check("session agent", UNATTENDED, None, "not installed: only logind's hints are known of sessions")
    on = any(Path("/etc/systemd/user").glob(f"*.wants/{SESSION_UNIT.name}"))
    fix = f"run `sudo systemctl --global enable {SESSION_UNIT.name}`"
    return Check("session agent", UNATTENDED, on, "is enabled for every session" if on else "is disabled", fix)


async def scripts() -> list[Check]:
    """The installed scripts work with the system's python3, and only root can change them."""
    return list(await asyncio.gather(*(_script(name, begins) for name, begins in SCRIPTS.items())))


async def _script(name: str, begins: str) -> Check:
    path, name = AGENT / name, f"script: {name}"
    try:
        seen = path.stat()
    except OSError as error:
        return Check(name, UNATTENDED, False, f"{path}: {error.strerror}", INSTALL)
    if seen.st_uid != 0 or stat.S_IMODE(seen.st_mode) & 0o022:
        return Check(name, UNATTENDED, False, f"{path} can be changed by others than root", INSTALL)
    code, out, err = await run("/usr/bin/python3", str(path), *(["--help"] if begins else []))
    first = (out.splitlines() or err.splitlines() or [f"exit {code}"])[0]
    if begins:
        good = first.startswith(begins)
    else:
        good = (code, first) == (0, "SAFE TO RUN") or (code == 1 and first.startswith("DO NOT RUN: "))
    return Check(name, UNATTENDED, good, "can be run" if begins and good else first, INSTALL)


def rehearsal(config: Config) -> Check:
    """The dry run with these limits."""
    cases = dry_run(config.limits)
    wrong = [case.case for case in cases if not case.as_required]
    right = f"{len(cases)} cases as required, {sum(case.allowed for case in cases)} allowed"
    reason = f"comes out wrong: {wrong[0]}" if wrong else ""
    return Check.of("dry run", UNATTENDED, reason, right, "run `rae-node dry-run`, and report this as a fault")


def ollama(config: Config) -> Iterator[Check]:
    """Types that run on Ollama, which the node cannot freeze."""
    if kinds := sorted(kind for kind, task in config.node.tasks.items() if task.executor == "ollama_api"):
        why = "cannot be frozen, because Ollama's own process computes: stopped at the first sign of the person"
        yield Check("Ollama", UNATTENDED, None, f"{', '.join(kinds)}: {why}")


def checkpoint(config: Config, proc_root: Path = Path("/proc"), sys_root: Path = Path("/sys")) -> Check:
    """A task's VRAM can be moved out, where a type asks for that. The driver itself is not asked."""
    from supervisor.tasks.cuda_checkpoint import driver_version, open_module, unusable

    name = "CUDA checkpoint"
    asking = [kind for kind, task in config.node.tasks.items() if getattr(task, "checkpoint", "none") == "cuda"]
    if not asking:
        return Check(name, UNATTENDED, None, "no task type asks for it (tasks.<type>.checkpoint)")
    if problem := unusable(proc_root, sys_root):
        ask = "asks" if len(asking) == 1 else "ask"
        return Check(name, UNATTENDED, False, f"{', '.join(asking)} {ask} for it, but {problem}")
    hangs = "with which a machine was seen to hang at the end of a task whose VRAM had been moved back"
    caution = f" with the open kernel module, {hangs}" if open_module(proc_root) else ""
    version = driver_version(proc_root, sys_root) + caution
    return Check(name, UNATTENDED, True, f"can be used by {', '.join(asking)}: NVIDIA driver {version}")


# --- as the service's user


async def inside(config: Config, says: Mapping[str, str]) -> list[Check]:
    """What `supervisor.tools.doctor.in_service` finds as the service's user, in its sandbox."""
    own = user_name()
    user = says.get("User") or own
    argv = [sys.executable, "-I", "-m", "supervisor.tools.doctor.in_service", str(config.folder)]
    options: dict[str, Any] = {}
    if os.geteuid() == 0 and says.get("LoadState") == "loaded":
        more = " ".join(f"-{path}" for path in (config.paths.state, config.paths.runtime))
        argv = [*sandboxed(says), f"--property=User={user}", f"--property=ReadWritePaths={more}", *argv]
    elif os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        options = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(user, entry.pw_gid)}
    elif own != user:
        return [Check("service's user", UNATTENDED, False, f"{own} cannot check this", f"run it with sudo, or as {user}")]
    code, out, err = await run(*argv, **options)
    try:
        return [Check(**fields) for fields in json.loads(out)]
    except (ValueError, TypeError):
        last = (err.strip().splitlines() or [f"exit {code}"])[-1]
        fix = f"see `journalctl -u {UNIT}`, or run it again with sudo"
        return [Check("service's user", UNATTENDED, False, f"the checks could not run as {user}: {last}", fix)]


def waking(config: Config, says: Mapping[str, str], sys_root: Path = Path("/sys")) -> Check:
    """This machine can be woken, where work.wake asks for that."""
    from supervisor.linux import wake

    name, found = "waking", wake.able(sys_root)
    cards = f"network cards that can wake it: {', '.join(found['cards']) or 'none'} (ethtool -s CARD wol g)"
    if not config.node.work.wake:
        able = "its clock can wake it" if found["clock"] else "no clock can wake it"
        return Check(name, UNATTENDED, None, f"work.wake is off; {able}, {cards}")
    wrong = []
    if not found["clock"]:
        wrong.append("no real-time clock may wake this machine (/sys/class/rtc/*/device/power/wakeup)")
    if says.get("LoadState") == "loaded" and not wake.SOCKET.exists():
        wrong.append(f"{wake.SOCKET} is missing: {INSTALL}")
    return Check(name, UNATTENDED, not wrong, "; ".join(wrong) or f"its clock wakes it; {cards}", "see docs/host.md")


def user_name() -> str:
    """The user of this process; in a container it may have a number only."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


# --- the running node


def listeners(says: Mapping[str, str]) -> Check:
    """It listens on no port."""
    import psutil

    name, pid = "no open port", int(says.get("MainPID") or 0)
    if not pid:
        return Check(name, UNATTENDED, None, "the node is not running")
    try:
        open_ports = [c.laddr.port for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    except psutil.Error as error:
        return Check(name, UNATTENDED, None, f"cannot be seen without root ({type(error).__name__})")
    wrong = f"listens on {open_ports}" if open_ports else ""
    return Check.of(name, UNATTENDED, wrong, "none", "stop the node, and report this as a fault")


def daemon(config: Config, says: Mapping[str, str]) -> Check:
    """The running daemon answers, and is this version."""
    try:
        answer = ask(config.paths.runtime, "status", 2.0)
    except DaemonDown:
        if says.get("ActiveState") == "active":
            reason = "the service is active, but has no control socket"
            return Check("daemon", UNATTENDED, False, reason, f"see `journalctl -u {UNIT}`")
        return Check("daemon", UNATTENDED, None, "not running; `sudo rae-node enable --now` starts it")
    except DaemonUnresponsive as mute:
        return Check("daemon", UNATTENDED, False, str(mute), f"run `systemctl restart {UNIT}`")
    same = answer.get("version") == VERSION
    reason = str(answer.get("status")) if same else f"it runs version {answer.get('version')}, installed is {VERSION}"
    return Check("daemon", UNATTENDED, same, reason, f"run `systemctl restart {UNIT}`")


def heading() -> tuple[str, str]:
    """Host and date, for the top of `verify`."""
    return socket.gethostname(), iso(time.time())
