"""The recipe: everything that decides the memory and the speed of one fine-tuning step.

One frozen object serves all three answers: what `estimate` computes from is what `trace` and `run` build and train.
Most settings have the names that Hugging Face has; `other_names` says which have another. A setting that has no meaning
for a method is None there, and naming one is refused, so that two recipes are equal exactly when they train the same
thing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypedDict, get_args

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from lorabench.estimator.dtypes import ITEMSIZE, Dtype
from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.optimizers.table import DEFAULT_OPTIMIZER, OPTIMIZERS
from lorabench.estimator.recipes.other_names import name_here, value_meant
from lorabench.estimator.typed_values import convert
from lorabench.estimator.written_numbers import read_length

Method = Literal["full", "lora", "qlora"]
AdapterDtype = Literal["float32", "bfloat16", "float16"]
MixedPrecision = Literal["no", "bf16", "fp16"]
QuantType = Literal["nf4", "fp4"]
AttnImplementation = Literal["sdpa", "flash_attention_2", "eager"]
Loss = Literal["standard", "legacy", "liger"]
if TYPE_CHECKING:
    Optim: TypeAlias = str
    """A name of the table of optimizers."""
else:
    Optim = Literal[tuple(OPTIMIZERS)]

PositiveInt = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Probability = Annotated[float, Meta(ge=0.0, lt=1.0)]


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """One fine-tuning setup. Constructing one fills in the defaults of its method and validates the whole.

    Frozen and hashable; `msgspec.json` and `msgspec.yaml` encode and decode it. What is left out (or given as None)
    takes the default that people run; what has no meaning for the method stays None.

    Raises ValueError where options contradict each other, naming the option and the way out.
    """

    model: str
    """The model's name: a catalogue name, or what its config.json was read from."""
    method: Method = "lora"
    rank: PositiveInt | None = None
    """Rank r of the adapters (lora, qlora; default 16)."""
    lora_alpha: Annotated[float, Meta(gt=0, le=2**32 - 2)] | None = None
    """Scale numerator: adapters are scaled by alpha / r (default 2r, so twice the largest rank is the largest). It
    changes the training, not the memory."""
    lora_dropout: Probability | None = None
    """Dropout before each adapter (default 0.05)."""
    target_modules: str | None = None
    """all-linear, attention, mlp, or module names separated by commas (default all-linear)."""
    modules_to_save: str | None = None
    """Embeddings and the head that train whole beside the adapters, names separated by commas (default none)."""
    adapter_dtype: AdapterDtype | None = None
    """Dtype of the adapters' weights, gradients and optimizer states (default float32, as peft keeps them)."""
    dtype: Dtype | None = None
    """Dtype of the base model's weights (default float32 for full, bfloat16 otherwise)."""
    mixed_precision: MixedPrecision = "bf16"
    """Autocast during forward: no, bf16 or fp16."""
    quant_type: QuantType | None = None
    """4-bit data type of the quantised weights (qlora; default nf4)."""
    double_quant: bool | None = None
    """Whether the quantisation constants are quantised too (qlora; default yes)."""
    prepare_kbit: bool | None = None
    """Whether peft's prepare_model_for_kbit_training raises what is not quantised to float32 (qlora; default yes)."""
    optim: Optim = DEFAULT_OPTIMIZER
    """A value of transformers' `OptimizerNames` that the table of optimizers has a row for."""
    batch_size: PositiveInt = 1
    """Sequences in one forward and backward pass."""
    seq_len: PositiveInt = 2048
    """Tokens in each sequence; the text is packed, so none is padding."""
    gradient_accumulation: PositiveInt = 1
    """Forward and backward passes before each optimizer step."""
    gradient_checkpointing: bool = True
    attn_implementation: AttnImplementation = "sdpa"
    loss: Loss = "standard"
    """standard: transformers 5; legacy: the logit-shifting loss of transformers up to about 4.48; liger: fused linear
    cross-entropy."""

    def __post_init__(self) -> None:
        adapted = self.method != "full"
        self._belongs("rank", default=16)
        self._belongs("lora_alpha", default=2.0 * (self.rank or 0))
        self._belongs("lora_dropout", default=0.05)
        self._belongs("target_modules", default="all-linear")
        self._belongs("modules_to_save", default=None)
        self._belongs("adapter_dtype", default="float32")
        self._belongs("quant_type", default="nf4")
        self._belongs("double_quant", default=True)
        self._belongs("prepare_kbit", default=True)
        if self.dtype is None:
            force_setattr(self, "dtype", "bfloat16" if adapted else "float32")
        if self.target_modules is not None:
            force_setattr(self, "target_modules", _canonical_targets(self.target_modules))
        if self.modules_to_save is not None:
            force_setattr(self, "modules_to_save", _canonical_names("modules_to_save", self.modules_to_save))
        trained = self.adapter_dtype if adapted else self.dtype
        if self.mixed_precision == "fp16" and trained == "float16":
            option = "adapter_dtype" if adapted else "dtype"
            raise ValueError(
                f"mixed_precision fp16 scales the gradients, which torch refuses on float16 weights: "
                f"use {option} float32, or mixed_precision no"
            )
        if self.mixed_precision == "fp16" and self.modules_to_save and self.unquantized_dtype == "float16":
            raise ValueError(
                "mixed_precision fp16 scales the gradients, which torch refuses on float16 weights, and modules_to_save"
                " keep the dtype of the base weights: use dtype float32, or mixed_precision no"
            )

    def _belongs(self, field: str, *, default: Any) -> None:
        value, meant = getattr(self, field), has_meaning(field, self.method)
        if meant and value is None:
            force_setattr(self, field, default)
        elif not meant and value is not None:
            methods = "qlora" if field in QUANTISED_SETTINGS else "lora or qlora"
            raise ValueError(f"{field} has no meaning for method {self.method}: leave it out, or use method {methods}")

    @property
    def tokens(self) -> int:
        """Tokens in one forward pass, batch_size · seq_len."""
        return self.batch_size * self.seq_len

    @property
    def trained_dtype(self) -> Dtype:
        """Dtype of the weights that train: the adapters', or the model's own for full fine-tuning.

        ``modules_to_save`` keep the dtype of what they copy, `unquantized_dtype`.
        """
        dtype = self.dtype if self.method == "full" else self.adapter_dtype
        assert dtype is not None
        return dtype

    @property
    def unquantized_dtype(self) -> Dtype:
        """Dtype of the base weights that are not stored in 4 bits: peft's preparation raises it to float32."""
        assert self.dtype is not None
        return "float32" if self.prepare_kbit else self.dtype

    @property
    def compute_dtype(self) -> Dtype:
        """Dtype in which matrix products run: autocast's, or that of the base weights without autocast."""
        if self.mixed_precision != "no":
            return "bfloat16" if self.mixed_precision == "bf16" else "float16"
        assert self.dtype is not None
        return self.dtype

    def digest(self, model_config: dict[str, Any]) -> str:
        """Return the 12 hex digits that stand for this recipe on this architecture, in file names and comparisons.

        The model's name is left out: the same shapes under another name or path are the same recipe.
        """
        return digest_of(msgspec.to_builtins(self), model_config)

    def describe(self) -> dict[str, str]:
        """Return every setting that means something for this recipe, in order, as people read them."""
        said = {}
        for field, value in msgspec.structs.asdict(self).items():
            if value is not None:
                said[field] = (
                    {True: "yes", False: "no"}[value]
                    if isinstance(value, bool)
                    else str(value).removesuffix(".0")
                    if isinstance(value, float)
                    else str(value)
                )
        return said

    def label(self) -> str:
        """Return a short name for tables and progress lines: what differs between the recipes of a suite."""
        parts = [self.model.rsplit("/", 1)[-1], self.method]
        if self.rank is not None:
            parts.append(f"r{self.rank}")
        parts.append(f"{self.batch_size}×{self.seq_len}")
        if self.gradient_checkpointing:
            parts.append("ckpt")
        return " ".join(parts)


