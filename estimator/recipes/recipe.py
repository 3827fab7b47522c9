"""The recipe: all settings that determine the memory and the speed of one fine-tuning step.

`estimate`, `trace` and `run` use the same frozen object. People write a recipe as flat settings, mostly with the names
of Hugging Face (`other_names` lists the exceptions). A `Recipe` has fields for the settings of all recipes, and an
adapter and a quantisation with settings of their own if it has them. Only `make_recipe` and `Recipe.settings` convert
between the two forms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from lorabench.estimator.dtypes import Dtype
from lorabench.estimator.errors import UserError, did_you_mean
from lorabench.estimator.foreign_text import quoted
from lorabench.estimator.losses.fused import FusedLoss
from lorabench.estimator.losses.table import FUSED_LOSSES
from lorabench.estimator.methods.base import PositiveInt, setting_names
from lorabench.estimator.methods.catalogue import METHODS, AnyAdapter, Method, method_of, methods_with
from lorabench.estimator.methods.four_bit import FourBit, OlderBitsandbytes, QuantType, is_recast
from lorabench.estimator.optimizers.table import DEFAULT_OPTIMIZER, OPTIMIZERS
from lorabench.estimator.recipes.older_transformers import OLDER, RULES, OlderTransformers, Rules
from lorabench.estimator.recipes.other_names import name_here, value_meant
from lorabench.estimator.typed_values import convert
from lorabench.estimator.written_numbers import read_length

MixedPrecision = Literal["no", "bf16", "fp16"]
AttnImplementation = Literal["sdpa", "flash_attention_2", "eager"]
Loss = Literal["standard", "legacy", "liger", "trl", "cut-cross-entropy"]
if TYPE_CHECKING:
    Optim: TypeAlias = str
    """A name of the table of optimizers."""
else:
    Optim = Literal[tuple(OPTIMIZERS)]


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fine-tuning setup. The constructor validates it; `make_recipe` fills in the defaults of its method.

    It is frozen and hashable; `msgspec.json` and `msgspec.yaml` encode and decode it. Two recipes are equal if and only
    if they train the same thing.

    Raises:
        ValueError: settings contradict each other. The message names the setting and a remedy.
    """

    model: str
    """The model's name: a catalogue name, or the source of its config.json."""
    adapter: AnyAdapter | None
    """The adapter that trains beside the frozen model; None if the model itself trains."""
    dtype: Dtype
    """Dtype of the base model's weights (default float32 for full, bfloat16 otherwise)."""
    mixed_precision: MixedPrecision = "bf16"
    """Autocast during forward: no, bf16 or fp16."""
    quantization: FourBit | None
    """Quantisation of the linear layers' weights; None without."""
    optim: Optim = DEFAULT_OPTIMIZER
    """A value of transformers' `OptimizerNames` with a row in the table of optimizers."""
    batch_size: PositiveInt = 1
    """Sequences in one forward and backward pass."""
    seq_len: PositiveInt = 2048
    """Tokens in each sequence, padding included."""
    padding: bool = False
    """Whether sequences are shorter, and padded to ``seq_len``: attention gets a mask. Otherwise text is packed, or all
    sequences have this length."""
    gradient_accumulation: PositiveInt = 1
    """Forward and backward passes before each optimizer step."""
    gradient_checkpointing: bool = True
    use_reentrant: bool = False
    """Reentrant checkpointing, the default of transformers 4: it needs more memory and runs whole layers again."""
    attn_implementation: AttnImplementation = "sdpa"
    loss: Loss = "standard"
    """standard: that of ``transformers``; legacy: the logit-shifting loss of transformers 4.46 to 4.48; or one of
    `FUSED_LOSSES`, which never makes all logits."""
    transformers: OlderTransformers | None = None
    """The older series of transformers whose code runs; None for transformers 5."""
    keep_outputs: bool = False
    """The training loop refers to the model's outputs, logits included, until the next forward pass ends, as
    ``outputs = model(**batch)`` does. transformers' Trainer keeps the loss alone."""
    empty_cache_steps: PositiveInt | None = None
    """The allocator's cache is emptied between the forward and the backward pass of every step whose number, from 0, is
    a multiple of this: `torch_empty_cache_steps` of transformers' TrainingArguments. None: never."""

    def __post_init__(self) -> None:
        if method_of(self.adapter, self.quantization) is None:
            raise ValueError(
                "no method has this adapter with quantised base weights: leave quantization out, or use method qlora"
            )
        if self.use_reentrant and not self.gradient_checkpointing:
            raise ValueError(
                "use_reentrant has no meaning without gradient_checkpointing: leave it out, or use "
                "gradient_checkpointing"
            )
        if self.transformers is not None and self.loss != "standard":
            raise ValueError(
                f"transformers {self.transformers} has a loss of its own, and loss {self.loss} is another: leave one "
                "of them out"
            )
        if self.padding and self.attn_implementation == "flash_attention_2":
            raise ValueError(
                "flash_attention_2 takes the padding out of each batch, and how much there is is not known: leave "
                "padding out, or use attn_implementation sdpa"
            )
        if self.padding and self.transformers is not None:
            raise ValueError(
                f"padding makes other masks in transformers {self.transformers} than in transformers 5, the only ones "
                "that are known: leave one of them out"
            )
        if self.recast and not self.prepared:
            raise ValueError("recast has no meaning without prepare_kbit: leave it out, or use prepare_kbit")
        if self.recast and self.mixed_precision != "bf16":
            raise ValueError("recast needs mixed_precision bf16, without which TRL casts nothing: leave it out")
        if self.keep_outputs and self.fused_loss is not None:
            raise ValueError(
                f"keep_outputs has no meaning for loss {self.loss}, which has no logits: leave one of them out"
            )
        if self.mixed_precision != "fp16":
            return
        if self.trained_dtype == "float16":
            option = "dtype" if self.adapter is None else "adapter_dtype"
            raise ValueError(
                f"mixed_precision fp16 scales the gradients, which torch refuses on float16 weights: "
                f"use {option} float32, or mixed_precision no"
            )
        if self.modules_to_save and self.unquantized_dtype == "float16":
            raise ValueError(
                "mixed_precision fp16 scales the gradients, which torch refuses on float16 weights, and modules_to_save"
                " keep the dtype of the base weights: use dtype float32, or mixed_precision no"
            )

    @property
    def method(self) -> Method:
        """The method's name: adapter and quantisation together."""
        method = method_of(self.adapter, self.quantization)
        assert method is not None
        return method

    @property
    def rank(self) -> int | None:
        """Rank of the adapters; None without adapters, and for adapters without a rank."""
        return None if self.adapter is None else self.adapter.rank

    def with_rank(self, rank: int | None) -> Recipe:
        """Return the recipe with adapters of another rank; the recipe itself if its adapters have no rank."""
        return self if self.adapter is None else replace(self, adapter=self.adapter.with_rank(rank))

    @property
    def modules_to_save(self) -> str | None:
        """Names of modules that train in full beside the adapters; None without such modules."""
        return None if self.adapter is None else self.adapter.modules_to_save

    @property
    def tokens(self) -> int:
        """Tokens in one forward pass, batch_size · seq_len."""
        return self.batch_size * self.seq_len

    @property
    def trained_dtype(self) -> Dtype:
        """Dtype of the trained weights: the adapters', or the model's own in full fine-tuning.

        The copies of ``modules_to_save`` keep the dtype of their originals, `dtype_of`.
        """
        return self.dtype if self.adapter is None else self.adapter.adapter_dtype

    @property
    def keeps_inputs(self) -> bool:
        """Whether the matmul of a 4-bit weight refers to its input as long as the graph exists."""
        return self.quantization is not None and self.quantization.bitsandbytes is not None

    @property
    def unquantized_dtype(self) -> Dtype:
        """Dtype of the base weights that are neither in 4 bits nor recast. peft's preparation makes it float32."""
        return "float32" if self.prepared else self.dtype

    def dtype_of(self, name: str) -> Dtype:
        """Return the dtype of the base weight or module ``name``, a path in the model, that is not stored in 4 bits."""
        return "bfloat16" if self.recast and is_recast(name) else self.unquantized_dtype

    @property
    def prepared(self) -> bool:
        """Whether peft's preparation casts unquantised weights to float32."""
        return self.quantization is not None and self.quantization.prepare_kbit

    @property
    def recast(self) -> bool:
        """Whether embeddings and head are cast back to bfloat16 after peft's preparation, as TRL did."""
        return self.quantization is not None and self.quantization.recast

    @property
    def compute_dtype(self) -> Dtype:
        """Dtype of the matmuls: autocast's, or without autocast the base weights'."""
        if self.mixed_precision != "no":
            return "bfloat16" if self.mixed_precision == "bf16" else "float16"
        return self.dtype

    @property
    def rules(self) -> Rules:
        """What the recipe's transformers does otherwise than transformers 5."""
        return RULES[self.transformers]

    def empties_cache(self, step: int) -> bool:
        """Return whether the cache is emptied in step number ``step``, from 0."""
        return self.empty_cache_steps is not None and step % self.empty_cache_steps == 0

    @property
    def fused_loss(self) -> FusedLoss | None:
        """The declaration of the loss, if it is a fused one."""
        return FUSED_LOSSES.get(self.loss)

    @property
    def loss_rule(self) -> str:
        """The loss that runs: standard, legacy, rebound or the name of a fused one."""
        return self.rules.loss if self.loss == "standard" else self.loss

    def setting(self, name: str) -> Any:
        """Return the value of a flat setting; None if it does not apply to the method."""
        if name == "method":
            return self.method
        parts = (part for part in (self, self.adapter, self.quantization) if part is not None)
        return next((getattr(part, name) for part in parts if name in part.__struct_fields__), None)

    def settings(self) -> dict[str, Any]:
        """Return the flat settings from which `make_recipe` makes this recipe, in the order of display.

        Settings are left out if they do not apply to the method, are None, or are switches at their default, off.
        """
        values: dict[str, Any] = {"method": self.method}
        for part in (self, self.adapter, self.quantization):
            if part is not None:
                values |= asdict(part)
        return {
            name: value for name in SETTINGS if (value := values.get(name)) is not None and (value or name not in OFF)
        }

    def digest(self, model_config: dict[str, Any] | msgspec.Raw) -> str:
        """Return the 12 hex digits that identify this recipe on this architecture, in file names and comparisons.

        It does not include the model's name: the same shapes under another name or path are the same recipe.
        ``model_config``: also as JSON with sorted keys, which for many recipes of a model is encoded once.
        """
        return digest_of(dict.fromkeys(ALWAYS_IN_DIGEST) | self.settings(), model_config)

    def describe(self) -> dict[str, str]:
        """Return every setting that applies to this recipe, as displayed."""
        return {name: _in_words(value) for name, value in self.settings().items()}

    def label(self) -> str:
        """Return a short name for tables and progress lines."""
        parts = [self.model.rsplit("/", 1)[-1], self.method]
        if self.rank is not None:
            parts.append(f"r{self.rank}")
        parts.append(f"{self.batch_size}×{self.seq_len}")
        if self.gradient_checkpointing:
            parts.append("ckpt")
        if self.padding:
            parts.append("padded")
        return " ".join(parts)


