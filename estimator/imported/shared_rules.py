"""Rules that several tools share: states after preparation, losses, attention, optimizers, modules, other trainings."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.errors import UserError
from lorabench.estimator.imported.keys import Key, Missing, Options, anything, missing, refused
from lorabench.estimator.imported.reading import Values
from lorabench.estimator.losses.liger import LIGER
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.modules_to_save import embeddings_and_head

Results = list[Options | Missing]

# States of a 4-bit model after a tool has prepared it. Another state is another line.

UNPREPARED: Options = {"prepare_kbit": False}
"""Norms, embeddings and head keep the dtype of the base weights."""
FLOAT32_NORMS: Options = {"prepare_kbit": True, "recast": True}
"""Norms are in float32, embeddings and head in 16 bits."""
PREPARED: Options = {"prepare_kbit": True}
"""All unquantised weights are in float32, as peft leaves them."""

# Losses. A loss of its own for a tool is another line.

NO_LOGITS = "this loss never holds all logits, and the answer counts them"
CUT_CROSS_ENTROPY: Options | Missing = {"loss": "cut-cross-entropy"}
CHUNKED_HEAD: Options | Missing = {"loss": "trl"}
TORCHTUNE_CHUNKS: Options | Missing = Missing("the loss runs in chunks, whose logits are not all held", "less memory")
UNSLOTH_LOSS: Options | Missing = Missing(f"Unsloth's fused loss: {NO_LOGITS}", "less memory")


def liger_loss(spec: ModelSpec) -> Options | Missing:
    """Return Liger's fused loss if it has one for ``spec``."""
    if LIGER.replaces_that_of(spec.model_type):
        return {"loss": "liger"}
    return Missing(f"Liger's fused loss is not known for model_type {spec.model_type}", "less memory")


LIGER_KERNELS = Missing(
    "Liger's kernels for norms, rotary positions and feed-forward keep fewer tensors", "less memory"
)
LORA_KERNELS = Missing("its fused kernels of adapters, on by default, keep fewer tensors", "less memory")

# Distribution and other trainings

ONE_GPU = "the answer is for one GPU"
SHARDS = f"weights, gradients or optimizer states are spread over GPUs, and {ONE_GPU}"
SPLITS = f"each sequence or matrix is split over GPUs, and {ONE_GPU}"
COPIES = f"more GPUs hold copies of the model and reduce gradients, and {ONE_GPU}"
INT8 = "8-bit base weights; the answer counts them in 16 bits"
SHORTER = Missing(
    "no packing: a batch is as long as its longest sequence, and the answer is for a full one", "less memory"
)
PADDED: Options = {"padding": True}
EXPERT_4BIT = "experts in 4 bits; the answer counts them in 16 bits"
OFFLOADED = "checkpointed activations wait in host memory"
REENTRANT: Options = {"use_reentrant": True}
PREFERENCES: dict[str, Missing] = {
    **dict.fromkeys(
        ("dpo", "ipo"),
        Missing("two sequences per example and a pass of the reference model; the answer is for SFT", "more memory"),
    ),
    **dict.fromkeys(
        ("orpo", "simpo", "cpo"), Missing("two sequences per example; the answer is for SFT", "more memory")
    ),
    "kto": Missing(
        "a second pass over mismatched pairs and one of the reference model; the answer is for SFT", "more memory"
    ),
}
"""Trainings on preferences that differ from SFT by a factor: what the answer for SFT leaves out."""


def packing(on: Any, pads: Any = False) -> Results:
    """Return what follows if packing is not ``on``: shorter batches, and their mask if the tool ``pads`` them."""
    return [] if on else [SHORTER, *([PADDED] if pads else [])]


def training(value: Any, _: Any = None) -> Options | Missing:
    """Return what an answer for SFT leaves out of the kind of training ``value``.

    Raises:
        UserError: the training generates text, or trains another head than that of the language model.
    """
    kind = str(value or "sft").lower()
    if kind in ("sft", "pt", "none", "false", "pretrain"):
        return {}
    if kind in PREFERENCES:
        return PREFERENCES[kind]
    raise UserError(
        f"{kind} trains with generated text or another head, and lorabench answers for supervised fine-tuning: "
        "take the key out for the cost of SFT with these settings, or rehearse the program: lorabench rehearse -- …"
    )


# Precision


def mixed_precision(bf16: bool, fp16: bool) -> Options:
    """Return the option of autocast."""
    return {"mixed_precision": "bf16" if bf16 else "fp16" if fp16 else "no"}


DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
}
"""Spelling → dtype."""


def dtype_option(value: Any, name: str = "dtype") -> Options:
    """Return the option ``name`` of a dtype in some spelling; none for ``auto``, the checkpoint's.

    Raises:
        UserError: it is no dtype of weights.
    """
    word = str(value).removeprefix("torch.").lower()
    if word in ("auto", "none"):
        return {}
    if word not in DTYPES:
        raise UserError(f"{value!r} is no dtype of weights here: use float32, bfloat16 or float16")
    return {name: DTYPES[word]}


CHECKPOINT_DTYPE: Options = {"dtype": "bfloat16"}
"""The dtype in which most checkpoints are stored, where a tool takes that of the checkpoint."""


# Attention

ATTENTION = {
    "eager": "eager",
    "disabled": "eager",
    "sdpa": "sdpa",
    **dict.fromkeys(("flash_attention_2", "fa2", "flash_attn", "kernels-community/flash-attn2"), "flash_attention_2"),
}
"""Spelling → option."""


WITHOUT_FLASH = frozenset({"gpt_oss"})
"""Model types that transformers runs with no kernel of FlashAttention 2: their attention has sinks."""


def attention(value: Any, values: Values) -> Options | Missing | Results:
    """Return the option of an attention kernel, or FlashAttention 2 in place of one that it cannot say."""
    word = str(value or "auto").lower().split("@")[0]
    if word in ("auto", "none"):
        return {}
    if word in ATTENTION and not (ATTENTION[word] == "flash_attention_2" and values.spec.model_type in WITHOUT_FLASH):
        return {"attn_implementation": ATTENTION[word]}
    if values.spec.model_type in WITHOUT_FLASH:
        return Missing("another kernel of attention; the answer counts what transformers has else", "less memory")
    instead = Missing("another kernel of attention; the answer counts FlashAttention 2", "about the same memory")
    return [{"attn_implementation": "flash_attention_2"}, instead]


# Optimizers

