"""What a GPU lacks of what a recipe is made of."""

from __future__ import annotations

from lorabench.estimator.devices.device import Device, device_names, find_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.recipes.recipe import Recipe


def lacking(recipe: Recipe, device: Device) -> str:
    """Return what ``recipe`` cannot run without and ``device`` lacks, or ""; where that is not known, it has it."""
    if recipe.attn_implementation == "flash_attention_2" and device.supports_flash_attention is False:
        return "flash attention 2 (attn_implementation)"
    if recipe.method == "qlora" and device.supports_bitsandbytes is False:
        return "bitsandbytes (method qlora)"
    if recipe.optim.endswith(("8bit", "32bit")) and device.supports_bitsandbytes is False:
        return f"bitsandbytes (optim {recipe.optim})"
    return ""


def emulated(recipe: Recipe, device: Device) -> str:
    """Return the dtype that ``device`` has no units for, so that PyTorch computes it in float32; "" of none."""
    computes = "bfloat16" in (recipe.dtype, recipe.compute_dtype)
    return "bfloat16" if computes and device.supports_bfloat16 is False else ""


def lacking_gpus(recipe: Recipe) -> dict[str, list[str]]:
    """Return what GPUs of the catalogue lack of what ``recipe`` is made of, each with their names."""
    lacks: dict[str, list[str]] = {}
    for device in map(find_device, device_names()):
        lack = lacking(recipe, device) or emulated(recipe, device)
        if lack:
            lacks.setdefault(lack, []).append(device.name)
    return lacks


def refuse_lacking(recipe: Recipe, device: Device) -> None:
    """Refuse a recipe that does not run on ``device``, whatever its memory.

    Raises:
        UserError: it lacks flash attention, or bitsandbytes.
    """
    lack = lacking(recipe, device)
    if lack:
        instead = "sdpa or eager" if "attention" in lack else "another"
        raise UserError(f"{device.name} has no {lack}: use {instead}, or another GPU (lorabench gpus lists them)")
