"""`lorabench check`: compare results with a baseline, or with the estimate."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from lorabench.bench.check.findings import EXIT_CODES, Comparison
from lorabench.bench.check.new_baseline import write_baseline
from lorabench.bench.check.thresholds import Thresholds, with_shares
from lorabench.bench.records.record import RunRecord, read_records
from lorabench.cli.check_formats import FORMATS, as_markdown, as_text
from lorabench.cli.output import show, show_styled
from lorabench.cli.parameters import NamedPath, OneOf, Share
from lorabench.cli.verbosity import verbose_option
from lorabench.commands import compared
from lorabench.estimator.errors import UserError

EXAMPLES = """\
\b
Examples:
  lorabench check results --baseline baseline
  lorabench check results --baseline baseline --format markdown > comment.md
  lorabench check results --baseline baseline --speed-tolerance 10%
  lorabench check results --baseline baseline --update-baseline
  lorabench check results --against-estimate --tolerance 3%

\b
Exit codes:
  0  nothing got worse         2  wrong use or bad input
  1  something got worse       3  inconclusive
"""


TOLERANCES = {
    "memory": ("--memory-tolerance", "Permitted rise of peak allocated memory."),
    "reserved": ("--reserved-tolerance", "Permitted rise of peak reserved memory."),
    "nvml": ("--nvml-tolerance", "Permitted rise of the peak in nvidia-smi."),
    "speed": ("--speed-tolerance", "Permitted rise of the step time."),
    "loss": ("--loss-tolerance", "Permitted rise of the mean loss of the last quarter of the steps."),
    "loss_over_seeds": ("--loss-over-seeds-tolerance", "The same, if repeated runs show the spread between seeds."),
    "estimate": ("--tolerance", "Permitted deviation from the estimate, either way."),
}
"""Threshold → its option and help text."""


def tolerance_options(command: Callable[..., int]) -> Callable[..., int]:
    """Add an option for each threshold to ``command``."""
    for name, (option, purpose) in reversed(TOLERANCES.items()):
        default = f"{100 * getattr(Thresholds(), name):g}%"
        command = click.option(option, name, type=Share(), help=f"{purpose}  [default: {default}]")(command)
    return command


@click.command("check", epilog=EXAMPLES)
@click.argument("results", metavar="RESULTS_DIR", type=NamedPath())
@click.option("--baseline", metavar="BASELINE_DIR", type=NamedPath(), help="Compare with these results.")
@click.option("--against-estimate", is_flag=True, help="Compare with the estimate, computed now.")
@click.option("--suite", metavar="SUITE.yaml", help="Read the thresholds from the check section of this suite.")
@tolerance_options
@click.option(
    "--allow",
    metavar="NAME=REASON",
    multiple=True,
    help="Let a known case pass. NAME: a recipe's label or digest, a metric, or LABEL:METRIC. Repeatable.",
)
@click.option("--across-devices", is_flag=True, help="Compare results of different devices.")
@click.option("--update-baseline", is_flag=True, help="Make the results the new baseline, if the check passes.")
@click.option(
    "--format",
    "format_",
    type=OneOf(["text", "markdown", "junit", "github", "json"]),
    default="text",
    show_default=True,
    help="markdown: pull request comment; junit: XML for test collectors; github: workflow annotations.",
)
@verbose_option
@click.pass_context
def command(
    context: click.Context,
    /,
    results: Path,
    baseline: Path | None,
    against_estimate: bool,
    suite: str | None,
    allow: tuple[str, ...],
    across_devices: bool,
    update_baseline: bool,
    format_: str,
    **tolerances: float | None,
) -> int:
    """Compare RESULTS_DIR with a baseline, recipe by recipe, or with the estimate.

    Compare memory, step time and final loss of every recipe that both folders contain, and list the worst first. Step
    times count as changed only if the difference is also significant, which needs repeated runs. A tolerance is a share
    such as 3%, or off to skip the metric. An option here overrides the suite. A recipe in only one folder is listed,
    but not checked.
    """
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    _refuse_contradictions(baseline, against_estimate, given)
    thresholds = with_shares(_thresholds_of(suite), {name: tolerances[name] for name in given & set(TOLERANCES)})
    records = read_records(results)
    begins = update_baseline and baseline is not None and not baseline.exists()
    before = [] if begins else None if baseline is None else read_records(baseline)
    comparison = compared(records, before, thresholds, allow, across_devices=across_devices)
    if format_ == "text" and sys.stdout.isatty():
        show_styled(as_text(comparison, color="NO_COLOR" not in os.environ))
    else:
        show(FORMATS[format_](comparison))
    if not update_baseline:
        return EXIT_CODES[comparison.verdict]
    assert baseline is not None
    return _update(comparison, records, baseline)


def _refuse_contradictions(baseline: Path | None, against_estimate: bool, given: set[str]) -> None:
    if (baseline is not None) == against_estimate:
        raise UserError("pass either --baseline BASELINE_DIR or --against-estimate")
    options = {name: option for name, (option, _) in TOLERANCES.items()}
    options |= {"across_devices": "--across-devices", "update_baseline": "--update-baseline"}
    against, other = "--baseline", "--against-estimate"
    if baseline is None:
        against, other = other, against
    inapplicable = given & options.keys() & ({"estimate"} if baseline is not None else options.keys() - {"estimate"})
    if inapplicable:
        named = ", ".join(sorted(options[name] for name in inapplicable))
        raise UserError(f"{named} does not apply to {against}: leave it out, or use {other}")
    if {"across_devices", "update_baseline"} <= given:
        raise UserError("a baseline holds one device: use --update-baseline without --across-devices")


def _thresholds_of(suite: str | None) -> Thresholds:
    if suite is None:
        return Thresholds()
    from lorabench.bench.suites.suite_file import load_suite

    return load_suite(suite).thresholds


def _update(comparison: Comparison, records: Sequence[RunRecord], baseline: Path) -> int:
    """Make ``records`` the baseline if the check passes, and report on standard error."""
    code = EXIT_CODES[comparison.verdict] if comparison.recipes else 0
    if code:
        show(f"{baseline} is unchanged: accept known cases with --allow NAME=REASON, or measure again", err=True)
        return code
    write_baseline(records, baseline, as_markdown(comparison))
    show(f"{baseline} now holds these results as the baseline", err=True)
    return 0
