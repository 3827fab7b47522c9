"""What is made of the CUDA allocator's counters, with a pretended allocator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorabench.bench.measuring.meters.cuda import peaks_of_extra_step, phase_peaks, with_rest


class Allocator:
    """Counts as torch.cuda does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated = self.peak = 100
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)

    def reset(self) -> None:
        self.peak = self.allocated

    def change(self, *by: int) -> None:
        for bytes_ in by:
            self.allocated += bytes_
            self.peak = max(self.peak, self.allocated)


class PretendedStep:
    """Two micro-batches and an optimizer step, in bytes."""

    def __init__(self, allocator: Allocator) -> None:
        self.allocator = allocator
        self.on_phase: Callable[[str], None] = lambda phase: None

    def __call__(self, batches: Iterator[int]) -> None:
        for activations in batches:
            self.on_phase("forward")
            self.allocator.change(activations)
            self.on_phase("backward")
            self.allocator.change(20, -20, -activations, 7)
        self.on_phase("optimizer")
        self.allocator.change(9, -9)


def test_each_phase_has_its_own_peak_over_all_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    step: Any = PretendedStep(Allocator(monkeypatch))
    batches: Any = iter([30, 50])
    before = step.on_phase
    assert phase_peaks(step, batches) == {"forward": 157, "backward": 177, "optimizer": 123}
    assert step.on_phase is before


def test_an_extra_step_that_runs_out_of_memory_is_run_again_with_an_empty_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    class FullOnce(PretendedStep):
        optimizer = SimpleNamespace(zero_grad=lambda set_to_none: done.append("gradients freed"))

        def __call__(self, batches: Iterator[int]) -> None:
            if not done:
                raise torch.OutOfMemoryError
            super().__call__(batches)

    step: Any = FullOnce(Allocator(monkeypatch))
    batches: Any = lambda: iter([30, 50])  # noqa: E731
    peaks = peaks_of_extra_step(step, batches, lambda: done.append("cache emptied"))
    assert peaks == {"forward": 157, "backward": 177, "optimizer": 123}
    assert done == ["gradients freed", "cache emptied"]


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (100, {"weights": 50, "activations": 30, "logits": 10, "temporaries": 10, "gradients": 0, "buffers": 0}),
        (95, {"weights": 50, "activations": 30, "logits": 10, "temporaries": 5, "gradients": 0, "buffers": 0}),
        (85, {"weights": 50, "activations": 25, "logits": 10, "temporaries": 0, "gradients": 0, "buffers": 0}),
        (55, {"weights": 50, "activations": 0, "logits": 5, "temporaries": 0, "gradients": 0, "buffers": 0}),
    ],
)
def test_components_add_up_to_what_the_allocator_counts(total: int, expected: dict[str, int]) -> None:
    counted = {"weights": 50, "activations": 30, "logits": 10, "temporaries": 4, "gradients": 0, "buffers": 0}
    assert with_rest(counted, total) == expected
