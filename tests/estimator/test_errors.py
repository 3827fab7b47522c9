"""The nearest valid choice to what people wrote."""

from __future__ import annotations

import pytest

from lorabench.estimator.errors import did_you_mean

OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adamw_8bit", "lion_8bit", "sgd")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("adamw", "did you mean adamw_torch_fused or adamw_torch or adamw_8bit?"),
        ("AdamW-torch", "did you mean adamw_torch_fused or adamw_torch?"),
        ("adam_8bit", "did you mean adamw_8bit?"),
        ("rmsprop", "choose from adamw_8bit, adamw_torch, adamw_torch_fused, lion_8bit, sgd"),
        ("", "choose from adamw_8bit, adamw_torch, adamw_torch_fused, lion_8bit, sgd"),
    ],
)
def test_a_word_that_names_begin_with_means_one_of_them_and_any_other_the_most_alike(word: str, said: str) -> None:
    assert did_you_mean(word, OPTIMIZERS) == said


def test_a_beginning_of_many_names_means_the_most_alike_and_many_names_are_not_all_said() -> None:
    names = [f"llama-{size}b" for size in range(20)]
    assert did_you_mean("llama-1", names) == "did you mean llama-1b?"
    assert did_you_mean("zzz", names) == "20 are known, such as llama-0b, llama-10b, llama-11b"
