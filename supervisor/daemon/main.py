"""The daemon's process: folders, lock, signals, then the loop. Started by auto_runner.py and by `rae-node run`.

Configuration errors are reported before anything heavy is imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from supervisor.config.fallback import load_or_disabled
from supervisor.config.load import Config, ConfigErrors, find_folder, load
from supervisor.linux import console

if TYPE_CHECKING:
    from supervisor.daemon.loop import Daemon
    from supervisor.daemon.wiring import Node
    from supervisor.linux.control_socket import Broadcast, ControlServer

DELIVER_S: Final = 5.0  # at the end of the node, for what the outbox holds
# While modules are loaded there is no garbage, and looking for it costs a twentieth of the start.
COLLECT_AFTER_S: Final = 1.0
FOLDERS_AGAIN_S: Final = 1.0
LOCK_NAME: Final = "daemon.lock"


def say(text: str) -> None:
    """One line for people, on stderr. Where nobody listens any more, the node goes on."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def serve(folder: Path, *, unattended: bool = False) -> int:
    """Run the node. Returns the exit code: 0 after an orderly stop, 1 it cannot run here, 2 a broken configuration.

    `unattended`: a broken configuration does not end the node; it is DISABLED with that reason until the files are repaired.
    """
    problems: tuple[str, ...] = ()
    try:
        config = load(folder)
    except ConfigErrors as errors:
        problems = tuple(map(str, errors.problems))
        for line in problems:
            say(line)
        if not unattended:
            return _refuse(2, errno.EINVAL, problems[0])
        config = load_or_disabled(folder)
    for note in config.notes:
        say(note)
    obstacles = prepare(config)
    for line in obstacles:
        say(line)
    if obstacles and not unattended:
        return _refuse(1, errno.EACCES, obstacles[0])
    lock = _lock(config.paths.runtime)
    if lock is None:
        why = f"another rae-node runs with {config.paths.runtime}; stop it, or move paths.runtime in node.yaml"
        say(why)
        return _refuse(1, errno.EBUSY, why)
    try:
        return asyncio.run(_run(config, problems, obstacles))
    except Exception as error:
        if os.environ.get("RAE_NODE_DEBUG"):
            raise
        why = f"{type(error).__name__}: {error}"
        say(f"rae-node: {why} (RAE_NODE_DEBUG=1 shows where)")
        return _refuse(1, getattr(error, "errno", None) or errno.EIO, why)
    finally:
        os.close(lock)


def _refuse(code: int, number: int, why: str) -> int:
    """Tell systemd why this process ends. Returns the exit code."""
    from supervisor.linux.sd_notify import Notifier

    Notifier().errno(number, why)
    return code


def wipe(folder: Path) -> int:
    """For ExecStopPost=: kill the tasks that are left, and remove their files, unless a node runs there. Returns the exit code.
    """
    from supervisor.tasks.executors.base import StopFailed
    from supervisor.tasks.process import unit
    from supervisor.tasks.workdir import Workdir

    config = load_or_disabled(folder)
    lock = _lock(config.paths.runtime)
    if lock is None:
        say(f"nothing is wiped: a rae-node runs with {config.paths.runtime}")
        return 1
    try:
        unit.sweep()
        Workdir(config.paths.workdir).wipe_all()
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
        return 1
    except StopFailed as failure:
        say(str(failure))
        return 1
    finally:
        os.close(lock)
    return 0


def prepare(config: Config) -> list[str]:
    """Make the folders of node.yaml's `paths`, and open those of ours that somebody closed. Returns a line for each that
    cannot be used."""
    lines = []
    for name, mode in (("logs", 0o750), ("workdir", 0o700), ("runtime", 0o755), ("state", 0o700)):
        path: Path = getattr(config.paths, name)
        try:
            path.mkdir(mode=mode, parents=True, exist_ok=True)
            usable = os.access(path, os.W_OK | os.X_OK) or _opened(path, mode)
        except OSError as error:
            lines.append(f"{path}: cannot be made: {error.strerror}; set paths.{name} in node.yaml, or run the installer")
            continue
        if not usable:
            lines.append(f"{path}: cannot be written; set paths.{name} in node.yaml, or change its owner")
    return lines


