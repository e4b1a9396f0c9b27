"""`rae-node init`."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from supervisor.cli.common import ConfigOption, Exit, exit_with, values
from supervisor.linux.small_files import read_plain, replace_plain

KEY_FILE: Final = "control-node.key"
CREDENTIAL: Final = Path("/etc/credstore/rae-node-token")  # which rae-node.service hands to the service's user
PRESENCE: Final = ("required", "optional", "none")


def init(
    url: Annotated[str | None, typer.Option("--url", help="The control node's address.", show_default=False)] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", metavar="FILE", help="Read its key from here; - is standard input.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(
        "--gpu", metavar="|".join(PRESENCE), help="Whether it needs one.", show_default=False, autocompletion=values(*PRESENCE)
    )] = None,
    task: Annotated[
        str | None, typer.Option("--task", metavar="'NAME: COMMAND'", help="A type and its command.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over the node.yaml that is there.")] = False,
    config: ConfigOption = None,
) -> None:
    """Write a configuration of ten lines.

    That is a node.yaml. Asks for what no option gives: the control node's URL and key, the GPU, and one task type. The key goes
    into a file of its own, mode 0600; of an installed node it becomes the systemd credential rae-node-token. Nothing is
    started. Every setting with its reason: `config/node.yaml`, or `rae-node config show --all`.

    Exit codes: 0 written. 1 it cannot be written, or is there already. 2 wrong usage or configuration.
    """
    from supervisor.config.load import INSTALLED, ConfigErrors, find_folder, load

    folder = find_folder(config).absolute()
    node = folder / "node.yaml"
    if node.exists() and not force:
        exit_with(Exit.NO, f"{node} is there already; change it, or --force writes over it")
    url = url or _ask("URL of the control node", "https://control.example.org")
    key = _key(key_file)
    installed = folder == INSTALLED
    place, token = (CREDENTIAL, {"credential": CREDENTIAL.name}) if installed else (folder / KEY_FILE, {"file": KEY_FILE})
    gpu = gpu or _ask("GPU: required, optional or none", "required" if shutil.which("nvidia-smi") else "optional")
    name, _, command = (task or _ask("A task type and its command", "echo: /bin/cat")).partition(":")
    try:
        argv = shlex.split(command)
    except ValueError as error:
        exit_with(Exit.WRONG, f"--task: found {command.strip()!r}: {error}")
    if not argv or not name.strip():
        exit_with(Exit.WRONG, "--task: allowed: a name, a colon and a command, such as 'echo: /bin/cat'")
    settings: dict[str, Any] = {
        "control": {"url": url, **({"token": token} if key else {})},
        "gpu": {"presence": gpu},
        "tasks": {name.strip(): {"argv": argv}},
    }
    try:
        with tempfile.TemporaryDirectory() as trial:  # what is wrong is never written
            _write(Path(trial), settings)
            load(Path(trial))
        if key:
            place.parent.mkdir(0o700 if installed else 0o755, parents=True, exist_ok=True)
            replace_plain(place, key.encode() + b"\n")
        written = [*_write(folder, settings), *[place] * bool(key)]
    except OSError as error:
        exit_with(Exit.NO, f"{error.filename}: {error.strerror}")
    except ConfigErrors as errors:
        exit_with(Exit.WRONG, *map(str, errors.problems))
    print(f"written: {', '.join(map(str, written))}")
    print("next: `rae-node config check --online`, then `rae-node run`, or `sudo rae-node enable --now` where it is installed")


def _write(folder: Path, settings: dict[str, Any]) -> list[Path]:
    import yaml

    from supervisor.config.generate import runtime_yaml

    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "node.yaml"]
    text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=False)
    head = "# Made by `rae-node init`. All settings, with their reasons: `rae-node config show --all`.\n"
    replace_plain(folder / "node.yaml", (head + text).encode(), 0o644)
    if not (folder / "runtime.yaml").exists():
        replace_plain(folder / "runtime.yaml", runtime_yaml().encode(), 0o644)
        written.append(folder / "runtime.yaml")
    return written


def _ask(what: str, usual: str) -> str:
    if not sys.stdin.isatty():
        exit_with(Exit.WRONG, f"{what}: give it as an option, or run this in a terminal; see `rae-node init --help`")
    return str(typer.prompt(what, default=usual)).strip()


def _key(file: Path | None) -> str:
    """The key; empty where there is none."""
    if file is None:
        if not sys.stdin.isatty():
            return ""
        return str(typer.prompt("Its key (nothing: none)", default="", hide_input=True, show_default=False)).strip()
    try:
        return (sys.stdin.read() if str(file) == "-" else read_plain(file, follow=True).decode()).strip()
    except (OSError, UnicodeDecodeError) as error:
        exit_with(Exit.NO, f"{file}: {error.strerror if isinstance(error, OSError) else 'it is no text'}")


