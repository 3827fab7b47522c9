"""The replay of the allocator: its blocks are those of the memory model, its answers those of the trace's replay."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import pytest

from lorabench.estimator.closed_form.forms import Setup
from lorabench.estimator.closed_form.memory import estimate_memory
from lorabench.estimator.closed_form.replay import Replay, Training
from lorabench.estimator.closed_form.sizes import Values
from lorabench.estimator.closed_form.walk import PASSING, chunks_of, walk
from lorabench.estimator.errors import UserError
from lorabench.estimator.memory.allocator import CachingAllocator
from lorabench.estimator.memory.allocator_settings import DEFAULTS, AllocatorSettings, read_settings
from lorabench.estimator.memory.loading import loading
from lorabench.estimator.memory.optimizers import optimizer_bytes
from lorabench.estimator.memory.replayed import Replayed, distinct_steps, with_blocks
from lorabench.estimator.memory.states import states
from lorabench.estimator.models.catalogue import find_model, model_names
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.optimizers.states import shared_blocks
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.optimizers.temporaries import none
from lorabench.estimator.recipes.defaults import recipe_for
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.trace import run_on_meta, trace
from tests.small_models import FAMILIES, small_config

pytestmark = pytest.mark.filterwarnings("ignore")

MIB, GIB = 2**20, 2**30
METHODS: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": "full", "dtype": "bfloat16", "mixed_precision": "no"},
    {"method": "lora", "rank": 8, "modules_to_save": "lm_head"},
    {"method": "qlora"},
    {"method": "qlora", "double_quant": False, "prepare_kbit": False},
    {"method": "qlora", "recast": True, "modules_to_save": "lm_head"},
    {"method": "ia3"},
]


def llama(**options: Any) -> ResolvedRecipe:
    """Return a recipe of a Llama with four layers, whose matrices are above the small pool's 1 MiB."""
    spec = read_config(
        small_config(
            "llama",
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=4,
            num_attention_heads=16,
            num_key_value_heads=4,
            vocab_size=16000,
        ),
        "small/llama",
    )
    dropout = {} if options["method"] == "full" else {"lora_dropout": 0.0}
    return recipe_for(spec, **{"seq_len": 512, **dropout, **options})


@pytest.mark.parametrize("options", METHODS, ids=lambda options: "-".join(map(str, options.values())))
def test_what_loading_leaves_is_what_the_model_takes(options: dict[str, Any]) -> None:
    for name in model_names():
        try:
            resolved = recipe_for(find_model(name), **options)
        except UserError:
            continue  # a module that the model does not have
        held = states(resolved, "cuda")
        components = ("weights", "quantized_weights", "adapters", "buffers")
        blocks = dict(loading(resolved))  # of a block that is freed, the last event has 0 bytes
        assert sum(blocks.values()) == sum(map(held.component_bytes, components)), name


@pytest.mark.parametrize("optim", sorted(OPTIMIZERS))
def test_an_optimizers_blocks_add_up_to_its_states(optim: str) -> None:
    tensors = llama(method="lora", rank=64, modules_to_save="lm_head", optim=optim).trained_tensors
    optimizer = OPTIMIZERS[optim]
    shared = sum(size for state in optimizer.states for size in shared_blocks(state, tensors))
    each = sum(
        group.count * size for group in tensors for state in optimizer.states for size in state.blocks(group, "cuda")
    )
    assert shared + each == optimizer_bytes(optim, tensors, "cuda").states


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_layer_by_layer_a_step_takes_what_the_form_of_one_layer_says(method: str, checkpointing: bool) -> None:
    resolved = llama(method=method, gradient_checkpointing=checkpointing, batch_size=2)
    walked = walk(Setup(resolved, "cuda"), chunks_of(resolved), accumulating=False)
    sizes_of_events = walked.sizes(Values(resolved), None)
    events = [(block, size) for block, size in zip(walked.blocks, sizes_of_events, strict=True) if block != PASSING]
    sizes: dict[int, int] = {}
    changes = [size or -sizes[block] for block, size in events if size == 0 or not sizes.update({block: size})]
    memory = estimate_memory(resolved)
    persistent = ("weights", "quantized_weights", "adapters", "optimizer_states", "workspaces")
    stays = sum(memory.components[name] for name in persistent)
    peaks = memory.phase_peaks_bytes
    assert max(accumulate(changes)) + stays == max(peaks["forward"], peaks["backward"])


