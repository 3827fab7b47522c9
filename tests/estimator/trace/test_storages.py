"""The ledger counts each storage once, from birth to death, for what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lorabench.estimator.memory.breakdown import Breakdown
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.recipes.recipe import Recipe, make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.trace.storages import StorageLedger
from lorabench.estimator.training.model import build_model
from lorabench.estimator.training.optimizer import make_optimizer
from lorabench.estimator.training.step import TrainingStep
from tests.small_models import TINY, small_config

pytestmark = pytest.mark.filterwarnings("ignore")

ROWS, WIDTH = 100, 1000
TENSOR = 4 * ROWS * WIDTH
"""Bytes of a (ROWS, WIDTH) float32 tensor."""


def tensor() -> Any:
    return torch.zeros(ROWS, WIDTH)


def peak_of(phase: str, work: Callable[[], object]) -> int:
    """Most bytes while ``work`` runs, as the ledger counts them."""
    ledger = StorageLedger("cpu")
    with ledger:
        ledger.begin_step()
        ledger.begin_phase(phase)
        work()
    return ledger.breakdown().peak_allocated_bytes


@pytest.mark.parametrize(
    ("work", "tensors"),
    [
        (tensor, 1),
        (lambda: (tensor(), tensor()), 2),
        (lambda: [tensor().sum() for _ in range(3)], 1),  # each is gone when the next is made
        (lambda: tensor().view(-1)[10:].T.unsqueeze(0), 1),
        (lambda: tensor().add_(1).mul_(2), 1),
        (lambda: torch.split(tensor(), 10), 1),
        (lambda: tensor() + 1, 2),
        (lambda: tensor().expand(5, ROWS, WIDTH), 1),
        (lambda: tensor().expand(5, ROWS, WIDTH).contiguous(), 6),
        (lambda: tensor().untyped_storage().resize_(0), 1),
    ],
)
def test_a_storage_counts_once_while_something_refers_to_it(work: Callable[[], object], tensors: int) -> None:
    assert peak_of("forward", work) == pytest.approx(tensors * TENSOR, abs=64)  # sums and scalars beside


class TwoLayers(torch.nn.Module):
    """(N, A) → (N, B) → ReLU → (N, C) → mean of squares."""

    def __init__(self, a: int, b: int, c: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(a, b, bias=False)
        self.second = torch.nn.Linear(b, c, bias=False)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x).relu()).square().mean()


def train_two_layers(n: int, a: int, b: int, c: int) -> Breakdown:
    """The second of two steps, with plain SGD with momentum."""
    model = TwoLayers(a, b, c)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    x = torch.randn(n, a)
    ledger = StorageLedger("cpu")
    ledger.adopt_model(model)
    ledger.adopt("buffers", x)
    with ledger:
        for _ in range(2):
            ledger.begin_step()
            optimizer.zero_grad()
            ledger.begin_phase("forward")
            loss = model(x)
            ledger.begin_phase("backward")
            loss.backward()
            del loss
            ledger.begin_phase("optimizer")
            optimizer.step()
            ledger.end_step(model, optimizer)
    return ledger.breakdown()


def test_two_layers_hold_what_arithmetic_says() -> None:
    n, a, b, c = 500, 30, 20, 40
    weights = 4 * (a * b + b * c)
    told = train_two_layers(n, a, b, c)
    inputs = 4 * n * a
    # Forward: first's output and its ReLU, then only the ReLU, second's output y and y², then the mean.
    assert told.phase_peaks_bytes["adapted"] == weights
    assert told.phase_peaks_bytes["forward"] == 2 * weights + inputs + 4 * (n * b + 2 * n * c) + 4
    # Backward begins with ReLU's output, y and the loss; the mean's gradient is one number, expanded to (n, c) without
    # a storage and divided into one of its own; then 2y and the product with it, before y is let go.
    assert told.phase == "backward"
    assert told.peak_allocated_bytes == told.phase_peaks_bytes["backward"]
    assert told.components["weights"] == told.components["optimizer_states"] == weights
    assert told.components["buffers"] == inputs
    assert told.components["activations"] == 4 * (n * b + n * c) + 4
    # The optimizer holds weights, momentum and gradients.
    assert told.phase_peaks_bytes["optimizer"] == 3 * weights + inputs
    assert sum(told.components.values()) == told.peak_allocated_bytes


LLAMA = small_config("llama", **{**TINY, "num_hidden_layers": 3})
LINEARS = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
"""Weights of one layer's linear modules."""
OTHERS = 2 * 300 * 64 + (2 * 3 + 1) * 64
"""Embedding, head and norms."""


