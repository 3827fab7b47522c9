"""Scratch memory of an embedding's backward pass on CUDA, as in torch 2.13 (EmbeddingBackwardKernel.cu).

A few tokens are added in place. More tokens are sorted by row first; each row is then summed in parts, and the parts
are summed.
"""

from __future__ import annotations

from typing import Any

MOST_UNSORTED = 3072
"""Up to this many tokens are added in place."""
TOKENS_PER_PART = 10
"""Tokens of one row that one thread sums."""


def embedding_scratch(tokens: Any, rows: int) -> tuple[tuple[Any, ...], Any]:
    """Return the elements of each int64 index tensor, and the number of partial sums, each (h,) in float32.

    ``tokens``: a number or an array. ``rows``: rows of the embedding table.
    """
    sorts = tokens > MOST_UNSORTED
    distinct = (tokens + rows - abs(tokens - rows)) // 2  # the lesser of the two
    parts = tokens // TOKENS_PER_PART + distinct
    sizes = (tokens, tokens, tokens, distinct, distinct, parts)
    return tuple(sorts * size for size in sizes), sorts * parts
