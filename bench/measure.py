"""Train one recipe in this process and measure it."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lorabench.bench.environment import process_device_bytes
from lorabench.bench.jobs import Settings
from lorabench.bench.measurements import Measurement
from lorabench.bench.text import byte_tokenizer, training_batches
from lorabench.estimator.breakdown import Breakdown, ParameterCounts
from lorabench.estimator.errors import UserError
from lorabench.estimator.models import ModelSpec
from lorabench.estimator.recipes import Recipe
from lorabench.estimator.trace.build import build_model
from lorabench.estimator.trace.optimizers import make_optimizer
from lorabench.estimator.trace.step import Batch, TrainingStep
from lorabench.estimator.trace.storages import StorageLedger

if TYPE_CHECKING:
    import torch
    from torch import nn


def measure(spec: ModelSpec, recipe: Recipe, settings: Settings) -> Measurement:
    """Build the recipe's model, train it, and return what was measured.

    Warm-up and timed steps come first; one more step, in which storages are counted, is in no timing and no loss.

    Raises:
        UserError: the recipe cannot be built here, or the weights or the dataset cannot be read.
    """
    import torch

    _silence_libraries()
    steps = settings.warmup_steps + settings.steps
    weights = spec.name if settings.weights == "hub" else settings.weights
    tokenize = byte_tokenizer(spec.vocab_size) if weights is None else _tokenizer(weights)
    rows = _token_rows(recipe, settings, tokenize, (steps + 1) * recipe.gradient_accumulation)
    model = build_model(spec, recipe, settings.device, settings.seed, weights=weights)
    loaded_bytes = _settle(settings)
    optimizer = make_optimizer(model, recipe)
    step = TrainingStep(model, optimizer, recipe)
    mark, seconds_between = _cuda_clock() if settings.device == "cuda" else _cpu_clock()
    losses = []
    for number in range(steps):
        if number == settings.warmup_steps and settings.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        batches = _batches(rows, recipe, settings)
        mark()
        losses.append(step(batches))
        mark()
    seconds = seconds_between()
    values = [loss.item() for loss in losses]
    del losses
    if settings.device == "cuda":
        memory = _cuda_memory(model, step, spec, _batches(rows, recipe, settings), loaded_bytes)
    else:
        memory = _count_storages(model, step, spec, _batches(rows, recipe, settings))
    return Measurement(
        parameters=count_built(model, spec),
        memory=memory,
        step_seconds=tuple(seconds[settings.warmup_steps :]),
        warmup_step_seconds=tuple(seconds[: settings.warmup_steps]),
        tokens_per_step=recipe.tokens * recipe.gradient_accumulation,
        losses=tuple(value if math.isfinite(value) else None for value in values),
    )


def count_built(model: nn.Module, spec: ModelSpec) -> ParameterCounts:
    """Return the element counts of a model as it was built, tied weights once, quantised ones unpacked."""
    parts = _parts(spec)
    by_part = {str(part): 0 for part in spec.parameters_by_part}
    trainable = quantized = adapter = 0
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        count = parameter.numel() if state is None else math.prod(state.shape)
        trainable += count if parameter.requires_grad else 0
        quantized += count if state is not None else 0
        if ".lora_" in name:
            adapter += count
        else:
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            by_part[parts[_without_index(plain, spec)]] += count
    total = sum(by_part.values()) + adapter
    return ParameterCounts(total=total, trainable=trainable, quantized=quantized, adapter=adapter, by_part=by_part)


def _parts(spec: ModelSpec) -> dict[str, str]:
    """Return the part of each parameter by name, without the layer's path and index."""
    parts: dict[str, str] = {weight.name: weight.part for weight in (*spec.embeddings, *spec.final_norm)}
    for linear in (spec.head, *(linear for group in spec.layers for linear in group.linears)):
        parts[f"{linear.name}.weight"] = parts[f"{linear.name}.bias"] = linear.part
    parts |= {weight.name: weight.part for group in spec.layers for weight in group.weights}
    return parts


def _without_index(name: str, spec: ModelSpec) -> str:
    return re.sub(rf"^{re.escape(spec.layers_path)}\.\d+\.", "", name)


