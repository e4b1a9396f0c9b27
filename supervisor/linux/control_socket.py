"""The local control socket: one JSON line in, one JSON line out, then closed. It is a unix socket, never a port.

The daemon answers from what its last tick left; a command goes into its inbox. SO_PEERCRED identifies the peer: everybody on
the machine may ask for the status; only root, the node's own user and members of its group may give commands and see
everything. A task may run as the node's user, but is a stranger here, and may not report.

A first line with `tell` in place of `ask` opens a stream of reports: the server takes each further line and answers only the
first. Each user has one stream, the newest. Its rate is limited, and a report goes to its receiver as soon as it is read:
no disk access and no other peer can delay it. A stream whose first line says `listen` also gets a line of news whenever
the daemon's view for people at the desk changes (`Broadcast`).

A socket that somebody removes or replaces is made again at once, and that is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from supervisor import VERSION
from supervisor.linux.bounded import wait_for_event
from supervisor.linux.inotify import Event, Watcher, flags
from supervisor.linux.small_files import KINDS
from supervisor.linux.text import error_text

PROTOCOL: Final = 1
SOCKET_NAME: Final = "control.sock"
MAX_REQUEST: Final = 4096
MAX_ANSWER: Final = 1 << 20
PEER_DEADLINE_S: Final = 2.0
RETRY_S: Final = 0.05  # between two tries of a client
# Serving this many peers at once delays the loop by some milliseconds at most; the others wait in the kernel's queue. A peer
# that has sent no line within PATIENCE_S is disconnected when others wait, so no crowd keeps them out.
MAX_PEERS: Final = 16
PATIENCE_S: Final = 0.05
QUEUE: Final = 256
MAX_STREAMS: Final = 64
MAX_UNREAD: Final = 1 << 14  # bytes of news that a peer has not read
REPORT_GAP_S: Final = 0.02  # between two reports of a stream: 50 a second
NOT_A_TASK: Final = "a task may not say that"
NOT_PERMITTED: Final = "only root, the node's user and members of its group, and who sits at this machine, may say that"
MODE: Final = 0o666  # connecting needs the right to write; who may ask what is decided here
MADE_AGAIN_S: Final = 5.0  # between two times that the socket is made again
UNWATCHED_S: Final = 60.0  # between two looks at the socket where the kernel grants no inotify watch
_SO_PEERGROUPS: Final = 59
_CHANGES: Final = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.ATTRIB
_FOLDER_LEFT: Final = flags.DELETE_SELF | flags.MOVE_SELF


class Peer(NamedTuple):
    """Who asks. `permitted`: may give commands and see everything. `uid`: -1 for a task, whatever user it runs as."""

    uid: int
    permitted: bool


Handler = Callable[[dict[str, Any], Peer], dict[str, Any]]


class ReportReceiver(Protocol):
    def receive(self, message: dict[str, Any]) -> None:
        """Take one report. Raises ValueError with the reason if it is invalid; the stream is then closed."""
        ...

    def closed(self) -> None:
        """The stream is over; called once."""
        ...


# Called with the peer's uid and a function that disconnects it; returns the receiver and the answer to the first report.
OpenStream = Callable[[int, Callable[[], None]], tuple[ReportReceiver, dict[str, Any]]]


class DaemonDown(Exception):
    """No daemon listens there (exit 3)."""


class DaemonUnresponsive(Exception):
    """A daemon is there and does not answer in time, or has another version (exit 4)."""


class Broadcast:
    """News for the streams that listen: each gets the latest line, and then each change. A peer that does not read misses
    news; it never delays the daemon."""

    def __init__(self) -> None:
        self._line = b""
        self._listeners: set[asyncio.StreamWriter] = set()

    def announce(self, news: Mapping[str, Any]) -> None:
        """Send `news` if it is not what was sent last."""
        line = json.dumps({"v": PROTOCOL, "news": news}, allow_nan=False).encode() + b"\n"
        if line != self._line:
            self._line = line
            for writer in self._listeners:
                self._send(writer)

    def add(self, writer: asyncio.StreamWriter) -> None:
        """This stream listens from now on."""
        self._listeners.add(writer)
        if self._line:
            self._send(writer)

    def discard(self, writer: asyncio.StreamWriter) -> None:
        """The stream is over."""
        self._listeners.discard(writer)

    def _send(self, writer: asyncio.StreamWriter) -> None:
        if not writer.is_closing() and writer.transport.get_write_buffer_size() < MAX_UNREAD:
            writer.write(self._line)


class ControlServer:
    """Serves requests and report streams.

    Args:
        path: the socket.
        handlers: by the name in `ask`.
        restricted: names of handlers that change something, and so need a permitted peer, or one at the desk.
        streams: by the name in `tell`.
        is_task: whether a pid may belong to a task, which then may use neither restricted handlers nor streams.
        on_repair: gets a sentence when the socket had to be made again.
        at_desk: whether the user with this uid sits at this machine.
        broadcast: the news for streams that listen.
    """

    def __init__(
        self,
        path: Path,
        handlers: Mapping[str, Handler],
        restricted: frozenset[str],
        streams: Mapping[str, OpenStream] | None = None,
        is_task: Callable[[int], bool] = lambda _: False,
        on_repair: Callable[[str], None] = lambda _: None,
        at_desk: Callable[[int], object] = lambda _: None,
        broadcast: Broadcast | None = None,
    ) -> None:
        self._path = path
        self._handlers, self._restricted, self._streams = handlers, restricted, streams or {}
        self._is_task, self._on_repair, self._at_desk = is_task, on_repair, at_desk
        self._broadcast = broadcast or Broadcast()
        self._identity = (0, 0)  # of the socket's file
        self._watcher = Watcher(self._on_events)
        self._next_look: asyncio.TimerHandle | None = None
        self._made_s = float("-inf")  # when, by the loop's time, the socket was made again
        self._trouble = ""  # why it cannot be made again
        self._open_streams: dict[int, asyncio.StreamWriter] = {}  # by uid
        self._stream_tasks: set[asyncio.Task[Any]] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._peers: dict[asyncio.StreamWriter, float] = {}  # when, by the loop's time, each connected; inf: it has sent a line
        self._peer_left = asyncio.Event()
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the socket cannot be made there.
        """
        if self._listener is not None:
            return
        self._listen()
        self._watcher.open()
        self._watch()

    def _listen(self) -> None:
        """Make the socket, whatever has its name: we hold the folder's lock, so no other daemon listens there.

        Raises:
            OSError: it cannot be made there.
        """
        folder = self._path.parent
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            folder.chmod(0o755)
        draft = self._path.with_name(f".{self._path.name}.new")
        for place in (draft, self._path):
            if place.is_dir() and not place.is_symlink():
                place.rename(place.with_name(f"{place.name}.{os.urandom(4).hex()}"))
        draft.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with short_name(draft) as name:
                listener.bind(name)
            draft.chmod(MODE)
            listener.listen(QUEUE)
            made = draft.lstat()
            draft.replace(self._path)
        except OSError:
            listener.close()
            raise
        self._end_listener()
        self._identity = made.st_dev, made.st_ino
        self._listener, self._accepting = listener, asyncio.create_task(self._accept(listener))

    def _end_listener(self) -> None:
        if (listener := self._listener) is not None and self._accepting is not None:
            self._accepting.cancel()
            self._accepting.add_done_callback(lambda _: listener.close())  # the loop still knows its descriptor
            self._listener = None

    async def stop(self) -> None:
        if self._listener is None or self._accepting is None:
            return
        self._watcher.close()
        if self._next_look is not None:
            self._next_look.cancel()
        self._end_listener()
        await asyncio.wait([self._accepting])
        for writer in self._open_streams.values():
            writer.transport.abort()
        if self._stream_tasks:
            await asyncio.wait(self._stream_tasks, timeout=PEER_DEADLINE_S)
        with contextlib.suppress(OSError):
            if not self._damage():
                self._path.unlink()

    # --- a socket that somebody removes or replaces

    def _watch(self) -> None:
        """Watch the folder that has the name now."""
        self._watcher.remove(self._path.parent)
        if not self._watcher.add(self._path.parent, _CHANGES | _FOLDER_LEFT):
            self._look_in(UNWATCHED_S)

    def _on_events(self, events: list[Event]) -> None:
        here = str(self._path)
        if any(event.path == here or event.gone or event.overflow or event.mask & _FOLDER_LEFT for event in events):
            self._look()

    def _look_in(self, seconds: float) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        self._next_look = asyncio.get_running_loop().call_later(seconds, self._look)

    def _damage(self) -> str:
        """What has happened to the socket; empty: nothing."""
        try:
            there = self._path.lstat()
        except FileNotFoundError:
            return "somebody had removed it"
        except OSError as error:
            return f"it could not be reached ({error_text(error)})"
        if (there.st_dev, there.st_ino) != self._identity:
            return f"{KINDS.get(stat.S_IFMT(there.st_mode), 'a file')} was in its place"
        mode = stat.S_IMODE(there.st_mode)
        # An operator may keep others out, but not the node's own user.
        return "" if mode & 0o600 == 0o600 else f"somebody had changed its mode to {mode:04o}"

    def _look(self) -> None:
        """Make the socket again if it is not there as we made it: at once, but not again and again."""
        now_s = asyncio.get_running_loop().time()
        if not (damage := self._damage()):
            if not self._watcher.watched:
                self._look_in(UNWATCHED_S)
            return
        if (left_s := self._made_s + MADE_AGAIN_S - now_s) > 0:
            self._look_in(left_s)
            return
        self._made_s, before = now_s, self._trouble
        try:
            self._listen()
            self._trouble, text = "", f"the control socket {self._path} was made again: {damage}"
            self._watch()
        except OSError as error:
            self._trouble = text = f"the control socket {self._path} cannot be made again: {error_text(error)}"
            self._look_in(MADE_AGAIN_S)
        if text != before:
            self._on_repair(text)

    async def _accept(self, listener: socket.socket) -> None:
        """Accept one peer per pass of the loop, and only as many as can be served at once."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(listener)
            except OSError:  # no descriptor is free, or the peer has gone
                await asyncio.sleep(PATIENCE_S)
                continue
            await self._make_room(loop)
            reader = asyncio.StreamReader(limit=MAX_REQUEST)
            protocol = asyncio.StreamReaderProtocol(reader, self._serve)
            try:
                await loop.connect_accepted_socket(lambda protocol=protocol: protocol, peer)  # type: ignore[misc]
            except OSError:
                peer.close()

    async def _make_room(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until a peer has left, or disconnect the one that has sent nothing for longest."""
        while len(self._peers) >= MAX_PEERS:
            oldest = min(self._peers, key=self._peers.__getitem__)
            if (left_s := self._peers[oldest] + PATIENCE_S - loop.time()) <= 0:
                self._leave(oldest)
                oldest.transport.abort()
                return
            self._peer_left.clear()
            await wait_for_event(self._peer_left, min(left_s, PEER_DEADLINE_S))

    def _leave(self, writer: asyncio.StreamWriter) -> None:
        if self._peers.pop(writer, None) is not None:
            self._peer_left.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peers[writer] = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(PEER_DEADLINE_S):
                try:
                    request = await _read_request(reader)
                except ValueError as error:
                    return await _send(writer, _envelope(False, error=str(error)))
                open_stream = self._streams.get(str(request["tell"])) if "tell" in request else None
                if open_stream is None:
                    self._peers[writer] = float("inf")
                    async with self._turn:  # one answer per pass of the loop
                        await asyncio.sleep(0)
                        answer = self._answer(request, writer)
                    return await _send(writer, answer)
                if self._is_task(_credentials(writer.get_extra_info("socket"))[0]):
                    return await _send(writer, _envelope(False, error=NOT_A_TASK))
            self._leave(writer)
            await self._receive(open_stream, request, reader, writer)
        except (TimeoutError, OSError, ValueError):
            pass  # a peer that sends no whole line in time gets no answer
        finally:
            self._leave(writer)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _receive(
        self, open_stream: OpenStream, message: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Take reports until the peer ends, sends an invalid one, or its user opens another stream."""
        uid = peer_uid(writer.get_extra_info("socket"))
        if (old := self._open_streams.pop(uid, None)) is not None:
            old.transport.abort()
        elif len(self._open_streams) >= MAX_STREAMS:
            return await _send(writer, _envelope(False, error=f"{MAX_STREAMS} users send reports already"))
        self._open_streams[uid] = writer
        receiver, answer = open_stream(uid, writer.transport.abort)
        if (task := asyncio.current_task()) is not None:
            self._stream_tasks.add(task)
            task.add_done_callback(self._stream_tasks.discard)
        try:
            receiver.receive(message)
            async with asyncio.timeout(PEER_DEADLINE_S):
                await _send(writer, _envelope(True, **answer))
            if message.get("listen") is True:
                self._broadcast.add(writer)
            while True:
                await asyncio.sleep(REPORT_GAP_S)  # what comes faster waits in the peer's own socket
                receiver.receive(await _read_request(reader))
        except ValueError as error:
            if not reader.at_eof():
                await _send(writer, _envelope(False, error=str(error)))
        finally:
            self._broadcast.discard(writer)
            receiver.closed()
            if self._open_streams.get(uid) is writer:
                del self._open_streams[uid]

    def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        name = request.get("ask")
        handler = self._handlers.get(name) if isinstance(name, str) else None
        if handler is None:
            return _envelope(False, error=f"unknown question {name!r}")
        peer = self._peer(writer.get_extra_info("socket"))
        if name in self._restricted and not (peer.permitted or self._at_desk(peer.uid)):
            return _envelope(False, error=NOT_A_TASK if peer.uid < 0 else NOT_PERMITTED)
        try:
            return _envelope(True, **handler(request, peer))
        except ValueError as error:
            return _envelope(False, error=str(error))
        except Exception as error:  # noqa: BLE001 - a fault in a handler must not end the server
            return _envelope(False, error=f"internal error: {type(error).__name__}: {error}")


    def _peer(self, peer: socket.socket) -> Peer:
        pid, uid, _ = _credentials(peer)
        if not permitted(peer):
            return Peer(uid, False)
        return Peer(-1, False) if self._is_task(pid) else Peer(uid, True)


def _envelope(ok: bool, **fields: Any) -> dict[str, Any]:
    return {"v": PROTOCOL, "version": VERSION, "ok": ok, **fields}


async def _send(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
    writer.write(json.dumps(answer, allow_nan=False).encode() + b"\n")
    await writer.drain()


async def _read_request(reader: asyncio.StreamReader) -> dict[str, Any]:
    """One line of the peer. Raises ValueError with the reason if it is no request of this protocol."""
    try:
        request = json.loads(await reader.readline())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON object in one line of at most {MAX_REQUEST} bytes") from error
    if not isinstance(request, dict) or request.get("v") != PROTOCOL:
        raise ValueError(f"this daemon speaks version {PROTOCOL} of the control protocol")
    return request


def _credentials(peer: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the peer (SO_PEERCRED); the pid is 0 for a process of another PID namespace."""
    pid, uid, gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid, gid


def peer_uid(peer: socket.socket) -> int:
    return _credentials(peer)[1]


def permitted(peer: socket.socket) -> bool:
    """Whether the peer is root, our own user, or a member of our group."""
    _, uid, gid = _credentials(peer)
    if uid in (0, os.getuid()):
        return True
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)  # 256 groups; Python takes no more
    except OSError:
        raw = b""
    return os.getgid() in {gid, *struct.unpack(f"{len(raw) // 4}I", raw)}


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of the socket that is shorter than the kernel's limit of 108 bytes, however long its path is."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(runtime: Path, name: str, timeout_s: float = 5.0, **fields: Any) -> dict[str, Any]:
    """Send a request to the daemon with this runtime folder; returns its answer.

    Raises:
        DaemonDown: nobody listens.
        DaemonUnresponsive: who listens is neither root, the folder's owner, nor the caller; or it gives no whole answer within
            `timeout_s` seconds, or has another version.
    """
    path = runtime / SOCKET_NAME
    until_s = time.monotonic() + timeout_s
    request = json.dumps({"v": PROTOCOL, "ask": name, **fields}).encode() + b"\n"
    while True:
        try:
            raw = _exchange(runtime, request, until_s)
        except TimeoutError as error:
            hint = "look at `journalctl -u rae-node`"
            raise DaemonUnresponsive(f"the daemon does not answer within {timeout_s:g} s; {hint}") from error
        except (BlockingIOError, ConnectionResetError, BrokenPipeError):
            raw = b""
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
                hint = "start it with `systemctl start rae-node` or `rae-node run`"
                raise DaemonDown(f"the daemon is not running (no answer at {path}); {hint}") from error
            raise DaemonUnresponsive(f"the daemon cannot be asked at {path}: {error.strerror or error}") from error
        if raw or time.monotonic() + RETRY_S >= until_s:
            break
        time.sleep(RETRY_S)  # many peers wait, and the server disconnected this one before it read the request
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DaemonUnresponsive(f"the daemon at {path} gave no whole answer") from error
    if not isinstance(answer, dict) or answer.get("v") != PROTOCOL:
        raise DaemonUnresponsive(f"the daemon at {path} is another version; restart it with `systemctl restart rae-node`")
    return answer


def _exchange(runtime: Path, request: bytes, until_s: float) -> bytes:
    """Send one request; returns the answer, or nothing if the daemon closed the connection without one."""
    path = runtime / SOCKET_NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(max(RETRY_S, until_s - time.monotonic()))
        with short_name(path) as short:
            peer.connect(short)
        if (uid := peer_uid(peer)) not in (0, runtime.stat().st_uid, os.geteuid()):
            raise DaemonUnresponsive(f"a process of uid {uid} listens at {path}, which is not the node's; remove that socket")
        peer.sendall(request)
        raw = bytearray()
        while b"\n" not in raw and len(raw) < MAX_ANSWER:
            if (left_s := until_s - time.monotonic()) <= 0:
                raise TimeoutError
            peer.settimeout(left_s)
            chunk = peer.recv(65536)
            if not chunk:
                break
            raw += chunk
        return bytes(raw)
