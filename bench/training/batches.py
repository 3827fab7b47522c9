"""The text of one run as tensors: what it trains on, and what is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from lorabench.bench.records.run_settings import Settings
from lorabench.bench.training.text import byte_tokenizer, held_out_and_training
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from lorabench.estimator.training.step import Batch

HELD_OUT_TOKENS = 2048
"""At least so many tokens are held out, in whole batches: enough for a mean, at the cost of few steps."""
IGNORED = -100
"""Label of a position that the loss leaves out, in transformers."""


class TokenCounts(Struct, frozen=True):
    """Tokens of one step."""

    all: int
    """None of them padding, since rows are packed."""
    in_loss: int
    """Those that the loss has a term for: the first of a row is predicted by nothing."""


class Batches:
    """Packed rows of token ids in host memory, made before anything is measured; batches are copies on the device."""

    def __init__(
        self, held_out: list[torch.Tensor], trained: list[torch.Tensor], gradient_accumulation: int, device: str
    ) -> None:
        """Hand out (batch_size, seq_len) blocks of ids."""
        self._held_out = held_out
        self.trained = trained
        self._each = gradient_accumulation
        self._device = device

    def of_step(self, number: int) -> Iterator[Batch]:
        """Yield the batches of step ``number``, from 0, each copied when it is wanted; over again when used up."""
        for index in range(number * self._each, (number + 1) * self._each):
            yield self._on_device(self.trained[index % len(self.trained)])

    def held_out(self) -> Iterator[Batch]:
        """Yield the batches that nothing trains on; none where the dataset is too short to do without."""
        return map(self._on_device, self._held_out)

    def tokens_per_step(self) -> TokenCounts:
        """Return the tokens of the first step, counted on its batches."""
        counts = [_count(batch) for batch in self.of_step(0)]
        return TokenCounts(*map(sum, zip(*counts, strict=True)))

    def _on_device(self, ids: torch.Tensor) -> Batch:
        return {"input_ids": ids.to(self._device, copy=True), "labels": ids.to(self._device, copy=True)}


def make_batches(spec: ModelSpec, recipe: Recipe, settings: Settings, steps: int) -> Batches:
    """Return the text of a run that trains for ``steps`` steps.

    Raises:
        UserError: the dataset or the tokenizer cannot be read, or the vocabulary is too small for text without one.
    """
    import torch

    dataset = None if settings.dataset is None else Path(settings.dataset)
    held_out, training = held_out_and_training(
        dataset,
        _tokenizer(spec, settings),
        recipe.batch_size,
        recipe.seq_len,
        held_out=-(-HELD_OUT_TOKENS // recipe.tokens),
    )
    return Batches(
        [torch.tensor(block) for block in held_out],
        [torch.tensor(block) for block in islice(training, steps * recipe.gradient_accumulation)],
        recipe.gradient_accumulation,
        settings.device,
    )


def _tokenizer(spec: ModelSpec, settings: Settings) -> Callable[[str], list[int]]:
    """Return the tokenizer of the weights, or that of bytes for random ones."""
    if settings.weights is None:
        return byte_tokenizer(spec.vocab_size)
    from transformers import AutoTokenizer

    weights = spec.name if settings.weights == "hub" else settings.weights
    try:
        tokenizer = AutoTokenizer.from_pretrained(weights, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"weights {weights}: their tokenizer cannot be loaded ({error})") from error
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return lambda document: [*tokenizer(document, verbose=False)["input_ids"], *end]


def _count(batch: Batch) -> tuple[int, int]:
    return batch["input_ids"].numel(), int((batch["labels"][:, 1:] != IGNORED).sum())
