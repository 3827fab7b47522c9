"""What a method declares that trains adapters beside a frozen model.

A method is one file here: its settings with defaults and limits, its tensors for a linear layer, peft's config for it,
and how people call what it adds. The parts of its forward pass are in `closed_form.adapters`, and `catalogue` lists it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple, Self

from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from lorabench.estimator.dtypes import Dtype
from lorabench.estimator.models.spec import Linear, ModelSpec, Weight
from lorabench.estimator.obstacle import Obstacle

if TYPE_CHECKING:
    from peft import PeftConfig

PositiveInt = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Probability = Annotated[float, Meta(ge=0.0, lt=1.0)]


class AdapterTensor(NamedTuple):
    """One tensor that a method adds to a linear layer, and trains."""

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
    """The settings that every kind of adapter has, and the questions that every kind answers.

    Raises ValueError where a setting is wrong, naming the setting and the way out.
    """

    target_modules: str | None = None
    """Linear layers that get an adapter: all-linear, attention, mlp, or module names separated by commas."""
    modules_to_save: str | None = None
    """Embeddings and the head that train whole beside the adapters, names separated by commas (default none)."""
    adapter_dtype: Dtype = "float32"
    """Dtype of the adapters' weights, gradients and optimizer states (default float32, as peft keeps them)."""

    weights_name: ClassVar[str]
    """What tables call the adapters' weights: "LoRA weights"."""
    tensors_in_words: ClassVar[str]
    """What `--explain` says of the tensors: "A (r, in) and B (out, r)"."""
    peft_prefix: ClassVar[str]
    """What the names of peft's parameters of this kind begin with: ``lora_``."""

    def __post_init__(self) -> None:
        if self.target_modules is not None:
            force_setattr(self, "target_modules", canonical_targets(self.target_modules))
        if self.modules_to_save is not None:
            force_setattr(self, "modules_to_save", canonical_names("modules_to_save", self.modules_to_save))

    # What a method declares

    def tensors(self, linear: Linear) -> tuple[AdapterTensor, ...]:
        """Return the tensors that ``linear`` gets, in the order in which peft makes them."""
        raise NotImplementedError

    def expert_tensors(self, weight: Weight) -> tuple[AdapterTensor, ...]:
        """Return the tensors that a router or a stack of experts gets; none where peft leaves them as they are."""
        return ()

    def peft_config(self, targets: Sequence[str], modules_to_save: Sequence[str], *, transposed: bool) -> PeftConfig:
        """Return peft's config for the linear layers ``targets``.

        ``transposed``: the layers are transformers' Conv1D, which stores its weight (in_features, out_features).
        """
        raise NotImplementedError

    @property
    def rank(self) -> int | None:
        """The rank r; None of a method whose tensors have none."""
        return None

    def with_rank(self, rank: int | None) -> Self:
        """Return the same adapter with another rank; without one, itself."""
        return self

    def rank_left_open(self) -> Self:
        """Return the adapter without the settings that change sizes or values only: equal ones run the same step."""
        return self

    def default_targets(self, spec: ModelSpec) -> tuple[str, ...]:
        """Return the linear layers that get an adapter where ``target_modules`` is None, in the order of the layers.

        Raises:
            UserError: the method has no default for the model.
        """
        raise NotImplementedError

    def obstacles(self, spec: ModelSpec) -> Iterator[Obstacle]:
        """Yield why peft cannot train this adapter on ``spec``, one for each setting that is in the way."""
        yield from ()

    def warnings(self, linears: Sequence[Linear]) -> Iterator[str]:
        """Yield what is odd about this adapter on ``linears``, though it trains."""
        yield from ()


def setting_names(kind: type[Adapter]) -> tuple[str, ...]:
    """Return the settings of a method: its own first, then those that every method has."""
    shared = Adapter.__struct_fields__
    return (*(name for name in kind.__struct_fields__ if name not in shared), *shared)


def canonical_names(option: str, given: str) -> str:
    """Return module names in alphabetical order, each once.

    Raises ValueError for an empty name.
    """
    names = sorted({name.strip() for name in given.split(",")})
    if not all(names):
        raise ValueError(f"{option} {given!r} names an empty module: write NAME,NAME")
    return ",".join(names)


def canonical_targets(targets: str) -> str:
    """Return ``target_modules`` as a recipe writes them.

    Raises ValueError for an empty name, or a group such as ``attention`` beside other names.
    """
    names = canonical_names("target_modules", targets).split(",")
    groups = [name for name in names if name in ("all-linear", "attention", "mlp")]
    if groups and len(names) > 1:
        raise ValueError(f"target_modules {targets!r} mixes {groups[0]} with other names: use one or the other")
    return ",".join(names)