def _silence_libraries() -> None:
    """Keep the libraries' notices off the terminal; what matters of them is in the record."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


# Text.


def _token_rows(
    recipe: Recipe, settings: Settings, tokenize: Callable[[str], list[int]], count: int
) -> Iterator[torch.Tensor]:
    """Return ``count`` blocks of (batch_size, seq_len) token ids, in host memory, made before anything is timed."""
    import torch

    dataset = Path(settings.dataset) if settings.dataset is not None else None
    blocks = training_batches(dataset, tokenize, recipe.batch_size, recipe.seq_len)
    return iter([torch.tensor(block, dtype=torch.int64) for block in islice(blocks, count)])


def _tokenizer(weights: str) -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(weights, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"weights {weights}: no tokenizer beside them ({error})") from error
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return lambda document: [*tokenizer(document, verbose=False)["input_ids"], *end]


def _batches(rows: Iterator[torch.Tensor], recipe: Recipe, settings: Settings) -> Iterator[Batch]:
    """Yield the batches of one step, each copied to the device when it is wanted; labels are a tensor of their own."""
    for row in islice(rows, recipe.gradient_accumulation):
        yield {"input_ids": row.to(settings.device, copy=True), "labels": row.to(settings.device, copy=True)}


# Time.


def _cpu_clock() -> tuple[Callable[[], None], Callable[[], list[float]]]:
    """Return a function that marks the time, and one that tells the seconds between marks 0 and 1, 2 and 3, …"""
    marks: list[float] = []

    def seconds() -> list[float]:
        return [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]

    return lambda: marks.append(time.perf_counter()), seconds


def _cuda_clock() -> tuple[Callable[[], None], Callable[[], list[float]]]:
    """Return the same as `_cpu_clock` on the GPU's own time line, without making the host wait between steps."""
    import torch

    marks: list[Any] = []

    def mark() -> None:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        marks.append(event)

    def seconds() -> list[float]:
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in zip(marks[::2], marks[1::2], strict=True)]

    return mark, seconds


# Memory.


def _settle(settings: Settings) -> int:
    """Hand back to the GPU what only building took, and return the bytes that are allocated now (0 on CPU)."""
    import torch

    if settings.device == "cpu":
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def _count_storages(
    model: nn.Module,
    step: TrainingStep,
    spec: ModelSpec,
    batches: Iterator[Batch],
    on_phase: Callable[[str], None] = lambda phase: None,
) -> Breakdown:
    """Train one more step and return what its live storages take."""
    ledger = StorageLedger(step.device_type)
    ledger.adopt_model(model)
    ledger.adopt_optimizer(step.optimizer)

    def adopted() -> Iterator[Batch]:
        for batch in batches:
            ledger.adopt("buffers", *batch.values())
            yield batch

    def begin_phase(phase: str) -> None:
        on_phase(phase)
        ledger.begin_phase(phase)

    step.on_phase = begin_phase
    with ledger:
        ledger.watch_model(model, spec.vocab_size)
        ledger.begin_step()
        step(adopted())
        ledger.end_step(model, step.optimizer)
    return ledger.breakdown()


def _cuda_memory(
    model: nn.Module, step: TrainingStep, spec: ModelSpec, batches: Iterator[Batch], loaded_bytes: int
) -> Breakdown:
    """Return the allocator's own peaks of the timed steps, with components as counted in one more step.

    What the allocator has beyond the live storages (rounding to 512 B, workspaces inside kernels) is temporaries.
    """
    import torch

    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    peaks: dict[str, int] = {"loaded": loaded_bytes}
    phase = ""

    def on_phase(name: str) -> None:
        nonlocal phase
        if phase:
            peaks[phase] = max(peaks.get(phase, 0), torch.cuda.max_memory_allocated())
        phase = name
        torch.cuda.reset_peak_memory_stats()

    counted = _count_storages(model, step, spec, batches, on_phase)
    on_phase("")
    in_step = {name: peak for name, peak in peaks.items() if name != "loaded"}
    return msgspec.structs.replace(
        counted,
        components=with_rest(counted.components, allocated),
        phase=max(in_step, key=lambda name: in_step[name]),
        peak_allocated_bytes=allocated,
        phase_peaks_bytes=peaks,
        peak_reserved_bytes=reserved,
        device_total_bytes=process_device_bytes(),
    )


def with_rest(components: dict[str, int], total: int) -> dict[str, int]:
    """Return ``components`` with the temporaries made to fill up ``total`` bytes.

    Where they count more than ``total``, temporaries shrink first, then activations, and so on from the least sure.
    """
    fitted = dict(components)
    rest = total - sum(components.values())
    for name in ("temporaries", "activations", "logits", "gradients", "buffers"):
        change = max(rest, -fitted[name])
        fitted[name] += change
        rest -= change
        if rest == 0:
            break
    return fitted
