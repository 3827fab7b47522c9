"""States and temporaries of optimizers, compared with the real ones after real steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.dtypes import Dtype
from lorabench.estimator.memory.optimizers import OptimizerBytes, optimizer_bytes
from lorabench.estimator.optimizers.states import Blockwise
from lorabench.estimator.optimizers.table import OPTIMIZERS
from lorabench.estimator.optimizers.temporaries import Assign, most_alive
from lorabench.estimator.optimizers.tensors import TrainedTensors
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.training.optimizer import make_optimizer

pytestmark = pytest.mark.filterwarnings("ignore")

SHAPES: dict[str, list[tuple[tuple[int, ...], int]]] = {
    "adapters": [((8, 512), 3), ((1024, 8), 3), ((8, 640), 1)],
    "small tensors": [((4095,), 2), ((4096,), 1), ((3,), 1)],
    "a stack": [((16, 64), 1), ((5, 24, 40), 2), ((7, 11), 1)],
    "not whole blocks": [((101, 103), 2), ((257,), 1)],
    "growing, then shrinking": [((32, 32), 1), ((128, 128), 1), ((16, 16), 2), ((300,), 1)],
}
DTYPES: list[tuple[Dtype, ...]] = [("float32",), ("bfloat16",), ("float32", "bfloat16"), ("bfloat16", "float32")]
"""Dtypes that tensors take in turn: adapters and modules to save train in their own."""
OPTIMS = [name for name, optimizer in OPTIMIZERS.items() if not optimizer.paged]  # those page on CUDA only


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch annotates little here
    """Counts the storages that operations make, by weak references, and keeps the most that were alive at once."""

    def __init__(self, known: Iterator[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Held, so that no address is taken again.
        self.held = [tensor.untyped_storage() for tensor in known]
        self.known = {storage._cdata for storage in self.held}
        self.alive: dict[int, tuple[Any, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.untyped_storage()._cdata not in self.known:
                storage = made.untyped_storage()
                self.alive[storage._cdata] = storage._weak_ref(), storage.nbytes()
        for key, (reference, _) in list(self.alive.items()):
            storage = torch.UntypedStorage._new_with_weak_ptr(reference)
            if storage is None:
                del self.alive[key]
            del storage
        self.most = max(self.most, sum(nbytes for _, nbytes in self.alive.values()))
        return result


class Weights(torch.nn.Module):
    """Parameters of the given shapes, each with a gradient."""

    def __init__(self, tensors: list[TrainedTensors]) -> None:
        super().__init__()
        self.all = torch.nn.ParameterList(torch.randn(one.shape).to(getattr(torch, one.dtype)) for one in tensors)
        for parameter in self.parameters():
            parameter.grad = torch.randn_like(parameter)


def state_storages(optimizer: torch.optim.Optimizer) -> dict[int, int]:
    """Return the bytes of each storage that the optimizer keeps, shared ones once."""
    tensors = [value for state in optimizer.state.values() for value in tree_leaves(state)]
    storages = [value.untyped_storage() for value in tensors if isinstance(value, torch.Tensor)]
    return {storage._cdata: storage.nbytes() for storage in storages}


def one_by_one(name: str, dtypes: tuple[Dtype, ...]) -> list[TrainedTensors]:
    shapes = [shape for shape, count in SHAPES[name] for _ in range(count)]
    return [TrainedTensors(shape, 1, dtype) for shape, dtype in zip(shapes, cycle(dtypes), strict=False)]


def after_some_steps(optim: str, tensors: list[TrainedTensors]) -> OptimizerBytes:
    """Return what the real optimizer keeps after steps on the CPU, and the most that one like all later ones took."""
    weights = Weights(tensors)
    optimizer: Any = make_optimizer(weights, make_recipe("small", optim=optim))
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(OPTIMIZERS[optim].steady_step - 1):
        optimizer.step()
    states = sum(state_storages(optimizer).values())

    def known() -> Iterator[torch.Tensor]:
        for parameter in weights.parameters():
            yield parameter
            assert parameter.grad is not None
            yield parameter.grad
        for state in optimizer.state.values():
            yield from (value for value in tree_leaves(state) if isinstance(value, torch.Tensor))

    with LiveBytes(known()) as live:
        optimizer.step()
    assert sum(state_storages(optimizer).values()) == states
    return OptimizerBytes(states=states, temporaries=live.most)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtypes", DTYPES, ids="-".join)
@pytest.mark.parametrize("optim", OPTIMS)
def test_an_optimizer_keeps_what_the_real_one_keeps(optim: str, dtypes: tuple[Dtype, ...], name: str) -> None:
    tensors = one_by_one(name, dtypes)
    real = after_some_steps(optim, tensors)
    estimated = optimizer_bytes(optim, tensors, "cpu")
    assert estimated.states == real.states
    # Scalars, such as the bias corrections of one tensor, come and go.
    assert estimated.temporaries == pytest.approx(real.temporaries, abs=64)


ELEMENTS = 3 * 8 * 512 + 3 * 1024 * 8 + 8 * 640
TENSORS = 7


@pytest.mark.parametrize(
    ("optim", "dtype", "states", "temporaries"),
    [
        # Two moments and the step count of each tensor; the foreach kernel counts steps on the host.
        ("adamw_torch_fused", "float32", 8 * ELEMENTS + 4 * TENSORS, 0),
        ("adamw_torch", "float32", 8 * ELEMENTS, 4 * ELEMENTS),
        ("adamw_torch", "bfloat16", 4 * ELEMENTS, 2 * ELEMENTS),
        ("adagrad", "float32", 4 * ELEMENTS, 8 * ELEMENTS),
        ("rmsprop", "bfloat16", 2 * ELEMENTS, 2 * ELEMENTS),
        # Squares of epsilon, mean squares, and a byte where no Kahan sum is kept.
        ("stable_adamw", "float32", 8 * ELEMENTS + (4 + 4 + 1) * TENSORS, 0),
        ("stable_adamw", "bfloat16", 6 * ELEMENTS + (2 + 4) * TENSORS, 0),
        ("schedule_free_adamw", "bfloat16", 4 * ELEMENTS, 2 * ELEMENTS),
        ("schedule_free_radam", "float32", 8 * ELEMENTS, 4 * ELEMENTS),
        ("schedule_free_sgd", "bfloat16", 2 * ELEMENTS, 0),
        ("sgd", "float32", 0, 0),
        # States in 32 bits whatever the weights' dtype.
        ("lion_32bit", "bfloat16", 4 * ELEMENTS, 0),
        ("ademamix", "bfloat16", 12 * ELEMENTS, 0),
        ("rmsprop_bnb", "bfloat16", 4 * ELEMENTS, 0),
        ("rmsprop_bnb_32bit", "bfloat16", 4 * ELEMENTS, 0),
        # All of these tensors have 4096 elements or more: a byte each, 4 for each 256, a table of 256 float32.
        ("lion_8bit", "float32", ELEMENTS + 4 * ELEMENTS // 256 + 1024, 0),
        ("rmsprop_bnb_8bit", "bfloat16", ELEMENTS + 4 * ELEMENTS // 256 + 1024, 0),
        ("ademamix_8bit", "float32", 3 * (ELEMENTS + 4 * ELEMENTS // 256) + 2 * 1024, 0),
        ("adamw_bnb_8bit", "float32", 2 * (ELEMENTS + 4 * ELEMENTS // 256 + 1024), 0),
        ("adamw_8bit", "bfloat16", 2 * (ELEMENTS + 4 * ELEMENTS // 256 + 1024), 0),
    ],
)
def test_what_an_optimizer_takes_on_a_gpu(optim: str, dtype: Dtype, states: int, temporaries: int) -> None:
    cuda: Backend = "cuda"
    tensors = [TrainedTensors(shape, count, dtype) for shape, count in SHAPES["adapters"]]
    assert optimizer_bytes(optim, tensors, cuda) == OptimizerBytes(states, temporaries)


MIXED = [
    TrainedTensors((8, 8), 1, "float32"),
    TrainedTensors((4, 4), 1, "bfloat16"),
    TrainedTensors((2, 8), 1, "float32"),
]


@pytest.mark.parametrize(
    ("optim", "alive"),
    [
        # The dtype that comes last is first: 32 B, then 256 + 64 B while the former are alive.
        ("adamw_torch", [32, 32 + 256, 32 + 256 + 64]),
        ("rmsprop", [32, 32 + 256, 32 + 256 + 64]),
        # Roots, then scaled gradients. Each list is freed when the next dtype's takes its name.
        ("adagrad", [32, 64, 64 + 256, 64 + 320, 32 + 320 + 256, 32 + 320 + 320]),
        # All in the order of the model.
        ("schedule_free_adamw", [256, 256 + 32, 256 + 32 + 64]),
    ],
)
def test_what_is_alive_after_each_allocation_of_a_step(optim: str, alive: list[int]) -> None:
    held: dict[str, int] = {}
    seen = []
    for statement in OPTIMIZERS[optim].temporaries(MIXED, "cuda"):
        assert isinstance(statement, Assign)
        before = sum(held.values())
        seen += [before + sum(statement.blocks[: count + 1]) for count in range(len(statement.blocks))]
        held[statement.variable] = sum(statement.blocks)
    assert seen == alive
    assert most_alive(OPTIMIZERS[optim].temporaries(MIXED, "cuda")) == max(alive)


def test_adafactor_holds_two_copies_and_two_updates_of_a_matrix_in_16_bits() -> None:
    matrix = 4 * 1024 * 512  # float32
    factors = 4 * 1024 + 4 * 512  # of rows and columns, whose product is the second update
    of_matrix = TrainedTensors((1024, 512), 1, "bfloat16")
    assert optimizer_bytes("adafactor", [of_matrix], "cuda").temporaries == 4 * matrix + factors
    # In float32 there are no copies. The previous tensor's update lives until this one's replaces it.
    vector = TrainedTensors((1_000_000,), 1, "float32")
    update = 4 * 1_000_000
    assert optimizer_bytes("adafactor", [vector], "cuda").temporaries == 2 * update
    assert optimizer_bytes("adafactor", [vector, vector], "cuda").temporaries == 3 * update


@pytest.mark.parametrize("bits", [8, 32])
def test_ademamix_keeps_its_fast_and_slow_moment_in_one_block(bits: int) -> None:
    [state] = OPTIMIZERS[{8: "ademamix_8bit", 32: "ademamix"}[bits]].states
    elements = 1024 * 512
    moments = (2 * elements * bits // 8, elements * bits // 8)
    constants = (2 * 4 * elements // 256, 4 * elements // 256) if bits == 8 else ()
    assert state.blocks(TrainedTensors((1024, 512), 1, "bfloat16"), "cuda") == (*constants, *moments)


@pytest.mark.parametrize(
    ("optim", "kept", "paged"),
    [
        ("paged_adamw_32bit", 8 * 99_999, 8 * 100_000),
        ("paged_lion_32bit", 4 * 99_999, 4 * 100_000),
        ("paged_ademamix_32bit", 12 * 99_999, 12 * 100_000),
        # Constants of 256 states and the shared tables are not paged.
        ("paged_adamw_8bit", 2 * (99_999 + 4 * 391 + 4 * 391 + 1024), 2 * 100_000),
        ("paged_ademamix_8bit", 3 * (99_999 + 4 * 391 + 4 * 391) + 2 * 1024, 3 * 100_000),
        ("paged_lion_8bit", 99_999 + 4 * 391 + 4 * 391 + 1024, 100_000),
    ],
)
def test_only_states_of_large_tensors_are_paged(optim: str, kept: int, paged: int) -> None:
    tensors = [TrainedTensors((99_999,), 1, "float32"), TrainedTensors((100_000,), 1, "float32")]
    assert optimizer_bytes(optim, tensors, "cuda") == OptimizerBytes(kept, 0, paged)


CODED = {
    name: state
    for name in OPTIMS
    for state in OPTIMIZERS[name].states
    if isinstance(state, Blockwise) and state.bits == 8
}
"""The optimizers with 8-bit states, and those."""


@pytest.mark.parametrize("optim", CODED)
def test_embeddings_keep_float32_states_as_under_trainer(optim: str) -> None:
    class Tied(torch.nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.head = torch.nn.Linear(64, rows, bias=False)
            self.embedding = torch.nn.Embedding(rows, 64)

    for rows in (128, 256):  # the second optimizer of a process must not take over the first one's exceptions
        model = Tied(rows)
        optimizer = make_optimizer(model, make_recipe("small", optim=optim))
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        shape, state = (rows, 64), CODED[optim]
        coded = rows * 64 + 4 * rows * 64 // 256
        expected = state.each * (4 * rows * 64 + coded) + 1024 * state.maps
        assert sum(state_storages(optimizer).values()) == expected
        tensors = [TrainedTensors(shape, 1, "float32", embedding) for embedding in (False, True)]
        estimated = optimizer_bytes(optim, tensors, "cpu")
        assert estimated.states + estimated.paged == expected


def test_no_weights_take_nothing() -> None:
    assert all(optimizer_bytes(optim, [], "cuda") == (0, 0, 0) for optim in OPTIMS)
