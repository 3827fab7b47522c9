"""The methods by the names that people call them: each a kind of adapter or none, on quantised weights or not."""

from __future__ import annotations

from typing import Literal, NamedTuple

from lorabench.estimator.methods.base import Adapter, setting_names
from lorabench.estimator.methods.four_bit import FourBit
from lorabench.estimator.methods.ia3 import IA3
from lorabench.estimator.methods.lora import LoRA

AnyAdapter = LoRA | IA3
"""The kinds of adapters."""
Method = Literal["full", "lora", "qlora", "ia3"]


class Parts(NamedTuple):
    """What a method is made of."""

    adapter: type[AnyAdapter] | None
    """None for full fine-tuning."""
    quantization: type[FourBit] | None
    """None where the base weights keep their dtype."""

    @property
    def of_adapter(self) -> tuple[str, ...]:
        """The settings of its adapter."""
        return () if self.adapter is None else setting_names(self.adapter)

    @property
    def of_quantization(self) -> tuple[str, ...]:
        """The settings of its quantisation."""
        return () if self.quantization is None else self.quantization.__struct_fields__

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings that have a meaning for it, beside those that every recipe has."""
        return self.of_adapter + self.of_quantization


METHODS: dict[Method, Parts] = {
    "full": Parts(None, None),
    "lora": Parts(LoRA, None),
    "qlora": Parts(LoRA, FourBit),
    "ia3": Parts(IA3, None),
}


def method_of(adapter: Adapter | None, quantization: FourBit | None) -> Method | None:
    """Return what people call these parts together; None where no method has them."""
    kinds = (None if part is None else type(part) for part in (adapter, quantization))
    return _BY_PARTS.get(tuple(kinds))


_BY_PARTS: dict[tuple[type | None, ...], Method] = {tuple(parts): method for method, parts in METHODS.items()}


def methods_with(setting: str) -> list[Method]:
    """Return the methods for which ``setting`` has a meaning."""
    return [method for method, parts in METHODS.items() if setting in parts.settings]
