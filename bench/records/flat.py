"""A run record as one flat row, for data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorabench.bench.records.record import RunRecord
from lorabench.estimator.frames import frame_of
from lorabench.estimator.recipes.recipe import with_all_settings

if TYPE_CHECKING:
    from pandas import DataFrame


class Records(list[RunRecord]):
    """The run records of a folder."""

    def to_frame(self) -> DataFrame:
        """Return a data frame with a line for each record, whose columns `flat` names.

        Raises:
            UserError: pandas is not installed.
        """
        return frame_of(with_all_settings(map(flat, self)))


def flat(record: RunRecord) -> dict[str, Any]:
    """Return column → value: the recipe's settings that apply, the run, what was counted and what was predicted.

    ``step_seconds`` is the median of the timed steps, ``loss`` that of the last step. A value that is missing, such as
    the speed of a rehearsal, is None.
    """
    counted, measured, predicted = record.counted, record.measurement, record.prediction
    memory = counted and counted.memory
    expected = predicted and predicted.memory
    return {
        **record.recipe.settings(),
        "digest": record.digest,
        "suite": record.suite,
        "engine": record.engine,
        "repeat": record.repeat,
        "seed": record.seed,
        "started_at": record.started_at,
        "device": record.device.name,
        "device_memory_bytes": record.device.memory_bytes,
        "outcome": record.outcome,
        "message": record.message,
        "rehearsed": record.rehearsed,
        "total_parameters": counted and counted.parameters.total,
        "trainable_parameters": counted and counted.parameters.trainable,
        "phase": memory and memory.phase,
        "peak_allocated_bytes": memory and memory.peak_allocated_bytes,
        "peak_reserved_bytes": memory and memory.peak_reserved_bytes,
        "nvml_process_peak_bytes": counted and counted.nvml_process_peak_bytes,
        "step_seconds": measured and measured.median_step_seconds,
        "tokens_per_second": measured and measured.tokens_per_second,
        "mfu": measured and measured.mfu,
        "energy_joules": measured and measured.energy_joules,
        "loss": measured.losses[-1] if measured and measured.losses else None,
        "held_out_loss": measured and measured.held_out_loss_after,
        "estimated_peak_allocated_bytes": expected and expected.peak_allocated_bytes,
        "estimated_peak_reserved_bytes": expected and expected.peak_reserved_bytes,
        "estimated_step_seconds": predicted and predicted.speed and predicted.speed.step_seconds,
    }
