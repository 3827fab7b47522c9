"""IA3: learned scales of keys, values and the feed-forward's hidden features (Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from lorabench.estimator.errors import UserError
from lorabench.estimator.methods.base import Adapter, AdapterTensor
from lorabench.estimator.models.spec import Linear, ModelSpec
from lorabench.estimator.obstacle import Obstacle

if TYPE_CHECKING:
    from peft import PeftConfig

_KEYS = ("k_proj", "v_proj", "down_proj")
_QUERIES = ("q_proj", "v_proj", "down_proj")
DEFAULT_TARGETS = {
    "llama": _KEYS,
    "mistral": _KEYS,
    "mixtral": ("k_proj", "v_proj"),  # its experts are no linear layers
    "qwen2": _QUERIES,
    "qwen3": _QUERIES,
    "gemma": _QUERIES,
    "gemma2": _QUERIES,
    "gpt2": ("c_attn", "mlp.c_proj"),
    "gpt_neox": ("query_key_value", "dense_4h_to_h"),
}
"""model_type → modules that peft 0.21 adapts by default (`TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING`). For some
models they are queries instead of keys."""
SCALED_INPUTS = ("down_proj", "mlp.c_proj", "dense_4h_to_h")
"""Linear layers whose input is scaled instead of their output: peft's feed-forward modules."""


class IA3(Adapter, frozen=True, kw_only=True, tag="ia3"):
    """y = l ⊙ W x with l (out_features, 1); in the feed-forward's last layer y = W (l ⊙ x) with l (1, in_features)."""

    weights_name: ClassVar[str] = "IA3 scales"
    tensors_in_words: ClassVar[str] = "a scale for each output; in the feed-forward's last layer, for each input"
    peft_prefix: ClassVar[str] = "ia3_"

    def scales_input(self, linear: Linear) -> bool:
        """Return whether the input of ``linear`` is scaled instead of its output."""
        return linear.name.endswith(SCALED_INPUTS)

    def tensors(self, linear: Linear) -> tuple[AdapterTensor, ...]:
        """Return the scales, ``ia3_l``."""
        shape = (1, linear.in_features) if self.scales_input(linear) else (linear.out_features, 1)
        return (AdapterTensor("ia3_l", shape),)

    def default_targets(self, spec: ModelSpec) -> tuple[str, ...]:
        """Return the linear layers that peft adapts by default.

        Raises:
            UserError: peft has no default for the model.
        """
        ends = DEFAULT_TARGETS.get(spec.model_type)
        if ends is None:
            raise UserError(f"target_modules: {_no_default(spec)}: use --target-modules all-linear")
        names = {linear.name: None for group in spec.layers for linear in group.linears}
        return tuple(name for name in names if name.endswith(ends))

    def obstacles(self, spec: ModelSpec) -> Iterator[Obstacle]:
        """Yield an obstacle if no targets are named and peft has no default for the model."""
        if self.target_modules is None and spec.model_type not in DEFAULT_TARGETS:
            yield Obstacle(
                "target_modules", _no_default(spec), "--target-modules all-linear", {"target_modules": "all-linear"}
            )

    def peft_config(self, targets: Sequence[str], modules_to_save: Sequence[str], *, transposed: bool) -> PeftConfig:
        """Return an IA3Config."""
        from peft import IA3Config

        return IA3Config(
            task_type="CAUSAL_LM",
            target_modules=list(targets),
            feedforward_modules=[name for name in targets if name.endswith(SCALED_INPUTS)],
            modules_to_save=list(modules_to_save) or None,
            fan_in_fan_out=transposed,
        )


def _no_default(spec: ModelSpec) -> str:
    return f"peft names no linear layers for IA3 of model_type {spec.model_type}"
