"""`lorabench run`: train recipes for real and measure them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from msgspec.structs import replace

from lorabench.cli.interrupts import terminated_as_interrupted
from lorabench.cli.listing import folded
from lorabench.cli.output import show
from lorabench.cli.parameters import NamedPath, OneOf, timeout_option
from lorabench.cli.recipe_options import from_option, recipe_options
from lorabench.cli.tracing import progress
from lorabench.cli.verbosity import let_libraries_speak
from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import quoted

if TYPE_CHECKING:
    from lorabench.bench.machine.environment import DeviceChoice
    from lorabench.bench.records.record import DeviceFacts
    from lorabench.bench.running.runner import Finished, Progress
    from lorabench.bench.suites.suite import Suite

EXAMPLES = """\
\b
Examples:
  lorabench run demo -o results
  lorabench run sweep.yaml --dry-run --gpu rtx-4090
  lorabench run sweep.yaml -o results --resume
  lorabench run smollm2-135m --method qlora -r 8 --steps 50 -o results

\b
Exit codes:
  0  at least one recipe was measured    1    --time-limit left recipes,
  2  wrong use or bad input                   or --require-all was not met
                                         3    nothing was measured
                                         130  interrupted
"""
OF_TRAINING = {
    *("output", "resume", "skip_unfit", "require_all", "timeout", "time_limit", "engine", "seed", "timeline"),
    *("memory_snapshot", "quiet", "verbose"),
}
"""Options that do not change estimates."""
MOST_MINUTES = 10**6
INTERRUPTED = 130
UNFINISHED = INCOMPLETE = 1
NOTHING_MEASURED = 3


@click.command("run", epilog=EXAMPLES)
@click.argument("target", metavar="SUITE|MODEL", required=False)
@from_option
@recipe_options()
@click.option("-o", "--output", type=NamedPath(), help="Write the run records to this folder.")
@click.option("--resume", is_flag=True, help="Skip recipes that already have a record, ok or out of memory.")
@click.option("--dry-run", is_flag=True, help="List the recipes with estimates; train nothing.")
@click.option("--gpu", help="With --dry-run: GPU to estimate for, by name or memory size. [this machine]")
@click.option("--skip-unfit", is_flag=True, help="Skip recipes that are predicted not to fit.")
@click.option("--require-all", is_flag=True, help="Exit with code 1 unless every recipe is measured.")
@timeout_option("a recipe")
@click.option("--time-limit", type=float, help="Stop after this many minutes; --resume continues.")
@click.option("--repeats", type=int, help="Runs per recipe, each with another seed. [1]")
@click.option("--steps", type=int, help="Minimum number of timed steps. [the suite's, or 20]")
@click.option("--warmup-steps", type=int, help="Minimum number of warm-up steps. [the suite's, or 3]")
@click.option(
    "--device",
    type=OneOf(["auto", "cpu", "cuda"]),
    default="auto",
    help="Train on this device. [auto: a GPU, or else the CPU]",
)
@click.option(
    "--engine",
    type=OneOf(["lorabench", "trainer"]),
    default="lorabench",
    help="Training loop: lorabench's, or transformers' Trainer. [lorabench]",
)
@click.option("--weights", default="random", help="Weights: random, hub, or a FOLDER with *.safetensors. [random]")
@click.option("--dataset", type=NamedPath(), help="Train on this text or .jsonl file. [Python's own text]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1001), default=0, help="Seed of random weights and dropout. [0]")
@click.option("--timeline", is_flag=True, help="Record the live bytes over one step.")
@click.option("--memory-snapshot", is_flag=True, help="Write CUDA's allocator history of one step, as gzipped JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print the last line only.")
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    callback=let_libraries_speak,
    help="Print all settings, measurements, tracebacks, and the libraries' output.",
)
@click.pass_obj
def command(
    arguments: list[str],
    /,
    target: str | None,
    config: Path | None,
    output: Path | None,
    resume: bool,
    dry_run: bool,
    gpu: str | None,
    skip_unfit: bool,
    require_all: bool,
    timeout: int,
    time_limit: float | None,
    repeats: int | None,
    steps: int | None,
    warmup_steps: int | None,
    device: Any,
    engine: Any,
    weights: str,
    dataset: Path | None,
    seed: int,
    timeline: bool,
    memory_snapshot: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> int:
    """Train each recipe of a suite, or one MODEL with recipe options, and write a run record for each.

    SUITE is a YAML file, or a shipped suite: demo, first, memory, methods, optimizers, ranks, reference, smoke. If a
    recipe runs out of memory, fails or hangs, its record says so and the others continue. On several GPUs of one kind,
    recipes run side by side. One line per recipe shows the peak, the speed, and the loss of the first and last step.
    """
    if quiet and verbose:
        raise UserError("--quiet and --verbose contradict each other: pass one")
    if dry_run:
        _refuse_what_only_training_takes()
    elif gpu is not None:
        raise UserError("--gpu needs --dry-run: recipes train on this machine, where --device selects the device")
    elif output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    if time_limit is not None and not 0 < time_limit <= MOST_MINUTES:  # false for NaN too
        raise UserError(f"--time-limit must be above 0 and at most {MOST_MINUTES} minutes, got {time_limit:g}")
    from lorabench.bench.records.run_settings import Settings
    from lorabench.bench.suites.suite import with_amounts

    amounts = {"steps": steps, "warmup_steps": warmup_steps, "repeats": repeats}
    with progress() as say:
        say("checking the recipes")
        suite = suite_of(target, options, config)
    suite = with_amounts(suite, {name: count for name, count in amounts.items() if count is not None})
    settings = Settings(
        backend="cpu",  # until --device is resolved
        steps=suite.steps,
        warmup_steps=suite.warmup_steps,
        seed=seed,
        weights=None if weights == "random" else weights,
        dataset=None if dataset is None else str(dataset),
        engine=engine,
        timeline=timeline,
        memory_snapshot=memory_snapshot,
    )
    if dry_run:
        from lorabench.bench.running.sources import check_sources
        from lorabench.cli.dry_run import dry_run as listed

        check_sources(suite, settings)
        facts, assumptions = _device(gpu, device)
        with progress() as say:
            table = listed(suite, settings, facts, say, here=gpu is None, assumptions=assumptions)
        show(table)
        return 0
    assert output is not None
    from lorabench.bench.running.runner import run_suite
    from lorabench.cli.progress import watch

    watcher = watch(verbose - quiet)
    try:
        with terminated_as_interrupted(), watcher:
            finished = run_suite(
                suite,
                output,
                settings=settings,
                device=device,
                resume=resume,
                skip_unfit=skip_unfit,
                timeout_seconds=timeout,
                time_limit_seconds=None if time_limit is None else time_limit * 60,
                watcher=watcher,
            )
    except KeyboardInterrupt:
        done = f" of {watcher.total}" if watcher.total else ""
        show(f"interrupted after {watcher.done}{done} recipes; continue with: {_resuming(arguments)}", err=True)
        return INTERRUPTED
    if suite.probe and finished.records and not quiet:
        from lorabench.cli.gpu_errors import errors_on_gpu

        show(f"\n{errors_on_gpu(finished.records, suite.labels())}\n")
    return _conclude(finished, output, arguments, watcher.not_measured if require_all else [])


def _conclude(finished: Finished, output: Path, arguments: list[str], missing: list[Progress]) -> int:
    """Print the summary of the suite, and return the exit code. ``missing``: required, but not measured."""
    outcomes = [record.outcome for record in finished.records]
    counted = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
    if outcomes:
        show(f"{len(outcomes)} recipe{'s' if len(outcomes) > 1 else ''}: {counted}. Records are in {output}")
    if any(record.rehearsed for record in finished.records):
        show("rehearsed on a null GPU: nothing was measured")
    if finished.left:
        show(f"no time for {finished.left} more; continue with: {_resuming(arguments)}", err=True)
        return UNFINISHED
    if missing:
        show("\n".join(_why_missing(missing, arguments)), err=True)
    if "ok" not in outcomes:
        return NOTHING_MEASURED
    return INCOMPLETE if missing else 0


def _why_missing(missing: list[Progress], arguments: list[str]) -> list[str]:
    """Return lines on the recipes that were not measured: why, and what to do. Commands are not wrapped."""
    lines = ["not measured:"]
    for each in missing:
        reason = f"{each.task.label}: {each.record.outcome} {each.record.message}"
        lines += folded(reason, indent="  ", hanging="    ")
    if any(each.record.outcome in ("error", "timeout") for each in missing):
        louder = [argument for argument in arguments if argument not in ("-q", "--quiet", "-v", "--verbose")]
        lines.append(f"to retry with all tracebacks: {_resuming([*louder, '-v'])}")
    lines.append("to check this machine: lorabench doctor")
    return lines


def suite_of(target: str | None, options: dict[str, Any], config: Path | None = None) -> Suite:
    """Return the suite named ``target``, or a suite of a single recipe if it is a model.

    ``config``: a config of another tool, which may name the model, and may also be named as the target.
    """
    from lorabench.bench.suites.suite import single_recipe
    from lorabench.bench.suites.suite_file import load_suite, shipped_suites
    from lorabench.estimator.imported.asked import asked
    from lorabench.estimator.imported.sources import config_named
    from lorabench.estimator.models.catalogue import find_model

    if config is None and target is None:
        raise UserError("name a SUITE or MODEL, or the config of another tool with --from FILE")
    named = None if target is None or config is not None else config_named(target)
    if target is None or config is not None or named is not None:
        wanted = asked(None if named is not None else target, named or config, options)
        resolved = wanted.resolved()
        left = wanted.imported.remarks() if wanted.imported is not None else []
        return single_recipe(replace(resolved, assumptions=(*resolved.assumptions, *left)))
    if target in shipped_suites() or target.endswith((".yaml", ".yml")):
        given = [name for name, value in options.items() if value is not None]
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise UserError(f"{option} needs a single MODEL: write {given[0]} into the suite {target} instead")
        return load_suite(target)
    try:
        spec = find_model(target)
    except UserError as error:
        near = did_you_mean(target, shipped_suites())
        raise UserError(
            f"no suite {quoted(target)}: {near} (others are files named *.yaml or *.yml); {error}"
        ) from error
    return single_recipe(asked(spec, None, options).resolved())


def _refuse_what_only_training_takes() -> None:
    """Refuse options that have no effect with --dry-run."""
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name in OF_TRAINING:
            raise UserError(
                f"{max(option.opts, key=len)} does not apply to --dry-run, which trains nothing: leave it out"
            )


def _device(gpu: str | None, choice: DeviceChoice) -> tuple[DeviceFacts, tuple[str, ...]]:
    """Return the device to estimate for (the named GPU, or this machine's) and the assumptions about it."""
    if gpu is None:
        from lorabench.bench.machine.environment import local_device

        return local_device(choice), ()
    if choice != "auto":
        raise UserError("--gpu and --device contradict each other: --gpu names the device to estimate for")
    from lorabench.bench.records.record import DeviceFacts
    from lorabench.estimator.devices.device import find_device

    device = find_device(gpu)
    return DeviceFacts(backend="cuda", name=device.name, memory_bytes=device.memory_bytes), device.assumptions


def _resuming(arguments: list[str]) -> str:
    """Return the command that continues this one, to paste into a shell."""
    resume = [] if "--resume" in arguments else ["--resume"]
    return shlex.join(["lorabench", *arguments, *resume])
