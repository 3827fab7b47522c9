"""Base weights in 4 bits, as bitsandbytes stores them: LoRA with these is QLoRA (Dettmers et al. 2023)."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

QuantType = Literal["nf4", "fp4"]
OlderBitsandbytes = Literal["0.43.1"]
"""The last version of bitsandbytes whose 4-bit matmul keeps its input for backward (autograd/_functions.py)."""


class FourBit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="bitsandbytes_4bit"):
    """The quantisation of the base model's linear layers."""

    quant_type: QuantType = "nf4"
    """4-bit data type of the quantised weights (default nf4)."""
    double_quant: bool = True
    """Whether the quantisation constants are quantised too (default yes)."""
    prepare_kbit: bool = False
    """Whether peft's prepare_model_for_kbit_training casts unquantised weights to float32 (default no).

    axolotl casts them back, LLaMA-Factory, ms-swift and TRL 1.16 do not call it. peft's own examples do."""
    recast: bool = False
    """Whether embeddings and head are cast to bfloat16 after that: peft_module_casting_to_bf16 of TRL 0.7 to 0.19."""
    bitsandbytes: OlderBitsandbytes | None = None
    """The older bitsandbytes whose code runs; None for the installed one."""


RECAST = ("lm_head", "embed_tokens", "wte", "wpe")
"""Parts of the names of modules that TRL casts to bfloat16."""


def is_recast(name: str) -> bool:
    """Return whether TRL casts the module ``name`` to bfloat16, if its weight is in float32.

    It goes by names, and does not know GPT-NeoX's ``embed_in`` (TRL 0.19.1, trainer/utils.py).
    """
    return any(part in name for part in RECAST) and "norm" not in name
