"""The derivation of an estimate, term by term, with one recipe's numbers: the output of `estimate --explain`.

Each line is a product in whole bytes. The lines of a component's section add up to that component at the peak. The
lines of the phases are the phases' peaks; the highest is the peak.

- `lines`: the parts of an explanation;
- `letters`: the letters for a model's sizes;
- `persistent`: weights, adapters, gradients, optimizer states;
- `peak`: activations, logits, temporaries, phases;
- `tensor_names`: names for the tensors of a step.
"""

from __future__ import annotations

from collections.abc import Iterator

from lorabench.estimator.answers.estimates import Estimate
from lorabench.estimator.answers.verdict import verdict_and_margin
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.devices.device import DRIVER_BYTES, Device
from lorabench.estimator.explanation.letters import letters
from lorabench.estimator.explanation.lines import Derivation, Explanation, Line
from lorabench.estimator.explanation.peak import Peak
from lorabench.estimator.explanation.persistent import PersistentLines
from lorabench.estimator.explanation.segments import segments
from lorabench.estimator.memory.allocator_settings import read_settings
from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.memory.context import context_of
from lorabench.estimator.memory.reserved import (
    SEGMENT_BYTES,
    WORST_FRAGMENTATION_PERCENT,
    working_bytes,
)
from lorabench.estimator.memory.workspaces import HANDLES, Workspaces, workspaces
from lorabench.estimator.recipes.recipe import Recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe

__all__ = ["Derivation", "Explanation", "Line", "explain"]


def explain(
    resolved: ResolvedRecipe,
    backend: Backend = "cuda",
    device: Device | None = None,
    replayed: Estimate | None = None,
) -> Explanation:
    """Return the derivation of the recipe's memory: weights first, then each other component, phases, and device.

    A CUDA ``device`` determines the size of the workspaces, and the memory is compared with its memory. ``replayed``:
    the estimate with a replay of the allocator, which has the reserved bytes and the verdict; None for ranges instead.

    Raises:
        UserError: as in `estimate_memory`.
    """
    compute_capability = None if device is None else device.compute_capability
    memory = estimate_memory(resolved, backend, compute_capability)
    persistent = PersistentLines(resolved, backend)
    peak = Peak(resolved, backend, memory, compute_capability)
    sections = [
        Derivation("Weights", tuple(persistent.weights()), "weights"),
        Derivation("Quantised weights", tuple(persistent.quantized_weights()), "quantized_weights"),
        Derivation("Adapters", tuple(persistent.adapters()), "adapters"),
        _gradients(persistent, peak, memory),
        Derivation(
            "Optimizer states",
            tuple(_optimizer_states(persistent, memory)),
            "optimizer_states",
            persistent.optimizer_remark(),
        ),
        _one_layer(peak, resolved.recipe),
        Derivation("Activations at the peak", tuple(peak.at_peak("activations")), "activations"),
        Derivation("Logits at the peak", tuple(peak.at_peak("logits")), "logits"),
        Derivation("Temporaries at the peak", tuple(peak.at_peak("temporaries")), "temporaries"),
        Derivation("Buffers", (*persistent.buffers(), *peak.at_peak("buffers", step_alone=True)), "buffers"),
        Derivation("Workspaces", tuple(_workspaces(memory)), "workspaces"),
        Derivation("Phases", tuple(peak.phases()), remark=f"The highest decides: {memory.phase}."),
        Derivation(
            "Allocator and device",
            tuple(_device(memory, workspaces(compute_capability)) if replayed is None else _replayed(replayed.memory)),
        ),
    ]
    if replayed is not None and replayed.memory.peak_reserved_bytes is not None:
        gpu = (None, None) if device is None else (device.compute_capability, device.multiprocessors)
        settings = read_settings(replayed.memory.allocator_settings).on(None if device is None else device.usable_bytes)
        sections.append(segments(resolved, replayed.memory, settings, *gpu))
    if device is not None and backend == "cuda":
        sections.append(_verdict(memory, device) if replayed is None else _replayed_verdict(replayed, device))
    shown = [section for section in sections if section.lines or section.remark]
    return Explanation(letters(resolved), tuple(shown))


