"""A person at a VNC viewer: connects without a password, presses Shift, moves the pointer. rfb_key.py PORT

Prints CLOCK_BOOTTIME right before the key.
"""

import socket
import struct
import sys
import time

SHIFT = 0xFFE1
server = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5)


def get(count):
    data = b""
    while len(data) < count:
        chunk = server.recv(count - len(data))
        if not chunk:
            sys.exit("closed")
        data += chunk
    return data


get(12)
server.sendall(b"RFB 003.008\n")
if 1 not in (kinds := get(get(1)[0])):
    sys.exit(f"no security type None: {list(kinds)}")
server.sendall(b"\x01")
get(4)
server.sendall(b"\x01")  # shared
get(20)
get(struct.unpack(">I", get(4))[0])
time.sleep(0.3)
print(time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)
for down in (1, 0):
    server.sendall(struct.pack(">BBHI", 4, down, 0, SHIFT))
    time.sleep(0.02)
server.sendall(struct.pack(">BBHH", 5, 0, 100 + int(time.time()) % 50, 100))
time.sleep(0.5)
