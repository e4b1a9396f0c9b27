"""One pointer motion by KWin's fake-input protocol, on the wire; prints CLOCK_BOOTTIME right before it.

KWin must have KWIN_WAYLAND_NO_PERMISSION_CHECKS=1.
"""

import os
import socket
import struct
import sys
import time

DISPLAY, REGISTRY, FOUND, FAKE, MOVED = 1, 2, 3, 4, 5  # object ids; FOUND and MOVED are callbacks
PROTOCOL = "org_kde_kwin_fake_input"
server = socket.socket(socket.AF_UNIX)
server.connect(os.path.join(os.environ["XDG_RUNTIME_DIR"], "wayland-0"))


def number(value):
    return struct.pack("=I", value)


def text(value):
    raw = value.encode() + b"\0"
    return number(len(raw)) + raw + b"\0" * (-len(raw) % 4)


def send(target, opcode, body=b""):
    server.sendall(struct.pack("=IHH", target, opcode, 8 + len(body)) + body)


def global_of(protocol):
    """The compositor's number for it, from the registry."""
    data = b""
    while chunk := server.recv(65536):
        data += chunk
        while len(data) >= 8:
            source, event, size = struct.unpack_from("=IHH", data)
            if len(data) < size:
                break
            body, data = data[8:size], data[size:]
            if source == FOUND:
                sys.exit(f"no {protocol} for us")
            if source == REGISTRY and event == 0:
                name, length = struct.unpack_from("=II", body)
                if body[8 : 8 + length - 1].decode() == protocol:
                    return name
    sys.exit("closed")


send(DISPLAY, 1, number(REGISTRY))
send(DISPLAY, 0, number(FOUND))
send(REGISTRY, 0, number(global_of(PROTOCOL)) + text(PROTOCOL) + number(2) + number(FAKE))
send(FAKE, 0, text("desktop test") + text("presence"))
time.sleep(0.2)
print(time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)
send(FAKE, 1, struct.pack("=ii", 256 * 5, 256 * 5))  # fixed point
send(DISPLAY, 0, number(MOVED))
server.recv(4096)
time.sleep(0.1)