ADAMW = "adamw_torch_fused"
STAND_INS: dict[str, tuple[str, Missing]] = {
    **dict.fromkeys(
        ("adamw_torch_8bit", "ao_adamw_8bit", "ao_adamw_fp8"),
        ("adamw_8bit", Missing("torchao's 8-bit AdamW; the answer counts bitsandbytes'", "about the same memory")),
    ),
    **dict.fromkeys(
        ("adamw_torch_4bit", "ao_adamw_4bit"),
        ("adamw_8bit", Missing("torchao's 4-bit AdamW; the answer counts 8 bits", "less memory")),
    ),
    **dict.fromkeys(
        ("muon", "dion", "sinkgd", "polora", "adam_mini", "flash_lion", "flash_sgd", "flash_sgdw"),
        (ADAMW, Missing("it keeps fewer states than AdamW, which the answer counts", "less memory")),
    ),
    **dict.fromkeys(
        (
            "optimi_adamw",
            "adopt_adamw",
            "adamc",
            "flash_adamw",
            "flash_adam",
            "adamw_anyprecision",
            "adamw_hf",
            "adamw_apex_fused",
        ),
        (ADAMW, Missing("another AdamW; the answer counts torch's", "about the same memory")),
    ),
    "came_pytorch": (
        "adafactor",
        Missing("CAME has a first moment besides; the answer counts Adafactor", "more memory"),
    ),
    **dict.fromkeys(
        ("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "q_galore_adamw8bit", "apollo_adamw"),
        (ADAMW, Missing("states of low rank; the answer counts those of AdamW", "less memory")),
    ),
    **dict.fromkeys(
        (
            "galore_adamw_layerwise",
            "galore_adamw_8bit_layerwise",
            "galore_adafactor_layerwise",
            "apollo_adamw_layerwise",
        ),
        (ADAMW, Missing("states of low rank, and a step inside backward; the answer counts AdamW's", "less memory")),
    ),
    "lomo": ("sgd", Missing("a step inside backward, without all gradients at once", "less memory")),
    "adalomo": ("adafactor", Missing("a step inside backward, without all gradients at once", "less memory")),
    "badam": (ADAMW, Missing("BAdam trains one block at a time; the answer counts all", "less memory")),
    "grokadamw": (ADAMW, Missing("its states are in host memory", "less memory")),
}
"""Optimizer of another tool → one that the recipe can say, and what differs."""


def optimizer(value: Any, _: Any = None) -> Options | Results:
    """Return the option of an optimizer, or one that can stand for it.

    Raises:
        UserError: nothing is known of the optimizer.
    """
    if value is None:
        return {}
    name = str(value).lower()
    if name in OPTIMIZERS:
        return {"optim": name}
    if name in STAND_INS:
        instead, differs = STAND_INS[name]
        return [{"optim": instead}, differs]
    raise UserError(f"the optimizer {value!r} is not known: name one that is with --optim, such as {ADAMW}")


# Modules

PEFT_TARGETS = {
    **dict.fromkeys(("gpt2", "gpt_bigcode"), "c_attn"),
    **dict.fromkeys(("gpt_neox", "bloom", "falcon"), "query_key_value"),
    **dict.fromkeys(
        ("opt", "gptj", "gpt_neo", "llama", "llama4_text", "mistral", "mixtral", "stablelm"), "q_proj,v_proj"
    ),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gemma4_text", "qwen2", "qwen3"), "q_proj,v_proj"),
    "phi": "q_proj,v_proj,fc1,fc2",
    "codegen": "qkv_proj",
    "mpt": "Wqkv",
    "nemotron_h": "q_proj,k_proj,v_proj,o_proj",
}
"""model_type → what peft 0.21.2 adapts without target_modules (its table is
`TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`)."""


def peft_targets(spec: ModelSpec) -> Options:
    """Return the modules that peft adapts if none are named.

    Raises:
        UserError: peft has no default for the model.
    """
    found = PEFT_TARGETS.get(spec.model_type)
    if found is None:
        raise UserError(
            f"peft has no default for model_type {spec.model_type}: name modules with --target-modules, "
            "such as all-linear"
        )
    return {"target_modules": found}


def linear_layers(spec: ModelSpec) -> Options:
    """Return all linear layers, but not experts that transformers 5 keeps as parameters."""
    if not any(group.experts for group in spec.layers):
        return {"target_modules": "all-linear"}
    return {
        "target_modules": ",".join(
            {linear.name.rsplit(".", 1)[-1]: 0 for group in spec.groups for linear in group.linears}
        )
    }


EMBEDDED = Missing("adapters of embeddings and head", "more memory")


def targets(value: Any, spec: ModelSpec) -> Results:
    """Return the modules to adapt from a list of names, or from peft's text: a pattern, or all-linear."""
    if isinstance(value, str):
        return [{"target_modules": value}]
    if value in (["all-linear"], ["all"]):
        return [{"target_modules": "all-linear"}]
    whole = {module.path.rsplit(".", 1)[-1] for module in embeddings_and_head(spec)}
    named = [name for name in value if name.rsplit(".", 1)[-1] not in whole]
    if not named:
        raise UserError("adapters of embeddings and head alone are not known here: name linear layers too")
    return [{"target_modules": ",".join(named)}, *([EMBEDDED] if len(named) < len(value) else [])]


def saved_modules(value: Any, spec: ModelSpec) -> Results:
    """Return the modules that train in full beside adapters; those that are neither embedding nor head are missing."""
    wanted = [value] if isinstance(value, str) else value or []
    wanted = [name.strip() for text in wanted for name in text.split(",")]
    known = {module.path.rsplit(".", 1)[-1] for module in embeddings_and_head(spec)}
    found = [name for name in wanted if name.rsplit(".", 1)[-1] in known]
    results: Results = [{"modules_to_save": ",".join(found)}] if found else []
    if len(found) < len(wanted):
        results.append(Missing("only embeddings and head can train beside adapters", "more memory"))
    return results


# Keys that several tools have under the same name

DORA = missing("DoRA trains magnitudes too, and computes norms of whole matrices", "more memory")
PATTERNS = missing("layers with other ranks; the answer counts the rank for all", "other memory")
SOME_LAYERS = missing("only some layers get adapters; the answer counts all", "less memory")
NEW_TOKENS = missing("new tokens enlarge embeddings and head", "more memory")
COMPILED = missing("torch.compile fuses operations", "less memory")
FP8 = missing("matmuls in float8", "other memory")
PARAMETERS = missing("adapters of these parameters too", "more memory")
INIT = Key(anything, effect=False)
"""LoftQ, PiSSA and others start from other values; their shapes are the same."""
ANOTHER_ADAPTER = refused("this adapter is not among the methods, which are full, lora, qlora and ia3: use lora")
