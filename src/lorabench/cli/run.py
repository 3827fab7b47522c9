"""`lorabench run`: really train recipes, and measure them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from lorabench.cli.parameters import OneOf
from lorabench.cli.quantities import in_gib
from lorabench.cli.recipe_options import recipe_from, recipe_options
from lorabench.estimator.errors import UserError

if TYPE_CHECKING:
    from lorabench.bench.runner import Progress
    from lorabench.bench.suites import Planned, Suite


EXAMPLES = """\
\b
Examples:
  lorabench run demo -o results
  lorabench run sweep.yaml -o results --resume
  lorabench run smollm2-135m --method qlora -r 8 --steps 50 -o results

\b
Exit codes:
  0  at least one recipe was measured    2  wrong use or bad input
  3  none was                            130  interrupted
"""


@click.command("run", epilog=EXAMPLES)
@click.argument("target", metavar="SUITE|MODEL")
@recipe_options
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the run records.")
@click.option("--resume", is_flag=True, help="Skip recipes whose record is there and ok.")
@click.option("--timeout", type=click.IntRange(1, 10**8), default=3600, show_default=True, help="Seconds a recipe.")
@click.option("--steps", type=click.IntRange(min=1), help="Timed steps. [the suite's, or 20]")
@click.option("--warmup-steps", type=click.IntRange(min=0), help="Steps before the timed ones. [the suite's, or 3]")
@click.option("--device", type=OneOf(["auto", "cpu", "cuda"]), default="auto", help="[auto: a GPU, or else the CPU]")
@click.option("--weights", default="random", help="random, hub, or a FOLDER with *.safetensors. [random]")
@click.option("--dataset", type=click.Path(path_type=Path), help="Text or .jsonl file. [text that Python ships]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Of random weights and dropout. [0]")
def command(
    target: str,
    output: Path,
    resume: bool,
    timeout: int,
    steps: int | None,
    warmup_steps: int | None,
    device: Any,
    weights: str,
    dataset: Path | None,
    seed: int,
    **options: Any,
) -> int:
    """Train each recipe of a suite, or one MODEL with recipe options, and write a run record of each.

    SUITE is a YAML file, or one that is shipped: demo, smoke. A recipe that runs out of memory, fails or hangs is a
    record too, and the others go on.
    """
    from lorabench.bench.environment import require_bench_extra
    from lorabench.bench.runner import run_suite

    require_bench_extra()
    suite = _suite(target, options)
    changed = {"steps": steps, "warmup_steps": warmup_steps}
    suite = msgspec.structs.replace(suite, **{key: value for key, value in changed.items() if value is not None})
    done = 0

    def before(number: int, planned: Planned) -> None:
        click.echo(f"[{number}/{len(suite.recipes)}] {planned.recipe.label():<{width}}  ", nl=False)

    def after(progress: Progress) -> None:
        nonlocal done
        done = progress.number
        click.echo(_result(progress))

    width = max(len(planned.recipe.label()) for planned in suite.recipes)
    try:
        records = run_suite(
            suite,
            output,
            device=device,
            seed=seed,
            weights=None if weights == "random" else weights,
            dataset=dataset,
            resume=resume,
            timeout_seconds=timeout,
            before=before,
            after=after,
        )
    except KeyboardInterrupt:
        click.echo(
            f"\ninterrupted after {done} of {len(suite.recipes)} recipes, whose records are in {output}: "
            "the same command with --resume goes on",
            err=True,
        )
        raise SystemExit(130) from None
    outcomes = [record.outcome for record in records]
    counted = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
    click.echo(f"{len(records)} recipe{'s' if len(records) > 1 else ''}: {counted}. Records are in {output}")
    return 0 if "ok" in outcomes else 3


def _suite(target: str, options: dict[str, Any]) -> Suite:
    """Return the suite that ``target`` names, or one of a single recipe where it names a model."""
    from lorabench.bench.suites import load_suite, shipped_suites, single_recipe
    from lorabench.estimator.catalogue import find_model

    if target in shipped_suites() or target.endswith((".yaml", ".yml")):
        given = [name for name, value in options.items() if value is not None]
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise UserError(f"{option} is for a single MODEL: write {given[0]} into the suite {target}")
        return load_suite(target)
    try:
        spec = find_model(target)
    except UserError as error:
        raise UserError(f"{error}; shipped suites are {', '.join(shipped_suites())}") from error
    return single_recipe(spec, recipe_from(spec.name, options))


def _result(progress: Progress) -> str:
    record = progress.record
    measured = record.measurement
    if measured is None:
        return f"{record.outcome:<7}  {record.message}"
    peak = in_gib(measured.memory.peak_allocated_bytes)
    first, last = (_loss(loss) for loss in (measured.losses[0], measured.losses[-1]))
    line = f"ok       {peak:>10}  {measured.tokens_per_second:>9,.0f} tok/s  loss {first} → {last}"
    notes = ["measured before"] if progress.resumed else []
    notes += [record.message] if record.message else []
    return f"{line}  ({'; '.join(notes)})" if notes else line


def _loss(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.3f}"
