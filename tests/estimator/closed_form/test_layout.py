"""Views, copies and strides, as torch decides them."""

from __future__ import annotations

import random

import pytest
import torch

from lorabench.estimator.closed_form.layout import (
    LENGTH,
    Dim,
    Sizes,
    Unsupported,
    contiguous,
    elementwise,
    is_contiguous,
    viewed,
)
from lorabench.estimator.closed_form.sizes import ONE, TOKENS, B, S

SHAPES = [(2, 6, 4), (1, 6, 8), (3, 1, 5, 4), (2, 3, 4, 5), (4, 2, 1, 6)]
TARGETS = {
    (2, 6, 4): [(12, 4), (2, 24), (2, 6, 2, 2), (48,), (2, 3, 2, 4), (4, 3, 4)],
    (1, 6, 8): [(6, 8), (1, 48), (1, 6, 2, 4), (48,)],
    (3, 1, 5, 4): [(3, 20), (15, 4), (3, 5, 4), (60,)],
    (2, 3, 4, 5): [(6, 20), (2, 12, 5), (2, 3, 20), (120,), (24, 5)],
    (4, 2, 1, 6): [(8, 6), (4, 12), (48,), (4, 2, 6)],
}


def _tensors(draw: random.Random, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of ``shape``: permuted, sliced or expanded at random."""
    order = list(range(len(shape)))
    draw.shuffle(order)
    sizes = [shape[dim] for dim in order]
    if draw.random() < 0.3:
        sizes[-1] += 2
    tensor = torch.empty(sizes)[..., : shape[order[-1]]]
    back = sorted(range(len(shape)), key=lambda dim: order[dim])
    tensor = tensor.permute(back)
    if draw.random() < 0.2:
        tensor = tensor[:1].expand(shape)
    return tensor


@pytest.mark.parametrize("shape", SHAPES)
def test_a_view_exists_if_torch_has_one(shape: tuple[int, ...]) -> None:
    draw = random.Random(7)
    for _ in range(60):
        tensor = _tensors(draw, shape)
        for target in TARGETS[shape]:
            found = viewed(shape, tensor.stride(), target)
            try:
                view = tensor.view(target)
            except RuntimeError:
                assert found is None, (tensor.stride(), target)
                continue
            assert found is not None, (tensor.stride(), target)
            assert torch.equal(
                torch.empty_strided(target, found).new_zeros(()), torch.zeros(())
            )  # the strides are possible
            assert [step for step, size in zip(found, target, strict=True) if size > 1] == [
                step for step, size in zip(view.stride(), target, strict=True) if size > 1
            ]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_result_of_an_elementwise_operation_has_the_strides_of_torchs(shape: tuple[int, ...]) -> None:
    draw = random.Random(11)
    for _ in range(100):
        first, second = _tensors(draw, shape), _tensors(draw, shape)
        if draw.random() < 0.3:
            second = second[..., :1]
        result = first * second
        found = elementwise(shape, (first.shape, first.stride()), (second.shape, second.stride()))
        assert _of_large(found, shape) == _of_large(result.stride(), shape), (first.stride(), second.stride())


def _of_large(strides: tuple[int, ...], shape: tuple[int, ...]) -> list[int]:
    return [step for step, size in zip(strides, shape, strict=True) if size > 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_contiguous_tensors_are_those_that_torch_calls_contiguous(shape: tuple[int, ...]) -> None:
    draw = random.Random(13)
    assert contiguous(shape) == torch.empty(shape).stride()
    for _ in range(40):
        tensor = _tensors(draw, shape)
        assert is_contiguous(shape, tensor.stride()) == tensor.is_contiguous()


def test_dimensions_divide_if_the_quotient_is_one() -> None:
    assert Dim(12, TOKENS).divided(Dim(3, S)) == Dim(4, B)
    assert Dim(12, TOKENS).divided(Dim(12, TOKENS)) == Dim(1, ONE)
    for other in (Dim(5, S), Dim(1, S * S)):
        with pytest.raises(Unsupported, match="no multiple"):
            Dim(12, TOKENS).divided(other)


def test_a_length_and_a_number_are_a_dimension() -> None:
    length = Dim(1, S)
    padded = length.plus(Dim(3))
    assert Sizes(several=True).number(padded) == LENGTH + 3
    assert padded.plus(Dim(-3)) == length
    assert padded.plus(Dim(-1, S)) == Dim(3)
    assert Dim(3).plus(length) == padded
    with pytest.raises(Unsupported, match="sum"):
        padded.plus(length)
