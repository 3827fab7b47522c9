"""An estimate as one flat row: for CSV, and for data frames."""

from __future__ import annotations

from typing import Any

from lorabench.estimator.answers.estimates import Estimate


def flat(estimate: Estimate) -> dict[str, Any]:
    """Return column → value: the recipe's settings that apply, parameters, memory, verdict and speed.

    Columns have the names of the fields; what is nested gets the outer name or its unit: ``logits_bytes``. A value that
    is unknown is None.
    """
    memory, speed = estimate.memory, estimate.throughput
    training = speed and speed.training
    return {
        **estimate.recipe.settings(),
        "source": estimate.source,
        "assumptions": "; ".join(estimate.assumptions),
        "warnings": "; ".join(estimate.warnings),
        **({} if estimate.imported is None else {"not_taken": "; ".join(estimate.imported.remarks())}),
        "total_parameters": estimate.parameters.total,
        "trainable_parameters": estimate.parameters.trainable,
        "quantized_parameters": estimate.parameters.quantized,
        **{f"{name}_bytes": bytes_ for name, bytes_ in memory.components.items()},
        "phase": memory.phase,
        "peak_allocated_bytes": memory.peak_allocated_bytes,
        "peak_reserved_bytes": memory.peak_reserved_bytes,
        "device_total_bytes": memory.device_total_bytes,
        "allocator_settings": memory.allocator_settings,
        "gpu": estimate.gpu,
        "gpu_memory_bytes": estimate.gpu_memory_bytes,
        "gpu_usable_bytes": estimate.gpu_usable_bytes,
        "verdict": estimate.verdict,
        "fits": estimate.fits,
        "margin_bytes": estimate.margin_bytes,
        "largest_batch_size": estimate.largest_batch_size,
        "longest_seq_len": estimate.longest_seq_len,
        "tokens_per_second": speed and speed.tokens_per_second,
        "tokens_per_second_least": speed and speed.tokens_per_second_range[0],
        "tokens_per_second_most": speed and speed.tokens_per_second_range[1],
        "step_seconds": speed and speed.step_seconds,
        "mfu": speed and speed.mfu,
        "emulated_dtype": estimate.emulated_dtype,
        "tokens": training and training.tokens,
        "training_seconds": training and training.seconds,
        "cost": training and training.cost,
    }