def _opened(folder: Path, mode: int) -> bool:
    """Somebody has closed a folder of ours, and it is open again."""
    was = folder.lstat()
    if was.st_uid == os.geteuid() and stat.S_ISDIR(was.st_mode):
        with contextlib.suppress(OSError):  # read-only
            folder.chmod(mode)
            say(f"{folder}: had mode {stat.S_IMODE(was.st_mode):04o}; it has {mode:04o} again")
    return os.access(folder, os.W_OK | os.X_OK)


def _lock(runtime: Path) -> int | None:
    """Only one daemon runs with a runtime folder. None: another one holds the lock."""
    try:
        fd = os.open(runtime / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return os.open(os.devnull, os.O_RDONLY)  # `prepare` has reported the folder
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _crashed(state: Path) -> bool:
    """A task was in flight when the last run ended: its record is there (the source reads it later)."""
    from supervisor.sources.in_flight import NAME

    return os.path.lexists(state / NAME)


async def _run(config: Config, problems: tuple[str, ...], obstacles: list[str]) -> int:
    from states.lifecycle import Lifecycle
    from states.memory import Memory
    from supervisor import VERSION
    from supervisor.daemon.loop import Daemon, Inbox, InvariantBroken
    from supervisor.daemon.wiring import Node
    from supervisor.journal.decision_log import Journal
    from supervisor.journal.journald import of_service
    from supervisor.journal.text_log import TextLog
    from supervisor.linux.clock import SystemClock
    from supervisor.linux.control_socket import Broadcast
    from supervisor.linux.inotify import Watcher, flags
    from supervisor.linux.precedence import Precedence
    from supervisor.linux.sd_notify import Notifier

    clock, notifier, inbox = SystemClock(), Notifier(), Inbox()
    now_s = clock.now_s()
    # After a crash with a task in flight, the cooldown that the task has earned is not skipped.
    memory = Memory(since_s=now_s, cooldown_from_s=now_s if _crashed(config.paths.state) else None)
    lifecycle = Lifecycle(config.limits, memory=memory)
    keep_days, journald = config.node.logs.keep_days, of_service(os.environ)
    journal = Journal(config.paths.logs, clock, keep_days, say, TextLog(config.paths.logs, keep_days), journald)
    node = Node(config, clock, inbox.wake, notifier.grant, journal, lifecycle)
    node.automation.configure(config.runtime.automation.enabled, problems)
    node.automation.blockers["folders"] = obstacles[0] if obstacles else ""
    broadcast = Broadcast()
    daemon = Daemon(node, lifecycle, journal, clock, notifier, inbox, Precedence().request, broadcast.announce)
    journal.start(VERSION, config.limits, memory)
    loop = asyncio.get_running_loop()
    loop.call_later(COLLECT_AFTER_S, _collect)
    loop.set_exception_handler(lambda _, context: say(f"internal: {_unexpected(context)}"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop, f"the node is stopping ({signal.Signals(number).name})")
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    server = _server(daemon, config, broadcast)
    await _listen(server, config.paths.runtime)
    retry = asyncio.ensure_future(_retry_folders(node, server, inbox.wake)) if obstacles else None
    # Without inotify, every tick looks at the files anyway.
    watcher = Watcher(lambda _: inbox.wake())
    watcher.open()
    changes = flags.CLOSE_WRITE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE | flags.CREATE | flags.ATTRIB
    watcher.add(config.folder, changes)
    try:
        await node.start()
        try:
            await daemon.run()
        except InvariantBroken as broken:
            notifier.trigger(f"a fault of the node itself: {broken}")
            raise
        notifier.stopping(daemon.status_line())
        await node.stop(DELIVER_S)
        notifier.close()
    finally:
        watcher.close()
        if retry is not None:
            retry.cancel()
        await server.stop()
        journal.write("stop", state=lifecycle.state, reason=node.automation.stopping)
        journal.close()
        if node.metrics is not None:
            node.metrics.close()
    return 0


async def _retry_folders(node: Node, server: ControlServer, wake: Callable[[], None]) -> None:
    """Until every folder can be used: the node stays DISABLED and says which one cannot."""
    while lines := prepare(node.config):
        node.automation.blockers["folders"] = lines[0]
        await asyncio.sleep(FOLDERS_AGAIN_S)
    await _listen(server, node.config.paths.runtime)
    node.automation.blockers["folders"] = ""
    wake()


def _collect() -> None:
    """From now on collect garbage, but not among what the start has made: that would block the loop for 15 ms."""
    gc.freeze()
    gc.enable()


def _unexpected(context: dict[str, Any]) -> str:
    """An exception that nobody awaited, in one line: a traceback may hold task data."""
    error = context.get("exception")
    return str(context.get("message", "")) + (f" ({type(error).__name__}: {error})" if error is not None else "")


def _server(daemon: Daemon, config: Config, broadcast: Broadcast) -> ControlServer:
    from supervisor.linux.control_socket import SOCKET_NAME, ControlServer, Handler, Peer
    from supervisor.tasks.process import process_tree

    node = daemon.node

    def desktop(_request: dict[str, Any], peer: Peer) -> dict[str, Any]:
        """Everybody may see the reports of their own sessions."""
        reports = node.sensors.agent_reports.snapshot()["desktop"]
        return {"desktop": [report for report in reports if peer.permitted or report["uid"] == peer.uid]}

    handlers: dict[str, Handler] = {
        "status": lambda _, peer: daemon.status(presence=peer.permitted),
        "pause": lambda request, peer: daemon.pause(request, name_at_desk(peer)),
        "resume": lambda _, peer: daemon.resume(name_at_desk(peer)),
        "desktop": desktop,
    }
    streams = {"presence": lambda uid, hang_up: node.sensors.agent_reports.connect(uid, hang_up)}

    def name_at_desk(peer: Peer) -> str:
        """Whose word it is, where it is not the operator's."""
        return "" if peer.permitted else at_desk(peer.uid)

    def at_desk(uid: int) -> str:
        return node.sensors.sessions.at_desk(uid)

    def is_task(pid: int) -> bool:
        """The process may belong to our task: it descends from us, or has ended since it connected."""
        return node.attempts.process is not None and process_tree.descends(pid, os.getpid()) is not False

    def on_repair(text: str) -> None:
        if (lock := _lock(config.paths.runtime)) is not None:
            locks.append(lock)  # the folder is another one now
        node.repaired(text)
        daemon.wake()

    locks: list[int] = []
    path = config.paths.runtime / SOCKET_NAME
    return ControlServer(path, handlers, frozenset({"pause", "resume"}), streams, is_task, on_repair, at_desk, broadcast)


async def _listen(server: ControlServer, runtime: Path) -> None:
    try:
        await server.start()
    except OSError as error:
        say(f"{runtime}: no control socket: {error.strerror or error}; `rae-node status` will not work")


def main(argv: list[str]) -> int:
    """`python -m supervisor.daemon.main [--unattended] [--config DIR]`."""
    import argparse

    parser = argparse.ArgumentParser(prog="auto_runner.py", description="The node as a service; see `rae-node run --help`.")
    parser.add_argument("--unattended", action="store_true", help="a broken configuration means DISABLED, not an exit")
    parser.add_argument("--config", metavar="DIR", help="folder with runtime.yaml and node.yaml")
    parser.add_argument("--wipe", action="store_true", help="only remove what tasks have left in the work folder")
    given = parser.parse_args(argv)
    gc.disable()
    if given.wipe:
        return wipe(find_folder(given.config))
    return serve(find_folder(given.config), unattended=given.unattended)


if __name__ == "__main__":
    console.prepare_errors()
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:  # before the loop took over
        sys.exit(130)
