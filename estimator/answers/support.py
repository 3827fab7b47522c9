"""Check whether a GPU supports the kernels and dtypes of a recipe."""

from __future__ import annotations

from typing import NamedTuple

from lorabench.estimator.devices.device import Device, all_devices
from lorabench.estimator.errors import UserError
from lorabench.estimator.optimizers.table import BITSANDBYTES, OPTIMIZERS
from lorabench.estimator.recipes.recipe import Recipe


class _Lack(NamedTuple):
    what: str
    instead: str
    """The alternative."""


def _lack(recipe: Recipe, device: Device) -> _Lack | None:
    """Return the feature of ``recipe`` that ``device`` does not support. Unknown support counts as supported."""
    if recipe.attn_implementation == "flash_attention_2" and device.supports_flash_attention is False:
        return _Lack("flash attention 2 (attn_implementation)", "sdpa or eager")
    if recipe.quantization is not None and device.supports_bitsandbytes is False:
        return _Lack(f"bitsandbytes (method {recipe.method})", "another")
    if lacks_library(recipe.optim, device):
        return _Lack(f"bitsandbytes (optim {recipe.optim})", "another")
    return None


def lacks_library(optim: str, device: Device) -> bool:
    """Return whether ``device`` does not support the library of an optimizer. Unknown support counts as supported."""
    return OPTIMIZERS[optim].library is BITSANDBYTES and device.supports_bitsandbytes is False


def emulated(recipe: Recipe, device: Device) -> str:
    """Return the recipe's dtype that ``device`` does not support, so that PyTorch computes in float32; "" if none."""
    computes = "bfloat16" in (recipe.dtype, recipe.compute_dtype)
    return "bfloat16" if computes and device.supports_bfloat16 is False else ""


def unsupported(recipe: Recipe, device: Device) -> str:
    """Return the feature of ``recipe`` that ``device`` does not support or emulates; "" if there is none."""
    lack = _lack(recipe, device)
    return lack.what if lack else emulated(recipe, device)


def lacking_gpus(recipe: Recipe) -> dict[str, list[str]]:
    """Return feature of ``recipe`` → names of the catalogue's GPUs that do not support it."""
    lacks: dict[str, list[str]] = {}
    for device in all_devices():
        lack = unsupported(recipe, device)
        if lack:
            lacks.setdefault(lack, []).append(device.name)
    return lacks


def refuse_lacking(recipe: Recipe, device: Device) -> None:
    """Refuse a recipe that cannot run on ``device`` for other reasons than memory.

    Raises:
        UserError: the recipe needs flash_attn or bitsandbytes, and the device does not support it.
    """
    lack = _lack(recipe, device)
    if lack:
        raise UserError(
            f"{device.name} has no {lack.what}: use {lack.instead}, or another GPU (lorabench gpus lists them)"
        )
