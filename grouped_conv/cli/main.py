"""The `grouped-conv` command: which sub-commands exist, and how their errors look.

Each folder owns its commands; they are imported by name when they run, so no import runs upwards and `--version` loads
neither torch nor Triton. User errors end here as one line on stderr and exit code 2.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import click

from grouped_conv import __version__

_COMMANDS = {
    "diff": "grouped_conv.autotune.commands.diff:diff_records",
    "explain": "grouped_conv.cli.explain:explain",
    "export": "grouped_conv.autotune.commands.export:export_records",
    "gc": "grouped_conv.autotune.commands.gc:collect",
    "import": "grouped_conv.autotune.commands.merge:import_records",
    "merge": "grouped_conv.autotune.commands.merge:merge_records",
    "run": "grouped_conv.cli.run:run",
    "show": "grouped_conv.autotune.commands.show:show",
    "tune": "grouped_conv.cli.tune:tune",
    "verify": "grouped_conv.cli.tune:verify",
}


def _describe(error: Exception) -> str:
    """The error as one line; an OSError as "FILE: what happened", without its number."""
    if isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__


class LazyGroup(click.Group):
    """A group whose commands are imported when they run, and which reports user errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands without importing them."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{_COMMANDS[cmd_name]} is a {type(command).__name__}, not a click command")
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command; values that a constructor or a file refused become usage errors."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader went away: click ends quietly
        except (ValueError, NotImplementedError, OSError) as error:
            if ctx.params["traceback"]:
                traceback.print_exception(error)
            raise click.UsageError(_describe(error)) from error

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse, run, exit."""
        run: Callable[[], Any] = partial(super().main, args, prog_name, complete_var, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        try:
            result = run()
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.ClickException as error:
            click.echo(f"grouped-conv: error: {_describe(error)}", err=True)
            sys.exit(2)
        except click.Abort:
            click.echo("grouped-conv: stopped", err=True)
            sys.exit(130)
        sys.exit(result if isinstance(result, int) else 0)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="grouped-conv")
@click.option("--traceback", is_flag=True, help="On an error, also print where it was raised.")
def main(traceback: bool) -> None:
    """Tune grouped convolutions, look at what was chosen, and run it on real input."""
