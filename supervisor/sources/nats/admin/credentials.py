"""Keys for a fleet: `python -m supervisor.sources.nats.admin.credentials DIR --server HOST... --node ID...` (needs openssl).

It writes into DIR what each machine needs and no more: for a server its configuration, certificate and `users.conf`; for the
gate, a node, an operator or a bridge one file with its password; `ca.pem` for all. It may run again to add servers or nodes:
what is there stays. `--rotate USER` makes a new password, `--revoke ID` takes a node's away. `rights` lists all that a user may
do.
"""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from supervisor.linux import console
from supervisor.linux.small_files import read_plain
from supervisor.sources.desired import QUESTIONS
from supervisor.sources.errors import MIB
from supervisor.sources.nats import subjects

GATE: Final = subjects.GATE_USER
OPERATOR: Final = "operator"
BRIDGE: Final = "bridge"
ROUTES: Final = "routes"  # for the connections between servers
DAYS: Final = "3650"
CLUSTER_PORT: Final = 6222

_CONF: Final = """# Written by supervisor.sources.nats.admin.credentials. Start, in this folder: nats-server -c {conf}
server_name: "{host}"
listen: "0.0.0.0:4222"
max_payload: 8MB
ping_interval: "20s"
jetstream {{ store_dir: "{store}", max_file_store: 20GB }}
tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{ca}", timeout: 5 }}
{cluster}include "users.conf"
"""
_CLUSTER: Final = """cluster {{
  name: rae, listen: "0.0.0.0:6222", no_advertise: true
  authorization {{ user: "routes", password: "{password}", timeout: 5 }}
  tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{ca}", verify: true, timeout: 5 }}
  routes: [ {routes} ]
}}
"""
_EXTENSIONS: Final = """basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
subjectAltName={names}
"""


def rights(role: str, user: str, consumer: str = subjects.CONSUMER) -> dict[str, Any]:
    """What a user of this role may send and receive; the server refuses everything else. Only the gate reaches JetStream."""
    if role == GATE:
        return {"publish": ">", "subscribe": ">"}
    api, receive = "$JS.API", [f"{subjects.inbox(user)}.>"]
    if role == OPERATOR:
        receive.append(subjects.ANY_RESULT)
        send = [
            "rae.tasks.*.*",
            *(f"{api}.STREAM.INFO.{stream}" for stream in (subjects.TASKS, subjects.RESULTS, subjects.DEAD)),
            f"{api}.CONSUMER.LIST.{subjects.TASKS}",
            f"{api}.DIRECT.GET.{subjects.RESULTS}.>",
            f"{api}.DIRECT.GET.{subjects.NODES_STREAM}",
            f"{api}.DIRECT.GET.{subjects.WAKE_STREAM}",
            f"$KV.{subjects.DESIRED}.*",
            f"{api}.DIRECT.GET.{subjects.DESIRED_STREAM}.>",
            *(f"rae.ask.*.{question}" for question in QUESTIONS),
        ]
    elif role == BRIDGE:
        send = [
            "rae.tasks.*.*",
            f"{api}.CONSUMER.INFO.{subjects.RESULTS}.{subjects.BRIDGE}",
            subjects.next_subject(subjects.RESULTS, subjects.BRIDGE),
            "lease.>",
            f"{api}.DIRECT.GET.{subjects.RESULTS}.>",
            f"{api}.DIRECT.GET.{subjects.NODES_STREAM}",
            subjects.node_subject(subjects.BRIDGE),
        ]
    else:
        receive += [subjects.desired_subject(user), subjects.ask_subject(user, "*")]
        send = [
            f"{api}.CONSUMER.INFO.{subjects.TASKS}.{consumer}",
            subjects.next_subject(subjects.TASKS, consumer),
            subjects.ANY_RESULT,
            "rae.dead.*",
            subjects.place_subject("*"),
            f"{api}.DIRECT.GET.{subjects.PLACES}.{subjects.place_subject('*')}",
            subjects.node_subject(user),
            f"{api}.DIRECT.GET.{subjects.DESIRED_STREAM}.{subjects.desired_subject(user)}",
            subjects.wake_subject(user),
            "lease.>",
            "answer.*",
        ]
    through = [f"{subjects.GATE}.{subjects.token(user)}.{subject}" for subject in send]
    return {"publish": {"allow": through}, "subscribe": {"allow": receive}}


