"""`lorabench rehearse`: the memory of a recipe or of any training program, run on a null GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorabench.cli.interrupts import terminated_as_interrupted
from lorabench.cli.output import show
from lorabench.cli.parameters import NamedPath, OneOf, timeout_option
from lorabench.cli.recipe_options import from_option, recipe_options
from lorabench.estimator.errors import UserError

if TYPE_CHECKING:
    from lorabench.bench.rehearsing.program import ProgramRehearsal
    from lorabench.estimator.devices.device import Device

EXAMPLES = """\
\b
Examples:
  lorabench rehearse llama-3.1-8b --method qlora --gpu rtx-4090
  lorabench rehearse suite.yaml --gpu a100-sxm-80gb -o rehearsed
  lorabench rehearse --gpu rtx-4090 -- python train.py --lr 1e-4
  lorabench rehearse --gpu h100-sxm --gpus 8 --rank 0 -- python train.py

\b
Exit codes:
  0  it ran                         1  out of memory
  2  wrong use or bad input         3  nothing was rehearsed
  130  interrupted
"""
OUT_OF_MEMORY = 1
NOTHING_REHEARSED = 3


@click.command("rehearse", epilog=EXAMPLES)
@click.argument("target", nargs=-1, type=click.UNPROCESSED, metavar="SUITE|MODEL  or  -- COMMAND…")
@from_option
@recipe_options()
@click.option("--gpu", required=True, help="GPU to simulate, by name (lorabench gpus).")
@click.option("--gpus", type=click.IntRange(1, 64), default=1, show_default=True, help="Number of GPUs.")
@click.option("--ranks", type=click.IntRange(1), help="Number of ranks; only --rank N runs. [that of --gpus]")
@click.option(
    "--steps",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Stop after this many optimizer steps; 0: never.",
)
@click.option("-o", "--output", type=NamedPath(), help="Write the records, or a program's reports, to this folder.")
@click.option("--launches", is_flag=True, help="Count the launches of each kernel.")
@click.option("--snapshot", is_flag=True, help="Write the allocator's snapshot to the output folder.")
@click.option("--random-weights", is_flag=True, help="Let the command load models from their config alone.")
@timeout_option("the command, or a recipe,")
@click.option("--format", "format_", type=OneOf(["table", "json"]), default="table", help="Output format. [table]")
@click.pass_obj
def command(
    arguments: list[str],
    /,
    target: tuple[str, ...],
    config: Path | None,
    gpu: str,
    gpus: int,
    ranks: int | None,
    steps: int,
    output: Path | None,
    launches: bool,
    snapshot: bool,
    random_weights: bool,
    timeout: int,
    format_: str,
    **options: Any,
) -> int:
    """Run a recipe, a suite or any training command on a simulated GPU, the null GPU.

    torch, its allocator, bitsandbytes, peft and transformers are real. On the null GPU, memory is address space,
    and kernels do nothing. The output says how much memory is allocated and reserved, and whether and where it runs
    out. It says nothing about time, losses or the CUDA context. This needs Linux, a CUDA build of torch and a C++
    compiler, but no GPU; `lorabench doctor` says what is missing.

    Before a COMMAND, --rank N runs only rank N of a distributed training. Collectives with the other ranks succeed at
    once.
    """
    from lorabench.estimator.devices.device import find_device

    if snapshot and output is None:
        raise UserError("--snapshot writes into a folder: name one with -o")
    device = find_device(gpu)
    settings: dict[str, Any] = {
        "steps": steps,
        "launches": launches,
        "snapshot": snapshot,
        "timeout_seconds": float(timeout),
    }
    with terminated_as_interrupted():
        if "--" in arguments:
            settings |= _ranks(options.pop("rank"), ranks, gpus) | {"random_weights": random_weights}
            _refuse_recipe_options(options)
            if config is not None:
                raise UserError("--from is for a recipe: the command after -- has a config of its own")
            if not target:
                raise UserError("no command after --: write one, such as -- python train.py")
            return _rehearse_program(target, device, output, format_, settings)
        if len(target) > 1 or not (target or config):
            raise UserError("name one SUITE or MODEL, or a command after --, such as -- python train.py")
        if gpus != 1 or ranks is not None:
            raise UserError("--gpus and --ranks are for a command after --: recipes train on one GPU")
        if random_weights:
            raise UserError("--random-weights is for a command after --: recipes always have random weights")
        from lorabench.cli.rehearse_suite import rehearse_recipes

        named = target[0] if target else None
        return rehearse_recipes(named, options, device, output, config=config, format_=format_, **settings)


def _ranks(rank: int | None, ranks: int | None, gpus: int) -> dict[str, int | None]:
    if rank is None and ranks is not None:
        raise UserError("--ranks says how many ranks there are: name the one to run with --rank, such as --rank 0")
    return {"gpus": gpus, "rank": rank, "ranks": ranks if ranks is not None or rank is None else gpus}


def _refuse_recipe_options(options: dict[str, Any]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} is for a MODEL: the command after -- has options of its own")


def _rehearse_program(
    command: tuple[str, ...], device: Device, output: Path | None, format_: str, settings: dict[str, Any]
) -> int:
    from lorabench.bench.rehearsing.program import rehearse_program
    from lorabench.cli.rehearsal_progress import StageLines

    with report_folder(output) as folder:
        waiting = StageLines(folder, settings["steps"])
        rehearsal = rehearse_program(command, device, folder, waiting=waiting, **settings)
    if format_ == "json":
        from lorabench.cli.listing import as_json

        show(as_json(rehearsal))
    else:
        from lorabench.cli.rehearsal_text import as_text

        show(as_text(rehearsal))
    return _exit_code(rehearsal)


def _exit_code(rehearsal: ProgramRehearsal) -> int:
    return {"ok": 0, "out of memory": OUT_OF_MEMORY}.get(rehearsal.outcome, NOTHING_REHEARSED)


@contextmanager
def report_folder(output: Path | None) -> Iterator[Path]:
    """Yield an empty folder for reports: ``output``, or one that is removed afterwards.

    Raises:
        UserError: ``output`` is not empty, or cannot be made.
    """
    if output is None:
        with tempfile.TemporaryDirectory(prefix="lorabench-") as folder:
            yield Path(folder)
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()):
            raise UserError(f"{output}: the folder is not empty: name a new folder with -o")
    except OSError as error:
        raise UserError(f"{output}: cannot make the folder ({error.strerror}): name another with -o") from error
    try:
        yield output
    finally:
        for own in ("ledger", "stage.*"):  # needed only during the rehearsal
            for path in output.glob(own):
                path.unlink()
