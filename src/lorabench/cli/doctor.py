"""`lorabench doctor`: show what this machine can train and rehearse, and how to fix the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorabench.cli.listing import as_json, folded
from lorabench.cli.output import show
from lorabench.cli.parameters import OneOf
from lorabench.cli.verbosity import verbose_option

if TYPE_CHECKING:
    from lorabench.bench.machine.doctor import Diagnosis

EXAMPLES = """\
\b
Examples:
  lorabench doctor
  lorabench doctor --device cuda && lorabench run demo -o results

\b
Exit codes:
  0  ready to train    1  something is missing
"""


@click.command("doctor", epilog=EXAMPLES)
@click.option(
    "--device", type=OneOf(["auto", "cpu", "cuda"]), default="auto", help="Check this device; cuda needs a GPU. [auto]"
)
@click.option("--format", "format_", type=OneOf(["table", "json"]), default="table", help="Output format. [table]")
@verbose_option
def command(device: Any, format_: str) -> int:
    """Show what this machine can train and rehearse, what is missing, and the command that fixes it.

    A separate process imports the libraries and quantises a tensor. "unknown" means that nobody has tested
    versions this new, not that they fail.
    """
    from lorabench.bench.machine.doctor import diagnose

    diagnosis = diagnose(device)
    if format_ == "json":
        show(as_json(diagnosis))
    else:
        show("\n".join(as_lines(diagnosis)))
    return 0 if diagnosis.ready else 1


def as_lines(diagnosis: Diagnosis) -> list[str]:
    """Return the diagnosis as lines for a terminal. The commands that fix problems come last and are not wrapped."""
    head = f"lorabench {diagnosis.lorabench}, Python {diagnosis.python}, {diagnosis.operating_system}"
    lines = [*folded(head), ""]
    name_width = max(len(check.name) for check in diagnosis.checks)
    status_width = max(len(check.status) for check in diagnosis.checks)
    for check in diagnosis.checks:
        start = f"{check.name:<{name_width}}  {check.status:<{status_width}}  "
        lines += folded(check.found, indent=start, hanging=" " * len(start))
    lines.append("")
    where = "a GPU" if diagnosis.backend == "cuda" else "the CPU"
    if diagnosis.can_train:
        lines.append(f"trains on {where}: {', '.join(diagnosis.can_train)}")
    else:
        lines.append(f"cannot train on {where} yet")
    remedies = {check.remedy: check.name for check in reversed(diagnosis.checks) if check.remedy is not None}
    if remedies:
        lines += ["", "to fix:"]
        lines += [f"  {name}: {remedy}" for remedy, name in reversed(remedies.items())]
    return lines
