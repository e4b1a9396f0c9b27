"""The fleet's server and the user to log in as, for an operator: options, or the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from supervisor.config.urls import nats_fault
from supervisor.sources.api_key import TokenError, private_file
from supervisor.sources.errors import RequestError, tls_context
from supervisor.sources.nats.connection import Server, SettingNames

DEFAULT_URL: Final = "nats://127.0.0.1:4222"
SERVER_ENV: Final = "RAE_FLEET_SERVER"
USER_ENV: Final = "RAE_FLEET_USER"
PASSWORD_ENV: Final = "RAE_FLEET_PASSWORD_FILE"  # noqa: S105  the name of a variable
CA_ENV: Final = "RAE_FLEET_CA_FILE"
NAMES: Final = SettingNames(
    url="--server", ca="--ca-file", no_key="give --user and --password-file", wrong_key="check --user and --password-file"
)


class AccessError(Exception):
    """The options or the environment do not name a server and a user; one line."""


def server_of(
    url: str | None,
    user: str | None,
    password_file: str | os.PathLike[str] | None,
    ca_file: str | os.PathLike[str] | None,
    environ: Mapping[str, str] = os.environ,
) -> Server:
    """Options first, then the environment, then a server on this machine.

    Raises:
        AccessError: a bad address; a password that cannot be read, or that others can read; a bad file of CAs.
    """
    url = url or environ.get(SERVER_ENV) or DEFAULT_URL
    if why := nats_fault(url):
        raise AccessError(f"--server: found {'a URL with a password' if '@' in url else url}, allowed: {why}")
    user = user or environ.get(USER_ENV) or ""
    file = password_file or environ.get(PASSWORD_ENV)
    ca = ca_file or environ.get(CA_ENV)
    try:
        password = private_file(Path(file), "--password-file") if file else None
        if user and password is None:
            raise AccessError(f"--user {user} needs --password-file, the file that holds its password")
        if ca:
            tls_context(str(ca), NAMES.ca)
    except (TokenError, RequestError) as error:
        raise AccessError(str(error)) from None
    return Server(url, user, password, str(ca) if ca else None, names=NAMES)


def add_arguments(parser: Any) -> None:
    """The options, for argparse."""
    parser.add_argument("--server", metavar="URL", help=f"default: ${SERVER_ENV}, else {DEFAULT_URL}")
    parser.add_argument("--user", metavar="NAME", help=f"default: ${USER_ENV}")
    parser.add_argument("--password-file", metavar="FILE", help=f"default: ${PASSWORD_ENV}")
    parser.add_argument("--ca-file", metavar="FILE", help=f"default: ${CA_ENV}")
