"""As whom an operator comes to a fleet's servers: options, or the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from supervisor.config.urls import nats_fault
from supervisor.sources.nats.connection import Knobs, Server

DEFAULT_URL: Final = "nats://127.0.0.1:4222"
SERVER_ENV: Final = "RAE_FLEET_SERVER"
USER_ENV: Final = "RAE_FLEET_USER"
PASSWORD_ENV: Final = "RAE_FLEET_PASSWORD_FILE"  # noqa: S105  the name of a variable
CA_ENV: Final = "RAE_FLEET_CA_FILE"
KNOBS: Final = Knobs(
    url="--server", ca="--ca-file", no_key="give --user and --password-file", wrong_key="check --user and --password-file"
)


class AccessError(Exception):
    """It cannot be had; one line."""


def server_of(
    url: str | None,
    user: str | None,
    password_file: str | os.PathLike[str] | None,
    ca_file: str | os.PathLike[str] | None,
    environ: Mapping[str, str] = os.environ,
) -> Server:
    """Options first, then the environment, then a server on this machine.

    Raises:
        AccessError: an address that will not do, a password that cannot be had or that others can read, CAs that are none.
    """
    from supervisor.config.schema import Control, Token
    from supervisor.sources.api_key import TokenError, token
    from supervisor.sources.errors import RequestError, tls_context

    url = url or environ.get(SERVER_ENV) or DEFAULT_URL
    if why := nats_fault(url):
        raise AccessError(f"--server: found {'a URL with a password' if '@' in url else url}, allowed: {why}")
    user = user or environ.get(USER_ENV) or ""
    file = password_file or environ.get(PASSWORD_ENV)
    try:
        password = token(Control(token=Token(file=str(file))), environ) if file else None
    except TokenError as error:
        raise AccessError(str(error).replace("control.token.file", "--password-file")) from None
    if user and password is None:
        raise AccessError(f"--user {user} needs --password-file, the file that holds its password")
    ca = ca_file or environ.get(CA_ENV)
    if ca:
        try:
            tls_context(str(ca))
        except RequestError as trouble:
            raise AccessError(trouble.reason.replace("control.ca_file", "--ca-file")) from None
    return Server(url, user, password, str(ca) if ca else None, knobs=KNOBS)


def add_arguments(parser: Any) -> None:
    """The options, for argparse."""
    parser.add_argument("--server", metavar="URL", help=f"default: ${SERVER_ENV}, else {DEFAULT_URL}")
    parser.add_argument("--user", metavar="NAME", help=f"default: ${USER_ENV}")
    parser.add_argument("--password-file", metavar="FILE", help=f"default: ${PASSWORD_ENV}")
    parser.add_argument("--ca-file", metavar="FILE", help=f"default: ${CA_ENV}")
