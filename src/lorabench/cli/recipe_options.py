"""The recipe options, shared by all commands that need a recipe."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import click

from lorabench.cli.parameters import Length, Listed, NamedPath, OneOf
from lorabench.estimator.optimizers.table import DEFAULT_OPTIMIZER
from lorabench.estimator.recipes.other_names import name_here
from lorabench.estimator.recipes.recipe import CHOICES, NEWEST, OLDER_CHOICES, SETTINGS

F = TypeVar("F", bound=Callable[..., Any])


def _choice(field: str) -> OneOf:
    return OneOf(CHOICES[field])


def _option(
    *names: str,
    help: str,  # noqa: A002 - click's name
    shown: str = "",
    **settings: Any,
) -> Callable[[Mapping[str, str], Collection[str]], Callable[[F], F]]:
    """Return a function that makes the option. Its help ends with the default ``shown``, or with a replacement; it
    takes lists if it is among the ``listed``."""
    field = names[-1].partition("/")[0].strip("-").replace("-", "_")

    def make(instead: Mapping[str, str], listed: Collection[str]) -> Callable[[F], F]:
        default = instead.get(field, shown)
        if field in listed:
            kind = click.INT if settings["type"] is int else settings["type"]
            return click.option(*names, help=f"{help} [{default}]", **{**settings, "type": Listed(kind)})
        return click.option(*names, help=f"{help} [{default}]" if default else help, **settings)

    return make


OPTIONS = [
    _option("--method", type=_choice("method"), help="Train all weights (full) or adapters.", shown="lora"),
    _option("-r", "--rank", type=int, help="Rank of the adapters.", shown="16"),
    _option("--lora-alpha", type=float, help="Adapters are scaled by alpha / r.", shown="2r"),
    _option("--lora-dropout", type=float, help="Dropout before each adapter.", shown="0.05"),
    _option("--use-rslora/--no-use-rslora", default=None, help="Scale adapters by alpha / √r.", shown="no"),
    _option(
        "--target-modules",
        help="Modules to adapt: all-linear, attention, mlp, NAME,NAME…, or a regular expression.",
        shown="all-linear; ia3: peft's",
    ),
    _option("--modules-to-save", help="Embeddings or head to train fully as well: NAME,NAME…"),
    _option("--adapter-dtype", type=_choice("adapter_dtype"), help="Dtype of the adapters.", shown="float32"),
    _option("--dtype", type=_choice("dtype"), help="Dtype of the base weights.", shown="full: float32, else bfloat16"),
    _option("--mixed-precision", type=_choice("mixed_precision"), help="Dtype of autocast.", shown="bf16"),
    _option("--quant-type", type=_choice("quant_type"), help="4-bit data type.", shown="nf4"),
    _option(
        "--double-quant/--no-double-quant", default=None, help="Quantise the quantisation constants too.", shown="yes"
    ),
    _option(
        "--prepare-kbit/--no-prepare-kbit",
        default=None,
        help="Cast unquantised weights to float32 by peft's prepare_model_for_kbit_training.",
        shown="no",
    ),
    _option(
        "--recast/--no-recast",
        default=None,
        help="Prepare, then cast embeddings and head to bfloat16, as TRL 0.7 to 0.19 did.",
        shown="no",
    ),
    _option(
        "--bitsandbytes",
        type=OneOf(OLDER_CHOICES["bitsandbytes"]),
        help="Whose code runs, if older than 0.43.2; estimate and plan know it.",
        shown="newer",
    ),
    _option(
        "--optim",
        type=_choice("optim"),
        metavar="NAME",
        help=f"Optimizer, by transformers' name: {', '.join(CHOICES['optim'])}.",
        shown=DEFAULT_OPTIMIZER,
    ),
    _option("--batch-size", type=int, help="Sequences per micro-batch.", shown="1"),
    _option("--seq-len", type=Length(), help="Tokens per sequence, such as 4k; k is 1024.", shown="2048"),
    _option(
        "--padding/--no-padding",
        default=None,
        help="Sequences are shorter, and padded to this length: attention gets a mask.",
        shown="no: packed",
    ),
    _option("--gradient-accumulation", type=int, help="Micro-batches per optimizer step.", shown="1"),
    _option(
        "--gradient-checkpointing/--no-gradient-checkpointing",
        default=None,
        help="Recompute activations in the backward pass.",
        shown="yes",
    ),
    _option(
        "--use-reentrant/--no-use-reentrant",
        default=None,
        help="Reentrant checkpointing, as transformers 4 did by default.",
        shown="no",
    ),
    _option("--attn-implementation", type=_choice("attn_implementation"), help="Attention kernel.", shown="sdpa"),
    _option(
        "--loss",
        type=_choice("loss"),
        help="standard: that of --transformers; legacy: that of 4.46 to 4.48; the others never hold all logits.",
        shown="standard",
    ),
    _option(
        "--transformers",
        type=OneOf(OLDER_CHOICES["transformers"]),
        help="Whose code runs; estimate and plan know older ones.",
        shown=NEWEST,
    ),
    _option(
        "--keep-outputs/--no-keep-outputs",
        default=None,
        help="The loop refers to the model's outputs until the next forward pass ends.",
        shown="no",
    ),
    _option(
        "--empty-cache-steps",
        type=int,
        help="Empty the allocator's cache before the backward pass of the first step and each N-th one after it.",
        shown="never",
    ),
]


def recipe_options(shown: Mapping[str, str] | None = None, *, listed: Collection[str] = ()) -> Callable[[F], F]:
    """Return a decorator that adds the recipe options to a command.

    The command gets them as keyword arguments; an option that was not passed is None.

    Args:
        shown: field → text that its help shows instead of the default.
        listed: fields that may be several values, separated by commas, which are then a tuple.
    """

    def add(command: F) -> F:
        for option in reversed(OPTIONS):
            command = option(shown or {}, listed)(command)
        return command

    return add


def from_option(command: F) -> F:
    """Give ``command`` the option ``--from``, as ``config``: a path, or None."""
    return click.option(
        "--from",
        "config",
        metavar="FILE",
        type=NamedPath(),
        help="Config of axolotl, LLaMA-Factory, TRL, transformers, peft, accelerate, DeepSpeed, torchtune or Unsloth. "
        "The other options override it.",
    )(command)


def option_here(name: str, command: click.Command) -> str | None:
    """Return what to write instead of another tool's option ``name``; None if unknown.

    Only commands with recipe options give such hints.
    """
    if not any(option.name == "method" for option in command.params):
        return None
    return name_here(name.strip("-").replace("-", "_"), SETTINGS, _written)


def _written(option: str, value: str) -> str:
    return "MODEL, without an option" if option == "model" else f"--{option.replace('_', '-')} {value}"
