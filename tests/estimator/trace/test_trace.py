"""A trace holds what a real step holds: to the byte on the CPU, and with CUDA's kernels as torch documents them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.allocator_settings import DEFAULTS
from lorabench.estimator.memory.breakdown import PHASES, Breakdown
from lorabench.estimator.memory.reductions import Multiprocessors
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.cuda_semantics import running_on_meta
from lorabench.estimator.trace.model_tensors import model_bytes
from lorabench.estimator.trace.scratch import Scratch, cpu_scratch, cuda_scratch
from lorabench.estimator.trace.storages import StorageLedger
from lorabench.estimator.trace.trace import TIMELINE_POINTS, trace
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.optimizer import make_optimizer
from lorabench.estimator.training.step import Batch, TrainingStep
from tests.small_models import FAMILIES, MIXTURES, small_model

pytestmark = pytest.mark.filterwarnings("ignore")

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32


def really_run(resolved: ResolvedRecipe) -> Breakdown:
    """Two steps of ``recipe`` on the CPU, with real numbers; what the second one holds."""
    spec, recipe = resolved.spec, resolved.recipe
    loaded: list[int] = []
    model = build_model(resolved, "cpu", on_loaded=lambda base: loaded.append(model_bytes(base, "cpu")))
    optimizer = make_optimizer(model, recipe)
    ledger = StorageLedger("cpu")
    ledger.loaded_bytes = loaded[0]
    ledger.adopt_model(model)
    step = TrainingStep(model, optimizer, recipe, ledger.begin_phase)

    def batches() -> Iterator[Batch]:
        for _ in range(recipe.gradient_accumulation):
            tokens = torch.arange(recipe.tokens).reshape(recipe.batch_size, recipe.seq_len) % spec.vocab_size
            batch = {"input_ids": tokens, "labels": tokens.clone()}
            if recipe.padding:
                batch["attention_mask"] = torch.ones_like(tokens)
                batch["attention_mask"][:, -1] = 0
            ledger.adopt("buffers", *batch.values())
            yield batch

    with ledger:
        ledger.watch_model(model, spec.vocab_size)
        for _ in range(2):
            ledger.begin_step()
            step(batches())
            ledger.end_step(model, optimizer)
    return ledger.breakdown()


@pytest.mark.parametrize("gradient_checkpointing", [True, False])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_trace_with_the_cpus_kernels_equals_a_real_run_to_the_byte(
    family: str, method: str, gradient_checkpointing: bool
) -> None:
    spec = small_model(family, num_hidden_layers=2)
    recipe = make_recipe(
        spec.name, method=method, gradient_checkpointing=gradient_checkpointing, batch_size=2, seq_len=64
    )
    assert trace(ResolvedRecipe(spec, recipe), backend="cpu").memory == really_run(ResolvedRecipe(spec, recipe))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full", "mixed_precision": "no", "optim": "adafactor", "gradient_accumulation": 2},
        {"method": "lora", "mixed_precision": "no", "optim": "sgd", "attn_implementation": "eager"},
        {"method": "lora", "mixed_precision": "no", "padding": True, "lora_dropout": 0.0},
        {"method": "full", "padding": True, "attn_implementation": "eager"},
        {"method": "lora", "loss": "legacy", "optim": "adamw_torch", "adapter_dtype": "bfloat16"},
        {"method": "qlora", "optim": "adamw_8bit", "double_quant": False, "prepare_kbit": False},
        {"method": "qlora", "optim": "lion_32bit", "mixed_precision": "no", "gradient_accumulation": 2},
    ],
)
def test_so_do_other_options(options: dict[str, Any]) -> None:
    spec = small_model("llama", num_hidden_layers=2)
    recipe = make_recipe(spec.name, batch_size=2, seq_len=64, **options)
    assert trace(ResolvedRecipe(spec, recipe), backend="cpu").memory == really_run(ResolvedRecipe(spec, recipe))


def adapters_of(family: str) -> dict[str, Any]:
    """Experts' adapters have no dropout."""
    return {"lora_dropout": 0.0} if family in MIXTURES else {}


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"llama", "gpt2"}))
def test_so_does_every_family(family: str) -> None:
    spec = small_model(family, num_hidden_layers=1)
    recipe = make_recipe(spec.name, batch_size=2, seq_len=32, attn_implementation="eager", **adapters_of(family))
    assert trace(ResolvedRecipe(spec, recipe), backend="cpu").memory == really_run(ResolvedRecipe(spec, recipe))


