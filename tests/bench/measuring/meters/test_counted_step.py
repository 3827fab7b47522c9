from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lorabench.bench.measuring.meters.counted_step import components_of_step


class StepWithoutRoom:
    """Its forward pass runs out of memory as soon as storages are followed."""

    device_type = "cpu"

    def __init__(self, model: Model) -> None:
        self.optimizer = torch.optim.AdamW([model.adapter.weight])
        self.on_phase: Any = lambda phase: None
        model.adapter.weight.grad = torch.ones(2, 4)
        self.optimizer.step()

    def __call__(self, batches: Iterator[Any]) -> None:
        self.on_phase("forward")
        raise torch.OutOfMemoryError("CUDA out of memory")


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = torch.nn.Linear(4, 8, bias=False).requires_grad_(False)
        self.adapter = torch.nn.Linear(4, 2, bias=False)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.base


def test_where_counting_takes_too_much_memory_what_outlasts_a_step_is_still_told() -> None:
    model, spec = Model(), type("Spec", (), {"vocab_size": 8})
    step: Any = StepWithoutRoom(model)
    components = components_of_step(model, step, spec, iter(()))  # type: ignore[arg-type]
    # AdamW keeps two tensors like the weight, and a float32 count of its steps.
    said = {"weights": 4 * 8 * 4, "adapters": 2 * 4 * 4, "optimizer_states": 2 * 2 * 4 * 4 + 4}
    assert {name: count for name, count in components.items() if count} == said
    assert model.adapter.weight.grad is None
