"""The scratch of an embedding's backward pass on CUDA, as read in torch 2.13 (EmbeddingBackwardKernel.cu).

Few tokens are added up in place. More are sorted first, so that those of one row follow each other, and each row is
summed up in parts before the parts are.
"""

from __future__ import annotations

from typing import Any

MOST_UNSORTED = 3072
"""Tokens that are added up in place."""
TOKENS_PER_PART = 10
"""Tokens that one thread adds up, all of one row."""


def embedding_scratch(tokens: Any, rows: int) -> tuple[tuple[Any, ...], Any]:
    """Return the sizes of the index tensors (int64), and the number of parts (float32, as wide as the embedding).

    ``tokens`` may be a number or an array; ``rows`` are those of the embedding.
    """
    sorts = tokens > MOST_UNSORTED
    distinct = (tokens + rows - abs(tokens - rows)) // 2  # the lesser of the two
    parts = tokens // TOKENS_PER_PART + distinct
    sizes = (tokens, tokens, tokens, distinct, distinct, parts)
    return tuple(sorts * size for size in sizes), sorts * parts
