"""Base weights in 4 bits, as bitsandbytes stores them: LoRA with these is QLoRA (Dettmers et al. 2023)."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

QuantType = Literal["nf4", "fp4"]


class FourBit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="bitsandbytes_4bit"):
    """The quantisation of the base model's linear layers."""

    quant_type: QuantType = "nf4"
    """4-bit data type of the quantised weights (default nf4)."""
    double_quant: bool = True
    """Whether the quantisation constants are quantised too (default yes)."""
    prepare_kbit: bool = True
    """Whether peft's prepare_model_for_kbit_training casts unquantised weights to float32 (default yes)."""