def _optimizer_states(persistent: PersistentLines, memory: Breakdown) -> list[Line]:
    """Return the lines of the states; none if the peak is before the first optimizer step."""
    return list(persistent.optimizer_states()) if memory.components["optimizer_states"] else []


def _gradients(persistent: PersistentLines, peak: Peak, memory: Breakdown) -> Derivation:
    everything = persistent.all_gradients()
    if memory.components["gradients"] == everything.bytes:
        return Derivation("Gradients", (everything,), "gradients")
    there = "some" if memory.components["gradients"] else "none"
    remark = (
        f"At the peak, in {memory.phase}, {there} of them exist: backward makes them, and zero_grad frees them after "
        f"the optimizer's step. At the end of backward they take {everything.formula} = {everything.values} "
        f"= {everything.bytes:,} B."
    )
    return Derivation("Gradients", tuple(peak.at_peak("gradients")), "gradients", remark)


def _one_layer(peak: Peak, recipe: Recipe) -> Derivation:
    lines = tuple(peak.one_layer())
    if not lines:
        return Derivation("What one layer saves for backward", ())
    remark = f"{peak.layer_bytes_per_token():,} B for each token"
    if recipe.gradient_checkpointing:
        remark += (
            ". Gradient checkpointing keeps only each layer's input. These tensors then exist for one layer at a time, "
            "while backward recomputes it"
        )
    return Derivation("What one layer saves for backward", lines, remark=f"{remark}.")


def _workspaces(memory: Breakdown) -> Iterator[Line]:
    """Yield the line of the cuBLAS workspaces; none on a CPU, or if the peak is before the first step."""
    bytes_ = memory.components["workspaces"]
    if bytes_:
        each = f"{bytes_ // HANDLES:,}"
        source = "torch: a workspace for each cuBLAS handle, one in forward's thread and one in backward's"
        yield Line("cuBLAS workspaces", f"{HANDLES} threads · {each} B", f"{HANDLES} · {each}", bytes_, source)


def _usable(device: Device) -> Line:
    return Line(
        "what a process can use",
        "memory - the driver's part",
        f"{device.memory_bytes:,} - {DRIVER_BYTES:,}",
        device.usable_bytes,
        "torch: the total capacity in its out-of-memory messages",
    )


def _device_total(reserved: int, total: int) -> Line:
    return Line(
        "device total",
        "reserved + CUDA context",
        f"{reserved:,} + {total - reserved:,}",
        total,
        "NVIDIA's driver: context and kernels of the process",
    )


def _verdict(memory: Breakdown, device: Device) -> Derivation:
    """Return the comparison with ``device``. The verdict's other figures come from searches with the same formulas."""
    assert memory.device_total_range_bytes is not None
    answer, margin = verdict_and_margin(memory, device.memory_bytes)
    most, usable = memory.device_total_range_bytes[1], device.usable_bytes
    lines = (
        _usable(device),
        Line("margin", "usable - device total at most", f"{usable:,} - {most:,}", margin, "free memory at worst"),
    )
    reason = {
        "fits": "the margin is not negative",
        "tight": "the margin is negative, but the device total without gaps is within the memory",
        "does not fit": "not even the device total without gaps is within the memory",
    }[answer]
    remark = (
        f"Verdict: {answer}, since {reason}. With the largest batch, the longest sequence and each suggested change, "
        "the margin is not negative. Changes are tried alone, then in pairs, the least intrusive first."
    )
    return Derivation(f"Against {device.name}", lines, remark=remark)


