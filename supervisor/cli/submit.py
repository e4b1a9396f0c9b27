"""`rae-node submit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from supervisor.cli.common import ConfigOption, Exit, JsonOption, exit_with, not_nan, print_error, print_json
from supervisor.cli.fleet import CaOption, PasswordOption, ServerOption, UserOption, connected, fleet_server

if TYPE_CHECKING:
    from supervisor.sources.nats.connection import Connection
    from supervisor.sources.nats.messages import Result


def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON: a task, a list of tasks, or one a line. -: from stdin.")],
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the results, and print each one when it comes.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Wait, and show the progress on stderr.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="SECONDS", min=0, callback=not_nan, help="Wait no longer than this.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
    server: ServerOption = None,
    user: UserOption = None,
    password_file: PasswordOption = None,
    ca_file: CaOption = None,
    config: ConfigOption = None,
) -> None:
    """Submit tasks to a fleet on NATS.

    Example: `echo '{"type": "echo", "payload": {}}' | rae-node submit - --wait`.

    Prints each task's id; with --wait its outcome. A task that has an `id` (a UUID) is done once, however often it is
    submitted.

    Exit codes: 0 done. 1 a task failed, --timeout is over, or the server refuses. 2 wrong usage. 3 no server can be
    reached. 4 it does not answer.
    """
    from supervisor.sources.errors import RequestError
    from supervisor.sources.nats.admin import submit as fleet

    try:
        text = (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode()
        tasks = fleet.read_tasks(text)
    except OSError as error:
        exit_with(Exit.WRONG, f"{file}: {error.strerror}; name a file with tasks as JSON, or - for stdin")
    except UnicodeDecodeError:
        exit_with(Exit.WRONG, f"{file}: is not UTF-8")
    except fleet.BadTasks as bad:
        exit_with(Exit.WRONG, f"{file}: {bad}")
    outcomes: dict[str, dict[str, Any]] = {
        task.id: {"id": task.id, "type": task.type, "status": "SUBMITTED", "node": None, "result": None, "error": None}
        for task in tasks
    }

    def on_result(result: Result) -> None:
        outcome = {"status": result.status, "node": result.node, "result": dict(result.result), "error": result.error}
        outcomes[result.id].update(outcome)
        if not json:
            print(f"{result.id} {result.status}" + (f": {result.error}" if result.error else ""), flush=True)
        if watch:
            over = [o["status"] for o in outcomes.values() if o["status"] != "SUBMITTED"]
            print_error(f"{len(over)} of {len(outcomes)} done, {over.count('FAILED')} failed")

    async def work(connection: Connection) -> set[str]:
        queued: list[str] = []
        try:
            again = await fleet.submit(connection, tasks, on_queued=queued.append)
        except RequestError:
            for task_id in queued:
                print_error(f"{task_id} is queued")
            raise
        for task_id in again:
            print_error(f"{task_id} was queued already")
        if not (wait or watch):
            return set()
        return await fleet.wait(connection, outcomes, timeout_s=timeout, on_result=on_result)

    missing = connected(fleet_server(server, user, password_file, ca_file), work)
    if json:
        print_json(list(outcomes.values()))
    elif not (wait or watch):
        print("\n".join(outcomes))
    for task_id in sorted(missing):
        print_error(f"{task_id} has no result after {timeout:g} s; it stays queued")
    if missing or any(outcome["status"] == "FAILED" for outcome in outcomes.values()):
        raise typer.Exit(Exit.NO)
