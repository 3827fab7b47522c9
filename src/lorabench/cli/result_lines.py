"""The result of a recipe in `lorabench run`: one line, and with ``-v`` everything that was measured."""

from __future__ import annotations

from lorabench.bench.records.measurement import Measurement
from lorabench.bench.records.record import RunRecord
from lorabench.bench.running.runner import Progress
from lorabench.cli.speed import in_time
from lorabench.estimator.quantities import in_gib

GLUED = "\N{NO-BREAK SPACE}"
"""Marks a space where no line may break; it becomes a space when lines are printed."""


def result_line(progress: Progress) -> str:
    """Return the result of a recipe as one line. Figures are `GLUED` to their units."""
    record = progress.record
    earlier = "rehearsed earlier" if record.rehearsed else "measured earlier"
    notes = [earlier if record.outcome == "ok" else "from an earlier run"] if progress.resumed else []
    measured = record.measurement
    if record.rehearsal is not None:
        reserved = record.rehearsal.memory.peak_reserved_bytes or 0
        allocated = in_gib(record.rehearsal.memory.peak_allocated_bytes)
        line = f"ok {allocated:>8} allocated {in_gib(reserved)} reserved".replace(" ", GLUED)
    elif measured is None:
        line = f"{record.outcome} {record.message}"
    else:
        peak = in_gib(measured.memory.peak_allocated_bytes)
        losses = _from_to(measured.losses[0], measured.losses[-1])
        line = f"ok {peak:>8} {measured.tokens_per_second:>5,.0f} tok/s loss {losses}".replace(" ", GLUED)
        notes += [record.message] if record.message else []
        notes += ["step times unstable"] if measured.unstable else []
    return f"{line}  ({'; '.join(notes)})" if notes else line


def _from_to(first: float | None, last: float | None) -> str:
    return "→".join("not finite" if loss is None else f"{loss:.2f}" for loss in (first, last))


def details(record: RunRecord) -> list[str]:
    """Return all settings of the recipe, and the measurements that `result_line` leaves out."""
    settings = [f"{setting}={value}" for setting, value in record.recipe.describe().items()]
    lines = [
        f"{record.file_name}: seed {record.seed}, {record.warmup_steps} warm-up and {record.steps} timed steps",
        " ".join(settings),
    ]
    return lines + _measured_details(record.measurement) if record.measurement is not None else lines


def _measured_details(measured: Measurement) -> list[str]:
    low, high = map(in_time, measured.step_seconds_interval)
    spread = in_time(measured.step_seconds_interquartile_range)
    rates = {
        "all": measured.tokens_per_second,
        "without padding": measured.unpadded_tokens_per_second,
        "in the loss": measured.loss_tokens_per_second,
    }
    used = {"MFU": measured.mfu, "HFU": measured.hfu}
    bytes_ = {
        "reserved": measured.memory.peak_reserved_bytes,
        "in nvidia-smi": measured.nvml_process_peak_bytes,
        "of host memory": measured.rss_peak_bytes,
    }
    lines = [
        f"step {in_time(measured.median_step_seconds)}, 95% interval {low} to {high}, interquartile range {spread}",
        _listed("tokens/s:", [f"{rate:,.0f} {of}" for of, rate in rates.items() if rate is not None]),
        _listed("", [f"{name} {share:.1%}" for name, share in used.items() if share is not None]),
        _listed("peaks:", [f"{in_gib(peak)} {where}" for where, peak in bytes_.items() if peak is not None]),
    ]
    if measured.joules_per_thousand_tokens is not None:
        lines.append(f"energy: {measured.joules_per_thousand_tokens:,.1f} J per 1,000 tokens")
    lines.append(f"loss {_from_to(measured.losses[0], measured.losses[-1])} from first to last step")
    if measured.held_out_loss_before is not None:
        lines.append(f"held-out loss {_from_to(measured.held_out_loss_before, measured.held_out_loss_after)}")
    return [line for line in lines if line] + [f"unstable: {reason}" for reason in measured.unstable]


def _listed(what: str, parts: list[str]) -> str:
    return f"{what} {', '.join(parts)}".strip() if parts else ""
