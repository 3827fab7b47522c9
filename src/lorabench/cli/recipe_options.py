"""The options that make a recipe, shared by the commands that take one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from lorabench.cli.parameters import OneOf
from lorabench.estimator.recipes.other_names import name_here
from lorabench.estimator.recipes.recipe import CHOICES, Recipe, make_recipe

F = TypeVar("F", bound=Callable[..., Any])


def _choice(field: str) -> OneOf:
    return OneOf(CHOICES[field])


OPTIONS: list[Callable[[F], F]] = [
    click.option("--method", type=_choice("method"), help="What trains: every weight, or adapters. [lora]"),
    click.option("-r", "--rank", type=int, help="Rank of the adapters. [16]"),
    click.option("--lora-alpha", type=float, help="Adapters are scaled by alpha / r. [2r]"),
    click.option("--lora-dropout", type=float, help="Dropout before each adapter. [0.05]"),
    click.option("--target-modules", help="all-linear, attention, mlp, or NAME,NAME… [all-linear]"),
    click.option("--modules-to-save", help="Embeddings or head that train whole besides: NAME,NAME…"),
    click.option("--adapter-dtype", type=_choice("adapter_dtype"), help="Dtype of the adapters. [float32]"),
    click.option("--dtype", type=_choice("dtype"), help="Dtype of the base weights. [full: float32, else bfloat16]"),
    click.option("--mixed-precision", type=_choice("mixed_precision"), help="Autocast in forward. [bf16]"),
    click.option("--quant-type", type=_choice("quant_type"), help="4-bit data type. [nf4]"),
    click.option("--double-quant/--no-double-quant", default=None, help="Quantise the constants too. [yes]"),
    click.option(
        "--prepare-kbit/--no-prepare-kbit", default=None, help="Raise what is not quantised to float32. [yes]"
    ),
    click.option(
        "--optim",
        type=_choice("optim"),
        metavar="NAME",
        help=f"Optimizer, by transformers' name: {', '.join(CHOICES['optim'])}. [adamw_torch_fused]",
    ),
    click.option("--batch-size", type=int, help="Sequences in one pass. [1]"),
    click.option("--seq-len", type=int, help="Tokens in a sequence. [2048]"),
    click.option("--gradient-accumulation", type=int, help="Passes before each optimizer step. [1]"),
    click.option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        default=None,
        help="Recompute activations in the backward pass. [yes]",
    ),
    click.option("--attn-implementation", type=_choice("attn_implementation"), help="Attention's kernels. [sdpa]"),
    click.option(
        "--loss",
        type=_choice("loss"),
        help="standard: transformers 5's; legacy: that of versions to 4.48; liger: a fused kernel. [standard]",
    ),
]


def recipe_options(command: F) -> F:
    """Add the recipe options to ``command``, which gets them as keyword arguments, None where not given."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def recipe_from(model: str, options: dict[str, Any]) -> Recipe:
    """Return the recipe of ``model`` from the values of `recipe_options`.

    Raises:
        UserError: options that are out of range or contradict each other.
    """
    return make_recipe(model, **options)


def option_here(name: str, command: click.Command) -> str | None:
    """Return what to write instead of another tool's option ``name``; None where that is not known.

    Commands without recipe options have no such hints.
    """
    if not any(option.name == "method" for option in command.params):
        return None
    return name_here(name.strip("-").replace("-", "_"), Recipe.__struct_fields__, _written)


def _written(option: str, value: str) -> str:
    return "MODEL, without an option" if option == "model" else f"--{option.replace('_', '-')} {value}"
