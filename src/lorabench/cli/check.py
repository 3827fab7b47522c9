"""`lorabench check`: hold results against a baseline."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from lorabench.cli.parameters import OneOf, Share

EXAMPLES = """\
\b
Examples:
  lorabench check results --baseline baseline
  lorabench check results --baseline baseline --format markdown > comment.md
  lorabench check results --baseline baseline --speed-tolerance 10%

\b
Exit codes:
  0  nothing got worse         2  wrong use or bad input
  1  something did             3  nothing could be concluded
"""


@click.command("check", epilog=EXAMPLES)
@click.argument("results", metavar="RESULTS_DIR", type=click.Path(path_type=Path))
@click.option(
    "--baseline",
    metavar="BASELINE_DIR",
    type=click.Path(path_type=Path),
    required=True,
    help="Results to hold them against.",
)
@click.option(
    "--memory-tolerance", type=Share(), default="0.5%", show_default=True, help="Rise of peak memory that passes."
)
@click.option(
    "--speed-tolerance", type=Share(), default="3%", show_default=True, help="Fall of tokens per second that passes."
)
@click.option("--loss-tolerance", type=Share(), default="5%", show_default=True, help="Rise of final loss that passes.")
@click.option(
    "--format",
    "format_",
    type=OneOf(["text", "markdown", "junit", "github", "json"]),
    default="text",
    show_default=True,
    help="markdown: for a pull request; junit: XML for test collectors; github: annotations of a workflow.",
)
def command(
    results: Path,
    baseline: Path,
    memory_tolerance: float,
    speed_tolerance: float,
    loss_tolerance: float,
    format_: str,
) -> int:
    """Compare RESULTS_DIR with a baseline, recipe by recipe.

    Peak memory, tokens per second and final loss of every recipe that both folders hold, worst first. Speed counts
    as changed only where the step times differ beyond chance too (one-sided Mann–Whitney test with Holm's
    correction, p at most 0.05), from 5 timed steps on. A recipe that is in one folder only is listed.
    """
    from lorabench.bench.compare import Tolerances, compare
    from lorabench.bench.records import read_records
    from lorabench.cli.check_formats import FORMATS, as_text

    comparison = compare(
        read_records(results),
        read_records(baseline),
        Tolerances(memory=memory_tolerance, speed=speed_tolerance, loss=loss_tolerance),
    )
    if format_ == "text" and sys.stdout.isatty():
        color = "NO_COLOR" not in os.environ
        text = as_text(comparison, shutil.get_terminal_size().columns, color=color)
    else:
        text = FORMATS[format_](comparison)
    click.echo(text)
    return comparison.exit_code
