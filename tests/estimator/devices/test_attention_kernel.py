"""Which attention kernel a GPU takes, compared with the conditions of torch's sdp_utils.cpp one by one."""

from __future__ import annotations

from typing import Any

import pytest

from lorabench.estimator.devices.attention_kernel import sdpa_kernel

LLAMA: dict[str, Any] = {
    "dtype": "bfloat16",
    "head_dim": 128,
    "value_dim": 128,
    "heads": 32,
    "kv_heads": 8,
    "masked": False,
    "dropout": 0.0,
    "compute_capability": "8.0",
}
GROUPED = {"kv_heads": 8}
ALL_HEADS = {"kv_heads": 32}
T4 = {"compute_capability": "7.5"}


def kernel(**changes: Any) -> str:
    return sdpa_kernel(**(LLAMA | changes))


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "12.0", None, "gfx942"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_gpus_since_the_a100_take_flash_attention_for_16_bits(capability: str | None, dtype: str) -> None:
    assert kernel(dtype=dtype, compute_capability=capability) == "flash"


# The kernels without dropout and with dropout of 0.1. They are those of `torch._fused_sdp_choice` in torch 2.13 with
# cuDNN 9.20, rehearsed on an H100, a B200 and a B300.
@pytest.mark.parametrize(
    ("head", "masked", "kv_heads", "on_hopper", "on_blackwell"),
    [
        ((64, 64), False, 32, ("cudnn", "flash"), ("cudnn", "flash")),
        ((128, 128), False, 8, ("cudnn", "flash"), ("cudnn", "flash")),
        ((128, 128), True, 32, ("cudnn", "efficient"), ("cudnn", "efficient")),
        ((128, 128), True, 8, ("cudnn", "math"), ("cudnn", "math")),
        ((84, 84), False, 8, ("flash", "flash"), ("flash", "flash")),
        ((84, 84), True, 32, ("math", "math"), ("math", "math")),
        ((192, 128), False, 32, ("cudnn", "efficient"), ("cudnn", "efficient")),
        ((256, 256), False, 8, ("cudnn", "flash"), ("flash", "flash")),
        ((256, 256), True, 32, ("cudnn", "efficient"), ("efficient", "efficient")),
        ((264, 264), False, 32, ("efficient", "efficient"), ("efficient", "efficient")),
    ],
)
def test_hopper_and_data_centre_blackwell_prefer_cudnn(
    head: tuple[int, int], masked: bool, kv_heads: int, on_hopper: tuple[str, str], on_blackwell: tuple[str, str]
) -> None:
    settings = {"head_dim": head[0], "value_dim": head[1], "masked": masked, "kv_heads": kv_heads}
    for capability, expected in (("9.0", on_hopper), ("10.0", on_blackwell), ("10.3", on_blackwell)):
        taken = tuple(kernel(**settings, dropout=dropout, compute_capability=capability) for dropout in (0.0, 0.1))
        assert taken == expected


def test_cudnn_takes_dropout_in_sixteenths() -> None:
    hopper = {"compute_capability": "9.0"}
    assert {kernel(**hopper, dropout=dropout) for dropout in (0.0625, 0.125, 0.25, 0.5)} == {"cudnn"}
    assert {kernel(**hopper, dropout=dropout) for dropout in (0.05, 0.1, 0.3)} == {"flash"}


def test_cudnn_does_not_take_float32() -> None:
    assert kernel(**ALL_HEADS, dtype="float32", compute_capability="9.0") == "efficient"


def test_before_ampere_there_is_no_flash_attention_and_grouped_heads_leave_only_the_math_kernel() -> None:
    assert kernel(**T4, **ALL_HEADS, dtype="float16") == "efficient"
    assert kernel(**T4, **GROUPED, dtype="float16") == "math"


def test_before_ampere_the_efficient_kernel_does_not_take_bfloat16() -> None:
    assert kernel(**T4, **ALL_HEADS, dtype="bfloat16") == "math"


def test_flash_attention_takes_neither_masks_nor_float32() -> None:
    for change in ({"masked": True}, {"dtype": "float32"}):
        assert kernel(**change, **ALL_HEADS) == "efficient"
        assert kernel(**change, **GROUPED) == "math"


@pytest.mark.parametrize(("capability", "taken"), [("8.0", "flash"), ("8.6", "efficient"), ("8.9", "efficient")])
def test_wide_heads_need_an_a100s_shared_memory_to_train_with_flash_attention(capability: str, taken: str) -> None:
    assert kernel(**ALL_HEADS, head_dim=224, value_dim=224, compute_capability=capability) == taken


def test_heads_of_256_train_on_little_shared_memory_only_without_dropout() -> None:
    wide = {"head_dim": 256, "value_dim": 256, "compute_capability": "12.0", **ALL_HEADS}
    assert kernel(**wide) == "flash"
    assert kernel(**wide, dropout=0.1) == "efficient"


def test_heads_wider_than_256_take_the_efficient_kernel() -> None:
    assert kernel(**ALL_HEADS, head_dim=264, value_dim=264) == "efficient"


def test_values_of_another_width_take_the_efficient_kernel() -> None:
    assert kernel(**ALL_HEADS, head_dim=192, value_dim=128) == "efficient"


def test_rows_that_tensor_cores_cannot_read_take_the_math_kernel() -> None:
    odd = {"head_dim": 84, "value_dim": 84, "masked": True, **ALL_HEADS}  # 84 · 2 B is no multiple of 16 B
    assert kernel(**odd) == "math"
    assert kernel(**odd, dtype="float32") == "efficient"
