"""Sizes as expressions of a config's sizes."""

from __future__ import annotations

import pytest

from lorabench.estimator.models.expressions import evaluated, value

SIZES = {"hidden_size": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("=hidden_size", 4096),
        ("=hidden_size/heads", 128),
        ("=3*hidden_size/2", 6144),
        ("=heads*head_dim+2*kv_heads*head_dim", 6144),
        ("=hidden_size+-1*head_dim", 3968),
        ("=kv_heads*hidden_size/heads", 1024),
    ],
)
def test_an_expression_has_the_value_that_arithmetic_gives(expression: str, expected: int) -> None:
    assert value(expression, SIZES) == expected


def test_an_expression_that_is_no_whole_number_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size/heads is no whole number"):
        value("=hidden_size/heads", {"hidden_size": 100, "heads": 3})


def test_a_tree_keeps_all_but_its_expressions() -> None:
    tree = {"shape": ["=heads", 7, "text"], "bias": False}
    assert evaluated(tree, SIZES) == {"shape": [32, 7, "text"], "bias": False}