ALWAYS_IN_DIGEST = (
    *("rank", "lora_alpha", "lora_dropout", "target_modules", "adapter_dtype"),
    *("quant_type", "double_quant", "prepare_kbit"),
)
"""Settings of the first schema. A digest includes them as null if they do not apply. It includes all other settings
only if they are set, so a new setting that is None or off by default leaves older digests unchanged."""


def digest_of(settings: dict[str, Any], model_config: dict[str, Any] | msgspec.Raw) -> str:
    """Return the digest of a recipe from its flat settings, as in JSON; see `Recipe.digest`."""
    stated = {
        name: value
        for name, value in settings.items()
        if name != "model" and (value is not None or name in ALWAYS_IN_DIGEST)
    }
    canonical = msgspec.json.encode({"recipe": stated, "model_config": model_config}, order="sorted")
    import hashlib  # slow to import, and an estimate has no digest

    return hashlib.sha256(canonical).hexdigest()[:12]


def _in_words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _setting_types() -> dict[str, Any]:
    types: dict[str, Any] = {}
    for field in msgspec.structs.fields(Recipe):
        if field.name == "adapter":
            for parts in METHODS.values():
                if parts.adapter is not None:
                    fields = {field.name: field.type for field in msgspec.structs.fields(parts.adapter)}
                    types |= {name: fields[name] for name in setting_names(parts.adapter)}
        elif field.name == "quantization":
            types |= {field.name: field.type for field in msgspec.structs.fields(FourBit)}
        else:
            types[field.name] = field.type
        if field.name == "model":
            types["method"] = Method
    return types