def _replayed_verdict(estimate: Estimate, device: Device) -> Derivation:
    """Return the comparison of the replayed steps with the memory of ``device`` that a process can use."""
    assert estimate.memory.peak_reserved_bytes is not None
    usable, reserved = device.usable_bytes, estimate.memory.peak_reserved_bytes
    context = context_of(device.compute_capability).most
    lines = [
        _usable(device),
        Line(
            "free beside reserved memory",
            "usable - context - reserved",
            f"{usable:,} - {context:,} - {reserved:,}",
            usable - context - reserved,
            "if the allocator gives no cached segment back",
        ),
    ]
    remark = (
        f"Verdict: {estimate.verdict}. The steps are replayed with the memory that the largest and the smallest CUDA "
        "context leave. Before an allocation fails, the allocator gives cached segments back and tries again."
    )
    return Derivation(f"Against {device.name}", tuple(lines), remark=remark)


def _replayed(memory: Breakdown) -> list[Line]:
    """Return the lines of the allocator: blocks, which are larger than their tensors, and the segments around them."""
    assert memory.peak_reserved_bytes is not None
    assert memory.device_total_bytes is not None
    rounding, allocated, reserved = (
        memory.components["rounding"],
        memory.peak_allocated_bytes,
        memory.peak_reserved_bytes,
    )
    requested = memory.peak_requested_bytes
    return [
        Line("peak requested", "highest phase", f"{requested:,}", requested, "torch: requested_bytes.all.peak"),
        Line(
            "blocks beyond their tensors",
            "allocated - requested",
            f"{allocated:,} - {requested:,}",
            rounding,
            "torch: blocks of 512 B; large ones are not split for a rest of 1 MiB or less",
        ),
        Line("peak allocated", "most in blocks", f"{allocated:,}", allocated, "replay: max_memory_allocated"),
        Line(
            "free blocks in segments",
            "reserved - allocated",
            f"{reserved:,} - {allocated:,}",
            reserved - allocated,
            "replay: freed blocks that fit no later tensor, or that are free at the peak",
        ),
        Line("peak reserved", "all segments", f"{reserved:,}", reserved, "replay: max_memory_reserved"),
        _device_total(reserved, memory.device_total_bytes),
    ]


def _device(memory: Breakdown, workspace: Workspaces) -> list[Line]:
    allocated = memory.peak_allocated_bytes
    lines = [Line("peak allocated", "highest phase", f"{allocated:,}", allocated, "torch: max_memory_allocated")]
    reserved, total = memory.peak_reserved_bytes, memory.device_total_bytes
    reserved_range, total_range = memory.peak_reserved_range_bytes, memory.device_total_range_bytes
    if reserved is None or total is None or reserved_range is None or total_range is None:
        return lines
    segment, working = f"{SEGMENT_BYTES:,}", working_bytes(memory.components)
    share, more = WORST_FRAGMENTATION_PERCENT, workspace.most - memory.components["workspaces"]
    gaps = working * share // 100
    return [
        *lines,
        Line(
            "peak reserved",
            "⌈allocated / segment⌉ · segment",
            f"⌈{allocated:,} / {segment}⌉ · {segment}",
            reserved,
            "torch: the CUDA caching allocator takes whole segments",
        ),
        _device_total(reserved, total),
        Line(
            "gaps between tensors, at worst",
            f"⌊working bytes · {share} %⌋",
            f"⌊{working:,} · {share} / 100⌋",
            gaps,
            "replays: worst fragmentation with which steps ran, of the bytes that they allocate and free",
        ),
        Line(
            "peak reserved, at most",
            "⌈(allocated + gaps + larger workspaces) / segment⌉ · segment",
            f"⌈({allocated:,} + {gaps:,} + {more:,}) / {segment}⌉ · {segment}",
            reserved_range[1],
            "torch: cuBLAS workspaces by GPU and version, at most",
        ),
        Line(
            "device total, at most",
            "reserved at most + CUDA context",
            f"{reserved_range[1]:,} + {total_range[1] - reserved_range[1]:,}",
            total_range[1],
            "NVIDIA's driver: context and kernels of the process",
        ),
    ]