@pytest.mark.parametrize(
    ("family", "attn_implementation"),
    [
        *((family, "eager" if family == "gemma2" else "sdpa") for family in FAMILIES),
        *((family, "flash_attention_2") for family in ("llama", "gemma2", "gpt2", "mixtral")),
        *((family, "eager") for family in ("llama", "gpt2")),
    ],
)
def test_every_family_traces_with_cudas_kernels(family: str, attn_implementation: str) -> None:
    spec = small_model(family, num_hidden_layers=1)
    recipe = make_recipe(spec.name, seq_len=128, attn_implementation=attn_implementation, **adapters_of(family))
    traced = trace(ResolvedRecipe(spec, recipe))
    assert traced.memory.peak_allocated_bytes > traced.memory.phase_peaks_bytes["adapted"] > 0
    assert traced.parameters == ResolvedRecipe(spec, recipe).parameters


# What a trace tells.


def test_a_trace_adds_up_and_names_what_is_alive_at_the_peak() -> None:
    spec = small_model("llama", vocab_size=8192)
    traced = trace(ResolvedRecipe(spec, make_recipe(spec.name, method="full", seq_len=512)))
    memory = traced.memory
    assert sum(memory.components.values()) == memory.peak_allocated_bytes == memory.phase_peaks_bytes[memory.phase]
    assert list(memory.phase_peaks_bytes) == list(PHASES)
    # Gradients of log-probabilities come last where logits rule.
    assert (traced.peak.phase, traced.peak.operator) == ("backward", "aten._log_softmax_backward_data")
    head = next(tensor for tensor in traced.tensors if tensor.module == "model.embed_tokens.weight")
    assert (head.component, head.shape, head.dtype, head.count) == ("weights", (8192, 128), "float32", 1)
    queries = next(tensor for tensor in traced.tensors if tensor.module == "model.layers.*.mlp.up_proj.weight")
    assert (queries.count, queries.bytes) == (3, 3 * 4 * 384 * 128)
    sizes = [tensor.bytes for tensor in traced.tensors]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) <= memory.peak_allocated_bytes


def test_the_timeline_shows_every_phase_and_the_peak() -> None:
    spec = small_model("llama")
    traced = trace(ResolvedRecipe(spec, make_recipe(spec.name, seq_len=64, gradient_accumulation=2)))
    points = traced.timeline
    assert len(points) <= TIMELINE_POINTS
    assert [point.event for point in points] == sorted({point.event for point in points})
    phases = [point.phase for before, point in zip((None, *points), points, strict=False) if _begins(before, point)]
    assert phases == ["forward", "backward", "forward", "backward", "optimizer"]
    assert max(point.allocated_bytes for point in points) == traced.memory.peak_allocated_bytes
    for point in points:
        assert point.reserved_bytes is not None
        assert point.allocated_bytes <= point.reserved_bytes
    assert points[-1].reserved_bytes == traced.memory.peak_reserved_bytes


def _begins(before: Any, point: Any) -> bool:
    return before is None or before.phase != point.phase


def test_more_steps_change_nothing() -> None:
    spec = small_model("llama")
    recipe = make_recipe(spec.name, method="qlora", seq_len=64)
    assert trace(ResolvedRecipe(spec, recipe), steps=3).memory == trace(ResolvedRecipe(spec, recipe), steps=2).memory


def test_progress_is_told() -> None:
    said: list[str] = []
    spec = small_model("llama", num_hidden_layers=1)
    trace(ResolvedRecipe(spec, make_recipe(spec.name, seq_len=32)), on_progress=said.append)
    assert said == ["building the model", "running step 1 of 2", "running step 2 of 2", "reading the ledger"]


