"""Programs of tasks: some that do as they are told, and many that do not."""

from __future__ import annotations

from typing import Any

# It notes the longest time that it did not run, and ends when it is told to.
RESTLESS = """
import json, os, time
last, longest = time.monotonic(), 0.0
open("up", "w").close()
while not os.path.exists("end"):
    time.sleep(0.005)
    now = time.monotonic()
    longest, last = max(longest, now - last), now
longest = max(longest, time.monotonic() - last)
print(json.dumps({"longest": longest}))
"""
# Counts until it is told to save its place; one that is resumed goes on from there, and ends.
COUNTS = """
import json, os, signal, sys, time
begun = json.load(sys.stdin)
if "rae_state" in begun:
    print(json.dumps({"from": begun["rae_state"], "job": begun["job"]}))
    sys.exit()
def save(*_):
    with open("draft", "w") as file: json.dump({"secret": "sentinel" + "-4711", "at": 42}, file)
    os.rename("draft", "rae-state.json")
signal.signal(signal.SIGUSR1, save)
open("up", "w").close()
while True: time.sleep(0.05)
"""
ATTACK = """
import ctypes, json, os
ppid = lambda pid: int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1])
shim = os.getppid()
node = ppid(shim)
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
traced = [libc.ptrace(16, pid, 0, 0) for pid in (node, shim)]
signalled = 0
for pid in (node, shim):
    for number in (15, 19, 9):
        try:
            os.kill(pid, number)
            signalled += 1
        except PermissionError:
            pass
print(json.dumps({"traced": traced, "signalled": signalled}))
"""
# It runs as the node's user, who may say these words; what it asks as anybody may is answered.
SPEAK = """
import json, os, socket
def word(**said):
    peer = socket.socket(socket.AF_UNIX)
    peer.connect("../../run/control.sock")
    peer.sendall(json.dumps({"v": 1, **said}).encode() + b"\\n")
    answer = json.loads(peer.makefile().readline())
    return answer.get("error", "") or answer["ok"]
over, alive = os.pipe()
if os.fork():
    os.close(alive); os.read(over, 1); os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
session = {"id": "1", "source": "made up", "idle": 1e6, "inhibitors": [], "why": ""}
print(json.dumps({
    "pause": word(ask="pause"), "resume": word(ask="resume"),
    "tell": word(tell="presence", sessions=[session], terminals=None), "status": word(ask="status"),
}))
"""
REFUSED = "a task may not say that"
KINDS: dict[str, tuple[str, dict[str, Any], str | None, Any]] = {
    # what it does, its settings, the error's beginning (None: it succeeds), its result (None: not looked at)
    "double_fork": ("import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\n    os._exit(0)\n"
                    "os.wait(); print('{}')", {}, None, {}),
    "setsid": ("import os\nif os.fork() == 0:\n    os.setsid(); time.sleep(1000)\nprint('{}')", {}, None, {}),
    "ignores_term": ("import signal\nsignal.signal(15, signal.SIG_IGN)\nwhile True: time.sleep(1)",
                     {"timeout_minutes": 0.02}, "timeout: ", None),
    "fork_bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {"max_processes": 200},
                  "limit: processes ", None),
    "stdout_flood": ("import os\nwhile True: os.write(1, b'x' * 65536)", {"max_result_mb": 1},
                     "result: larger than 1 MiB", None),
    "stderr_flood": ("import os\nfor _ in range(600): os.write(2, b'y' * 65536)\nos._exit(3)", {}, "exit: code 3", None),
    "zombies": ("import os\nfor _ in range(300):\n    if os.fork() == 0: os._exit(0)\ntime.sleep(1000)",
                {"timeout_minutes": 0.03}, "timeout: ", None),
    "memory_hog": ("kept = []\nwhile len(kept) < 40:\n    kept.append(b'x' * (8 << 20)); time.sleep(0.01)\n"
                   "time.sleep(1000)", {"max_memory_gb": 0.1}, "limit: memory ", None),
    "disk_hog": ("f = open('big', 'wb')\nfor _ in range(60): f.write(b'x' * (1 << 20))\nf.flush(); time.sleep(1000)",
                 {"max_disk_gb": 0.03}, "limit: disk ", None),
    "many_files": ("import os\nfor n in range(10_000):\n    if n % 1000 == 0: os.makedirs(f'd{n}/' + 'e/' * 50, 0)\n"
                   "    open(f'f{n}', 'w').close()\nprint('{}')", {}, None, {}),
    "nul": ("import os\nos.write(1, b'{\"a\": \"x' + bytes([92]) + b'u0000y\"}')", {}, None, {"a": "x\ufffdy"}),
    "raw_nul": ("import os\nos.write(1, b'{\"a\": \"x\\x00y\"}')", {}, None, {"a": "x\ufffdy"}),
    "not_utf_8": ("import os\nos.write(1, b'{\"a\": \"\\xff\\xfe\"}')", {}, None, {"a": "\ufffd\ufffd"}),
    "no_json": ("print('{\"a\": [NaN, Infinity, -Infinity, 1e999, \"x\\\\ud800\"], \"n\": ' + '9' * 5000 + '}')", {}, None,
                {"a": [None, None, None, None, "x\ufffd"], "n": "<integer of 5000 digits>"}),
    "huge_result": ("import os\nos.write(1, b'{\"a\": \"')\nfor _ in range(200): os.write(1, b'x' * (1 << 20))\n"
                    "os.write(1, b'\"}')", {}, "result: larger than 8 MiB", None),
    "stops_itself": ("import os\nos.kill(os.getpid(), 19)", {"timeout_minutes": 0.02}, "timeout: ", None),
    "closes_stdin": ("import os\nos.close(0); time.sleep(0.1); print('{}')", {}, None, {}),
    "attacks_the_node": (ATTACK, {"sandbox": "none"}, None, {"traced": [-1, -1], "signalled": 0}),
    "speaks_for_others": (SPEAK, {"sandbox": "none"}, None,
                          {"pause": REFUSED, "resume": REFUSED, "tell": REFUSED, "status": True}),
    "kills_itself": ("import os\nos.kill(os.getpid(), 9)", {}, "signal: 9 (SIGKILL)", None),
}  # fmt: skip
