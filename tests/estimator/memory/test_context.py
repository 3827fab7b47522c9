"""The CUDA context of a class of GPUs, against the figures that were published for one of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lorabench.estimator.answers.estimates import estimate_recipe
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.memory.context import PUBLISHED, WHOLE, context_of
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.defaults import recipe_for

GIB = 2**30


@pytest.mark.parametrize(
    ("gpu", "least", "most"),
    [("t4", 0.14, 0.14), ("rtx-a6000", 0.69, 0.69), ("rtx-5090", 0.6, 1.1), ("h200", 0.14, 1.1), ("24GB", 0.14, 1.1)],
)
def test_the_device_total_has_the_context_that_was_published(gpu: str, least: float, most: float) -> None:
    memory = estimate_recipe(recipe_for(find_model("smollm2-135m")), find_device(gpu), replay=True).memory
    assert memory.peak_reserved_bytes is not None
    assert memory.device_total_range_bytes is not None
    contexts = [(total - memory.peak_reserved_bytes) / GIB for total in memory.device_total_range_bytes]
    assert contexts == pytest.approx([least, most], abs=0.01)
    assert memory.device_total_bytes == memory.device_total_range_bytes[1]


def test_the_page_lists_the_context_of_each_class_with_its_source() -> None:
    page = (Path(__file__).parents[3] / "docs" / "memory.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+\.\d) \| ([\w ]+) \| ([\d.]+)(?: to ([\d.]+))? GiB \| (.+) \|$", page, re.MULTILINE)
    assert listed == [
        (
            capability,
            context.gpu,
            f"{context.least / GIB:.2f}",
            f"{context.most / GIB:.2f}" if context.most > context.least else "",
            context.source,
        )
        for capability, context in PUBLISHED.items()
    ]
    assert f"| {WHOLE.least / GIB:.2f} to {WHOLE.most / GIB:.2f} GiB | {WHOLE.source} |" in page
    assert context_of(None) == context_of("9.0") == WHOLE


def test_paged_states_are_listed_besides_the_device_total() -> None:
    memory = estimate_recipe(
        recipe_for(find_model("llama-3.2-1b"), method="full", optim="paged_adamw_32bit"), replay=True
    ).memory
    # Two float32 states of every tensor, except for the 33 norms of 2048 weights: these have fewer than 100,000.
    assert memory.paged_states_bytes == 2 * 4 * (1_235_814_400 - 33 * 2048)
    plain = estimate_recipe(recipe_for(find_model("llama-3.2-1b"), method="full"), replay=True).memory
    assert plain.paged_states_bytes == 0
