"""`lorabench run` with workers that train for real, but with a fault in the code path that the recipe does not name.

``python -m tests.bench.planted_training run SUITE.yaml -o FOLDER``. What is planted goes by the recipe, of LoRA; others
are left as they are.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import Any

from lorabench.bench.running import runner, server
from lorabench.bench.running.workers import Workers
from lorabench.cli import main
from lorabench.estimator.recipes.recipe import Recipe

SERVER = (sys.executable, "-m", "tests.bench.planted_training", "--serve")


def drop_checkpointing(model: Any) -> None:
    model.get_base_model().gradient_checkpointing_disable()


def widen_adapters(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def double_logits(model: Any) -> None:
    """Keep a copy of the logits until those of the next step are there."""
    loss = model.loss_function
    kept: list[Any] = []

    def of_what_is_kept(logits: Any, *arguments: Any, **options: Any) -> Any:
        kept[:] = [logits.detach().clone()]
        return loss(logits, *arguments, **options)

    model.loss_function = of_what_is_kept


def plant(model: Any, recipe: Recipe) -> None:
    if recipe.method != "lora":
        return
    if recipe.adapter_dtype == "bfloat16":
        widen_adapters(model)
    elif recipe.seq_len > 128:
        double_logits(model.get_base_model())
    else:
        drop_checkpointing(model)


def serve() -> None:
    measure: Any = importlib.import_module("lorabench.bench.measuring.measure")
    build_model = measure.build_model

    def build_and_plant(spec: Any, recipe: Recipe, *arguments: Any, **options: Any) -> Any:
        model = build_model(spec, recipe, *arguments, **options)
        plant(model, recipe)
        return model

    measure.build_model = build_and_plant
    server.main()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        del sys.argv[1]
        serve()
    with_faults: Any = runner
    with_faults.Workers = partial(Workers, command=SERVER)
    main()
