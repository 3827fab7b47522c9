"""Parameter counts: by hand for models that people fine-tune, and as peft really builds them for every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.adapter_file import adapter_file_bytes
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.training.model import build_model
from tests.small_models import FAMILIES, MIXTURES, small_model

pytestmark = pytest.mark.filterwarnings("ignore")

NAMES = {
    "gpt2": "mlp.c_proj",
    "gpt_neox": "query_key_value,dense",
    "phi3": "qkv_proj,gate_up_proj",
    "mixtral": "v_proj,q_proj",
    "qwen3_moe": "o_proj",
}
"""Some linear layers of each family, by names that users would give."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_as_many_train_as_in_the_model_that_peft_builds(method: str, family: str) -> None:
    spec = small_model(family)
    targets: list[str | None] = [None]
    if method != "full":
        targets = ["all-linear", "attention", NAMES.get(family, "down_proj,k_proj")]
    if method != "full" and family not in MIXTURES:
        targets.append("mlp")
    for target in targets:
        options: dict[str, Any] = {"method": method, "attn_implementation": "eager", "target_modules": target}
        if method != "full":
            options |= {"rank": 5, "lora_dropout": 0.0 if family in MIXTURES else 0.05}
        recipe = make_recipe(spec.name, **options)
        model = build_model(ResolvedRecipe(spec, recipe), "meta")
        counts = ResolvedRecipe(spec, recipe).parameters
        unpacked = {
            name: parameter.quant_state.shape.numel() if hasattr(parameter, "quant_state") else parameter.numel()
            for name, parameter in model.named_parameters()
        }
        adapters = [count for name, count in unpacked.items() if ".lora_" in name]
        assert counts.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad), target
        assert counts.adapter == sum(adapters), target
        assert counts.total == sum(unpacked.values()), target
        assert counts.quantized == sum(
            p.quant_state.shape.numel() for p in model.parameters() if hasattr(p, "quant_state")
        )
        assert sum(counts.by_part.values()) == counts.total - counts.adapter


@pytest.mark.parametrize(
    ("model", "rank", "targets", "adapter"),
    [
        # 32 layers; q, o: 4096 → 4096; k, v: 4096 → 1024; gate, up: 4096 → 14336; down: 14336 → 4096
        ("meta-llama/Llama-3.1-8B", 16, "all-linear", 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432)),
        ("meta-llama/Llama-3.1-8B", 16, "all-linear", 41_943_040),
        ("meta-llama/Llama-3.1-8B", 16, "attention", 13_631_488),
        ("meta-llama/Llama-3.1-8B", 16, "mlp", 32 * 16 * 3 * 18432),
        ("meta-llama/Llama-3.1-8B", 8, "q_proj,v_proj", 32 * 8 * (8192 + 5120)),
        # 4 × (4096 → 4096) and 3 × (4096 ↔ 11008)
        ("meta-llama/Llama-2-7b-hf", 8, "all-linear", 32 * 8 * (4 * 8192 + 3 * 15104)),
        ("meta-llama/Llama-2-7b-hf", 8, "all-linear", 19_988_480),
        ("meta-llama/Llama-2-7b-hf", 8, "q_proj,v_proj", 4_194_304),
        ("meta-llama/Llama-2-70b-hf", 16, "all-linear", 207_093_760),
        # 12 layers; c_attn: 768 → 2304; c_proj: 768 → 768; c_fc: 768 → 3072 and back
        ("openai-community/gpt2", 4, "all-linear", 12 * 4 * (3072 + 1536 + 3840 + 3840)),
        ("openai-community/gpt2", 4, "c_proj", 12 * 4 * (1536 + 3840)),
    ],
)
def test_adapters_have_rank_times_in_and_out(model: str, rank: int, targets: str, adapter: int) -> None:
    spec = find_model(model)
    for method in ("lora", "qlora"):
        counts = ResolvedRecipe(spec, make_recipe(model, method=method, rank=rank, target_modules=targets)).parameters
        assert counts.adapter == counts.trainable == adapter
        assert counts.total == spec.parameters + adapter


@pytest.mark.parametrize(
    ("rank", "adapter", "share_saved"),
    [(8, 65_536, 0.996), (16, 131_072, 0.992), (32, 262_144, 0.984), (64, 524_288, 0.969)],
)
def test_one_square_layer_of_4096(rank: int, adapter: int, share_saved: float) -> None:
    spec = find_model("meta-llama/Llama-2-7b-hf")
    counts = ResolvedRecipe(spec, make_recipe(spec.name, rank=rank, target_modules="o_proj")).parameters
    assert counts.adapter == 32 * adapter
    assert 1 - adapter / 4096**2 == pytest.approx(share_saved, abs=5e-4)


def test_qlora_quantises_the_layers_linears_and_nothing_else() -> None:
    spec = find_model("meta-llama/Llama-3.1-8B")
    counts = ResolvedRecipe(spec, make_recipe(spec.name, method="qlora")).parameters
    embedding = head = 128_256 * 4096
    norms = (2 * 32 + 1) * 4096
    assert counts.quantized == 6_979_321_856 == spec.parameters - embedding - head - norms


@pytest.mark.parametrize("adapter_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "targets", "modules"),
    [
        ("llama", "all-linear", 7),
        ("gpt2", "attention", 2),
        ("gpt_neox", "mlp", 2),
        ("qwen3_moe", "o_proj", 1),
        ("mixtral", "all-linear", 4 + 1 + 2),
    ],
)
def test_an_adapter_file_has_the_bytes_that_peft_writes(
    family: str, targets: str, modules: int, adapter_dtype: str, tmp_path: Path
) -> None:
    spec = small_model(family, num_hidden_layers=12)
    recipe = make_recipe(spec.name, rank=3, target_modules=targets, adapter_dtype=adapter_dtype, lora_dropout=0.0)
    model: Any = build_model(ResolvedRecipe(spec, recipe), "cpu")
    model.save_pretrained(tmp_path)
    written = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert adapter_file_bytes(ResolvedRecipe(spec, recipe)) == len(written)
    header = json.loads(written[8 : 8 + int.from_bytes(written[:8], "little")])
    assert len(header.keys() - {"__metadata__"}) == 2 * 12 * modules


def test_full_fine_tuning_writes_no_adapter() -> None:
    spec = small_model("llama")
    assert adapter_file_bytes(ResolvedRecipe(spec, make_recipe(spec.name, method="full"))) is None
