"""The declarations of a method that trains adapters beside a frozen model.

Each method has one file here: its settings with defaults and limits, its tensors for a linear layer, its config for
peft, and its names for people. `closed_form.adapters` has its forward pass, and `catalogue` lists it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple, Self

from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from lorabench.estimator.dtypes import Dtype
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.models.spec import Linear, ModelSpec, Weight
from lorabench.estimator.obstacle import Obstacle

if TYPE_CHECKING:
    from peft import PeftConfig

PositiveInt = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Probability = Annotated[float, Meta(ge=0.0, lt=1.0)]


MOST_TARGETS = 64
"""Size of the cache of spellings: the recipes of a suite share a few."""
GROUPS = ("all-linear", "attention", "mlp")
"""Words for several target modules."""


class AdapterTensor(NamedTuple):
    """One trained tensor that a method adds to a linear layer."""

    name: str
    """In peft's state dict, after the path of the layer: ``lora_A.weight``."""
    shape: tuple[int, ...]
    ranked: bool = False
    """Whether its elements are a multiple of the rank."""

    @property
    def elements(self) -> int:
        """Product of the shape."""
        return prod(self.shape)


class Adapter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """The settings that all kinds of adapters share, and the declarations that each kind overrides.

    Raises:
        ValueError: a setting is wrong. The message names the setting and a remedy.
    """

    target_modules: str | None = None
    """Linear layers that get an adapter: all-linear, attention, mlp, module names separated by commas, or a regular
    expression that matches whole paths, as in peft."""
    modules_to_save: str | None = None
    """Embeddings or head that train in full beside the adapters: names separated by commas (default none)."""
    adapter_dtype: Dtype = "float32"
    """Dtype of the adapters' weights, gradients and optimizer states (default float32, peft's own)."""

    weights_name: ClassVar[str]
    """Name of the adapters' weights in tables: "LoRA weights"."""
    tensors_in_words: ClassVar[str]
    """Description of the tensors for `--explain`: "A (r, in) and B (out, r)"."""
    peft_prefix: ClassVar[str]
    """Prefix of the names of peft's parameters: ``lora_``."""

    def __post_init__(self) -> None:
        if self.target_modules is not None:
            force_setattr(self, "target_modules", canonical_targets(self.target_modules))
        if self.modules_to_save is not None:
            force_setattr(self, "modules_to_save", canonical_names("modules_to_save", self.modules_to_save))

    # The declarations of a method

    def tensors(self, linear: Linear) -> tuple[AdapterTensor, ...]:
        """Return the tensors that ``linear`` gets, in peft's order.

        Raises:
            NotImplementedError: the method does not declare them.
        """
        raise NotImplementedError

    def expert_tensors(self, weight: Weight, model_type: str) -> tuple[AdapterTensor, ...]:
        """Return the tensors that a router or a stack of experts gets; none if peft does not adapt it."""
        return ()

    def peft_config(self, targets: Sequence[str], modules_to_save: Sequence[str], *, transposed: bool) -> PeftConfig:
        """Return peft's config for the linear layers ``targets``.

        ``transposed``: the layers are transformers' Conv1D, whose weight is (in_features, out_features).

        Raises:
            NotImplementedError: the method does not declare it.
        """
        raise NotImplementedError

    @property
    def rank(self) -> int | None:
        """The rank r; None if the method has no rank."""
        return None

    def with_rank(self, rank: int | None) -> Self:
        """Return the adapter with another rank, or itself if the method has no rank."""
        return self

    def rank_left_open(self) -> Self:
        """Return the adapter with defaults for all settings that change only sizes or values.

        Two adapters whose results are equal run the same operations in a step.
        """
        return self

    def default_targets(self, spec: ModelSpec) -> tuple[str, ...]:
        """Return the linear layers that get an adapter if ``target_modules`` is None, in the order of the model.

        Raises:
            UserError: the method has no default for the model.
            NotImplementedError: the method does not declare them.
        """
        raise NotImplementedError

    def obstacles(self, spec: ModelSpec) -> Iterator[Obstacle]:
        """Yield why peft cannot train this adapter on ``spec``: one obstacle per setting."""
        yield from ()

    def warnings(self, linears: Sequence[Linear]) -> Iterator[str]:
        """Yield a warning for each unusual property of this adapter on ``linears``. It trains anyway."""
        yield from ()


@cache
def setting_names(kind: type[Adapter]) -> tuple[str, ...]:
    """Return the settings of a kind of adapter: its own first, then those that all kinds share."""
    shared = Adapter.__struct_fields__
    return (*(name for name in kind.__struct_fields__ if name not in shared), *shared)


def canonical_names(option: str, given: str) -> str:
    """Return the comma-separated names of ``given`` in alphabetical order, without duplicates.

    Raises:
        ValueError: a name is empty.
    """
    names = sorted({name.strip() for name in given.split(",")})
    if not all(names):
        raise ValueError(f"{option} {quoted(given)} names an empty module: write NAME,NAME")
    return ",".join(names)


def is_pattern(targets: str) -> bool:
    """Return whether ``target_modules`` is a regular expression for whole paths, as peft takes a text."""
    return not _OF_PATTERNS.isdisjoint(targets)


_OF_PATTERNS = frozenset("*+?()[]{}|^$\\")


@lru_cache(MOST_TARGETS)
def canonical_targets(targets: str) -> str:
    """Return ``target_modules`` in the spelling of recipes.

    Raises:
        ValueError: a name is empty, a group such as ``attention`` is mixed with other names, or a regular expression is
            not one.
    """
    if is_pattern(targets):
        try:
            re.compile(targets)
        except re.error as error:
            raise ValueError(f"target_modules {quoted(targets)} is no regular expression: {error}") from error
        return targets
    names = canonical_names("target_modules", targets).split(",")
    groups = [name for name in names if name in GROUPS]
    if groups and len(names) > 1:
        raise ValueError(f"target_modules {quoted(targets)} mixes {groups[0]} with other names: use one or the other")
    return ",".join(names)