@pytest.mark.parametrize(
    "options",
    [
        {"method": "full", "batch_size": 4},
        {"method": "full", "dtype": "bfloat16", "mixed_precision": "no", "optim": "adamw_torch"},
        {"method": "lora", "batch_size": 4, "gradient_accumulation": 2},
        {"method": "lora", "gradient_checkpointing": False, "attn_implementation": "eager"},
        {"method": "qlora", "batch_size": 4},
        {"method": "full", "empty_cache_steps": 1},
        {"method": "full", "gradient_accumulation": 2, "empty_cache_steps": 4},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_replay_meets_that_of_the_trace(options: dict[str, Any]) -> None:
    resolved = llama(**options)
    replayed, traced = Training(resolved).replay(), trace(resolved, steps=3)
    assert traced.memory.peak_allocated_bytes == pytest.approx(replayed.allocated, rel=0.01)
    assert traced.memory.peak_reserved_bytes == pytest.approx(replayed.reserved, rel=0.03, abs=20 * MIB)


@pytest.mark.parametrize(
    ("model", "options", "rehearsed"),
    [
        ("llama-3.2-1b", {}, 21_363_687_424),
        ("llama-3.2-1b", {"empty_cache_steps": 1}, 22_095_593_472),
        ("llama-3.2-1b", {"empty_cache_steps": 3}, 22_095_593_472),
        ("qwen2.5-0.5b", {"empty_cache_steps": 2, "keep_outputs": True}, 13_593_739_264),
    ],
)
def test_an_emptied_cache_is_filled_as_in_rehearsals_of_nine_steps(
    model: str, options: dict[str, Any], rehearsed: int
) -> None:
    """Reserved bytes of full fine-tuning on an A100, by `lorabench rehearse --steps 9`."""
    replayed = Training(recipe_for(find_model(model), method="full", **options), "8.0", 108).replay()
    assert replayed.reserved == pytest.approx(rehearsed, rel=0.0016)


@pytest.mark.parametrize(
    ("steady_step", "empty_cache_steps", "steps"),
    [
        (2, None, [0, 1, 2]),
        (2, 1, [0, 1, 2]),
        (2, 2, [0, 1, 2, 3, 4, 5]),
        (2, 10, [0, 1, 2, 10, 11, 12, 20, 21, 22]),
        (5, None, [0, 1, 2, 3, 4, 5]),
        (5, 1, [0, 1, 2, 3, 4, 5]),
        (5, 2, [0, 1, 2, 3, 4, 5, 6, 7]),
        (5, 5, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]),
    ],
)
def test_steps_are_run_until_the_cache_was_emptied_twice_since_the_last_step_before_the_steady_one(
    steady_step: int, empty_cache_steps: int | None, steps: list[int]
) -> None:
    assert distinct_steps(steady_step + 1, steady_step, empty_cache_steps) == steps


STEPS: list[dict[str, Any]] = [
    {"method": "full", "batch_size": 4},
    {"method": "full", "dtype": "float32", "mixed_precision": "no", "batch_size": 4, "gradient_checkpointing": False},
    {"method": "lora", "adapter_dtype": "bfloat16", "mixed_precision": "no", "batch_size": 2},
    {"method": "qlora", "batch_size": 1, "gradient_checkpointing": False},
    {"method": "qlora", "recast": True},
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", STEPS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_step_allocates_and_frees_large_tensors_in_the_order_of_the_trace(
    family: str, options: dict[str, Any], attention: str
) -> None:
    """So the positions of all blocks of the large pool are the same. A run of frees has no order for the allocator."""
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2, "num_attention_heads": 16}
    spec = read_config(small_config(family, **sizes, num_key_value_heads=4, vocab_size=16000), f"small/{family}")
    dropout = {} if options["method"] == "full" else {"lora_dropout": 0.0}
    resolved = recipe_for(spec, seq_len=512, **dropout, **options)
    if not (family == "gemma2" and attention == "sdpa"):  # transformers has no sdpa for it
        resolved = resolved.replaced(attn_implementation=attention)
    walked, traced = large_tensors_of_a_step(resolved)
    assert walked == traced


