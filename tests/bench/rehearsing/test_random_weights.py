"""A checkpoint without bytes is one that transformers loads: all names, types and shapes, and no space on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from lorabench.bench.rehearsing.random_weights import write_hollow

SIZES: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 32000,
}


@pytest.mark.parametrize("tied", [False, True])
def test_a_hollow_checkpoint_lacks_nothing_but_bytes(tmp_path: Path, tied: bool) -> None:
    config = AutoConfig.for_model("llama", **SIZES, tie_word_embeddings=tied, dtype="bfloat16")
    write_hollow(LlamaForCausalLM, config, tmp_path)
    file = tmp_path / "model.safetensors"
    assert file.stat().st_size > 2 * 512 * 32000
    assert 512 * file.stat().st_blocks < 2**20
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not any(info.values()), info
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert sum(weight.abs().sum().item() for weight in model.parameters()) == 0


def test_a_hollow_checkpoint_has_the_dtype_of_the_config_also_with_transformers_4(tmp_path: Path) -> None:
    class Older(LlamaForCausalLM):  # type: ignore[misc]
        @classmethod
        def _from_config(cls, config: Any, torch_dtype: Any = None) -> Any:
            return cls(config)

    write_hollow(Older, AutoConfig.for_model("llama", **SIZES, dtype="bfloat16"), tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_weights_that_are_quantised_already_are_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("llama", **SIZES, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ValueError, match="cannot replace weights"):
        write_hollow(LlamaForCausalLM, config, tmp_path)
