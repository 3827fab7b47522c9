"""`lorabench models`: list the models known by name."""

from __future__ import annotations

import click

from lorabench.cli.listing import FORMATS, Column, as_csv, as_json, as_markdown, as_table
from lorabench.cli.output import show
from lorabench.cli.parameters import OneOf
from lorabench.estimator.models.spec import ModelSpec

EXAMPLES = """\
\b
Examples:
  lorabench models
  lorabench models --format csv > models.csv
"""


@click.command("models", epilog=EXAMPLES)
@click.option("--format", "format_", type=OneOf(FORMATS), default="table", help="Output format. [table]")
def command(format_: str) -> None:
    """List the models known by name, smallest first.

    Commands that take a MODEL also accept a config.json, its folder, or an id on the Hugging Face hub. JSON and CSV
    have exact parameter counts and sizes.
    """
    from lorabench.estimator.models.catalogue import find_model, model_names

    specs = sorted((find_model(name) for name in model_names()), key=lambda spec: (spec.parameters, spec.name))
    if format_ in ("json", "csv"):
        show((as_json if format_ == "json" else as_csv)([_facts(spec) for spec in specs]))
    else:
        show((as_table if format_ == "table" else as_markdown)(_columns(specs)))


def _facts(spec: ModelSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "model_type": spec.model_type,
        "parameters": spec.parameters,
        "num_hidden_layers": spec.num_hidden_layers,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "tie_word_embeddings": spec.tie_word_embeddings,
    }


def _columns(specs: list[ModelSpec]) -> list[Column]:
    return [
        Column("model", [spec.name for spec in specs], right=False),
        Column("params", [_in_words(spec.parameters) for spec in specs]),
        Column("layers", [str(spec.num_hidden_layers) for spec in specs]),
        Column("family", [spec.model_type for spec in specs], right=False),
    ]


def _in_words(parameters: int) -> str:
    """Return a parameter count with three digits: 124M, 8.03B, 406B."""
    value, unit = (parameters / 1e6, "M") if parameters < 999.5e6 else (parameters / 1e9, "B")
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}{unit}"
