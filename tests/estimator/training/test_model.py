"""What `build_model` makes is what transformers, bitsandbytes and peft make, and every method starts alike."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabench.estimator.errors import UserError
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.models.spec import ModelSpec
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.recipes.recipe import Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.model_tensors import model_bytes
from lorabench.estimator.trace.storages import StorageLedger
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.optimizer import make_optimizer
from lorabench.estimator.training.step import TrainingStep
from tests.small_models import TINY, small_config

pytestmark = pytest.mark.filterwarnings("ignore")

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": small_config("llama", **TINY),
    "gpt2": {"model_type": "gpt2", "vocab_size": 300, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "gemma2": small_config("gemma2", head_dim=16, **TINY),
    "gpt_neox": small_config("gpt_neox", **TINY),
    "qwen3_moe": small_config("qwen3_moe", head_dim=16, moe_intermediate_size=32, **TINY),
}
LLAMA_LINEARS = {  # in, out
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (64, 32),
    "self_attn.v_proj": (64, 32),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (64, 128),
    "mlp.up_proj": (64, 128),
    "mlp.down_proj": (128, 64),
}
GPT2_LINEARS = {
    "attn.c_attn": (64, 192),
    "attn.c_proj": (64, 64),
    "mlp.c_fc": (64, 256),
    "mlp.c_proj": (256, 64),
}


def spec(family: str) -> ModelSpec:
    return read_config(CONFIGS[family], f"test/{family}")


def build(family: str, device: Any = "cpu", **options: Any) -> tuple[Any, Recipe]:
    recipe = make_recipe(f"test/{family}", **{"batch_size": 2, "seq_len": 16, **options})
    return build_model(ResolvedRecipe(spec(family), recipe), device, seed=3), recipe


def base_weights(model: Any) -> dict[str, Any]:
    """The base model's tensors by their names before adapters."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): tensor
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }


@pytest.mark.parametrize("family", CONFIGS)
def test_a_materialised_model_computes_what_transformers_own_does_with_the_same_weights(family: str) -> None:
    """So buffers that no checkpoint holds (rotary frequencies, embedding scales) are right too."""
    from transformers import AutoConfig, AutoModelForCausalLM

    attention = "eager" if family == "gemma2" else "sdpa"  # transformers has no other for it
    model, _ = build(family, method="full", gradient_checkpointing=False, attn_implementation=attention)
    config = AutoConfig.for_model(**spec(family).config)
    own = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    own.load_state_dict(model.state_dict())
    tokens = torch.arange(32).reshape(2, 16)
    model.eval()
    own.eval()
    assert torch.equal(model(input_ids=tokens).logits, own(input_ids=tokens).logits)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_weights_are_drawn_as_the_architecture_is_initialised(family: str) -> None:
    model, _ = build(family, method="full")
    for name, weight in model.named_parameters():
        if "bias" in name:
            assert not weight.any(), name
        elif "norm" in name or "ln_" in name:
            assert (weight == 1).all(), name
        else:
            residual = family == "gpt2" and name.endswith("c_proj.weight")
            expected = 0.02 / math.sqrt(2 * 2) if residual else 0.02  # GPT-2: 1/√(2 · layers) on the residual path
            assert weight.std().item() == pytest.approx(expected, rel=0.08), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_method_starts_from_the_same_base_weights(family: str) -> None:
    import bitsandbytes

    full = base_weights(build(family, method="full", dtype="bfloat16")[0])
    lora = base_weights(build(family, method="lora")[0])
    quantized, _ = build(family, method="qlora", prepare_kbit=False)
    assert full.keys() == lora.keys()
    assert all(torch.equal(full[name], lora[name]) for name in full)
    for name, module in quantized.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            plain = full[name.removeprefix("base_model.model.").replace(".base_layer", "") + ".weight"]
            unpacked = bitsandbytes.functional.dequantize_4bit(module.weight, module.weight.quant_state)
            error = (unpacked - (plain.T if family == "gpt2" else plain)).abs().max()
            assert error < 0.25 * plain.abs().max()  # the widest gap of NF4 is 0.304 of the block's maximum


