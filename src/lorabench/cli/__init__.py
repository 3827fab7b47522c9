"""The command line: one file per command, and `recipe_options`, which several share.

A command is imported only when it is called, so `lorabench estimate` starts as fast as click itself.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from typing import Any

import click

from lorabench.cli.output import show
from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.quiet import command_line
from lorabench.estimator.version import __version__

COMMANDS = {
    "estimate": "Estimate memory, speed and cost of a recipe, without torch.",
    "plan": "Find what to run on a GPU, or which GPU is enough.",
    "recipe": "Write a recipe as a config of another tool, or a script.",
    "trace": "Run the real training step on meta tensors, without a GPU.",
    "rehearse": "Run a recipe or any training program on a simulated GPU.",
    "run": "Train recipes for real and measure them.",
    "calibrate": "Measure the speed of this device, for sharper estimates.",
    "report": "Make one HTML page of results.",
    "check": "Compare results with a baseline or with the estimate.",
    "models": "List the models known by name.",
    "gpus": "List the GPUs known by name.",
    "doctor": "Show what this machine can do, and how to fix the rest.",
}
"""Command → summary, in workflow order. The module of the same name defines the command."""


class Commands(click.Group):
    """Imports a command's module when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names, in workflow order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, or None if none has that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"lorabench.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or refuse an unknown name with the nearest one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UserError(f"no command {quoted(args[0])}: {did_you_mean(args[0], COMMANDS, say_all_up_to=12)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _dashed(name: str) -> str:
    """Return the name of an option with dashes: other tools write --lora_alpha."""
    return name.replace("_", "-")


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": _dashed},
)
@click.version_option(__version__, prog_name="lorabench")
@click.pass_context
def lorabench(context: click.Context) -> None:
    """Predict, measure and check what fine-tuning a language model costs.

    \b
    Exit codes: 0 success; 1 the answer is no; 2 wrong use or bad input;
    3 no conclusion.
    """
    if context.invoked_subcommand is None:
        show(context.get_help())


class PatientPipe(io.FileIO):
    """Standard output that ignores a closed pipe, such as after `| head`.

    Click and rich would exit with code 1, which here means that the answer is no.
    """

    def write(self, data: Any, /) -> int:
        """Write ``data``, or pretend to if the reader is gone."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Bad input is one line on standard error and exit code 2; only a bug shows a traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        # A locale without × or · must not cause a failure either: it gets question marks.
        sys.stdout.flush()
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(PatientPipe(sys.stdout.fileno(), "w", closefd=False)),
            encoding=sys.stdout.encoding,
            errors="replace",
            line_buffering=sys.stdout.line_buffering,
        )
    _open_closed_streams()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        with command_line():
            code = lorabench.main(given, prog_name="lorabench", standalone_mode=False, obj=given)
        if sys.stdout is not None:  # it is None if the shell closed it
            sys.stdout.flush()
    except UserError as error:
        _refuse(str(error))
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "lorabench"
        _refuse(f"{_of_other_tools(error) or _sentence(error)} ({command} --help lists the options)")
    except click.ClickException as error:
        _refuse(_sentence(error))
    except (click.Abort, KeyboardInterrupt):
        show("interrupted", err=True)
        sys.exit(130)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        sys.stdout = io.StringIO()  # the rest of the buffer cannot be written at exit either
        _refuse("cannot write: no space left on the device: free some, or write elsewhere")
    sys.exit(code if isinstance(code, int) else 0)


def _open_closed_streams() -> None:
    """Point standard descriptors that the shell closed to nowhere: else files that are opened would get their numbers,
    and what libraries print would land in them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def _of_other_tools(error: click.UsageError) -> str | None:
    """Return what to write instead of another tool's option; None for any other error."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return None
    from lorabench.cli.recipe_options import option_here

    instead = option_here(error.option_name, error.ctx.command)
    return instead and f"no option {error.option_name}: {instead}"


def _sentence(error: click.ClickException) -> str:
    """Return click's message as one line without a final full stop."""
    return " ".join(error.format_message().split()).rstrip(".")


def _refuse(message: str) -> None:
    show(f"lorabench: {UserError(message)}", err=True)
    sys.exit(2)