def test_the_allocator_takes_more_than_tensors_do() -> None:
    spec = small_model("llama", hidden_size=512, vocab_size=4096)
    recipe = make_recipe(spec.name, method="full", seq_len=64)
    memory, expandable = (
        trace(ResolvedRecipe(spec, recipe), allocator=settings).memory for settings in (DEFAULTS, DEFAULTS.expandable())
    )
    assert memory.peak_reserved_bytes is not None
    assert expandable.peak_reserved_bytes is not None
    assert memory.peak_requested_bytes == expandable.peak_requested_bytes
    assert memory.components["rounding"] >= expandable.components["rounding"] > 0
    assert expandable.peak_allocated_bytes < expandable.peak_reserved_bytes <= memory.peak_reserved_bytes


def test_a_trace_is_written_as_json() -> None:
    spec = small_model("gpt2")
    traced = trace(ResolvedRecipe(spec, make_recipe(spec.name, seq_len=64)))
    assert msgspec.json.decode(msgspec.json.encode(traced), type=type(traced)) == traced


def test_tracing_leaves_torch_as_it_was() -> None:
    spec = small_model("llama", num_hidden_layers=1)
    before = torch.autocast, torch.is_autocast_enabled, functional.scaled_dot_product_attention
    trace(
        ResolvedRecipe(
            spec, make_recipe(spec.name, method="qlora", seq_len=32, attn_implementation="flash_attention_2")
        )
    )
    assert (torch.autocast, torch.is_autocast_enabled, functional.scaled_dot_product_attention) == before
    import bitsandbytes

    values = torch.randn(64, 64)
    packed, state = bitsandbytes.functional.quantize_4bit(values, quant_type="nf4", compress_statistics=True)
    back = bitsandbytes.functional.dequantize_4bit(packed, state)
    assert (back - values).abs().max() < 1


# What is refused.


@pytest.mark.parametrize(
    ("backend", "options", "said"),
    [
        ("cpu", {"loss": "liger"}, "loss liger runs on CUDA only"),
        ("cpu", {"attn_implementation": "flash_attention_2"}, "runs on CUDA only"),
        ("cpu", {"optim": "paged_adamw_8bit"}, "pages states between GPU and host"),
        ("cuda", {"target_modules": "c_attn"}, "c_attn"),
        ("cuda", {"seq_len": 2**31 - 1}, "more than 2⁶³ bytes.*lower one of them"),
    ],
)
def test_what_cannot_be_traced_is_refused(backend: Any, options: dict[str, Any], said: str) -> None:
    spec = small_model("llama")
    with pytest.raises(UserError, match=said):
        trace(ResolvedRecipe(spec, make_recipe(spec.name, **options)), backend=backend)


# CUDA's semantics, piece by piece.


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def meta(*shape: int, dtype: torch.dtype = BFLOAT16, requires_grad: bool = True) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=requires_grad)


def operators_of_attention(backend: Any, **options: Any) -> set[str]:
    dtype, heads, head_dim = options.pop("dtype", BFLOAT16), options.pop("kv_heads", 4), options.pop("head_dim", 32)
    query = meta(1, 4, 16, head_dim, dtype=dtype)
    key, value = meta(1, heads, 16, head_dim, dtype=dtype), meta(1, heads, 16, head_dim, dtype=dtype)
    operators = Operators()
    with running_on_meta(torch.nn.Identity(), backend), operators:
        functional.scaled_dot_product_attention(query, key, value, **options)
    return {name for name in operators.seen if "attention" in name or "softmax" in name}


MASK = torch.ones(1, 1, 16, 16, dtype=torch.bool, device="meta")
FLASH, EFFICIENT, MATH = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_safe_softmax",
)


def test_cudnns_attention_keeps_what_flash_attention_keeps() -> None:
    alike = (meta(2, 4, 200, 64, requires_grad=False) for _ in range(3))
    query, key, value = alike
    aten = torch.ops.aten
    cudnn = aten._scaled_dot_product_cudnn_attention(query, key, value, None, True, 0.0, True)
    flash = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True)
    for kept in (0, 1):  # the output and the log-sum-exp of each row and head
        assert cudnn[kept].numel() == flash[kept].numel()
        assert cudnn[kept].dtype == flash[kept].dtype