@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_so_does_a_step_whose_absmax_is_large_too(family: str) -> None:
    """2048 · 8448 weights have 264 Ki absmax, which is more than 1 MiB in float32."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8448, "num_hidden_layers": 2, "num_attention_heads": 16}
    spec = read_config(small_config(family, **sizes, vocab_size=16000), f"small/{family}")
    walked, traced = large_tensors_of_a_step(recipe_for(spec, method="qlora", seq_len=512, lora_dropout=0.0))
    assert 4 * 2048 * 8448 // 64 in walked
    assert walked == traced


def large_tensors_of_a_step(resolved: ResolvedRecipe) -> tuple[list[int], list[int]]:
    """Return `in_large_pool` of forward and backward on an H100, walked and traced."""
    capability, multiprocessors = "9.0", 132
    walked = Training(resolved, capability, multiprocessors).micro_batches[0]
    ledger, *_ = run_on_meta(resolved, "cuda", 2, lambda _: None, capability, multiprocessors)
    begun = {phase: event for event, phase in ledger.phases}
    traced = ledger.allocations()[begun["forward"] : begun["optimizer"]]
    return in_large_pool(walked.events()), in_large_pool(traced)


class Recorded(CachingAllocator):
    """An allocator that keeps the events of each phase of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, int]] = []

    def allocate(self, key: int, size: int) -> bool:
        self.events.append((key, size))
        return super().allocate(key, size)

    def free(self, key: int) -> None:
        self.events.append((key, 0))
        super().free(key)


class RecordedReplay(Replay):
    """A replay that notes what each optimizer step allocates and frees."""

    def __init__(self, training: Training) -> None:
        self.recorded = Recorded()
        self.optimizer_steps: list[list[tuple[int, int]]] = []
        super().__init__(training, self.recorded)

    def _begin(self, phase: str) -> None:
        super()._begin(phase)
        if phase == "optimizer":
            self.recorded.events = []
            self.optimizer_steps.append(self.recorded.events)
        else:
            self.recorded.events = []


@pytest.mark.parametrize("dtypes", ["mixed", "bfloat16"])
@pytest.mark.parametrize(
    "optim",
    [*(name for name, row in OPTIMIZERS.items() if row.temporaries is not none), "adamw_8bit", "ademamix_8bit"],
)
def test_an_optimizers_step_allocates_and_frees_in_the_order_of_the_trace(optim: str, dtypes: str) -> None:
    options: dict[str, Any] = {"method": "full", "dtype": "bfloat16", "mixed_precision": "no"}
    if dtypes == "mixed":
        options = {"method": "lora", "rank": 512, "dtype": "bfloat16", "modules_to_save": "embed_tokens"}
    resolved = llama(optim=optim, **options)
    replay = RecordedReplay(Training(resolved, "9.0", 132))
    replay.load()
    replay.train()
    for step in {1, OPTIMIZERS[optim].steady_step}:
        ledger, *_ = run_on_meta(resolved, "cuda", step, lambda _: None, "9.0", 132)
        begun = {phase: event for event, phase in ledger.phases}
        traced = in_large_pool(ledger.allocations()[begun["optimizer"] :])
        replayed = in_large_pool(replay.optimizer_steps[step - 1])
        assert to_last_allocation(replayed) == to_last_allocation(traced)


def to_last_allocation(changes: list[int]) -> list[int]:
    """Return ``changes`` without the frees at their end."""
    return changes[: max((index + 1 for index, change in enumerate(changes) if change > 0), default=0)]


def in_large_pool(events: Iterable[tuple[int, int]]) -> list[int]:
    """Return bytes of each allocation above 1 MiB, negative for frees, with each run of frees sorted."""
    sizes: dict[int, int] = {}
    found: list[int] = []
    freed: list[int] = []
    for block, size in events:
        if block == PASSING:
            if size > MIB:
                found += [*sorted(freed), size]
                freed = [-size]
        elif size > MIB:
            sizes[block] = size
            found += [*sorted(freed), size]
            freed = []
        elif size == 0 and block in sizes:
            freed.append(-sizes.pop(block))
    return found + sorted(freed)


def test_blocks_are_no_smaller_than_their_tensors_and_are_shown_beside_them() -> None:
    resolved = llama(method="lora")
    memory = estimate_memory(resolved)
    with_rounding = with_blocks(memory, Training(resolved).replay())
    assert with_rounding.components["rounding"] > 0
    assert with_rounding.peak_allocated_bytes == sum(with_rounding.components.values())
    assert with_rounding.peak_allocated_bytes - with_rounding.components["rounding"] == memory.peak_allocated_bytes
    assert with_rounding.peak_reserved_range_bytes is None


