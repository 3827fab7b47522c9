"""The modules that train in full beside the adapters: a recipe's `modules_to_save`, found in one model.

peft copies such a module, trains the copy and freezes the original. The copy has the dtype of the original;
`adapter_dtype` applies only to adapters. Tied embedding and head get a copy each, and are no longer tied.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.methods.four_bit import is_recast
from lorabench.estimator.models.spec import ModelSpec


class SavedModule(NamedTuple):
    """A module that peft copies and trains."""

    path: str
    """Path in the model, such as ``model.embed_tokens``."""
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    """Name inside the module and shape of each parameter."""
    embedding: bool

    @property
    def parameters(self) -> int:
        """Elements."""
        return sum(prod(shape) for _, shape in self.tensors)


def resolve_modules_to_save(spec: ModelSpec, names: str | None) -> tuple[SavedModule, ...]:
    """Return the modules that train in full beside the adapters, in the order of the model.

    ``names``: the recipe's `modules_to_save`, names separated by commas, or None.

    Raises:
        UserError: a name is neither an embedding nor the head.
    """
    if names is None:
        return ()
    modules = {_last(module.path): module for module in embeddings_and_head(spec)}
    wanted = names.split(",")
    for name in wanted:
        if name not in modules:
            hint = did_you_mean(name, modules, say_all_up_to=4)
            if any(_last(linear.name) == name for group in spec.groups for linear in group.linears):
                hint = f"adapters train that one (--target-modules {name}): {hint}"
            raise UserError(f"modules_to_save: {spec.name} has no embedding and no head {quoted(name)}: {hint}")
    return tuple(module for name, module in modules.items() if name in wanted)


def embeddings_and_head(spec: ModelSpec) -> list[SavedModule]:
    """Return the modules of ``spec`` that can be in `modules_to_save`, in the order of the model."""
    tables = [
        SavedModule(table.name.removesuffix(".weight"), (("weight", table.shape),), embedding=True)
        for table in spec.embeddings
    ]
    shape = (spec.head.out_features, spec.head.in_features)
    bias = (("bias", (spec.head.out_features,)),) if spec.head.bias else ()
    return [*tables, SavedModule(spec.head.name, (("weight", shape), *bias), embedding=False)]


def recast_modules(spec: ModelSpec) -> list[SavedModule]:
    """Return the embeddings and the head of ``spec`` that a recast reaches; a tied head is none of its own."""
    modules = embeddings_and_head(spec)
    own = modules[:-1] if spec.tie_word_embeddings else modules
    return [module for module in own if is_recast(module.path)]


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]
