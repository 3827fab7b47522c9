"""Models in a folder, as ``--weights FOLDER`` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import build_model

WORDS = ("[UNK]", "</s>", "the", "a", "of", "to", "and", "in")


def save_with_tokenizer(config: dict[str, Any], folder: Path) -> ModelSpec:
    """Save a random model of ``config`` with a tokenizer of `WORDS`, and return it as it is read from there."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    recipe = make_recipe("test/saved", method="full", dtype="float32", mixed_precision="no")
    model: Any = build_model(ResolvedRecipe(read_config(config, "test/saved"), recipe), "cpu", seed=9)
    model.save_pretrained(folder)
    whole = config | {"architectures": model.config.architectures}
    (folder / "config.json").write_bytes(msgspec.json.encode(whole))
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)  # noqa: S106
    return read_config(whole, str(folder))