def test_an_evaluation_keeps_nothing_but_the_casts_of_weights_and_ends_with_logits() -> None:
    batch_size, seq_len, vocabulary, hidden = 2, 512, 16000, 1024
    logits = batch_size * seq_len * vocabulary * 4
    weights = sum(weight.elements * weight.count for weight in llama(method="full").trained_tensors)
    in_float32 = llama(method="full", dtype="float32", mixed_precision="no", batch_size=batch_size)
    autocast = in_float32.replaced(mixed_precision="bf16")
    peaks = []
    for resolved in (in_float32, autocast):
        sizes: dict[int, int] = {}
        live = peak = 0
        for block, size in Training(resolved).evaluation.events():
            live += size or -sizes[block]
            sizes[block] = size
            peak = max(peak, live)
        assert live == 0
        peaks.append(peak)
    # Float32: logits, their log-softmax, and the last hidden states.
    assert peaks[0] == pytest.approx(2 * logits + batch_size * seq_len * hidden * 4, rel=0.001)
    # Autocast: 16-bit logits, the same in float32 and their log-softmax; and all matrices in 16 bits.
    matrices = 2 * (weights - vocabulary * hidden)
    assert peaks[1] == pytest.approx(2.5 * logits + batch_size * seq_len * hidden * 4 + matrices, rel=0.01)


FRAGMENTS = {"method": "full", "optim": "adamw_torch", "dtype": "bfloat16", "mixed_precision": "no"}
"""The foreach optimizer's temporaries lie in segments that forward and backward have no use for."""


def test_expandable_segments_leave_smaller_gaps() -> None:
    training = Training(recipe_for(find_model("llama-3.2-1b"), **FRAGMENTS))
    plain, expandable = training.replay(), training.replay(DEFAULTS.expandable())
    assert expandable.reserved - expandable.allocated < (plain.reserved - plain.allocated) / 2


def test_a_device_without_room_fails_at_the_request_that_it_cannot_serve() -> None:
    training = Training(llama(method="lora", batch_size=4))
    enough = training.replay()
    assert enough.out_of_memory is None
    assert training.replay(capacity=enough.reserved).out_of_memory is None
    failed = training.replay(capacity=enough.allocated - MIB).out_of_memory
    assert failed is not None
    assert failed.phase in ("forward", "backward")
    assert 0 < failed.bytes < enough.allocated
    loading = training.replay(capacity=MIB).out_of_memory
    assert loading is not None
    assert loading.phase == "loaded"


def test_cached_segments_are_given_back_before_memory_runs_out() -> None:
    training = Training(recipe_for(find_model("llama-3.2-1b"), **FRAGMENTS))
    free = training.replay()
    tight = training.replay(capacity=(free.allocated + free.reserved) // 2)
    assert tight.out_of_memory is None
    # Other segments leave other rests that are too small to be split off, of up to 1 MiB.
    assert tight.allocated == pytest.approx(free.allocated, rel=0.001)
    assert tight.reserved < free.reserved


class EveryStep(Replay):
    """A replay whose steps all run in both pools."""

    def _small_pool_serves_another_step(self) -> bool:
        return False


def every_step(training: Training, settings: AllocatorSettings, capacity: int | None) -> Replayed:
    replay = EveryStep(training, CachingAllocator(settings, capacity=capacity))
    replay.load()
    return replay.train()


REPEATED: list[tuple[str, dict[str, Any]]] = [
    ("llama-3.2-1b", {"method": "qlora"}),
    ("llama-3.2-1b", {"method": "lora", "batch_size": 2, "gradient_accumulation": 2}),
    ("llama-3.2-1b", {"method": "lora", "keep_outputs": True}),
    ("llama-3.2-1b", {"method": "full", "empty_cache_steps": 2}),
    ("qwen2.5-0.5b", {"method": "full", "optim": "adafactor"}),
    ("gpt2", {"method": "lora", "seq_len": 1024, "gradient_checkpointing": False}),
]


@pytest.mark.parametrize(("model", "options"), REPEATED, ids=lambda part: str(part))
def test_a_step_whose_large_blocks_repeat_is_told_by_its_small_ones(model: str, options: dict[str, Any]) -> None:
    training = Training(recipe_for(find_model(model), **options), "8.0", 108)
    enough = training.replay()
    assert enough == every_step(training, DEFAULTS, None)
    tight = [enough.reserved - more * MIB for more in (0, 2, 4, 20)] + [(enough.allocated + enough.reserved) // 2]
    for capacity in tight:
        assert training.replay(capacity=capacity) == every_step(training, DEFAULTS, capacity)
    collecting = read_settings("garbage_collection_threshold:0.8,per_process_memory_fraction:0.9").on(enough.reserved)
    for settings in (DEFAULTS.expandable(), collecting):
        assert training.replay(settings, capacity=tight[-1]) == every_step(training, settings, tight[-1])


def test_trainings_of_other_sizes_begin_with_the_same_loaded_model() -> None:
    first = Training(llama(method="qlora", batch_size=1))
    first.replay()
    resized = llama(method="qlora", batch_size=3)
    after = Training(resized, resizes=first)
    assert after.replay() == Training(resized).replay()
    assert after.replay(capacity=MIB) == Training(resized).replay(capacity=MIB)
