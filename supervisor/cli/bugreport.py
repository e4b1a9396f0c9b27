"""`rae-node bugreport`."""

from __future__ import annotations

import asyncio
import io
import os
import platform
import socket
import tarfile
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from supervisor.cli.common import ConfigOption, Exit, NoAnswer, exit_with, query, runtime_folder
from supervisor.linux.small_files import open_plain

MAX_JOURNAL: Final = 16 << 20  # the end of each file


def bugreport(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Default: rae-node-HOST-TIME.tar.gz here.", show_default=False)
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Gather what a report of a fault needs in one file.

    `doctor`, `status`, the settings, and the journal of the last two days. Never a key: what stands in the place of a secret
    is hidden everywhere, and so is the key itself. The journal names users, programs and hosts of this machine: read it before
    you send it. Run it with sudo: then it sees all.

    Exit codes: 0 written. 1 it cannot be written. 2 wrong usage.
    """
    from supervisor import VERSION
    from supervisor.config.fallback import load_or_disabled
    from supervisor.config.load import ConfigErrors, find_folder, load
    from supervisor.linux import console
    from supervisor.tools.doctor import report
    from supervisor.tools.doctor.doctor import examine
    from supervisor.tools.redact import scrub, secrets_of, shown

    path = file or Path(f"rae-node-{socket.gethostname()}-{time.strftime('%Y%m%dT%H%M%S')}.tar.gz")
    folder = find_folder(config).absolute()
    understood = load_or_disabled(folder)
    secrets = secrets_of(understood)
    parts = {"machine.txt": f"rae-node {VERSION}\n{platform.platform()}\npython {platform.python_version()}\n"}
    try:
        parts["settings.json"] = console.document(shown(load(folder), every=True))
    except ConfigErrors as errors:
        parts["settings.txt"] = "\n".join(map(str, errors.problems))
    parts |= _journal(understood.paths.logs)
    try:
        parts["status.json"] = console.document(query(runtime_folder(config), "status"))
    except NoAnswer as none:
        parts["status.txt"] = str(none)
    parts["doctor.txt"] = report.doctor(asyncio.run(examine(folder)))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as out, tarfile.open(fileobj=out, mode="w:gz") as tar:
            for name, text in sorted(parts.items()):
                data = scrub(text, secrets).encode(errors="replace")
                entry = tarfile.TarInfo(f"rae-node/{name}")
                entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
                tar.addfile(entry, io.BytesIO(data))
    except FileExistsError:
        exit_with(Exit.NO, f"{path} is there already; name another file")
    except OSError as error:
        exit_with(Exit.NO, f"{path}: {error.strerror}")
    print(f"{path}: {', '.join(sorted(parts))}. Read it before you send it: the journal names users and programs.")


def _journal(folder: Path) -> dict[str, str]:
    """The files of the last two days, or why there are none."""
    from supervisor.journal.decision_log import files

    found = {}
    try:
        for path in files([folder])[-2:]:
            with os.fdopen(open_plain(path), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_JOURNAL))
                found[path.name] = file.read(MAX_JOURNAL).decode(errors="replace")
    except OSError as error:
        found["journal.txt"] = f"{error.filename}: {error.strerror}; run it with sudo"
    return found
