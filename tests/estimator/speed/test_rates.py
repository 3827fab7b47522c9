"""Rates from a datasheet."""

from __future__ import annotations

from msgspec.structs import replace

from lorabench.estimator.devices.device import find_device
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.speed.throughput import Throughput, estimate_throughput


def test_a_cache_that_is_not_known_widens_the_range_and_is_not_counted_on() -> None:
    def speed(cache_bytes: int | None) -> Throughput:
        device = replace(find_device("l40s"), cache_bytes=cache_bytes)
        recipe = make_recipe("meta-llama/Llama-3.2-3B", seq_len=512)
        found = estimate_throughput(find_model("meta-llama/Llama-3.2-3B"), recipe, device)
        assert found is not None
        return found

    unknown, none, known = speed(None), speed(0), speed(96 * 2**20)
    assert unknown.step_seconds == none.step_seconds > known.step_seconds
    assert unknown.step_seconds_range[1] == none.step_seconds_range[1]
    assert unknown.step_seconds_range[0] <= known.step_seconds_range[0] < none.step_seconds_range[0]