@pytest.mark.parametrize(
    ("backend", "options", "kernel"),
    [
        ("cuda", {}, FLASH),
        ("cuda", {"dtype": FLOAT16, "is_causal": True, "dropout_p": 0.1}, FLASH),
        ("cuda", {"kv_heads": 2, "enable_gqa": True}, FLASH),
        ("cuda", {"head_dim": 256}, FLASH),
        ("cuda", {"head_dim": 320}, EFFICIENT),
        ("cuda", {"dtype": FLOAT32}, EFFICIENT),
        ("cuda", {"attn_mask": MASK}, EFFICIENT),
        ("cuda", {"dtype": FLOAT32, "kv_heads": 2, "enable_gqa": True}, MATH),
        ("cuda", {"dtype": FLOAT32, "head_dim": 30}, MATH),
        ("cpu", {}, f"{FLASH}_for_cpu"),
        ("cpu", {"dtype": FLOAT32, "attn_mask": MASK}, f"{FLASH}_for_cpu"),
        ("cpu", {"dropout_p": 0.1}, MATH),
    ],
)
def test_attention_takes_the_kernel_that_the_device_takes(backend: Any, options: dict[str, Any], kernel: str) -> None:
    assert operators_of_attention(backend, **options) == {kernel}


@pytest.mark.parametrize("masked", [False, True])
def test_hopper_takes_cudnns_attention(masked: bool) -> None:
    qkv = meta(1, 4, 200, 64), meta(1, 4, 200, 64), meta(1, 4, 200, 64)
    mask = torch.ones(1, 1, 200, 200, dtype=torch.bool, device="meta") if masked else None
    operators = Operators()
    with running_on_meta(torch.nn.Identity(), "cuda", compute_capability="9.0"), operators:
        functional.scaled_dot_product_attention(*qkv, mask).sum().backward()  # type: ignore[no-untyped-call]
    attention = "_scaled_dot_product_cudnn_attention"
    assert {name for name in operators.seen if "attention" in name} == {attention, f"{attention}_backward"}


def test_hopper_takes_flash_attention_for_a_dropout_that_cudnn_does_not_take() -> None:
    qkv = meta(1, 4, 200, 64), meta(1, 4, 200, 64), meta(1, 4, 200, 64)
    operators = Operators()
    with running_on_meta(torch.nn.Identity(), "cuda", compute_capability="9.0"), operators:
        functional.scaled_dot_product_attention(*qkv, dropout_p=0.1, is_causal=True)
    assert {name for name in operators.seen if "attention" in name} == {FLASH}


def test_cudnns_attention_goes_back_through_a_float32_gradient_of_the_query() -> None:
    backward = torch.ops.aten._scaled_dot_product_cudnn_attention_backward.default
    assert scratch_bytes(backward, meta(2, 8, 200, 64), meta(2, 8, 200, 64)) == [4 * 2 * 8 * 200 * (64 + 1)]


def test_cudas_dropout_keeps_a_mask_of_one_byte_an_element() -> None:
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with running_on_meta(torch.nn.Identity(), "cuda"), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        functional.dropout(meta(8, 8), 0.1)
    assert [(tensor.dtype, tensor.shape) for tensor in saved] == [(torch.bool, (8, 8))]


def dtypes(low: torch.Tensor, high: torch.Tensor) -> dict[str, torch.dtype]:
    """Return what operations make of a bfloat16 and a float32 matrix."""
    return {
        "linear": functional.linear(high, high).dtype,
        "matmul": (high @ high).dtype,
        "einsum": torch.einsum("ij,jk->ik", high, high).dtype,
        "layer_norm": functional.layer_norm(low, (4,)).dtype,
        "softmax": functional.softmax(low, -1).dtype,
        "pow": low.pow(2).dtype,
        "sum": low.sum(-1).dtype,
        "silu": functional.silu(low).dtype,
        "add": (low + low).dtype,
    }


def autocast_dtypes(backend: Any) -> dict[str, torch.dtype]:
    low, high = meta(4, 4), meta(4, 4, dtype=FLOAT32)
    with running_on_meta(torch.nn.Identity(), backend), torch.autocast("meta", BFLOAT16):
        return dtypes(low, high)


