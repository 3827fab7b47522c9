"""The text of one run as tensors: training batches and held-out batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from lorabench.bench.records.run_settings import Settings
from lorabench.bench.training.text import BatchLayout, Rows, byte_tokenizer, held_out_and_training
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.recipes.resolved import ResolvedRecipe

if TYPE_CHECKING:
    import torch

    from lorabench.estimator.training.step import Batch

HELD_OUT_TOKENS = 2048
"""Minimum of held-out tokens, in whole batches: enough for a mean, and only few steps."""
IGNORED = -100
"""Label of a position that transformers' loss ignores."""


class TokenCounts(Struct, frozen=True):
    """Tokens of one step."""

    all: int
    """Padding included."""
    unpadded: int
    in_loss: int
    """Tokens with a term in the loss: all but padding and the first of each row, which nothing predicts."""


class Batches:
    """Rows of token ids in host memory, made before the measurement. Batches are copies on the device."""

    def __init__(
        self,
        held_out: list[torch.Tensor],
        trained: list[torch.Tensor],
        gradient_accumulation: int,
        device: str,
        *,
        padding: bool = False,
        short_of_tokens: int | None = None,
    ) -> None:
        """Take blocks of labels, each of shape (B, S), and the tokens of a text that is too short for one block.

        With ``padding`` some labels are ignored, and batches have an attention mask.
        """
        self.padding = padding
        self.short_of_tokens = short_of_tokens
        self._held_out = held_out
        self.trained = trained
        self._each = gradient_accumulation
        self._device = device

    def of_step(self, number: int) -> Iterator[Batch]:
        """Yield the batches of step ``number``, from 0. Each is copied on demand; the data repeats when used up."""
        for index in range(number * self._each, (number + 1) * self._each):
            yield self._on_device(self.trained[index % len(self.trained)])

    def held_out(self) -> Iterator[Batch]:
        """Yield the held-out batches; none if the dataset is too short."""
        return map(self._on_device, self._held_out)

    def tokens_per_step(self) -> TokenCounts:
        """Return the token counts of a step, as means over all batches."""
        counts = map(sum, zip(*map(_count, self.trained), strict=True))
        return TokenCounts(*(round(count * self._each / len(self.trained)) for count in counts))

    def inputs(self, labels: torch.Tensor) -> Batch:
        """Return what the model gets for ``labels``, each tensor in their shape."""
        if not self.padding:
            return {"input_ids": labels, "labels": labels}
        return {"input_ids": labels.clamp(min=0), "labels": labels, "attention_mask": (labels != IGNORED).long()}

    def _on_device(self, labels: torch.Tensor) -> Batch:
        return {name: tensor.to(self._device, copy=True) for name, tensor in self.inputs(labels).items()}


def make_batches(resolved: ResolvedRecipe, settings: Settings, steps: int) -> Batches:
    """Return the batches of a run that trains for ``steps`` steps.

    Raises:
        UserError: the dataset or the tokenizer cannot be read, or the vocabulary is too small for bytes as tokens.
    """
    recipe = resolved.recipe
    import torch

    dataset = None if settings.dataset is None else Path(settings.dataset)
    text = held_out_and_training(
        dataset,
        _tokenizer(resolved.spec, settings),
        BatchLayout(recipe.batch_size, recipe.seq_len, recipe.padding),
        held_out=-(-HELD_OUT_TOKENS // recipe.tokens),
    )

    def labels(rows: Rows) -> torch.Tensor:
        return torch.tensor([row + [IGNORED] * (recipe.seq_len - len(row)) for row in rows])

    return Batches(
        [labels(rows) for rows in text.held_out],
        [labels(rows) for rows in islice(text.training, steps * recipe.gradient_accumulation)],
        recipe.gradient_accumulation,
        settings.backend,
        padding=recipe.padding,
        short_of_tokens=text.tokens,
    )


def _tokenizer(spec: ModelSpec, settings: Settings) -> Callable[[str], list[int]]:
    """Return the tokenizer of the weights; for random weights, a byte tokenizer."""
    if settings.weights is None:
        return byte_tokenizer(spec.vocab_size)
    from transformers import AutoTokenizer

    weights = spec.name if settings.weights == "hub" else settings.weights
    try:
        tokenizer = AutoTokenizer.from_pretrained(weights, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"weights {weights}: cannot load the tokenizer ({error})") from error
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return lambda document: [*tokenizer(document, verbose=False)["input_ids"], *end]


def _count(labels: torch.Tensor) -> tuple[int, int, int]:
    kept = labels != IGNORED
    return labels.numel(), int(kept.sum()), int(kept[:, 1:].sum())
