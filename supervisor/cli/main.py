"""`rae-node`: parse the arguments and call the command. Each command imports what it needs when it is called."""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any


def _quiet(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """No traceback for Ctrl-C during the imports."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


if sys.excepthook is sys.__excepthook__:
    sys.excepthook = _quiet

import typer  # noqa: E402
import typer.core  # noqa: E402

from supervisor import VERSION  # noqa: E402
from supervisor.cli import fleet_asks, fleet_orders  # noqa: E402
from supervisor.cli.bridge import bridge  # noqa: E402
from supervisor.cli.bugreport import bugreport  # noqa: E402
from supervisor.cli.check import check_gpu, check_user  # noqa: E402
from supervisor.cli.common import ConfigOption, Exit, print_error  # noqa: E402
from supervisor.cli.config import app as config_app  # noqa: E402
from supervisor.cli.control import control  # noqa: E402
from supervisor.cli.demo import demo  # noqa: E402
from supervisor.cli.diagram import diagram  # noqa: E402
from supervisor.cli.doctor import doctor, report, verify  # noqa: E402
from supervisor.cli.dry_run import dry_run  # noqa: E402
from supervisor.cli.enable import disable, enable  # noqa: E402
from supervisor.cli.fleet import fleet  # noqa: E402
from supervisor.cli.init import init  # noqa: E402
from supervisor.cli.log import log  # noqa: E402
from supervisor.cli.pause import pause, resume  # noqa: E402
from supervisor.cli.record import record  # noqa: E402
from supervisor.cli.replay import replay  # noqa: E402
from supervisor.cli.run import run  # noqa: E402
from supervisor.cli.status import status  # noqa: E402
from supervisor.cli.submit import submit  # noqa: E402
from supervisor.cli.timeline import timeline  # noqa: E402
from supervisor.cli.top import top  # noqa: E402
from supervisor.cli.whatif import whatif  # noqa: E402
from supervisor.cli.why import why  # noqa: E402
from supervisor.linux import console  # noqa: E402

# typer's class for wrong usage is private; its subclass is public
UsageError: Any = typer.BadParameter.__base__

CHECKS = frozenset({"check-user", "check-gpu"})
ENDLESS = frozenset({"demo", "top", "--watch", "-w"})  # they end when their reader goes

class Grouped(typer.core.TyperGroup):
    """The commands in groups, in place of one long list."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """See click."""
        groups = {title: [one.__name__.replace("_", "-") for one in group] for title, group in GROUPS.items()}
        groups["Set up"].append("config")
        groups["A fleet"].insert(0, "fleet")
        for title, names in groups.items():
            with formatter.section(title):
                found = ((name, self.get_command(ctx, name)) for name in names)
                formatter.write_dl([(name, one.get_short_help_str(60)) for name, one in found if one is not None])


app = typer.Typer(
    cls=Grouped,
    name="rae-node",
    help=(
        "Lends this machine to a RAE control node while nobody uses it, and stops at once when somebody does.\n\n"
        "For a first look: `rae-node demo`. Why does it not work? `rae-node why`."
    ),
    epilog=(
        "Exit codes: 0 yes or done, 1 no, failed or not safe, 2 wrong usage or configuration, "
        "3 the daemon is not running, 4 it does not answer or is another version, 130 interrupted."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rae-node {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    config: ConfigOption = None,
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
) -> None:
    if config is not None:  # given before the command's name
        os.environ["RAE_NODE_CONFIG"] = str(config)


GROUPS: dict[str, tuple[Any, ...]] = {
    "Everyday": (status, why, top, pause, resume, log, demo),
    "Look into": (check_user, check_gpu, timeline, whatif, replay, record, dry_run, diagram, bugreport),
    "Set up": (init, doctor, report, verify, enable, disable, run, control),
    "A fleet": (submit, bridge),
}
for command in (one for group in GROUPS.values() for one in group):
    app.command(command.__name__.replace("_", "-"))(command)
app.add_typer(config_app, name="config")
fleet_app = typer.Typer(callback=fleet, invoke_without_command=True, no_args_is_help=False)
for name, of_one_node in {**fleet_asks.COMMANDS, **fleet_orders.COMMANDS}.items():
    fleet_app.command(name)(of_one_node)
app.add_typer(fleet_app, name="fleet")


def main() -> None:
    """The entry point. It shows no traceback, except with RAE_NODE_DEBUG=1."""
    sys.exit(_run())


def _run() -> int:
    code: int | None = None
    console.prepare(patient=not ENDLESS.intersection(sys.argv[1:]))
    try:
        code = app(standalone_mode=False, prog_name="rae-node")
        sys.stdout.flush()
        if console.reader_left() and CHECKS.intersection(sys.argv[1:]):
            code = Exit.NO  # an unread "no" must not look like a "yes"
    except UsageError as wrong:
        text, context = wrong.format_message(), wrong.ctx
        command = context.command_path if context is not None else "rae-node"
        # a command without its required arguments shows its help; every other error is one line
        line = f"{' '.join(text.split()).rstrip('.')}; see `{command} --help`"
        print_error(text if text.startswith("Usage:") else line)
        code = Exit.WRONG
    except console.Unwritable as full:
        console.drop()
        print_error(f"{full.strerror}; send it to a place that can take it")
        code = Exit.NO
    except (BrokenPipeError, SystemExit) as end:
        # typer exits when the reader has gone
        if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
            raise
        console.drop()
        code = Exit.NO if "demo" in sys.argv else Exit.YES
    except (KeyboardInterrupt, typer.Abort):
        code = Exit.INTERRUPTED
    except Exception as error:
        if os.environ.get("RAE_NODE_DEBUG"):
            raise
        print_error(f"rae-node: {type(error).__name__}: {error} (RAE_NODE_DEBUG=1 shows where)")
        code = Exit.NO
    return int(code or Exit.YES)


if __name__ == "__main__":
    main()