def test_autocast_casts_what_it_casts_on_cuda() -> None:
    lower = dict.fromkeys(("linear", "matmul", "einsum", "silu", "add"), BFLOAT16)
    upper = dict.fromkeys(("layer_norm", "softmax", "pow", "sum"), FLOAT32)
    assert autocast_dtypes("cuda") == lower | upper


def test_autocast_casts_what_it_casts_on_the_cpu() -> None:
    with torch.autocast("cpu", BFLOAT16):
        real = dtypes(torch.ones(4, 4, dtype=BFLOAT16), torch.ones(4, 4))
    assert autocast_dtypes("cpu") == real


def test_autocast_keeps_the_casts_of_weights_that_train_until_its_context_ends() -> None:
    weight, frozen, x = meta(4, 4, dtype=FLOAT32), meta(4, 4, dtype=FLOAT32, requires_grad=False), meta(4, 4)
    operators = Operators()
    with running_on_meta(torch.nn.Identity(), "cuda"), operators:
        for _ in range(2):
            with torch.autocast("meta", BFLOAT16):
                for _ in range(3):
                    functional.linear(x, weight)
                with torch.autocast("meta", enabled=False):
                    assert functional.linear(weight, weight).dtype == FLOAT32
                functional.linear(x, weight)
        casts_of_trained = operators.seen.count("_to_copy")
        with torch.autocast("meta", BFLOAT16):
            for _ in range(3):
                functional.linear(x, frozen)
    assert (casts_of_trained, operators.seen.count("_to_copy")) == (2, 5)


def test_what_is_asked_about_autocast_is_answered_for_meta() -> None:
    with running_on_meta(torch.nn.Identity(), "cuda"):
        assert not torch.is_autocast_enabled("meta")
        with torch.autocast("meta", FLOAT16):
            assert torch.is_autocast_enabled("meta")
            assert torch.is_autocast_enabled()
            assert torch.get_autocast_dtype("meta") == FLOAT16
    assert not torch.is_autocast_enabled()


def scratch_bytes(operator: Any, *args: Any, **kwargs: Any) -> list[int]:
    """Return the bytes of each tensor, those first that are allocated before the results."""
    return [tensor.nbytes for held in cuda_scratch()[operator](*args, **kwargs) for tensor in held]


def test_flash_attentions_backward_pads_lengths_to_128_and_heads_to_32_columns() -> None:
    backward = torch.ops.aten._scaled_dot_product_flash_attention_backward.default
    alike = meta(2, 200, 8, 80).transpose(1, 2)  # of gradient, query, key, value and output
    row_sums, query_gradient = 4 * 2 * 8 * 256, 4 * 2 * 256 * 8 * 96
    assert scratch_bytes(backward, *[alike] * 5) == [row_sums, query_gradient]
    expanded, grouped = 2 * 2 * 200 * 8 * 80, meta(2, 2, 200, 80)
    of_groups = scratch_bytes(backward, alike, alike, grouped, grouped, alike)
    assert of_groups == [row_sums, query_gradient, expanded, expanded]
    wide = meta(1, 128, 1, 144).transpose(1, 2)
    assert scratch_bytes(backward, *[wide] * 5) == [4 * 128, 4 * 128 * 192]


def test_flash_attentions_backward_copies_an_output_that_does_not_lie_by_token() -> None:
    backward = torch.ops.aten._scaled_dot_product_flash_attention_backward.default
    by_token, by_head = meta(2, 200, 8, 64).transpose(1, 2), meta(2, 8, 200, 64)
    held = scratch_bytes(backward, by_token, by_head, by_head, by_head, by_head)
    assert held[0] == 2 * 2 * 8 * 200 * 64


