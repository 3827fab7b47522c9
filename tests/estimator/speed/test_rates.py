"""Rates from a datasheet."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from lorabench.estimator.devices.device import all_devices, find_device
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.rates import BOUNDS, DatasheetRates, Fractions, datasheet_fractions
from lorabench.estimator.speed.throughput import CALIBRATED_ERROR, LEAST_POWER, Throughput, estimate_throughput
from tests.estimator.speed.test_ground_truth import PAGE, documented

FRACTIONS = {
    "of peak, matmuls": ["matmul"],
    "of peak, attention forward, backward": ["attention", "attention_backward"],
    "of peak, flash_attention_2 forward, backward": ["flash_attention_2", "flash_attention_2_backward"],
    "of peak, attention with a mask": ["masked_attention"],
    "of bandwidth, elementwise": ["bandwidth"],
    "of bandwidth, from the cache": ["cache"],
    "of bandwidth, dequantisation": ["dequantisation"],
    "cache, if no source states its size": ["unknown_cache_bytes"],
    "of float32's peak, bfloat16 without hardware for it": ["emulated_bfloat16"],
    "paging": ["paging"],
    "launch overhead per operation": ["launch_seconds"],
    "shortest kernel": ["kernel_seconds"],
}
"""What the page calls each of `Fractions`."""
UNITS = {"": 1.0, " µs": 1e-6, " GB/s": 1e9, " MiB": 2.0**20}


def test_the_page_tells_every_fraction_of_every_gpu() -> None:
    assert {name for names in FRACTIONS.values() for name in names} == set(Fractions._fields)
    rows: dict[str, dict[str, list[str]]] = {}
    for cells in documented("fraction"):
        what, _, gpus = cells[0].partition(": ")
        rows.setdefault(what, {}).update(dict.fromkeys(gpus.split(", "), cells[1:4]))
    assert rows.keys() == FRACTIONS.keys()
    torchs, flash = rows["of peak, attention forward, backward"], "of peak, flash_attention_2 forward, backward"
    rows[flash] = torchs | rows[flash]
    families = {device.name.partition("-")[0].upper() for device in all_devices()}
    assert {gpu for row in rows.values() for gpu in row} <= families | {"any other", ""}
    for device in all_devices():
        for what, row in rows.items():
            told = row.get(device.name.partition("-")[0].upper()) or row.get("any other") or row[""]
            for bound, cell in zip(BOUNDS, told, strict=True):
                number, unit = re.fullmatch(r"([\d., ]*\d)(.*)", cell).groups()  # type: ignore[union-attr]
                used = [getattr(datasheet_fractions(device, bound), name) for name in FRACTIONS[what]]
                assert used == pytest.approx([UNITS[unit] * float(one) for one in number.split(", ")]), device.name


def test_the_page_tells_what_else_is_assumed() -> None:
    limits = (Path(__file__).parents[3] / "docs" / "limits.md").read_text(encoding="utf-8")
    assert f"from {100 * LEAST_POWER:.0f} % of its power" in limits
    assert f"The range is {100 * CALIBRATED_ERROR:.0f} % either way" in PAGE


@pytest.mark.parametrize("backward", [False, True])
def test_attention_that_is_given_a_mask_is_slower_for_the_same_work(backward: bool) -> None:
    rates = DatasheetRates(find_device("rtx-4090"), "typical")
    plain, masked = (rates.attention(1e12, 1, "bfloat16", kernel, backward=backward) for kernel in ("sdpa", "masked"))
    assert plain < masked == pytest.approx(1e12 / (165.2e12 * 0.30))


def test_a_cache_that_is_not_known_widens_the_range_and_is_not_counted_on() -> None:
    def speed(cache_bytes: int | None) -> Throughput:
        device = replace(find_device("l40s"), cache_bytes=cache_bytes)
        recipe = make_recipe("meta-llama/Llama-3.2-3B", seq_len=512)
        found = estimate_throughput(ResolvedRecipe(find_model("meta-llama/Llama-3.2-3B"), recipe), device)
        assert found is not None
        return found

    unknown, none, known = speed(None), speed(0), speed(96 * 2**20)
    assert unknown.step_seconds == none.step_seconds > known.step_seconds
    assert unknown.step_seconds_range[1] == none.step_seconds_range[1]
    assert unknown.step_seconds_range[0] <= known.step_seconds_range[0] < none.step_seconds_range[0]
