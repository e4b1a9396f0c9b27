"""The control node's key: from a private file, a systemd credential, or an environment variable."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from supervisor.config.schema import Control
from supervisor.linux.small_files import open_plain

MAX_BYTES: Final = 8192
NO_FILE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


class TokenError(Exception):
    """The key cannot be read. One line: what is wrong, where, what to do; never the key."""


def token(settings: Control, environ: Mapping[str, str]) -> str | None:
    """The key to send; None when none is configured.

    Raises:
        TokenError: a key is configured and cannot be read, or others could read it.
    """
    source = settings.token
    named = [name for name in ("file", "credential", "env") if getattr(source, name) is not None]
    if len(named) > 1:
        raise TokenError(f"control.token: found {' and '.join(named)}, allowed: one of file, credential, env")
    if source.file is not None:
        return private_file(Path(source.file), "control.token.file")
    if source.credential is not None:
        return _credential(source.credential, environ)
    if source.env is not None:
        if source.env not in environ:  # what is written there may be the key itself, so it is not told
            raise TokenError("control.token.env: this variable is not set in the environment; set it, or change control.token")
        return _checked(environ[source.env], f"control.token.env: {source.env}")
    return None


def advice(settings: Control, key: str | None) -> str:
    """What to do when the other side refuses the key that was read, or refuses a node without one."""
    source = settings.token
    for name in ("file", "credential", "env"):
        if (place := getattr(source, name)) is not None:
            again = "it is read again at each try" if name == "file" else "then restart the service, which gets it anew"
            return f"correct the key that control.token.{name} names ({place}); {again}"
    return "set control.token" if key is None else "check control.token"


def private_file(path: Path, setting: str) -> str:
    """The key in a file that nobody else can read. `setting`: what names the file.

    Raises:
        TokenError: it cannot be read, others could read it, or it holds no key.
    """
    where = f"{setting}: {path}"
    try:
        with os.fdopen(open_plain(path, follow=True), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & 0o077:
                mode = f"{stat.S_IMODE(status.st_mode):04o}"
                raise TokenError(f"{where} can be read or changed by others (mode {mode}); chmod 600 {path}")
            if status.st_uid not in (0, os.geteuid()):
                raise TokenError(f"{where} belongs to another user (uid {status.st_uid}), who can read it; chown it")
            return _decoded(file.read(MAX_BYTES + 1), where)
    except OSError as error:
        if error.errno in NO_FILE:  # what is written there may be the key itself, so it is not told
            raise TokenError(f"{setting}: this file is not there; write the key into it, or change control.token") from None
        raise TokenError(f"{where} cannot be read: {error.strerror}") from None


def _credential(name: str, environ: Mapping[str, str]) -> str:
    where = f"control.token.credential: {name}"
    folder = environ.get("CREDENTIALS_DIRECTORY")
    missing = "control.token.credential: systemd gave no such credential; the unit needs LoadCredential=NAME:PATH"
    # Not there, or not to be looked at. What is written as its name may be the key itself, so it is not told.
    if folder is None or not os.path.exists(f"{folder}/{name}"):
        raise TokenError(missing)
    if "/" in name or name in ("", ".", ".."):
        raise TokenError("control.token.credential: this is not the name of a credential")
    try:
        with os.fdopen(open_plain(Path(folder) / name, follow=True), "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o007:  # systemd lets the service in by an ACL, shown as the group's bits
                raise TokenError(f"{where} can be read or changed by all users; systemd's own credentials cannot")
            return _decoded(file.read(MAX_BYTES + 1), where)
    except OSError as error:
        raise TokenError(f"{where} cannot be read: {error.strerror}; see LoadCredential= in the unit") from None


def _decoded(content: bytes, where: str) -> str:
    if len(content) > MAX_BYTES:
        raise TokenError(f"{where} has more than {MAX_BYTES} bytes")
    return _checked(content.decode("ascii", "replace"), where)


def _checked(text: str, where: str) -> str:
    """A key travels in a header: visible ASCII only."""
    key = text.strip()
    if not re.fullmatch(r"[!-~]+", key):
        raise TokenError(f"{where} has no key: one line of visible ASCII characters without spaces is expected")
    return key
