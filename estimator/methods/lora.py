"""LoRA: two low-rank factors beside each adapted weight (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from msgspec import Meta
from msgspec.structs import force_setattr, replace

from lorabench.estimator.methods.base import GROUPS, Adapter, AdapterTensor, PositiveInt, Probability, is_pattern
from lorabench.estimator.models.spec import Linear, ModelSpec, Weight
from lorabench.estimator.obstacle import Obstacle

if TYPE_CHECKING:
    from peft import PeftConfig


MAMBA_TYPES = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
UNFIT_FOR_MAMBA = frozenset({"conv1d", "out_proj"})
"""Layers that peft does not adapt in models of these types (`_check_lora_target_modules_mamba`)."""
OLDER_NAMES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",), "weight": ("gate",)}
"""Parameter of experts or router → the linear layers that it was before transformers 5, by which peft 0.21 still finds
it (`_MOE_TARGET_MODULE_MAPPING`)."""
LIKE_MIXTRAL = frozenset({"mixtral", "minimax", "minimax_m2"})
"""Model types that had Mixtral's names."""
OF_MIXTRAL = {**OLDER_NAMES, "gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)}


def older_names(parameter: str, model_type: str) -> tuple[str, ...]:
    """Return the linear layers that a parameter of experts was before transformers 5; none if it was none."""
    return (OF_MIXTRAL if model_type in LIKE_MIXTRAL else OLDER_NAMES).get(parameter, ())


def named(targets: str | None) -> list[str]:
    """Return the names in ``target_modules``; none for a group or a regular expression."""
    if targets is None or targets in GROUPS or is_pattern(targets):
        return []
    return targets.split(",")


def ends_of(path: str) -> list[str]:
    """Return the ends of a path by which people name a module: c_proj and attn.c_proj for ``attn.c_proj``."""
    parts = path.split(".")
    return [".".join(parts[index:]) for index in range(len(parts))]


class LoRA(Adapter, frozen=True, kw_only=True, tag="lora"):
    """y = W x + (alpha / r) · B A x, with A (r, in_features) and B (out_features, r)."""

    rank: PositiveInt = 16
    """Rank r of the adapters (default 16)."""
    lora_alpha: Annotated[float, Meta(gt=0, le=2**32 - 2)] | None = None
    """Scale numerator: adapters are scaled by alpha / r (default 2r; the limit is twice the limit of the rank). It
    changes the training, not the memory."""
    lora_dropout: Probability = 0.05
    """Dropout before each adapter (default 0.05)."""
    use_rslora: bool = False
    """Whether adapters are scaled by alpha / √r instead of alpha / r (Kalajdzievski 2023; default no). It changes the
    training, not the memory."""

    weights_name: ClassVar[str] = "LoRA weights"
    tensors_in_words: ClassVar[str] = "A (r, in) and B (out, r)"
    peft_prefix: ClassVar[str] = "lora_"

    def __post_init__(self) -> None:
        if self.lora_alpha is None:
            force_setattr(self, "lora_alpha", 2.0 * self.rank)
        if self.target_modules is None:
            force_setattr(self, "target_modules", "all-linear")
        super().__post_init__()

    def tensors(self, linear: Linear) -> tuple[AdapterTensor, ...]:
        """Return A and B."""
        return self._factors(self.rank, linear.in_features, linear.out_features)

    def expert_tensors(self, weight: Weight, model_type: str) -> tuple[AdapterTensor, ...]:
        """Return A and B of all experts in one tensor each. Their rank doubles if gate and up projection are fused.

        Routers and experts are parameters, not linear layers. peft 0.21 adapts them under all-linear, and under the
        names that their linear layers had before transformers 5. It doubles the rank of fused projections
        (`convert_peft_config_for_transformers`).
        """
        if self.target_modules != "all-linear" and not self._names_experts(weight, model_type):
            return ()
        *experts, out_features, in_features = weight.shape
        fused = 2 if weight.name.endswith("gate_up_proj") else 1
        return self._factors(fused * prod(experts) * self.rank, in_features, out_features)

    def _names_experts(self, weight: Weight, model_type: str) -> bool:
        """Return whether the target modules name the linear layers that ``weight`` was before transformers 5."""
        parameter = weight.name.rpartition(".")[2]
        return bool(set(older_names(parameter, model_type)) & set(named(self.target_modules)))

    def _factors(self, ranks: int, in_features: int, out_features: int) -> tuple[AdapterTensor, ...]:
        return (
            AdapterTensor("lora_A.weight", (ranks, in_features), ranked=True),
            AdapterTensor("lora_B.weight", (out_features, ranks), ranked=True),
        )

    def peft_config(self, targets: Sequence[str], modules_to_save: Sequence[str], *, transposed: bool) -> PeftConfig:
        """Return a LoraConfig."""
        from peft import LoraConfig

        return LoraConfig(
            task_type="CAUSAL_LM",
            r=self.rank,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            use_rslora=self.use_rslora,
            # peft adapts stacked experts under this name, and under names that no linear layer has.
            target_modules="all-linear" if self.target_modules == "all-linear" else self._given_to_peft(targets),
            modules_to_save=list(modules_to_save) or None,
            fan_in_fan_out=transposed,
        )

    def _given_to_peft(self, targets: Sequence[str]) -> list[str]:
        ends = {end for path in targets for end in ends_of(path)}
        return [*targets, *(name for name in named(self.target_modules) if name not in ends)]

    def with_rank(self, rank: int | None) -> Self:
        """Return the same adapter with another rank."""
        return self if rank is None else replace(self, rank=rank)

    def rank_left_open(self) -> Self:
        """Return the adapter with rank 1, scale 1 and, if it has dropout, dropout of one half."""
        dropout = 0.5 if self.lora_dropout else 0.0
        return replace(self, rank=1, lora_alpha=1.0, lora_dropout=dropout, use_rslora=False)

    def obstacles(self, spec: ModelSpec) -> Iterator[Obstacle]:
        """Yield an obstacle for layers that peft does not adapt, and for dropout on adapters of experts."""
        unfit = self._unfit(spec)
        if unfit:
            names = {linear.name.rpartition(".")[2] for group in spec.layers for linear in group.linears}
            others = ",".join(sorted(names - UNFIT_FOR_MAMBA))
            yield Obstacle(
                "target_modules",
                f"peft adapts no {' and no '.join(unfit)} of a {spec.model_type}, whose kernels pass its layer by",
                f"--target-modules {others}",
                {"target_modules": others},
            )
            return
        experts = [weight for group in spec.layers for weight in group.adapted_experts] if spec.adapts_experts else []
        adapted = [weight for weight in experts if self.expert_tensors(weight, spec.model_type)]
        for weight in adapted:
            fused = older_names(weight.name.rpartition(".")[2], spec.model_type)
            lacking = set(fused) - set(named(self.target_modules))
            if lacking and self.target_modules != "all-linear":
                yield Obstacle(
                    "target_modules",
                    f"transformers 5 keeps {' and '.join(fused)} of the experts in one parameter, and peft adapts them "
                    "together only",
                    f"--target-modules with {', '.join(sorted(lacking))} too, or without them",
                )
                return
        if self.lora_dropout and adapted:
            yield Obstacle(
                "lora_dropout",
                f"peft has no dropout for adapters of fused experts, which {spec.name} has",
                "--lora-dropout 0, or --target-modules attention",
                # ms-swift's example for Mixtral does the same. At rank 16, adapters of the experts too would have 26
                # times as many parameters.
                {"target_modules": "attention", "lora_dropout": 0.0},
            )

    def _unfit(self, spec: ModelSpec) -> list[str]:
        """Return the names among the target modules that peft refuses for ``spec``."""
        if spec.model_type not in MAMBA_TYPES:
            return []
        part = {"attention": "attention", "mlp": "feed_forward"}.get(str(self.target_modules), "")
        linears = [linear for group in spec.layers for linear in group.linears]
        whole = self.target_modules == "all-linear"
        adapted = [linear.name for linear in linears if whole or linear.part == part]
        return sorted(UNFIT_FOR_MAMBA & {name.rpartition(".")[2] for name in (*adapted, *named(self.target_modules))})

    def warnings(self, linears: Sequence[Linear]) -> Iterator[str]:
        """Yield a warning if the adapters' rank reaches the full rank of a layer."""
        full_ranks = {linear.name: min(linear.in_features, linear.out_features) for linear in linears}
        reached = {name: full for name, full in full_ranks.items() if full <= self.rank}
        if reached:
            which = "any matrix that it adapts" if reached == full_ranks else ", ".join(reached)
            yield (
                f"rank {self.rank} is not low for {which}, whose full rank is {max(reached.values())} at most: such an "
                "adapter has more parameters than the matrix itself"
            )
