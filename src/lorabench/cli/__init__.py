"""The command line: one file for each command, and `recipe_options` that several share.

Every command is imported only when it is called, so that `lorabench estimate` starts as fast as click itself.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from lorabench import __version__
from lorabench.estimator.errors import UserError, did_you_mean

COMMANDS = {
    "estimate": "Estimate what a recipe takes, in milliseconds, without torch.",
    "run": "Really train recipes and measure them.",
    "report": "Make one HTML page of results.",
    "check": "Hold results against a baseline.",
    "models": "List the models whose shapes are shipped.",
    "gpus": "List the GPUs that --gpu knows by name.",
}
"""Command → summary, in the order of the help text; the module of the same name defines it."""


class Commands(click.Group):
    """Imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names, in workflow order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, or None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lorabench.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the arguments name, or refuse with the nearest name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UserError(f"no command {args[0]!r}: {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="lorabench")
def lorabench() -> None:
    """What fine-tuning a language model costs: estimated, measured, reported, checked.

    \b
    Exit codes: 0 success; 1 the answer is no; 2 wrong use or bad input; 3 nothing could be concluded.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Bad input is one line on standard error and exit code 2; only a bug shows a traceback.
    """
    try:
        code = lorabench.main(arguments, prog_name="lorabench", standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        _refuse(str(error))
    except click.UsageError as error:
        where = f" (lorabench {error.ctx.info_name} --help lists the options)" if error.ctx and error.ctx.parent else ""
        _refuse(" ".join(error.format_message().split()) + where)
    except click.ClickException as error:
        _refuse(" ".join(error.format_message().split()))
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; nothing is wrong and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> None:
    click.echo(f"lorabench: {message}", err=True)
    sys.exit(2)
