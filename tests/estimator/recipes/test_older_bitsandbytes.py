"""Before bitsandbytes 0.43.2, 4-bit layers kept their inputs: by hand, and against rehearsals.

The rehearsals ran three steps on an A100 with bitsandbytes 0.50.2, whose `MatMul4Bit.forward` had the line of 0.43.1
that 0.43.2 changed: ``ctx.tensors = (A, B)``.
"""

from __future__ import annotations

from typing import Any

import pytest

from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import replayed_memory
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.resolved import ResolvedRecipe

LAYERS, HIDDEN, FEED_FORWARD, TOKENS = 16, 2048, 8192, 2048
"""Of Llama-3.2-1B."""


def qlora(model: str = "llama-3.2-1b", **options: Any) -> ResolvedRecipe:
    return recipe_for(find_model(model), method="qlora", lora_dropout=0.0, **options)


def more(**options: Any) -> int:
    """Return the bytes that the older version needs more at the peak."""
    older, newer = (
        estimate_memory(qlora(bitsandbytes=version, **options)).peak_allocated_bytes for version in ("0.43.1", None)
    )
    return older - newer


def test_checkpointed_layers_keep_the_inputs_of_their_4_bit_layers() -> None:
    """One tensor for q, k and v, one for o, one for gate and up, one for down; or one for each that is cast."""
    each = 2 * LAYERS * TOKENS
    assert more() == each * (3 * HIDDEN + FEED_FORWARD)
    assert more(prepare_kbit=True) == each * (6 * HIDDEN + FEED_FORWARD)


def test_reentrant_checkpointing_keeps_none_of_them_until_the_peak() -> None:
    assert more(use_reentrant=True) == 0


def test_what_adapters_keep_anyway_is_kept_once() -> None:
    assert more(gradient_checkpointing=False) == 0
    assert more(gradient_checkpointing=False, target_modules="attention") > 0


@pytest.mark.parametrize(
    ("model", "options", "requested", "reserved"),
    [
        ("llama-3.2-1b", {}, 5_423_002_188, 6_144_655_360),
        ("llama-3.2-1b", {"prepare_kbit": True}, 7_011_205_708, 7_956_594_688),
        ("llama-3.2-1b", {"prepare_kbit": True, "gradient_checkpointing": False}, 11_902_329_804, 12_601_786_368),
        (
            "llama-3.2-1b",
            {"prepare_kbit": True, "use_reentrant": True, "batch_size": 2, "seq_len": 1024},
            5_668_495_948,
            6_645_874_688,
        ),
        (
            "qwen2.5-0.5b",
            {
                "target_modules": "attention",
                "gradient_checkpointing": False,
                "batch_size": 2,
                "seq_len": 1024,
            },
            6_890_542_892,
            7_778_336_768,
        ),
    ],
)
def test_the_estimate_agrees_with_rehearsals(
    model: str, options: dict[str, Any], requested: int, reserved: int
) -> None:
    memory = replayed_memory(qlora(model, bitsandbytes="0.43.1", **options), "cuda", "8.0", 108)
    assert memory.peak_requested_bytes == pytest.approx(requested, rel=0.00001)
    assert memory.peak_reserved_bytes == pytest.approx(reserved, rel=0.004)
