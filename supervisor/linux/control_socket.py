"""The local control socket: one JSON line in, one JSON line out, then closed (R1: a unix socket, never a port).

The daemon answers from what its last tick left behind; a command goes into its inbox. Peers are told by SO_PEERCRED:
anybody on the machine may ask how the node is, only root, the node's own user and members of its group may say a word. A
task runs as the node's user, but speaks neither for the operator nor for the person.

A first line with `tell` in place of `ask` opens a connection that stays: each further line is heard, none is answered.
There is one such connection a user, the newest, and how much it may say is bounded; it can hold up only itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from supervisor import VERSION
from supervisor.linux.bounded import wait_for_event

PROTOCOL: Final = 1
SOCKET_NAME: Final = "control.sock"
MAX_REQUEST: Final = 4096
MAX_ANSWER: Final = 1 << 20
PEER_DEADLINE_S: Final = 2.0
AGAIN_S: Final = 0.05  # between two tries of a client
# So few are served at once that whatever they do holds up the loop for some milliseconds at most; others wait in the
# kernel's queue. One that has not said its line when others wait is let go after PATIENCE_S: no crowd keeps them out.
MAX_PEERS: Final = 16
PATIENCE_S: Final = 0.05
QUEUE: Final = 256
MAX_TELLERS: Final = 64
TELL_GAP_S: Final = 0.02  # between two lines that are heard: 50 a second
NOT_A_TASK: Final = "a task may not say that"
_SO_PEERGROUPS: Final = 59

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class Teller(Protocol):
    """Whoever keeps on telling us something, as the daemon hears it."""

    def hear(self, message: dict[str, Any]) -> None:
        """One line. Raises ValueError, in words, for what makes no sense: the connection is then closed."""
        ...

    def gone(self) -> None:
        """The connection is over; called once."""
        ...


# Called with the peer's uid and what hangs up; with it the answer to the first line.
Hearing = Callable[[int, Callable[[], None]], tuple[Teller, dict[str, Any]]]


class DaemonDown(Exception):
    """No daemon listens there (exit 3)."""


class DaemonMute(Exception):
    """A daemon is there and does not answer in time, or speaks another version (exit 4)."""


class ControlServer:
    """Serves `handlers` by the name in `ask`; `words` are those that change something and need a permitted peer.
    `hearings`, by the name in `tell`, are for those who stay. `barred` says of a pid that it has no word whoever it runs as."""

    def __init__(
        self,
        path: Path,
        handlers: dict[str, Handler],
        words: frozenset[str],
        hearings: Mapping[str, Hearing] | None = None,
        barred: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._path = path
        self._handlers = handlers
        self._words = words
        self._hearings = hearings or {}
        self._barred = barred
        self._tellers: dict[int, asyncio.StreamWriter] = {}  # by uid
        self._heard: set[asyncio.Task[Any]] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._peers: dict[asyncio.StreamWriter, float] = {}  # since when, by the loop's time, each has said nothing
        self._left = asyncio.Event()  # a peer
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the socket cannot be made there.
        """
        if self._listener is not None:
            return
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)  # we hold the lock of the folder, so it is a dead one
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with short_name(self._path) as name:
                listener.bind(name)
            self._path.chmod(0o666)
            listener.listen(QUEUE)
        except OSError:
            listener.close()
            raise
        self._listener, self._accepting = listener, asyncio.create_task(self._accept(listener))

    async def stop(self) -> None:
        """Close and remove the socket."""
        if self._listener is None or self._accepting is None:
            return
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._listener.close()
        self._listener = None
        for writer in self._tellers.values():
            writer.transport.abort()
        if self._heard:
            await asyncio.wait(self._heard, timeout=PEER_DEADLINE_S)
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _accept(self, listener: socket.socket) -> None:
        """Let peers in, one a pass of the loop, and only as many as can be served at once."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(listener)
            except OSError:  # no descriptor is left, or it has gone already
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
        """Wait until one has left, or until the one that has said nothing for longest has had its time."""
        while len(self._peers) >= MAX_PEERS:
            oldest = min(self._peers, key=self._peers.__getitem__)
            if (left_s := self._peers[oldest] + PATIENCE_S - loop.time()) <= 0:
                self._leave(oldest)
                oldest.transport.abort()
                return
            self._left.clear()
            await wait_for_event(self._left, min(left_s, PEER_DEADLINE_S))

    def _leave(self, writer: asyncio.StreamWriter) -> None:
        if self._peers.pop(writer, None) is not None:
            self._left.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._peers[writer] = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(PEER_DEADLINE_S):
                try:
                    request = await _line(reader)
                except ValueError as error:
                    return await self._say(writer, self._envelope(False, error=str(error)))
                hearing = self._hearings.get(str(request["tell"])) if "tell" in request else None
                if hearing is None:
                    self._peers[writer] = float("inf")
                    async with self._turn:  # one answer a pass of the loop
                        await asyncio.sleep(0)
                        answer = self._answer(request, writer)
                    return await self._say(writer, answer)
                if self._is_barred(writer):
                    return await self._say(writer, self._envelope(False, error=NOT_A_TASK))
            self._leave(writer)
            await self._hear(hearing, request, reader, writer)
        except (TimeoutError, OSError, ValueError):
            pass  # a peer that says nothing whole in time gets no answer; the node goes on
        finally:
            self._leave(writer)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    @staticmethod
    async def _say(writer: asyncio.StreamWriter, answer: dict[str, Any]) -> None:
        writer.write(json.dumps(answer, allow_nan=False).encode() + b"\n")
        await writer.drain()

    async def _hear(
        self, hearing: Hearing, message: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Hear a peer until it ends, says something that makes no sense, or another of its user takes its place."""
        uid = peer_uid(writer.get_extra_info("socket"))
        if (old := self._tellers.pop(uid, None)) is not None:
            old.transport.abort()
        elif len(self._tellers) >= MAX_TELLERS:
            return await self._say(writer, self._envelope(False, error=f"{MAX_TELLERS} users tell something already"))
        self._tellers[uid] = writer
        teller, answer = hearing(uid, writer.transport.abort)
        if (task := asyncio.current_task()) is not None:
            self._heard.add(task)
            task.add_done_callback(self._heard.discard)
        try:
            teller.hear(message)
            async with asyncio.timeout(PEER_DEADLINE_S):
                await self._say(writer, self._envelope(True, **answer))
            while True:
                await asyncio.sleep(TELL_GAP_S)  # what comes faster waits in the peer's own socket
                teller.hear(await _line(reader))
        except ValueError as error:
            if not reader.at_eof():
                await self._say(writer, self._envelope(False, error=str(error)))
        finally:
            teller.gone()
            if self._tellers.get(uid) is writer:
                del self._tellers[uid]

    def _is_barred(self, writer: asyncio.StreamWriter) -> bool:
        return self._barred(_credentials(writer.get_extra_info("socket"))[0])

    def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        name = request.get("ask")
        handler = self._handlers.get(name) if isinstance(name, str) else None
        if handler is None:
            return self._envelope(False, error=f"unknown question {name!r}")
        if name in self._words:
            if not permitted(writer.get_extra_info("socket")):
                return self._envelope(False, error="only root, the node's user and members of its group may say that")
            if self._is_barred(writer):
                return self._envelope(False, error=NOT_A_TASK)
        try:
            return self._envelope(True, **handler(request))
        except ValueError as error:
            return self._envelope(False, error=str(error))
        except Exception as error:  # noqa: BLE001 - a fault of ours is an answer too, and none of the loop's business
            return self._envelope(False, error=f"internal error: {type(error).__name__}: {error}")

    @staticmethod
    def _envelope(ok: bool, **fields: Any) -> dict[str, Any]:
        return {"v": PROTOCOL, "version": VERSION, "ok": ok, **fields}


