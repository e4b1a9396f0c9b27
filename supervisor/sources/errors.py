"""Errors of the link to a control node or to a fleet, the same for each source."""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
from collections.abc import Iterator
from typing import Final

from supervisor.linux.small_files import open_plain

MIB: Final = 1024 * 1024


class RequestError(Exception):
    """A request got no good answer. `reason` never quotes the server: its text may hold task data.

    `status`: the status of the answer; None: there was no usable answer. `sent`: the server may have acted on the request.
    `retry_after_s`: how long the server asks the node to wait.
    """

    def __init__(
        self, reason: str, *, status: int | None = None, sent: bool = True, retry_after_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.sent = sent
        self.retry_after_s = retry_after_s


@contextlib.contextmanager
def own_faults(what: str) -> Iterator[None]:
    """Turns a fault of our own into a RequestError that begins with `what`: it must show in the status, and end nothing."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:  # noqa: BLE001
        raise RequestError(f"{what} ({type(error).__name__})") from None


def tls_context(ca_file: str | None, setting: str = "control.ca_file") -> ssl.SSLContext:
    """TLS with the CAs of this file; None: with the system's. It reads files: call it in a thread. `setting`: names the CAs.

    Raises:
        RequestError: the file cannot be used.
    """
    try:
        if ca_file is None:
            return ssl.create_default_context()
        fd = open_plain(ca_file, follow=True)
        try:
            return ssl.create_default_context(cafile=f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    except OSError as error:  # errors of ssl too
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise RequestError(f"{setting}: {ca_file} cannot be used: {reason}", sent=False) from None


def describe_error(error: BaseException, setting: str = "control.ca_file") -> str:
    """The system's reason at the bottom of an error, never the text of the error. `setting`: names the CAs."""
    for inner in _chain(error):
        if isinstance(inner, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {inner.verify_message} ({setting} names the CA)"
        if isinstance(inner, ssl.SSLError):
            return "the TLS handshake failed"
        if isinstance(inner, OSError) and inner.errno is not None and inner.errno in errno.errorcode:
            return os.strerror(inner.errno).lower()
    return f"the request failed ({type(error).__name__})"


def _chain(error: BaseException) -> Iterator[BaseException]:
    todo: list[BaseException] = [error]
    seen: set[int] = set()
    while todo:
        inner = todo.pop()
        if id(inner) not in seen:
            seen.add(id(inner))
            yield inner
            if isinstance(inner, BaseExceptionGroup):
                todo.extend(inner.exceptions)
            todo.extend(e for e in (inner.__cause__, inner.__context__) if e is not None)
