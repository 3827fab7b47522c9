"""The replay of a trace goes on until the segments stay: the step after the last is the last one once more."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.trace.replay import replay_trace
from lorabench.estimator.trace.storages import StorageLedger
from lorabench.estimator.trace.trace import run_on_meta
from tests.small_models import small_model

pytestmark = pytest.mark.filterwarnings("ignore")

MIB = 2**20


def train(steps: int) -> StorageLedger:
    """Return the ledger of steps that leave two gradients each; the first leaves an optimizer state too."""
    ledger = StorageLedger("meta")
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    gradients: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    with ledger:
        for number in range(steps):
            ledger.begin_step()
            gradients.clear()
            ledger.begin_phase("backward")
            gradients += [tensor(4), tensor(15)]
            tensor(11)
            if number == 0:
                states.append(tensor(11))
            ledger.end_step(model, optimizer)
    return ledger


def tensor(mebibytes: int) -> torch.Tensor:
    return torch.empty(mebibytes * MIB, dtype=torch.uint8, device="meta")


def test_a_step_that_takes_another_segment_is_replayed_once_more() -> None:
    """Requests below 10 MiB take segments of 20 MiB, larger ones take multiples of 2 MiB.

    First, 4 and 15 MiB fill a segment of 20 MiB, and 11 MiB take one of 12 MiB, which the state then has for good. So
    in the second step 11 MiB take another 12 MiB. In the third, 4 MiB lie in these, the smallest that is free, 15 MiB
    lie alone in the 20 MiB, and 11 MiB fit in neither rest: they take 12 MiB more. Later steps do the same.
    """
    assert [replay_trace(train(steps)).peaks.reserved // MIB for steps in (2, 3, 4)] == [56, 56, 56]


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full", "optim": "adafactor"},
        {"method": "lora", "gradient_accumulation": 2, "gradient_checkpointing": False},
        {"method": "qlora", "optim": "paged_adamw_8bit"},
        {"method": "lora", "keep_outputs": True, "optim": "sgd"},
    ],
)
def test_the_step_after_the_last_is_the_one_that_really_follows(options: dict[str, Any]) -> None:
    resolved = recipe_for(small_model("llama", num_hidden_layers=2), seq_len=64, **options)
    two, three = (run_on_meta(resolved, "cuda", steps, lambda what: None)[0] for steps in (2, 3))
    before, end = three.step_start, three.phases[-1][0]
    allocations = three.allocations()
    following = two.step_after()
    assert len(following) > 100
    assert changes(following, two.allocations()) == changes(allocations[before:end], allocations[:before])


def changes(events: Iterable[tuple[int, int]], earlier: Iterable[tuple[int, int]]) -> list[int]:
    """Return the bytes of each allocation among ``events``, negative for frees; of ``earlier`` blocks too."""
    sizes = {number: size for number, size in earlier if size}
    found = []
    for number, size in events:
        sizes[number] = size or sizes[number]
        found.append(size or -sizes[number])
    return found
