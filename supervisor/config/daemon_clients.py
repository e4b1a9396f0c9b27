"""Commands that only ask a program elsewhere to do the work: docker, systemd-run, at, tmux.

That work is no child of the task. A freeze or a kill of the task stops the client alone, and the work goes on. So a task
type whose argv names such a client is refused.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Final

# What each client leaves to others. A container client counts also in the foreground: podman's conmon leaves the task.
_CLIENTS: Final = {
    "the container": (
        "docker", "docker-compose", "podman", "podman-compose", "podman-remote", "nerdctl", "ctr", "crictl", "kubectl", "lxc",
        "lxc-attach", "lxc-execute", "lxc-start", "incus", "machinectl", "systemd-nspawn", "distrobox", "toolbox",
    ),
    "the virtual machine": ("virsh", "VBoxManage", "vboxmanage", "multipass", "vagrant", "limactl"),
    "the unit": ("systemd-run", "run0", "systemctl", "supervisorctl", "pm2"),
    "the job": (
        "at", "batch", "crontab", "sbatch", "srun", "salloc", "qsub", "bsub", "condor_submit", "tsp", "pueue",
    ),
    "the program": ("screen", "tmux", "byobu", "zellij", "dtach", "abduco", "flatpak", "flatpak-spawn", "snap"),
}  # fmt: skip
_LEAVES: Final = {name: what for what, names in _CLIENTS.items() for name in names}

# Programs that run the command in their arguments: their options with a value of its own, and how many arguments come
# before the command.
_WRAPPERS: Final[dict[str, tuple[str, int]]] = {
    "sudo": ("-u -g -h -p -C -D -R -T -r -t -U --user --group --host --prompt --chdir --chroot --role --type", 0),
    "doas": ("-u -C", 0), "pkexec": ("--user", 0), "gosu": ("", 1), "su-exec": ("", 1),
    "su": ("-g -G -s --group --shell", 1), "runuser": ("-u -g -G -s --user --group --shell", 0),
    "env": ("-u -C -a --unset --chdir --argv0", 0), "nice": ("-n --adjustment", 0),
    "ionice": ("-c -n --class --classdata", 0), "chrt": ("-T -P -D", 1), "taskset": ("", 1),
    "numactl": ("-N -m -C -i -p --cpunodebind --membind --physcpubind --interleave --preferred", 0),
    "nohup": ("", 0), "setsid": ("", 0), "stdbuf": ("-i -o -e --input --output --error", 0),
    "timeout": ("-k -s --kill-after --signal", 1), "time": ("-f -o --format --output", 0), "prlimit": ("", 0),
    "flock": ("-w -E --timeout --conflict-exit-code", 1), "xargs": ("-I -n -P -L -s -d -E -a", 0),
    "watch": ("-n --interval", 0), "strace": ("-e -o -p -s -u", 0), "unshare": ("", 0), "busybox": ("", 0),
    "systemd-inhibit": ("--what --who --why --mode", 0), "dbus-run-session": ("--config-file", 0),
    "tini": ("-p -e", 0), "dumb-init": ("-r --rewrite", 0), "catatonit": ("", 0),
    "exec": ("-a", 0), "command": ("", 0), "builtin": ("", 0),
}  # fmt: skip
_SHELLS: Final = frozenset(("sh", "ash", "bash", "dash", "fish", "ksh", "mksh", "zsh"))
_TAKE_A_TEXT: Final = frozenset(("su", "runuser", "script", "flock"))  # with -c as shells do, also behind a user or a file
_RESERVED: Final = frozenset(("!", "{", "do", "elif", "else", "if", "then", "until", "while"))
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*\+?=")
_MOST_TEXT: Final = 4096  # characters of a shell's text that are looked at


def daemon_client(argv: Sequence[str]) -> str:
    """Why a task with this argv cannot be held, if it names the client of another daemon, also behind sudo, env or `sh -c`;
    else an empty text."""
    for name in _programs(list(argv)):
        if what := _LEAVES.get(name):
            image = ", or use apptainer for an image" if what == "the container" else ""
            return (
                f"{name} is only a client: {what} runs outside of the task, where it cannot be frozen, and outlives it; "
                f"refused. Name the program itself{image}"
            )
    return ""


def _programs(argv: list[str]) -> Iterator[str]:
    """The names of the programs that a command plainly starts: its own, and those behind wrappers and `sh -c`."""
    while argv and (_ASSIGNMENT.match(argv[0]) or argv[0] in _RESERVED):
        argv = argv[1:]
    if not argv:
        return
    name = os.path.basename(argv[0])
    yield name
    if name in _SHELLS | _TAKE_A_TEXT and (text := _text(argv[1:], anywhere=name in _TAKE_A_TEXT)):
        for command in _commands(text):
            yield from _programs(command)
    elif name in _WRAPPERS:
        valued, operands = _WRAPPERS[name]
        yield from _programs(_after(argv[1:], valued.split(), operands))


def _after(argv: list[str], valued: list[str], operands: int) -> list[str]:
    """The command behind a wrapper's own options, variables and `operands`."""
    while argv:
        if argv[0] == "--" or (argv[0].startswith("-") and argv[0] not in valued) or _ASSIGNMENT.match(argv[0]):
            argv = argv[1:]
        elif argv[0] in valued:
            argv = argv[2:]
        elif operands:
            argv, operands = argv[1:], operands - 1
        else:
            break
    return argv


def _text(argv: list[str], *, anywhere: bool) -> str:
    """What follows -c, alone or as the last of several letters (-lc); not behind a script's name, unless `anywhere`."""
    while len(argv) > 1:
        if re.fullmatch(r"-[a-z]*c|--command", argv[0]):
            return argv[1][:_MOST_TEXT]
        if not argv[0].startswith(("-", "+")) and not anywhere:
            break
        argv = argv[2:] if re.fullmatch(r"[-+][a-z]*[oO]|--rcfile|--init-file", argv[0]) else argv[1:]
    return ""


def _commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell's text, each as its argv; nothing where its quotes do not match."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&\n`")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t\r", "", True
    command: list[str] = []
    try:
        for token in lexer:
            if token and token[0] in "();|&\n`":
                yield command
                command = []
            else:
                command.append(token)
    except ValueError:
        return
    yield command