def tensors_of(model: Any) -> dict[str, tuple[Any, ...]]:
    """Shape, dtype and training of every parameter, with its quantisation constants."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, parameter in model.named_parameters():
        found[name] = (type(parameter), tuple(parameter.shape), parameter.dtype, parameter.requires_grad)
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            constants = [
                state.absmax,
                state.code,
                state.offset,
                *([state.state2.absmax, state.state2.code] if state.nested else []),
            ]
            found[f"{name} constants"] = tuple((value.dtype, value.shape) for value in constants if value is not None)
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("quant_type", "double_quant"), [("nf4", True), ("fp4", False)])
def test_quantised_models_hold_what_from_pretrained_loads(
    tmp_path: Path, family: str, quant_type: str, double_quant: bool
) -> None:
    plain, _ = build(family, method="full", dtype="bfloat16")
    plain.save_pretrained(tmp_path)
    options = {"method": "qlora", "quant_type": quant_type, "double_quant": double_quant}
    made, recipe = build(family, **options)
    loaded = build_model(ResolvedRecipe(spec(family), recipe), "cpu", weights=str(tmp_path))
    assert tensors_of(made) == tensors_of(loaded)
    codes = {name: tensor for name, tensor in base_weights(made).items() if tensor.dtype == torch.uint8}
    assert codes
    assert all(torch.equal(tensor, base_weights(loaded)[name]) for name, tensor in codes.items())


@pytest.mark.parametrize(("family", "linears"), [("llama", LLAMA_LINEARS), ("gpt2", GPT2_LINEARS)])
@pytest.mark.parametrize("double_quant", [True, False])
def test_quantised_weights_take_half_a_byte_and_their_constants(
    family: str, linears: dict[str, tuple[int, int]], double_quant: bool
) -> None:
    model, _ = build(family, method="qlora", double_quant=double_quant)
    expected = 0
    for inputs, outputs in linears.values():
        blocks = math.ceil(inputs * outputs / 64)
        constants = blocks + 4 * math.ceil(blocks / 256) + 16 * 4 + 256 * 4 + 4 if double_quant else 4 * blocks + 16 * 4
        expected += inputs * outputs // 2 + constants
    taken = 0
    for parameter in model.parameters():
        if parameter.dtype == torch.uint8:
            state = parameter.quant_state
            tensors = [parameter, state.absmax, state.code]
            tensors += [state.offset, state.state2.absmax, state.state2.code] if double_quant else []
            taken += sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert taken == 2 * expected  # two layers


@pytest.mark.parametrize(
    ("family", "one_layer"),
    # The largest linear layer; of GPT-2 a block, and a copy of one of its transposed weights, turned around.
    [("llama", 2 * 256 * 1024), ("gpt2", 2 * (256 * 768 + 256 * 256 + 2 * 256 * 1024) + 2 * 256 * 1024)],
)
def test_quantised_models_are_built_without_ever_holding_more_than_one_layer_in_full(
    family: str, one_layer: int
) -> None:
    sizes = {
        "llama": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6},
        "gpt2": {"n_embd": 256, "n_layer": 6},
    }
    wide = read_config({**CONFIGS[family], **sizes[family]}, "test/wide")
    recipe = make_recipe("test/wide", method="qlora", prepare_kbit=False, rank=1)
    loaded: list[int] = []
    ledger = StorageLedger("cpu")
    with ledger:
        ledger.begin_step()
        ledger.begin_phase("loaded")
        build_model(
            ResolvedRecipe(wide, recipe), "cpu", on_loaded=lambda model: loaded.append(model_bytes(model, "cpu"))
        )
    peak = max(live for _, _, live in ledger.live_bytes_of_step())
    linears = {"llama": 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 1024, "gpt2": 12 * 256**2}[family]
    others = {"llama": 2 * 300 * 256 + 13 * 256, "gpt2": (300 + 32) * 256 + 13 * 2 * 256 + 6 * 9 * 256}[family]
    nf4 = 6 * linears * (0.5 + 1 / 64 + 4 / (64 * 256)) + 2 * others
    assert loaded[0] == pytest.approx(nf4, rel=0.03)  # codebooks and rotary tables besides
    assert loaded[0] < peak <= loaded[0] + one_layer
    assert peak < 6 * linears * 2 / 1.5  # bytes of the whole in full


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize(
    ("family", "targets", "adapted"),
    [
        ("llama", "all-linear", list(LLAMA_LINEARS)),
        ("llama", "attention", [name for name in LLAMA_LINEARS if "attn" in name]),
        ("llama", "mlp", [name for name in LLAMA_LINEARS if "mlp" in name]),
        ("llama", "v_proj,q_proj", ["self_attn.q_proj", "self_attn.v_proj"]),
        ("gpt2", "all-linear", list(GPT2_LINEARS)),
        ("gpt2", "attention", ["attn.c_attn", "attn.c_proj"]),
        ("gpt2", "mlp", ["mlp.c_fc", "mlp.c_proj"]),
        ("gpt2", "c_proj", ["attn.c_proj", "mlp.c_proj"]),
        ("gpt2", "mlp.c_proj", ["mlp.c_proj"]),
    ],
)
def test_adapters_are_on_the_named_linear_layers(method: str, family: str, targets: str, adapted: list[str]) -> None:
    model, _ = build(family, "meta", method=method, target_modules=targets, rank=5)
    linears = LLAMA_LINEARS if family == "llama" else GPT2_LINEARS
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == 2 * sum(5 * sum(linears[name]) for name in adapted)


@pytest.mark.parametrize("adapter_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_have_the_recipes_dtype_and_nothing_else_trains(method: str, adapter_dtype: str) -> None:
    model, _ = build("llama", method=method, adapter_dtype=adapter_dtype)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        if parameter.requires_grad:
            assert str(parameter.dtype) == f"torch.{adapter_dtype}"


def test_preparation_raises_what_is_not_quantised_to_float32() -> None:
    for prepared, expected in ((True, torch.float32), (False, torch.bfloat16)):
        model, _ = build("llama", method="qlora", prepare_kbit=prepared)
        others = {p.dtype for name, p in model.named_parameters() if p.dtype != torch.uint8 and ".lora_" not in name}
        assert others == {expected}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_recast_lowers_embeddings_and_head_with_their_copies_and_nothing_else(family: str) -> None:
    """As TRL's `peft_module_casting_to_bf16`, which does not know GPT-NeoX's ``embed_in`` by its name."""
    for saved in (None, "lm_head"):
        model, _ = build(family, method="qlora", recast=True, modules_to_save=saved)
        lowered = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}
        modules = {name.removesuffix(".weight").rpartition("model.")[2].split(".")[-1] for name in lowered}
        modules = {"lm_head" if name in ("default", "original_module") else name for name in modules}
        tied = spec(family).tie_word_embeddings and saved is None
        tables = {"gpt2": {"wte", "wpe"}, "gpt_neox": set()}.get(family, {"embed_tokens"})
        assert modules == (tables if tied else {*tables, "lm_head"})
        others = [name for name, p in model.named_parameters() if name not in lowered and p.dtype != torch.uint8]
        assert all(model.get_parameter(name).dtype == torch.float32 for name in others)
        assert any("norm" in name or "ln_" in name for name in others)


def test_quantising_on_meta_leaves_later_quantisation_alone() -> None:
    build("llama", "meta", method="qlora")
    model, _ = build("llama", method="qlora")
    tokens = torch.arange(32).reshape(2, 16)
    loss = model(input_ids=tokens, labels=tokens).loss.item()
    assert loss == pytest.approx(math.log(300), rel=0.05)  # an untrained model guesses


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_meta_model_has_the_tensors_of_a_real_one_and_takes_no_memory(method: str) -> None:
    meta, _ = build("llama", "meta", method=method)
    real, _ = build("llama", method=method)
    assert tensors_of(meta) == tensors_of(real)
    assert all(parameter.is_meta for parameter in meta.parameters())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_an_optimizer_s_package_that_is_missing_is_named(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else there(name))
    with pytest.raises(
        UserError, match="optim adamw_8bit needs the package bitsandbytes: pip install bitsandbytes, or"
    ):
        build("llama", device, optim="adamw_8bit")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            {"attn_implementation": "flash_attention_2"},
            "runs on CUDA only, and this is cpu: use attn_implementation sdpa",
        ),
        ({"loss": "liger"}, "runs on CUDA only, and this is cpu: use loss standard"),
        ({"method": "qlora", "bitsandbytes": "0.43.1"}, "bitsandbytes 0.43.1: only estimate and plan know it"),
        ({"empty_cache_steps": 1}, "the cache of CUDA's allocator, and this is cpu: leave it out"),
        ({"optim": "paged_adamw_8bit"}, "use adamw_8bit"),
        ({"optim": "paged_adamw_32bit"}, "use adamw_torch"),
        ({"optim": "paged_lion_32bit"}, "use lion_32bit"),
        ({"target_modules": "q_prj"}, "did you mean q_proj?"),
    ],
)
def test_what_cannot_run_here_is_refused_with_the_way_out(options: dict[str, str], complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        build("llama", **options)
    assert complaint in str(refused.value)


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    recipe = make_recipe("test/llama")
    with pytest.raises(UserError, match="cannot load them"):
        build_model(ResolvedRecipe(spec("llama"), recipe), "cpu", weights=str(tmp_path))


def batches(recipe: Recipe) -> list[dict[str, Any]]:
    made = []
    for start in range(recipe.gradient_accumulation):
        tokens = (torch.arange(recipe.tokens) * 7 + start).reshape(recipe.batch_size, recipe.seq_len) % 300
        made.append({"input_ids": tokens, "labels": tokens.clone()})
    return made


@pytest.mark.parametrize("optim", [name for name, one in OPTIMIZERS.items() if not one.paged])
def test_every_optimizer_trains(optim: str) -> None:
    model, recipe = build("llama", method="lora", optim=optim, mixed_precision="no", dtype="float32")
    optimizer = make_optimizer(model, recipe)
    for group in optimizer.param_groups:
        group["lr"] = 0.1  # so that one plain SGD step shows in every weight
    step = TrainingStep(model, optimizer, recipe)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    steps = OPTIMIZERS[optim].steady_step + 1
    losses = [step(batches(recipe)).item() for _ in range(steps)]
    changed = [
        not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True) if new.requires_grad
    ]
    assert all(math.isfinite(loss) for loss in losses)
    # Once B has left zero, both A and B get gradients.
    assert all(changed)
    assert all(
        torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True) if not new.requires_grad
    )


def test_no_kernels_of_triton_are_asked_for_on_a_cpu_whether_or_not_triton_is_installed() -> None:
    optimizer = make_optimizer(*build("llama", method="lora", optim="stable_adamw"))
    assert [group["triton"] for group in optimizer.param_groups] == [False]


@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_every_method_learns_a_repeated_batch(method: str, mixed_precision: str) -> None:
    dtype = "float16" if (method, mixed_precision) == ("qlora", "fp16") else None  # autocast refuses the default
    model, recipe = build("llama", method=method, mixed_precision=mixed_precision, dtype=dtype, optim="adamw_torch")
    optimizer = make_optimizer(model, recipe)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    step = TrainingStep(model, optimizer, recipe)
    losses = [step(batches(recipe)).item() for _ in range(8)]
    assert losses[-1] < losses[0] - 0.1


def test_accumulated_batches_train_like_one_large_batch() -> None:
    settings = {"method": "full", "mixed_precision": "no", "optim": "sgd", "seq_len": 16}
    large, recipe = build("llama", batch_size=4, **settings)
    whole = batches(recipe)[0]
    large_loss = TrainingStep(large, make_optimizer(large, recipe), recipe)([whole])
    small, recipe = build("llama", batch_size=2, gradient_accumulation=2, **settings)
    halves = [{name: tensor[rows] for name, tensor in whole.items()} for rows in (slice(0, 2), slice(2, 4))]
    small_loss = TrainingStep(small, make_optimizer(small, recipe), recipe)(halves)
    assert large_loss.item() == pytest.approx(small_loss.item(), rel=1e-6)
    for one, other in zip(large.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_legacy_loss_is_the_standard_loss() -> None:
    losses = {}
    for loss in ("standard", "legacy"):
        model, recipe = build("llama", method="lora", mixed_precision="no", lora_dropout=0.0, loss=loss)
        losses[loss] = model(**batches(recipe)[0]).loss.item()
    assert losses["legacy"] == pytest.approx(losses["standard"], rel=1e-6)