ADAPTER_SETTINGS = ("rank", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "adapter_dtype")
QUANTISED_SETTINGS = ("quant_type", "double_quant", "prepare_kbit")


def has_meaning(setting: str, method: Method) -> bool:
    """Return whether ``setting`` has a meaning for ``method``."""
    if setting in QUANTISED_SETTINGS:
        return method == "qlora"
    return setting not in ADAPTER_SETTINGS or method != "full"


ADDED_SETTINGS = ("modules_to_save",)
"""Settings that recipes did not have at first: without them digests stay what they were."""


def digest_of(settings: dict[str, Any], model_config: dict[str, Any]) -> str:
    """Return the digest of a recipe from its settings as JSON has them; see `Recipe.digest`."""
    settings = {key: value for key, value in settings.items() if key != "model"}
    for added in ADDED_SETTINGS:
        if settings.get(added) is None:
            settings.pop(added, None)
    canonical = msgspec.json.encode({"recipe": settings, "model_config": model_config}, order="sorted")
    return hashlib.sha256(canonical).hexdigest()[:12]


def _canonical_names(option: str, given: str) -> str:
    names = sorted({name.strip() for name in given.split(",")})
    if not all(names):
        raise ValueError(f"{option} {given!r} names an empty module: write NAME,NAME")
    return ",".join(names)