class KeysError(Exception):
    """The keys cannot be made; one line."""


class Keys:
    """A folder of keys. Private files have mode 0600 from their first byte on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in (folder, folder / "passwords"):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._users_file = folder / "users.json"

    def users(self) -> dict[str, dict[str, str]]:
        """Name → role and consumer, of each user that has a key."""
        if not self._users_file.exists():
            return {}
        try:
            users = json.loads(read_plain(self._users_file, MIB))
            return {name: {"role": str(one["role"]), "consumer": str(one["consumer"])} for name, one in users.items()}
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            why = "is damaged; put back the list of users as this tool wrote it, or all lose their keys"
            raise KeysError(f"{self._users_file}: {why}") from None

    def add(self, servers: Sequence[str], users: Iterable[tuple[str, str, str]], store: str) -> list[str]:
        """Make what is missing for these servers and these (name, role, consumer).

        Returns:
            The new files.

        Raises:
            KeysError: the folder is damaged, or openssl failed.
            OSError: a file cannot be written.
        """
        before, known = set(self._files()), self.users()
        self._authority()
        self._write(known | {name: {"role": role, "consumer": consumer} for name, role, consumer in users})
        for host in servers:
            self._server(host, servers, store)
        return sorted(set(self._files()) - before)

    def rotate(self, name: str) -> None:
        """Replace a user's password. Raises KeysError when there is no such user."""
        users = self._with(name)
        (self.folder / "passwords" / name).unlink(missing_ok=True)
        self._write(users)

    def revoke(self, name: str) -> None:
        """Take a node's password away. Raises KeysError when there is no such node."""
        users = self._with(name)
        if users.pop(name)["role"] != "node":
            raise KeysError(f"{name}: a fleet cannot do without it; --rotate gives it a new password")
        (self.folder / "passwords" / name).unlink(missing_ok=True)
        self._write(users)

    def _with(self, name: str) -> dict[str, dict[str, str]]:
        users = self.users()
        if name not in users:
            raise KeysError(f"{name}: no such user; there are: {', '.join(sorted(users)) or 'none'}")
        return users

    def _write(self, users: Mapping[str, Mapping[str, str]]) -> None:
        """The list of users, and what the servers read of it."""
        _private(self._users_file, json.dumps(users, indent=1))
        accounts = []
        for name, one in users.items():
            grants = json.dumps(rights(one["role"], name, one["consumer"]))
            key = json.dumps(self.password(name))
            accounts.append(f"  {{ user: {json.dumps(name)}, password: {key}, permissions: {grants} }}\n")
        _private(self.folder / "users.conf", f"authorization {{\n users: [\n{''.join(accounts)} ]\n}}\n")

    def password(self, name: str) -> str:
        """A user's password, made at the first call."""
        file = self.folder / "passwords" / name
        if not file.exists():
            _private(file, secrets.token_urlsafe(32) + "\n")
        return read_plain(file).decode().strip()

    def _files(self) -> list[str]:
        return [str(path) for path in self.folder.rglob("*") if path.is_file()]

    def _authority(self) -> None:
        key, certificate = self.folder / "ca.key", self.folder / "ca.pem"
        if not _exists(key):
            new_key, new = self.folder / ".ca.key.new", self.folder / ".ca.pem.new"
            _private(new_key, "")
            _openssl(
                "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", DAYS,
                "-subj", "/CN=RAE fleet", "-keyout", new_key, "-out", new,
                "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            )
            new.replace(certificate)
            new_key.replace(key)  # last: if the key is there, all is there
        if not _exists(certificate):
            raise KeysError(f"{certificate} is missing beside {key}; put it back: each certificate is checked by it")

    def _server(self, host: str, servers: Sequence[str], store: str) -> None:
        names = {end: self.folder / f"{host}.{end}" for end in ("conf", "pem", "key", "csr", "ext")}
        if not (_exists(names["key"]) and _exists(names["pem"])):
            new = self.folder / f".{host}.pem.new"
            _private(names["key"], "")
            names["ext"].write_text(_EXTENSIONS.format(names=_subject_alt_name(host)))
            _openssl(
                "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-subj", f"/CN={host}", "-keyout", names["key"], "-out", names["csr"],
            )
            _openssl(
                "x509", "-req", "-in", names["csr"], "-CA", self.folder / "ca.pem", "-CAkey", self.folder / "ca.key",
                "-CAcreateserial", "-days", DAYS, "-extfile", names["ext"], "-out", new,
            )
            new.replace(names["pem"])
            names["csr"].unlink()
            names["ext"].unlink()
        files = {"cert": names["pem"].name, "key": names["key"].name, "ca": "ca.pem"}
        cluster = ""
        if len(servers) > 1:
            password = self.password(ROUTES)
            routes = ", ".join(f'"nats-route://{ROUTES}:{password}@{_in_url(one)}:{CLUSTER_PORT}"' for one in servers)
            cluster = _CLUSTER.format(password=password, routes=routes, **files)
        text = _CONF.format(conf=names["conf"].name, host=host, store=store, cluster=cluster, **files)
        _private(names["conf"], text)


def _exists(path: Path) -> bool:
    """The file is there and not empty."""
    return path.exists() and path.stat().st_size > 0


def _private(path: Path, text: str) -> None:
    """Write the whole file, readable by its owner alone."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def _openssl(*arguments: str | Path) -> None:
    try:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise KeysError("openssl is not installed; it makes the certificates (Debian: apt install openssl)") from None
    except subprocess.SubprocessError as error:
        lines = str(getattr(error, "stderr", "") or "").strip().splitlines() or [type(error).__name__]
        raise KeysError(f"openssl failed: {lines[-1]}") from None


def _subject_alt_name(host: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(host)}"
    except ValueError:
        return f"DNS:{host}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def main(argv: Sequence[str]) -> int:
    """`python -m supervisor.sources.nats.admin.credentials DIR --server HOST... --node ID...`; exit 0, 1, 2."""
    import argparse
    import re

    parser = argparse.ArgumentParser(prog="deploy/fleet/credentials", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--server", action="append", default=[], metavar="HOST", help="name or address of a server; 1 or 3")
    parser.add_argument("--node", action="append", default=[], metavar="ID", help="id of a node: node.id in its node.yaml")
    parser.add_argument("--consumer", default=subjects.CONSUMER, help="consumer of these nodes (control.nats.consumer)")
    parser.add_argument("--rotate", metavar="USER", help="give this user a new password")
    parser.add_argument("--revoke", metavar="ID", help="take this node's password away")
    parser.add_argument("--store", default="/var/lib/nats/jetstream", metavar="DIR", help="where servers keep their streams")
    given = parser.parse_args(argv)
    reserved = {GATE, OPERATOR, BRIDGE, ROUTES}
    for name in given.node:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or name in reserved:
            parser.error(f"--node: found {name}, allowed: an id as in node.yaml, none of {', '.join(sorted(reserved))}")
    for host in given.server:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,252}", host):
            parser.error(f"--server: found {host}, allowed: a host name or an address")
    users = [(role, role, "") for role in (GATE, OPERATOR, BRIDGE)]
    users += [(name, "node", given.consumer) for name in given.node]
    try:
        keys = Keys(given.folder)
        if given.rotate:
            keys.rotate(given.rotate)
        elif given.revoke:
            keys.revoke(given.revoke)
        new = [str(given.folder / "users.conf")] if given.rotate or given.revoke else keys.add(given.server, users, given.store)
    except (OSError, KeysError) as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n" if isinstance(error, OSError) else f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{name}\n" for name in new))
    return 0


if __name__ == "__main__":
    console.prepare()
    sys.exit(main(sys.argv[1:]))
