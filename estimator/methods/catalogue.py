"""The methods by name. A method is a kind of adapter, or none, on base weights that are quantised or not."""

from __future__ import annotations

from types import NoneType
from typing import Literal, NamedTuple

from lorabench.estimator.methods.base import Adapter, setting_names
from lorabench.estimator.methods.four_bit import FourBit
from lorabench.estimator.methods.ia3 import IA3
from lorabench.estimator.methods.lora import LoRA

AnyAdapter = LoRA | IA3
"""The kinds of adapters."""
Method = Literal["full", "lora", "qlora", "ia3"]


class Parts(NamedTuple):
    """The parts of a method."""

    adapter: type[AnyAdapter] | None
    """None for full fine-tuning."""
    quantization: type[FourBit] | None
    """None if the base weights are not quantised."""

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
        """The settings that apply to it, besides those of all recipes."""
        return self.of_adapter + self.of_quantization


METHODS: dict[Method, Parts] = {
    "full": Parts(None, None),
    "lora": Parts(LoRA, None),
    "qlora": Parts(LoRA, FourBit),
    "ia3": Parts(IA3, None),
}


def method_of(adapter: Adapter | None, quantization: FourBit | None) -> Method | None:
    """Return the method that has these parts; None if there is none."""
    return _BY_PARTS.get((type(adapter), type(quantization)))


_BY_PARTS: dict[tuple[type, ...], Method] = {
    tuple(NoneType if part is None else part for part in parts): method for method, parts in METHODS.items()
}


def methods_with(setting: str) -> list[Method]:
    """Return the methods to which ``setting`` applies."""
    return [method for method, parts in METHODS.items() if setting in parts.settings]