def _canonical_targets(targets: str) -> str:
    names = _canonical_names("target_modules", targets).split(",")
    groups = [name for name in names if name in ("all-linear", "attention", "mlp")]
    if groups and len(names) > 1:
        raise ValueError(f"target_modules {targets!r} mixes {groups[0]} with other names: use one or the other")
    return ",".join(names)


class RecipeOptions(TypedDict, total=False):
    """The fields of `Recipe` but for the model, as keyword arguments."""

    method: Method
    rank: int
    lora_alpha: float
    lora_dropout: float
    target_modules: str
    modules_to_save: str
    adapter_dtype: AdapterDtype
    dtype: Dtype
    mixed_precision: MixedPrecision
    quant_type: QuantType
    double_quant: bool
    prepare_kbit: bool
    optim: Optim
    batch_size: int
    seq_len: int | str
    gradient_accumulation: int
    gradient_checkpointing: bool
    attn_implementation: AttnImplementation
    loss: Loss


def make_recipe(model: str, **options: Any) -> Recipe:
    """Return the recipe of ``model`` with ``options``, which are the fields of `Recipe` by name.

    Raises:
        UserError: an unknown option, a value of the wrong type or out of range, or options that contradict each
            other.
    """
    fields = Recipe.__struct_fields__
    for option in options:
        if option not in fields:
            near = name_here(option, fields) or did_you_mean(option, fields)
            raise UserError(f"unknown recipe option {option!r}: {near}")
    given = {option: option_value(option, value) for option, value in options.items() if value is not None}
    return convert({"model": model, **given}, Recipe)


def option_value(option: str, value: Any) -> Any:
    """Return ``value`` of ``option``, as people write it, as `Recipe` has it: 4096 for the length ``4k``.

    Raises:
        UserError: it is none of the option's choices, no length, or a list where names stand in one text.
    """
    if isinstance(value, (list, tuple)) and option in ("target_modules", "modules_to_save"):
        names = ",".join(map(str, value))
        raise UserError(f"{option} must be text, names separated by commas: write {names!r}")
    choices = CHOICES.get(option)
    if choices and value not in choices:
        raise UserError(f"unknown {option} {value!r}: {value_meant(option, str(value), choices)}")
    if option == "seq_len" and isinstance(value, str):
        try:
            return read_length(value)
        except UserError as error:
            raise UserError(f"{option}: {error}") from error
    return value


CHOICES: dict[str, tuple[str, ...]] = {
    "method": get_args(Method),
    "adapter_dtype": get_args(AdapterDtype),
    "dtype": get_args(Dtype),
    "mixed_precision": get_args(MixedPrecision),
    "quant_type": get_args(QuantType),
    "optim": tuple(OPTIMIZERS),
    "attn_implementation": get_args(AttnImplementation),
    "loss": get_args(Loss),
}
"""Valid values of each option that takes one of a few."""

__all__ = [
    "ADAPTER_SETTINGS",
    "CHOICES",
    "ITEMSIZE",
    "Dtype",
    "Optim",
    "Recipe",
    "RecipeOptions",
    "digest_of",
    "has_meaning",
    "make_recipe",
    "option_value",
]
