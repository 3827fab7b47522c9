"""Check whether bitsandbytes unpacks 4-bit weights correctly on this CPU."""

from __future__ import annotations

from collections.abc import Iterable

from lorabench.bench.machine.environment import installed_version
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.memory.quantization import BLOCK
from lorabench.estimator.recipes.resolved import ResolvedRecipe

ROWS = 4


def complaint_about_unpacking(resolved: ResolvedRecipe, backend: Backend) -> str | None:
    """Return a message that names the linear layers with wrong weights on ``backend``; None if there are none."""
    quantization = resolved.recipe.quantization
    if quantization is None or backend != "cpu":
        return None
    columns = {linear.name: linear.in_features for group in resolved.spec.layers for linear in group.linears}
    wrong = set(columns_unpacked_wrong(columns.values(), quantization.quant_type))
    if not wrong:
        return None
    names = ", ".join(dict.fromkeys(name for name, count in columns.items() if count in wrong))
    return (
        f"bitsandbytes {installed_version('bitsandbytes')} unpacks the 4-bit weights of {names} wrongly on this CPU "
        f"(their rows are no whole blocks of {BLOCK}): memory and speed are right, losses are not"
    )


def columns_unpacked_wrong(columns: Iterable[int], quant_type: str) -> list[int]:
    """Return the ``columns`` whose 4-bit matrix unpacks to other values than the same data in one row.

    If rows end with an incomplete block, bitsandbytes' kernel for CPUs with AVX512 takes the constants of the wrong
    blocks (0.49 to 0.50.2; `dequantizeBlockwise4bitCpu` in its csrc/cpu_ops.cpp).
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    wrong = []
    for count in sorted(set(columns)):
        rising = torch.arange(1.0, 1.0 + ROWS * count).reshape(ROWS, count)  # no two blocks are equal
        packed, state = quantize_4bit(rising, blocksize=BLOCK, quant_type=quant_type)
        unpacked = dequantize_4bit(packed, state)
        state.shape = torch.Size([rising.numel()])
        if not torch.equal(unpacked.flatten(), dequantize_4bit(packed, state).flatten()):
            wrong.append(count)
    return wrong