@pytest.mark.parametrize(
    ("operator", "shape", "dtype", "dims", "bytes_"),
    [
        ("sum", (4096, 2048), FLOAT32, [0], [67_108_864]),
        ("sum", (2, 2048, 4096), FLOAT32, [0, 1], [113_246_208]),
        ("sum", (262_144, 4096), BFLOAT16, [0], [536_870_912]),
        ("mean", (50257, 1600), FLOAT32, [-2], [108_953_600]),
        ("mean", (50257, 1600), FLOAT32, [-1], []),
        ("sum", (64, 128), FLOAT32, [0], []),
    ],
)
def test_sums_of_many_rows_have_a_buffer(
    operator: str, shape: tuple[int, ...], dtype: torch.dtype, dims: list[int], bytes_: list[int]
) -> None:
    """Each was rehearsed on an A100: ``torch.cuda.memory_stats()`` counted as much, and some semaphores."""
    aten = torch.ops.aten
    reduce = {"sum": aten.sum.dim_IntList, "mean": aten.mean.dim}[operator]
    before, after = cuda_scratch(Multiprocessors(108, 2048))[reduce](meta(*shape, dtype=dtype), dims)
    assert (before, [tensor.nbytes for tensor in after]) == ([], bytes_)


def test_without_a_known_gpu_sums_have_none() -> None:
    assert torch.ops.aten.sum.dim_IntList not in cuda_scratch()


def test_a_softmaxs_backward_makes_the_gradient_times_the_softmax() -> None:
    scores = torch.empty(2, 8, 100, 100, device="meta")
    backward = torch.ops.aten._softmax_backward_data.default
    assert scratch_bytes(backward, scores, scores, -1, torch.float32) == [4 * 2 * 8 * 100 * 100]


def test_the_math_kernels_softmax_notes_which_scores_are_masked() -> None:
    scores = torch.empty(2, 8, 100, 100, device="meta")
    assert scratch_bytes(torch.ops.aten._safe_softmax.default, scores, -1) == [2 * 8 * 100 * 100]


def test_the_embeddings_backward_sorts_more_than_3072_tokens() -> None:
    backward = torch.ops.aten.embedding_dense_backward.default
    few, many = (torch.empty(1, tokens, dtype=torch.int64, device="meta") for tokens in (3072, 4000))
    assert scratch_bytes(backward, meta(1, 3072, 64), few, 1000, -1, False) == []
    sums = 4 * (400 + 1000) * 64
    assert scratch_bytes(backward, meta(1, 4000, 64), many, 1000, -1, False)[-1] == sums


@pytest.mark.parametrize(
    ("scratch", "double_quant", "held"),
    [
        (cuda_scratch, False, [2 * 32 * 64]),
        (cuda_scratch, True, [4 * 32, 4 * 32, 2 * 32 * 64]),
        (cpu_scratch, True, [4 * 32, 2 * 32 * 64]),
    ],
)
def test_a_four_bit_product_holds_the_dequantised_weight_and_its_absmax(
    scratch: Callable[[], Scratch], double_quant: bool, held: list[int]
) -> None:
    """It is called as `MatMul4Bit.forward` of bitsandbytes calls it."""
    import bitsandbytes  # noqa: F401 - it defines the operator

    x, codes, absmax = meta(4, 64, requires_grad=False), meta(64 * 32 // 2, 1, dtype=FLOAT32), meta(32, dtype=FLOAT32)
    nested = {
        "absmax_8bit": torch.empty(32, dtype=torch.uint8, device="meta"),
        "absmax_code": meta(256, dtype=FLOAT32),
        "absmax_offset": meta(dtype=FLOAT32),
    }
    ledger = StorageLedger("meta", scratch=scratch())
    with ledger, torch.no_grad():
        torch.ops.bitsandbytes.gemm_4bit.default(
            x, codes, [32, 64], absmax, 64, "nf4", bias=None, **(nested if double_quant else {})
        )
    output = 2 * 4 * 32
    assert [size for _, size in ledger.allocations() if size] == [*held, output]


def test_paged_states_take_no_memory_of_the_device() -> None:
    spec = small_model("llama", vocab_size=4096)
    unpaged, paged = (
        trace(ResolvedRecipe(spec, make_recipe(spec.name, method="full", optim=optim, seq_len=32))).memory.components[
            "optimizer_states"
        ]
        for optim in ("adamw_8bit", "paged_adamw_8bit")
    )
    # The tensors of at least 100,000 elements: the head, and the embedding, which keeps float32 states.
    assert unpaged - paged == (2 + 8) * 4096 * 128
