"""Programs that the checks run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from supervisor.linux.small_files import read_plain

DEADLINE_S: Final = 30.0
LEFT_S: Final = 1.0  # the most that a killed program is waited for

# How the settings of a unit begin that make up its sandbox, for `sandboxed`.
_SANDBOX: Final = (
    "Ambient", "BindPaths", "BindReadOnly", "Capability", "Device", "DynamicUser", "Environment", "Inaccessible", "Keyring",
    "Limit", "LoadCredential", "Lock", "MemoryDeny", "NoNewPrivileges", "Private", "ProcSubset", "Protect", "Read", "RemoveIPC",
    "Restrict", "Supplementary", "SystemCall", "TemporaryFileSystem", "UMask",
)  # fmt: skip


async def run(*argv: str, timeout_s: float = DEADLINE_S, **options: Any) -> tuple[int, str, str]:
    """(exit status, output, errors) of a program; 127 when it is missing, 124 when it took too long."""
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, **options
        )
    except OSError as error:
        return 127, "", f"{argv[0]}: {error.strerror}"
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError, TimeoutError):  # a program that hangs in the kernel is left behind
            process.kill()
            async with asyncio.timeout(LEFT_S):
                await process.wait()
        return 124, "", f"{argv[0]} did not end within {timeout_s:g} s"
    return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")


def first_line(err: str, code: int) -> str:
    """Why a program failed: the first line of its errors, else its exit status."""
    return (err.strip().splitlines() or [f"exit {code}"])[0]


async def show(units: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Properties of units as systemd knows them; for each unit only `trouble` where systemd cannot be asked."""
    code, out, err = await run("systemctl", "show", *units, *(f"-p{name}" for name in names), timeout_s=10)
    if code:
        return {unit: {"trouble": first_line(err, code)} for unit in units}
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in out.split("\n\n")]
    return dict(zip(units, blocks, strict=False))


def unit_lines(says: Mapping[str, str]) -> Iterator[str]:
    """The lines of a unit's file and its drop-ins. `says`: its properties."""
    for path in (says.get("FragmentPath", ""), *says.get("DropInPaths", "").split()):
        try:
            text = read_plain(path, follow=True).decode(errors="replace")
        except OSError:
            continue
        yield from (line.strip() for line in text.replace("\\\n", " ").splitlines())


def sandboxed(says: Mapping[str, str]) -> list[str]:
    """The start of a command line that runs a program in the sandbox of a unit, in a unit of its own. As root."""
    runner = ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--property=RuntimeMaxSec={DEADLINE_S:g}"]
    return [*runner, *(f"--property={line}" for line in unit_lines(says) if line.startswith(_SANDBOX))]