SETTINGS: dict[str, Any] = _setting_types()
"""Name → type of each flat setting, in the order of display."""
CHOICES: dict[str, tuple[str, ...]] = {
    name: get_args(kind) for name, kind in SETTINGS.items() if get_origin(kind) is Literal
}
"""Valid values of each setting with a fixed set of values."""
STRUCTS: tuple[type[Struct], ...] = (Recipe, FourBit, *(parts.adapter for parts in METHODS.values() if parts.adapter))
"""The structs that a recipe consists of."""
NEWEST = "5"
"""The series of transformers that a recipe means without the setting."""
OLDER_CHOICES: dict[str, tuple[str, ...]] = {
    "transformers": (*OLDER, NEWEST),
    "bitsandbytes": get_args(OlderBitsandbytes),
}
"""Valid values of the settings that name an older version."""
OFF = frozenset(
    field.name for struct in STRUCTS for field in msgspec.structs.fields(struct) if field.default is False
) - set(ALWAYS_IN_DIGEST)
"""Switches that are off by default, and left out then."""
ADAPTER_SETTINGS = tuple(name for name in SETTINGS if any(name in parts.of_adapter for parts in METHODS.values()))
"""Settings of adapters of any kind."""


class RecipeOptions(TypedDict, total=False):
    """`SETTINGS` without the model as keyword arguments, for type checkers."""

    method: Method
    rank: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: bool
    target_modules: str
    modules_to_save: str
    adapter_dtype: Dtype
    dtype: Dtype
    mixed_precision: MixedPrecision
    quant_type: QuantType
    double_quant: bool
    prepare_kbit: bool
    recast: bool
    bitsandbytes: str
    optim: Optim
    batch_size: int
    seq_len: int | str
    padding: bool
    gradient_accumulation: int
    gradient_checkpointing: bool
    use_reentrant: bool
    attn_implementation: AttnImplementation
    loss: Loss
    transformers: str
    keep_outputs: bool
    empty_cache_steps: int