def small_recipe(method: str, **options: Any) -> Recipe:
    adapted = {} if method == "full" else {"rank": 4}
    sizes = {"batch_size": 2, "seq_len": 64, "gradient_checkpointing": False}
    return make_recipe("test/llama", method=method, **{**sizes, **adapted, **options})


def train_llama(steps: int = 2, device: Any = "cpu", **options: Any) -> Breakdown:
    spec = read_config(LLAMA, "test/llama")
    recipe = small_recipe(**options)
    model = build_model(ResolvedRecipe(spec, recipe), device)
    optimizer = make_optimizer(model, recipe)
    tokens = torch.arange(recipe.tokens).reshape(recipe.batch_size, recipe.seq_len) % 300
    batch = {"input_ids": tokens, "labels": tokens.clone()}
    ledger = StorageLedger(device)
    ledger.adopt_model(model)
    ledger.adopt("buffers", *batch.values())
    step = TrainingStep(model, optimizer, recipe, ledger.begin_phase)
    with ledger:
        ledger.watch_model(model, 300)
        for _ in range(steps):
            ledger.begin_step()
            step([batch] * recipe.gradient_accumulation)
            ledger.end_step(model, optimizer)
    return ledger.breakdown()


ADAPTERS = 3 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))


@pytest.mark.parametrize(
    ("options", "held"),
    [
        ({"method": "full"}, {"weights": 4 * (3 * LINEARS + OTHERS), "adapters": 0, "quantized_weights": 0}),
        ({"method": "lora"}, {"weights": 2 * (3 * LINEARS + OTHERS), "adapters": 4 * ADAPTERS}),
        (
            {"method": "qlora"},
            {
                "weights": 2 * OTHERS,
                "adapters": 4 * ADAPTERS,
                # 0.5 B, absmax in blocks of 64, one nested absmax, and 1092 B of tables for each of seven linears.
                "quantized_weights": 3 * (LINEARS // 2 + LINEARS // 64 + 7 * (4 + 1092)),
            },
        ),
        ({"method": "lora", "adapter_dtype": "bfloat16"}, {"adapters": 2 * ADAPTERS}),
    ],
)
def test_a_models_parts_are_told_apart(options: dict[str, Any], held: dict[str, int]) -> None:
    told = train_llama(**options)
    assert {name: told.components[name] for name in held} == held
    trained = told.components["weights"] if options["method"] == "full" else told.components["adapters"]
    tensors = 3 * 7 * 2 if options["method"] != "full" else 3 * 9 + 3
    assert told.components["optimizer_states"] == 2 * trained + 4 * tensors  # two moments, and a step counter each
    assert sum(told.components.values()) == told.peak_allocated_bytes == max(told.phase_peaks_bytes.values())


@pytest.mark.parametrize(("mixed_precision", "per_logit"), [("bf16", 2 + 4 + 4 + 2), ("no", 4 + 4 + 4)])
def test_logits_at_the_start_of_backward(mixed_precision: str, per_logit: int) -> None:
    """Autocast: log-probabilities, their gradients in float32 and bfloat16, and what lived beside them."""
    told = train_llama(method="full", mixed_precision=mixed_precision, seq_len=512)
    assert told.phase == "backward"
    tokens_times_vocabulary = 2 * 512 * 300
    if mixed_precision == "bf16":
        assert told.components["logits"] == per_logit * tokens_times_vocabulary
    else:
        # In float32 the upcast is no copy: log-probabilities and their gradients, twice for a moment.
        assert told.components["logits"] <= per_logit * tokens_times_vocabulary


def test_the_legacy_loss_holds_a_shifted_copy_more() -> None:
    standard = train_llama(method="lora", seq_len=512, loss="standard").phase_peaks_bytes["forward"]
    legacy = train_llama(method="lora", seq_len=512, loss="legacy").phase_peaks_bytes["forward"]
    shifted = 4 * 2 * 511 * 300
    # The log-probabilities lack a row of each sequence too, and labels are shifted in either case.
    assert legacy - standard == pytest.approx(shifted - 4 * 2 * 300, abs=2 * 8 * 2 * 512)


def test_checkpointing_recomputes_activations_of_one_layer_at_a_time() -> None:
    kept = train_llama(method="full", seq_len=512)
    recomputed = train_llama(method="full", seq_len=512, gradient_checkpointing=True)
    assert recomputed.phase_peaks_bytes["forward"] < kept.phase_peaks_bytes["forward"]
    assert 0 < recomputed.components["activations"] < kept.components["activations"] / 2


def test_accumulating_holds_the_gradients_of_the_passes_before() -> None:
    once = train_llama(method="full")
    twice = train_llama(method="full", gradient_accumulation=2)
    gradients = 4 * (3 * LINEARS + OTHERS)
    assert once.components["gradients"] == 0
    assert twice.components["gradients"] == gradients
    assert twice.phase_peaks_bytes["forward"] - once.phase_peaks_bytes["forward"] == pytest.approx(gradients, abs=16)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_peak_is_what_torchs_own_allocator_reports(method: str) -> None:
    """Compared with the profiler, which sees every allocation, also the few inside kernels."""
    from torch.profiler import ProfilerActivity, profile

    spec = read_config(LLAMA, "test/llama")
    recipe = small_recipe(method)
    model = build_model(ResolvedRecipe(spec, recipe), "cpu")
    optimizer = make_optimizer(model, recipe)
    tokens = torch.arange(recipe.tokens).reshape(2, 64)
    batch = {"input_ids": tokens, "labels": tokens.clone()}
    step = TrainingStep(model, optimizer, recipe)
    step([batch])
    optimizer.zero_grad()
    before = sum(train_llama(method=method).components[name] for name in ("weights", "adapters", "quantized_weights"))
    before += sum(
        value.nbytes for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    )
    before += sum(value.nbytes for value in batch.values()) + sum(buffer.nbytes for buffer in model.buffers())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step([batch])
    live = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    assert train_llama(method=method).peak_allocated_bytes == pytest.approx(before + peak, rel=0.001)


def test_the_gradient_of_indexed_rows_is_put_in_place() -> None:
    """As torch does where nobody watches: under a dispatch mode such as the ledger's it would be out of place."""
    from torch.profiler import ProfilerActivity, profile

    def indexed() -> tuple[torch.Tensor, torch.Tensor]:
        rows = (torch.ones(2000, 64, requires_grad=True).sum(1, keepdim=True).expand(2000, 64))[torch.arange(500)]
        return rows, torch.ones_like(rows)

    rows, gradient = indexed()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        torch.autograd.backward(rows, gradient)
    live = most = 0
    for event in profiler.profiler.kineto_results.events():
        live += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, live)
    rows, gradient = indexed()
    ledger = StorageLedger("cpu")
    with ledger:
        ledger.begin_step()
        ledger.begin_phase("backward")
        torch.autograd.backward(rows, gradient)
    assert ledger.breakdown().peak_allocated_bytes == pytest.approx(most, rel=0.02)
    assert most < 2 * 2000 * 64 * 4


def test_a_ledger_that_was_left_watches_nothing() -> None:
    ledger = StorageLedger("cpu")
    with ledger:
        pass
    ledger.begin_step()
    ledger.begin_phase("forward")
    kept = tensor()
    assert ledger.breakdown().peak_allocated_bytes == 0
    assert kept.nbytes == TENSOR


def test_other_devices_do_not_count() -> None:
    assert peak_of("forward", lambda: torch.zeros(100, device="meta")) == 0
    ledger = StorageLedger("meta")
    with ledger:
        ledger.begin_step()
        ledger.begin_phase("forward")
        torch.zeros(100, device="meta") + 1
    assert ledger.breakdown().peak_allocated_bytes == 800
