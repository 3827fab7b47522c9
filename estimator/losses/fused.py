"""What is declared about a fused loss: whose code it is, and how it divides the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple


class FusedLoss(NamedTuple):
    """A loss that multiplies hidden states by the head's weight for one chunk of tokens at a time."""

    name: str
    """Its name in a recipe."""
    title: str
    """Its name in sentences."""
    package: str
    """The package on PyPI that has its kernels."""
    module: str
    """The package's module."""
    oldest: str
    """The first version of the package that allocates what is counted here."""
    counted: Literal["all", "labelled"]
    """Whether all B·S tokens are divided into chunks, or the B·(S − 1) that have a next token."""
    chunk_rows: Callable[[Any, int, int], Any]
    """Maps the divided tokens (a number, or an array of float64), V and h to the tokens of a chunk."""
    rule: str
    """`chunk_rows` in words."""
    tile_vocabulary: int | None = None
    """Vocabulary entries of the buffer for a tile of logits; None for all."""
    model_types: frozenset[str] | None = None
    """The model types whose loss it replaces; None for all."""

    def replaces_that_of(self, model_type: str) -> bool:
        """Return whether it replaces the loss of models of ``model_type``."""
        return self.model_types is None or model_type in self.model_types

    def chunk_count(self, tokens: int, vocab_size: int, hidden_size: int) -> int:
        """Return the number of chunks of ``tokens`` divided tokens, at least 1."""
        rows: int = self.chunk_rows(tokens, vocab_size, hidden_size)
        return -(-tokens // rows) or 1

    def last_chunk_rows(self, tokens: Any, vocab_size: int, hidden_size: int) -> Any:
        """Return the tokens of the last chunk: those that full chunks leave. ``tokens``: as in `chunk_rows`."""
        rows = self.chunk_rows(tokens, vocab_size, hidden_size)
        return (tokens - 1) % rows + 1

    def divided(self, batch_size: Any, seq_len: Any) -> Any:
        """Return the tokens that it divides into chunks."""
        return batch_size * (seq_len if self.counted == "all" else seq_len - 1)
