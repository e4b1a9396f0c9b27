"""The smallest useful compositor: wl_seat and ext_idle_notifier_v1 on the wire, with the standard library alone.

Usage: python -m support.idle_compositor SOCKET VERSION [silent]. Letters on stdin: see `support.displays.IdleServer`.
An inhibitor stops all notifications but version 2's input notifications. When one comes, those that have idled resume,
as wlroots does it; with "silent" they are told nothing, and never hear of anything again until the inhibitor goes.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SEAT, NOTIFIER = "wl_seat", "ext_idle_notifier_v1"


@dataclass
class Note:
    timeout_s: float
    since_s: float
    input_only: bool
    idled: bool = False


class Client:
    def __init__(self, peer: socket.socket, compositor: Compositor) -> None:
        self.peer, self.compositor = peer, compositor
        self.kinds: dict[int, str] = {1: "wl_display"}
        self.notes: dict[int, Note] = {}
        self._heard = b""
        self._registry = 0

    def send(self, source: int, opcode: int, body: bytes = b"") -> None:
        with contextlib.suppress(OSError):
            self.peer.sendall(struct.pack("=IHH", source, opcode, 8 + len(body)) + body)

    def feed(self) -> bool:
        """Take what has come; False: the client has gone."""
        try:
            chunk = self.peer.recv(4096)
        except OSError:
            chunk = b""
        self._heard += chunk
        while len(self._heard) >= 8:
            target, opcode, size = struct.unpack_from("=IHH", self._heard)
            if len(self._heard) < size:
                break
            body, self._heard = self._heard[8:size], self._heard[size:]
            self._take(target, self.kinds.get(target, ""), opcode, body)
        return bool(chunk)

    def announce(self, name: int, interface: str, version: int) -> None:
        raw = interface.encode() + b"\0"
        text = struct.pack("=I", len(raw)) + raw + b"\0" * (-len(raw) % 4)
        if self._registry:
            self.send(self._registry, 0, struct.pack("=I", name) + text + struct.pack("=I", version))

    def withdraw(self, name: int) -> None:
        if self._registry:
            self.send(self._registry, 1, struct.pack("=I", name))

    def _forget(self, number: int) -> None:
        self.kinds.pop(number, None)
        self.notes.pop(number, None)
        self.send(1, 1, struct.pack("=I", number))  # wl_display.delete_id

    def _take(self, target: int, kind: str, opcode: int, body: bytes) -> None:
        words = struct.unpack_from(f"={len(body) // 4}I", body)
        if kind == "wl_display" and opcode == 0:
            self.send(words[0], 0, struct.pack("=I", 0))
            self._forget(words[0])
        elif kind == "wl_display":
            self._registry, self.kinds[words[0]] = words[0], "wl_registry"
            for name, (interface, version) in self.compositor.globals.items():
                self.announce(name, interface, version)
        elif kind == "wl_registry":
            self.kinds[words[-1]] = self.compositor.globals[words[0]][0]
            if self.kinds[words[-1]] == SEAT:
                self.send(words[-1], 0, struct.pack("=I", 0))  # no capabilities
        elif kind == NOTIFIER and opcode in (1, 2):
            assert opcode <= self.compositor.version
            self.kinds[words[0]] = "note"
            self.notes[words[0]] = Note(words[1] / 1000, time.monotonic(), opcode == 2)
        elif opcode == 0:
            self._forget(target)


class Compositor:
    def __init__(self, path: Path, version: int, silent: bool) -> None:
        self.version, self.silent = version, silent
        self.globals = {1: (SEAT, 5), 2: (NOTIFIER, version)}
        self._touched_s, self._inhibited = time.monotonic(), False
        self._clients: dict[int, Client] = {}
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)

    def _notes(self) -> list[tuple[Client, int, Note]]:
        return [(c, number, note) for c in self._clients.values() for number, note in c.notes.items()]

    def _stopped(self, note: Note) -> bool:
        return self._inhibited and not note.input_only

    def _obey(self, letter: str) -> None:
        now_s = time.monotonic()
        if letter == "a":
            self._touched_s = now_s
        elif letter in "iu":
            self._inhibited = letter == "i"
        elif letter == "n":
            self.globals[3] = (SEAT, 5)
            for client in self._clients.values():
                client.announce(3, SEAT, 5)
        elif letter == "o":
            name = max(n for n, (interface, _) in self.globals.items() if interface == SEAT)
            del self.globals[name]
            for client in self._clients.values():
                client.withdraw(name)
        elif letter == "x":
            for client in self._clients.values():
                client.send(1, 7, b"\xff" * 64)
                client.peer.sendall(b"\xff" * 64)
        for client, number, note in self._notes():
            if letter == "u" and not note.input_only:
                note.since_s = now_s
            touched = letter == "a" and not self._stopped(note)
            inhibited = letter == "i" and not note.input_only and not self.silent
            if note.idled and (touched or inhibited):
                client.send(number, 1)
                note.idled = False

    def run(self) -> None:
        print("ready", flush=True)
        while True:
            for key, _ in self._selector.select(0.005):
                if key.fileobj is self._listener:
                    peer = self._listener.accept()[0]
                    self._clients[peer.fileno()] = Client(peer, self)
                    self._selector.register(peer, selectors.EVENT_READ)
                elif key.fd == 0:
                    letters = os.read(0, 64).decode()
                    if not letters:
                        return
                    for letter in letters:
                        self._obey(letter)
                elif not self._clients[key.fd].feed():
                    self._selector.unregister(key.fileobj)
                    self._clients.pop(key.fd).peer.close()
            now_s = time.monotonic()
            for client, number, note in self._notes():
                rest_s = now_s - max(self._touched_s, note.since_s)
                if not note.idled and not self._stopped(note) and rest_s >= note.timeout_s:
                    note.idled = True
                    client.send(number, 0)


if __name__ == "__main__":
    Compositor(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["silent"]).run()