async def _line(reader: asyncio.StreamReader) -> dict[str, Any]:
    """One request.

    Raises:
        ValueError: it is none of ours, in words.
    """
    try:
        request = json.loads(await reader.readline())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON object in one line of at most {MAX_REQUEST} bytes") from error
    if not isinstance(request, dict) or request.get("v") != PROTOCOL:
        raise ValueError(f"this daemon speaks version {PROTOCOL} of the control protocol")
    return request


def _credentials(peer: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of whoever connected (SO_PEERCRED); the pid is 0 where it has none here."""
    pid, uid, gid = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return pid, uid, gid


def peer_uid(peer: socket.socket) -> int:
    """Whose process is at the other end."""
    return _credentials(peer)[1]


def permitted(peer: socket.socket) -> bool:
    """The peer is root, our own user, or a member of our group."""
    _, uid, gid = _credentials(peer)
    if uid in (0, os.getuid()):
        return True
    try:
        raw = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)  # Python takes no more: 256 groups
    except OSError:
        raw = b""
    groups = {gid, *struct.unpack(f"{len(raw) // 4}I", raw)}
    return os.getgid() in groups


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """The socket by a name of less than 108 bytes, which is all that the kernel takes, however deep its folder lies."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def ask(
    runtime: Path, name: str, timeout_s: float = 5.0, *, trusted: bool = False, **fields: Any
) -> dict[str, Any]:
    """Ask the daemon whose runtime folder this is; returns its answer. `trusted`: only one that root or the folder's
    owner runs.

    Raises:
        DaemonDown: nobody listens.
        DaemonMute: it may not be trusted, no whole answer within `timeout_s` seconds, or one of another version.
    """
    path = runtime / SOCKET_NAME
    until_s = time.monotonic() + timeout_s
    question = json.dumps({"v": PROTOCOL, "ask": name, **fields}).encode() + b"\n"
    while True:
        try:
            raw = _exchange(runtime, question, until_s, trusted)
        except TimeoutError as error:
            raise DaemonMute(f"the daemon does not answer within {timeout_s:g} s; look at `journalctl -u rae-node`") from error
        except (BlockingIOError, ConnectionResetError, BrokenPipeError):
            raw = b""
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
                hint = "start it with `systemctl start rae-node` or `rae-node run`"
                raise DaemonDown(f"the daemon is not running (no answer at {path}); {hint}") from error
            raise DaemonMute(f"the daemon cannot be asked at {path}: {error.strerror or error}") from error
        if raw or time.monotonic() + AGAIN_S >= until_s:
            break
        time.sleep(AGAIN_S)  # a crowd is at the door, and we were let go before we were heard
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DaemonMute(f"the daemon at {path} gave no whole answer") from error
    if not isinstance(answer, dict) or answer.get("v") != PROTOCOL:
        raise DaemonMute(f"the daemon at {path} is another version; restart it with `systemctl restart rae-node`")
    return answer


def _exchange(runtime: Path, question: bytes, until_s: float, trusted: bool) -> bytes:
    """One question, and what comes back for it; nothing when the daemon closed without a word."""
    path = runtime / SOCKET_NAME
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(max(AGAIN_S, until_s - time.monotonic()))
        with short_name(path) as short:
            peer.connect(short)
        if trusted and peer_uid(peer) not in (0, runtime.stat().st_uid):
            raise DaemonMute(f"whoever listens at {path} is neither root nor the folder's owner")
        peer.sendall(question)
        return _read_line(peer, until_s)


def _read_line(peer: socket.socket, until_s: float) -> bytes:
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