@cache
def settings_of(method: Method) -> frozenset[str]:
    """Return the settings that apply to ``method``."""
    return frozenset(SETTINGS) - set(ADAPTER_SETTINGS) - set(FourBit.__struct_fields__) | set(METHODS[method].settings)


def with_all_settings(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return ``rows`` with the same columns: settings that apply to some of the recipes are None in the others."""
    rows = list(rows)
    columns = [name for name in SETTINGS if any(name in row for row in rows)]
    return [{**dict.fromkeys(columns), **row} for row in rows]


def make_recipe(model: str, **options: Any) -> Recipe:
    """Return the recipe of ``model`` with the flat settings ``options``.

    An option that is missing or None has its default.

    Raises:
        UserError: an option is unknown, a value has the wrong type or is out of range, or options contradict each
            other.
    """
    for option in options:
        if option not in SETTINGS:
            near = name_here(option, SETTINGS) or did_you_mean(option, SETTINGS)
            raise UserError(f"unknown recipe option {quoted(option)}: {near}")
    given = {option: option_value(option, value) for option, value in options.items() if value is not None}
    if given.get("transformers") == NEWEST:
        del given["transformers"]
    given = {"model": model, **given}
    return _nested({option: convert(value, SETTINGS[option], option) for option, value in given.items()})


def option_value(option: str, value: Any) -> Any:
    """Return the value of ``option`` for `Recipe` from its spelling by people: 4096 for the length ``4k``.

    Raises:
        UserError: the value is not a valid choice or length, or is a list instead of names separated by commas.
    """
    if isinstance(value, (list, tuple)) and option in ("target_modules", "modules_to_save"):
        names = ",".join(map(str, value))
        raise UserError(f"{option} must be text, names separated by commas: write {names!r}")
    choices = OLDER_CHOICES.get(option) or CHOICES.get(option)
    if choices and value not in choices:
        raise UserError(f"unknown {option} {quoted(value)}: {value_meant(option, str(value), choices)}")
    if option == "seq_len" and isinstance(value, str):
        try:
            return read_length(value)
        except UserError as error:
            raise UserError(f"{option}: {error}") from error
    return value


def _nested(settings: dict[str, Any]) -> Recipe:
    """Return the recipe of flat settings, whose types have been checked.

    Raises:
        UserError: a setting does not apply to the method, or settings contradict each other.
    """
    method: Method = settings.pop("method", "lora")
    parts = METHODS[method]
    wrong = settings.keys() - settings_of(method)
    if wrong:
        setting = next(name for name in SETTINGS if name in wrong)
        others = _listed(methods_with(setting))
        raise UserError(f"{setting} does not apply to method {method}: leave it out, or use method {others}")
    of_adapter, of_quantization, of_all = (
        {name: value for name, value in settings.items() if name in names}
        for names in (parts.of_adapter, parts.of_quantization, Recipe.__struct_fields__)
    )
    of_all.setdefault("dtype", "float32" if parts.adapter is None else "bfloat16")
    if of_quantization.get("recast"):
        of_quantization.setdefault("prepare_kbit", True)
    try:
        return Recipe(
            adapter=None if parts.adapter is None else parts.adapter(**of_adapter),
            quantization=None if parts.quantization is None else parts.quantization(**of_quantization),
            **of_all,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def _listed(methods: Sequence[str]) -> str:
    """Return ``a``, ``a or b``, or ``a, b or c``."""
    *others, last = methods
    return f"{', '.join(others)} or {last}" if others else last
