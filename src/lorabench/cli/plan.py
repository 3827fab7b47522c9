"""`lorabench plan`: find what to run on a GPU, or which GPU is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lorabench.cli.listing import Column, as_json, as_markdown, as_table, folded
from lorabench.cli.output import show
from lorabench.cli.parameters import Count, OneOf
from lorabench.cli.recipe_options import from_option, recipe_options
from lorabench.cli.speed import calibration_for, calibration_option, short_speed
from lorabench.cli.tracing import progress
from lorabench.cli.verbosity import verbose_option
from lorabench.estimator.errors import UserError
from lorabench.estimator.quantities import in_gib, short_gib

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lorabench.estimator.answers.plan import Choice, EnoughGpu, MethodLimits, Plan
    from lorabench.estimator.imported.asked import Asked
    from lorabench.estimator.recipes.recipe import Recipe

EXAMPLES = """\
\b
Examples:
  lorabench plan llama-3.1-8b --gpu rtx-4090
  lorabench plan llama-3.1-8b --gpu 24GB --seq-len 4096 --min-batch-tokens 64k
  lorabench plan llama-3.1-70b --gpu h100-sxm --method qlora -r 64
  lorabench plan llama-3.1-8b --method full --all-gpus

\b
Exit codes: 0 something fits; 1 nothing fits; 2 wrong use or bad input.
"""
SEARCHED = {
    **dict.fromkeys(("method", "dtype", "mixed_precision", "optim", "batch_size"), "searched"),
    **dict.fromkeys(("gradient_checkpointing", "attn_implementation", "loss"), "searched"),
}
"""Option → text in its help instead of the default. Only --all-gpus uses the default."""
LEFT_TO_SEARCH = frozenset(SEARCHED) - {"method", "prepare_kbit"} | {"use_reentrant", "empty_cache_steps"}
"""Options of a config that a search tries instead. The method of the config stays."""
SHORT_OPTIMIZERS = ("AdamW", "8-bit")
"""Short names of the optimizers that are tried. Any other one was requested, and all choices have it."""


@click.command("plan", epilog=EXAMPLES)
@click.argument("model", required=False)
@from_option
@recipe_options(SEARCHED)
@click.option("--gpu", help="GPU to plan for: a name, a memory size such as 24GB, or local.")
@click.option("--all-gpus", is_flag=True, help="List the GPUs that fit one recipe instead, smallest first.")
@click.option(
    "--min-batch-tokens",
    type=Count(),
    help="Minimum tokens per step, reached by accumulation, such as 64k. [one micro-batch]",
)
@calibration_option
@click.option(
    "--format", "format_", type=OneOf(["table", "json", "markdown"]), default="table", help="Output format. [table]"
)
@verbose_option
def command(
    model: str | None,
    config: Path | None,
    gpu: str | None,
    all_gpus: bool,
    min_batch_tokens: int | None,
    calibration_file: Path | None,
    format_: str,
    **options: Any,
) -> int:
    """Find what to run on a GPU: list the recipes that fit, fastest first.

    Options you pass are fixed; everything marked [searched] is tried. Optimizers tried: AdamW and paged 8-bit AdamW. In
    QLoRA, embeddings, head and norms stay in 16 bits, which needs less memory and time than peft's preparation. With
    --all-gpus nothing is searched: one recipe, with the defaults of `lorabench estimate`, is compared with every GPU.

    With --from, the config's model, method, adapters, quantisation and length are fixed; the rest is tried.

    "needs ≤" is the upper end of the memory a choice needs. "why" is its advantage over all choices above: less memory,
    or another method.
    """
    from lorabench.commands import plan_of, refuse_without_closed_form
    from lorabench.estimator.devices.device import find_device
    from lorabench.estimator.imported.asked import asked

    wanted = asked(model, config, options)
    refuse_without_closed_form(wanted.spec)
    if all_gpus:
        for given, name in (
            (gpu, "--gpu"),
            (min_batch_tokens, "--min-batch-tokens"),
            (calibration_file, "--calibration"),
        ):
            if given is not None:
                raise UserError(f"{name} does not apply to --all-gpus, which compares one recipe with every GPU")
        return _all_gpus(wanted, format_)
    if gpu is None:
        raise UserError("plan needs a GPU: add --gpu NAME, a size such as --gpu 24GB, or --all-gpus")
    device = find_device(gpu)
    asked_for = [name for name, value in options.items() if value is not None]
    with progress() as say:
        plan = plan_of(
            wanted, asked_for, device, calibration_for(device, calibration_file), min_batch_tokens or 1, on_progress=say
        )
    if format_ == "json":
        show(as_json(plan))
    else:
        show(_plan_text(plan, as_markdown if format_ == "markdown" else None))
    return 0 if plan.choices else 1


def _all_gpus(wanted: Asked, format_: str) -> int:
    from lorabench.cli.estimate import describe_recipe, not_taken_into_account, remarks
    from lorabench.estimator.answers.plan import enough_gpus
    from lorabench.estimator.answers.support import lacking_gpus
    from lorabench.estimator.memory.allocator_settings import settings_of_environment
    from lorabench.estimator.recipes.feasibility import recipe_warnings

    resolved = wanted.resolved()
    recipe, assumptions = resolved.recipe, resolved.assumptions
    allocator = settings_of_environment()
    with progress() as say:
        found, lacks = enough_gpus(resolved, allocator=allocator, on_progress=say), lacking_gpus(recipe)
    warnings = (*recipe_warnings(resolved), *allocator.warnings())
    if format_ == "json":
        facts: dict[str, Any] = {
            "recipe": recipe,
            "gpus": found,
            "lacking": lacks,
            "assumptions": assumptions,
            "warnings": warnings,
        }
        if wanted.imported is not None:
            facts["imported"] = wanted.imported
        show(as_json(facts))
    else:
        listed = as_markdown(_gpu_columns(found)) if format_ == "markdown" else as_table(_gpu_columns(found))
        for paragraph in (describe_recipe(recipe), *remarks(assumptions, warnings, markdown=format_ == "markdown")):
            show(f"{paragraph}\n")
        show(f"fits on these GPUs, smallest first:\n\n{listed}" if found else "fits on no single GPU of the catalogue")
        for lack, names in lacks.items():
            show("\n" + _filled(f"Left out because they have no {lack}: {', '.join(names)}", format_ == "markdown"))
        for paragraph in not_taken_into_account(wanted.imported, markdown=format_ == "markdown"):
            show(f"\n{paragraph}")
    return 0 if found else 1


def _plan_text(plan: Plan, markdown: Callable[[list[Column]], str] | None) -> str:
    from lorabench.cli.estimate import not_taken_into_account, remarks, usable_of

    table = markdown or as_table
    memory = usable_of(plan.gpu_memory_bytes, plan.gpu_usable_bytes)
    head = f"{plan.model} on {plan.gpu} ({memory}) at length {plan.seq_len}"
    parts = [f"**{head}**" if markdown else _filled(head, False)]
    parts += remarks(plan.assumptions, plan.warnings, markdown=bool(markdown))
    if plan.choices:
        parts.append(table(_choice_columns(plan.choices)))
        best = plan.choices[0].recipe
        parts.append(_filled(f"Details of the first: {estimate_command(best, plan.gpu)}", bool(markdown)))
    else:
        parts.append(f"None of {plan.tried} recipes fits.")
    parts += ["Each method with the searched settings that need least memory:", table(_method_columns(plan.methods))]
    parts += [_filled(line, bool(markdown)) for line in _changes(plan.methods)]
    parts += not_taken_into_account(plan.imported, markdown=bool(markdown))
    return "\n\n".join(parts)


def _filled(line: str, markdown: bool) -> str:
    return line if markdown else "\n".join(folded(line, hanging="  "))


def _choice_columns(choices: tuple[Choice, ...]) -> list[Column]:
    from lorabench.estimator.answers.plan import TRIED_OPTIMIZERS

    short = dict(zip(TRIED_OPTIMIZERS, SHORT_OPTIMIZERS, strict=True))
    optimizers = [short.get(choice.recipe.optim) for choice in choices]
    return [
        Column("method", [_method(choice.recipe) for choice in choices], right=False),
        *([Column("optim", [name for name in optimizers if name], right=False)] if all(optimizers) else []),
        Column("ckpt", [_yes(choice.recipe.gradient_checkpointing) for choice in choices], right=False),
        Column("loss", [choice.recipe.loss for choice in choices], right=False),
        Column("batch", [_batch(choice.recipe) for choice in choices]),
        Column("needs ≤", [short_gib(choice.device_total_most_bytes) for choice in choices]),
        Column("spare", [short_gib(choice.margin_bytes) for choice in choices]),
        Column("tokens/s", [short_speed(choice.throughput) for choice in choices]),
        Column("why", _advantages(choices), right=False, folds=True),
    ]


def _advantages(choices: tuple[Choice, ...]) -> list[str]:
    """Return the advantage of each choice over all before it: less memory, or another method.

    The first is the fastest, to within `plan.EQUAL_SPEED`.
    """
    rates = [choice.throughput.tokens_per_second for choice in choices if choice.throughput is not None]
    advantages = ["least work" if not rates else "fastest" if rates[0] == max(rates) else "as fast"]
    for index, choice in enumerate(choices[1:], start=1):
        before = choices[:index]
        saved = min(one.device_total_most_bytes for one in before) - choice.device_total_most_bytes
        if saved > 0:
            advantages.append(f"-{short_gib(saved)}")
        elif choice.recipe.method not in {one.recipe.method for one in before}:
            advantages.append(_of_another_method(choice.recipe))
        else:
            advantages.append("")
    return advantages


def _of_another_method(recipe: Recipe) -> str:
    if recipe.adapter is None:
        return "full"
    return "16-bit" if recipe.quantization is None else "4-bit"


def _method(recipe: Recipe) -> str:
    if recipe.adapter is not None:
        return recipe.method
    return "full bf16" if recipe.dtype == "bfloat16" else "full fp32"


def _batch(recipe: Recipe) -> str:
    passes = recipe.gradient_accumulation
    return f"{recipe.batch_size}" + (f" × {passes}" if passes > 1 else "")


def _method_columns(methods: tuple[MethodLimits, ...]) -> list[Column]:
    return [
        Column("method", [_method(one.leanest) for one in methods], right=False),
        Column("", ["fits" if one.fits else "does not fit" for one in methods], right=False),
        Column("spare", [in_gib(one.margin_bytes) for one in methods]),
        Column("largest batch", [str(one.largest_batch_size or "–") for one in methods]),
        Column("longest sequence", [f"{one.longest_seq_len or '–'}" for one in methods]),
    ]


def _changes(methods: tuple[MethodLimits, ...]) -> list[str]:
    """Return the changes that make each method fit that does not. A change to another fitting method is left out."""
    fitting = {one.method for one in methods if one.fits}
    lines = []
    for one in methods:
        ways = [
            " ".join(
                f"{name}={_yes(value) if isinstance(value, bool) else value}" for name, value in change.settings.items()
            )
            for change in one.changes
            if change.settings.get("method") not in fitting
        ]
        if one.fits or (fitting and not ways):
            continue
        lines.append(
            f"{one.method}: up to {in_gib(-one.margin_bytes)} too large; "
            + (f"fits with {', or with '.join(ways)}" if ways else "no change, and no pair of changes, makes it fit")
        )
    return lines


def _gpu_columns(found: list[EnoughGpu]) -> list[Column]:
    return [
        Column("gpu", [one.gpu for one in found], right=False),
        Column("memory", [in_gib(one.gpu_memory_bytes) for one in found]),
        Column("usable", [in_gib(one.gpu_usable_bytes) for one in found]),
        Column("spare", [in_gib(one.margin_bytes) for one in found]),
        Column("tokens/s", [short_speed(one.throughput) for one in found]),
    ]


def estimate_command(recipe: Recipe, gpu: str) -> str:
    """Return the `lorabench estimate` command of a recipe, with all settings that differ from the default."""
    from lorabench.estimator.recipes.recipe import SETTINGS, make_recipe

    plain = make_recipe(recipe.model, method=recipe.method).describe()
    words = [f"lorabench estimate {recipe.model} --method {recipe.method}"]
    for name, value in recipe.describe().items():
        if name in ("model", "method") or value == plain.get(name):
            continue
        option = "--" + name.replace("_", "-")
        flag = {"yes": option, "no": option.replace("--", "--no-", 1)}
        is_switch = SETTINGS[name] is bool
        words.append(flag[value] if is_switch else f"{option} {value}")
    return " ".join([*words, f"--gpu {gpu}"])


def _yes(value: bool) -> str:
    return "yes" if value else "no"
