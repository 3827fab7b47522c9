"""Pair runs that differ only in one choice, so the choice explains the difference of their results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product

import msgspec

from lorabench.estimator.recipes.recipe import ADAPTER_SETTINGS
from lorabench.reports.runs import Run

METHOD_SETTINGS = ("method", "dtype", "quant_type", "double_quant", "prepare_kbit", "recast")
"""Settings that follow from the method: each has its own default dtype of the base weights."""


def groups_of_equal_recipes(runs: Sequence[Run], ignoring: Sequence[str]) -> Iterator[list[Run]]:
    """Yield groups of runs of one model on one device. Their recipes differ at most in the settings ``ignoring``."""
    groups: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        shared = tuple(pair for pair in run.record.recipe.settings().items() if pair[0] not in ignoring)
        config = msgspec.json.encode(run.record.model_config, order="sorted")
        record = run.record
        place = shared, record.device, record.engine, record.repeat, run.folder, config
        groups[place].append(run)
    yield from groups.values()


def checkpointing_pairs(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    """Yield pairs of runs without and with gradient checkpointing."""
    for group in groups_of_equal_recipes(runs, ["gradient_checkpointing"]):
        by_choice = {run.record.recipe.gradient_checkpointing: run for run in group}
        if len(by_choice) == 2:
            yield by_choice[False], by_choice[True]


def method_pairs(runs: Sequence[Run], before: str, after: str) -> Iterator[tuple[Run, Run]]:
    """Yield pairs of runs of two methods. LoRA and QLoRA must have equal adapter settings."""
    adapters = () if "full" not in (before, after) else ADAPTER_SETTINGS
    for group in groups_of_equal_recipes(runs, [*METHOD_SETTINGS, *adapters]):
        yield from product(*([run for run in group if run.method == method] for method in (before, after)))


def rank_pairs(runs: Sequence[Run]) -> Iterator[tuple[Run, Run]]:
    """Yield pairs of runs of the lowest and the highest rank. Alpha may differ too: its default depends on the rank."""
    for group in groups_of_equal_recipes([run for run in runs if run.record.recipe.rank], ["rank", "lora_alpha"]):
        ranked = sorted(group, key=lambda run: run.record.recipe.rank or 0)
        if ranked[0].record.recipe.rank != ranked[-1].record.recipe.rank:
            yield ranked[0], ranked[-1]
