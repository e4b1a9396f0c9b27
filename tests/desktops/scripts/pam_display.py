"""A session as an X display manager opens it: pam_display.py SERVICE USER DISPLAY command…

PAM is told the display, which `systemd-run -pPAMName=` cannot do; logind has it from there.
"""

import ctypes
import os
import pwd
import sys

TTY, DISPLAY, ESTABLISH = 3, 11, 2
service, user, display, *command = sys.argv[1:]
pam = ctypes.CDLL("libpam.so.0")
pam.pam_getenvlist.restype = ctypes.POINTER(ctypes.c_char_p)


class Conversation(ctypes.Structure):
    _fields_ = (("function", ctypes.c_void_p), ("data", ctypes.c_void_p))


handle = ctypes.c_void_p()


def call(name, *arguments):
    if code := getattr(pam, name)(handle, *arguments):
        sys.exit(f"{name}: {code}")


if pam.pam_start(service.encode(), user.encode(), ctypes.byref(Conversation()), ctypes.byref(handle)):
    sys.exit("pam_start")
for item in (TTY, DISPLAY):
    call("pam_set_item", item, ctypes.c_char_p(display.encode()))
for name in ("XDG_SESSION_CLASS", "XDG_SESSION_TYPE", "XDG_SEAT"):
    if name in os.environ:
        call("pam_putenv", ctypes.c_char_p(f"{name}={os.environ[name]}".encode()))
call("pam_open_session", 0)
told = {}
for entry in iter(pam.pam_getenvlist(handle)):
    if entry is None:
        break
    name, _, value = entry.decode().partition("=")
    told[name] = value
child = os.fork()
if child == 0:
    who = pwd.getpwnam(user)
    os.initgroups(user, who.pw_gid)
    os.setgid(who.pw_gid)
    os.setuid(who.pw_uid)
    home = {"HOME": os.environ.get("HOME", who.pw_dir), "USER": user, "DISPLAY": display}
    os.execvpe(command[0], command, {**os.environ, **told, **home})
os.waitpid(child, 0)
call("pam_close_session", 0)
