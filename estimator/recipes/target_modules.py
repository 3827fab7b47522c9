"""Find the linear layers that get adapters: a recipe's `target_modules` in one model."""

from __future__ import annotations

from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.methods.base import Adapter
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.modules_to_save import embeddings_and_head

FUSED = frozenset({"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"})
"""Names that peft takes for parts of stacked experts, if a model has these: it adapts the stacks, and no linear layers
of these names, such as those of a shared expert (`_convert_peft_config_moe`)."""


def resolve_target_modules(spec: ModelSpec, adapter: Adapter | None) -> tuple[str, ...]:
    """Return the `Linear.name` of every linear layer that gets an adapter, without duplicates, in the model's order.

    The names are paths inside a layer, such as ``attn.c_proj``. The last component would be ambiguous in GPT-2, which
    has a ``c_proj`` in attention and one in the feed-forward. peft accepts paths, since it matches the end of a
    module's name. Users may write the last component, or a longer end of the path. Without ``adapter`` (full
    fine-tuning) the result is empty.

    Raises:
        UserError: no linear layer has one of the names, or the model has no linear layers in the requested part.
    """
    if adapter is None:
        return ()
    targets = adapter.target_modules
    if targets is None:
        return adapter.default_targets(spec)
    linears = list({linear.name: linear for group in spec.layers for linear in group.linears}.values())
    if targets == "all-linear":
        fused = FUSED if spec.adapts_experts else frozenset()
        return tuple(linear.name for linear in linears if linear.name.rsplit(".", 1)[-1] not in fused)
    if targets in ("attention", "mlp"):
        part = "attention" if targets == "attention" else "feed_forward"
        names = tuple(linear.name for linear in linears if linear.part == part)
        if not names:
            raise UserError(
                f"target_modules {targets}: {spec.name} has no linear layers there that adapters can attach to: "
                "use all-linear"
            )
        return names
    wanted = targets.split(",")
    for name in wanted:
        if not any(_ends_with(linear.name, name) for linear in linears):
            if any(_ends_with(module.path, name) for module in embeddings_and_head(spec)):
                raise UserError(
                    f"target_modules: adapters cannot attach to {name} of {spec.name}: train it in full with "
                    f"--modules-to-save {name.rsplit('.', 1)[-1]}"
                )
            last_components = {linear.name.rsplit(".", 1)[-1] for linear in linears}
            raise UserError(
                f"target_modules: {spec.name} has no linear layer {quoted(name)}: {did_you_mean(name, last_components)}"
            )
    return tuple(linear.name for linear in linears if any(_ends_with(linear.name, name) for name in wanted))


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")
