"""`lorabench recipe`: a recipe as the config of another tool, or as a script that trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorabench.cli.output import show
from lorabench.cli.parameters import OneOf
from lorabench.cli.recipe_options import from_option, recipe_options
from lorabench.cli.verbosity import verbose_option
from lorabench.estimator.imported.exported import FORMATS, exported

EXAMPLES = """\
\b
Examples:
  lorabench recipe llama-3.1-8b --method qlora -r 32 --as axolotl > qlora.yml
  lorabench recipe --from axolotl.yml --as llamafactory
  lorabench recipe llama-3.1-8b --seq-len 4k --as python > train.py
"""


@click.command("recipe", epilog=EXAMPLES)
@click.argument("model", required=False)
@from_option
@recipe_options()
@click.option("--as", "format_", type=OneOf(FORMATS), required=True, help=f"What to write: {', '.join(FORMATS)}.")
@verbose_option
def command(model: str | None, config: Path | None, format_: str, **options: Any) -> None:
    """Write a recipe as the config of another tool, or as a Python script that trains it.

    The config is read back as --from reads it: a recipe that the tool cannot say is refused with the option. Comments
    name what the tool does otherwise all the same. Name your own data in it.
    """
    from lorabench.estimator.imported.asked import asked
    from lorabench.estimator.recipes.feasibility import refuse_impossible

    resolved = asked(model, config, options).resolved()
    refuse_impossible(resolved)
    show(exported(resolved, format_).rstrip("\n"))
