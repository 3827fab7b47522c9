"""What torch's own allocator and cuBLAS handles take of a null GPU."""

from __future__ import annotations

import pytest

from tests.bench.null_gpu.conftest import Run

pytestmark = pytest.mark.cuda_build
MIB = 2**20


@pytest.mark.parametrize(
    ("gpu", "workspace"),
    [
        # torch's defaults for cuBLAS, :4096:2:16:8 before Hopper and 32 MiB since (CUDAHooks, CublasHandlePool.cpp).
        ("t4", 2 * 4096 * 1024 + 8 * 16 * 1024),
        ("a100-sxm-80gb", 2 * 4096 * 1024 + 8 * 16 * 1024),
        ("h100-sxm", 32 * MIB),
    ],
)
def test_the_first_product_takes_the_workspace_of_its_generation(run_on: Run, gpu: str, workspace: int) -> None:
    told = run_on(
        gpu,
        """
        matrix = torch.empty(1024, 1024, device="cuda", dtype=torch.bfloat16)
        before = torch.cuda.memory_allocated()
        product = matrix @ matrix
        tell(workspace=torch.cuda.memory_allocated() - before - product.nbytes)
        """,
    )
    assert told.values == {"workspace": workspace}


def test_memory_is_what_the_card_has_and_costs_the_host_nothing(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        import resource
        free, total = torch.cuda.mem_get_info()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        held = torch.empty(60 * 2**30, dtype=torch.uint8, device="cuda")
        held[::4096].fill_(1)
        weights = torch.empty(2**33, device="cuda", dtype=torch.bfloat16).to("cpu", non_blocking=True)
        after, _ = torch.cuda.mem_get_info()
        tell(total=total, taken=free - after, grown=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident,
             said=torch.cuda.get_device_properties(0).total_memory)
        """,
    ).values
    usable = (81920 - 768) * MIB
    assert (told["total"], told["said"]) == (usable, usable)
    assert told["taken"] == 60 * 2**30 + 2**34
    assert told["grown"] < 200 * 1024  # KiB


@pytest.mark.parametrize(("watched", "tensors"), [(False, 2), (True, 3)], ids=["as it is", "the program watches"])
def test_gradients_are_added_up_in_place_unless_the_program_watches_operations(
    run_on: Run, watched: bool, tensors: int
) -> None:
    # torch/csrc/autograd/input_buffer.cpp: out of place if a dispatch mode is on, such as the null GPU's own.
    told = run_on(
        "a100-sxm-80gb",
        """
        from contextlib import nullcontext
        from torch.utils._python_dispatch import TorchDispatchMode

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                return function(*args, **(kwargs or {}))

        weight = torch.empty(4096, 4096, device="cuda", requires_grad=True)
        loss = (weight * 2).sum() + (weight * 3).sum()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with Watch() if sys.argv[1] == "True" else nullcontext():
            loss.backward()
        tell(tensors=(torch.cuda.max_memory_allocated() - before) / weight.nbytes)
        """,
        str(watched),
    )
    assert told.values["tensors"] == pytest.approx(tensors, abs=0.1)


BACKWARD = """
torch.cuda.reset_peak_memory_stats()
before = torch.cuda.memory_allocated()
loss.backward()
tell(tensors=(torch.cuda.max_memory_allocated() - before) / weight.nbytes)
"""


def test_a_third_gradient_is_added_in_place_too(run_on: Run) -> None:
    # The sum of the first two was an argument of an operation that the null GPU's own mode saw.
    forward = """
weight = torch.empty(4096, 4096, device="cuda", requires_grad=True)
hidden = weight * 2
loss = (hidden * 3).sum() + (hidden * 5).sum() + (hidden * 7).sum()
"""
    told = run_on("a100-sxm-80gb", forward + BACKWARD)
    assert told.values["tensors"] == pytest.approx(2, abs=0.1)


def test_gradients_of_tied_weights_are_added_up_out_of_place(run_on: Run) -> None:
    # The gradient of a linear layer's weight is a view, t() of its base, which owns the storage too.
    forward = """
from torch.nn.functional import embedding, linear

weight = torch.empty(32768, 1024, device="cuda", requires_grad=True)
tokens = torch.zeros(1, 8, dtype=torch.int64, device="cuda")
loss = linear(embedding(tokens, weight) * 2, weight).sum()
"""
    told = run_on("a100-sxm-80gb", forward + BACKWARD)
    assert told.values["tensors"] == pytest.approx(3, abs=0.2)


def test_what_is_beyond_the_cards_memory_is_out_of_memory(run_on: Run) -> None:
    told = run_on(
        "rtx-4090",
        """
        held = torch.empty(20 * 2**30, dtype=torch.uint8, device="cuda")
        try:
            torch.empty(4 * 2**30, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            tell(said=str(error))
        del held
        torch.cuda.empty_cache()
        tell(fits=torch.empty(23 * 2**30, dtype=torch.uint8, device="cuda").nbytes)
        """,
    ).values
    assert "Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 23.24 GiB" in told["said"]
    assert told["fits"] == 23 * 2**30


@pytest.mark.parametrize("settings", ["expandable_segments:True", "backend:cudaMallocAsync"])
def test_other_allocators_run_out_where_the_card_does(run_on: Run, settings: str) -> None:
    told = run_on(
        "rtx-4090",
        """
        parts = [torch.empty(2**30, dtype=torch.uint8, device="cuda") for _ in range(20)]
        tell(before=torch.cuda.mem_get_info()[0])
        try:
            torch.empty(4 * 2**30, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError:
            tell(out_of_memory=True)
        del parts[::2]
        torch.cuda.empty_cache()
        tell(after=torch.cuda.mem_get_info()[0], allocated=torch.cuda.memory_allocated())
        """,
        environment={"PYTORCH_CUDA_ALLOC_CONF": settings, "PYTORCH_ALLOC_CONF": settings},
    ).values
    assert told["out_of_memory"]
    assert told["allocated"] == 10 * 2**30
    # Expandable segments take and give back 20 MiB at a time; at both ends of each part, one of these may stay.
    assert abs(told["after"] - told["before"] - 10 * 2**30) <= 10 * 2 * 20 * MIB


def test_paged_optimizers_take_managed_memory_not_the_cards(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        import bitsandbytes
        for name in ("AdamW8bit", "PagedAdamW8bit", "AdamW", "PagedAdamW"):
            weights = torch.nn.Parameter(torch.empty(4096, 4096, device="cuda"))
            weights.grad = torch.empty_like(weights)
            optimizer = getattr(bitsandbytes.optim, name)([weights])
            before = torch.cuda.memory_allocated()
            optimizer.step()
            tell(**{name: torch.cuda.memory_allocated() - before})
        """,
    ).values
    elements = 4096**2
    assert told["AdamW"] == 8 * elements
    assert told["PagedAdamW"] == 0
    # Two states of a byte, an absmax of four for each 256 elements, and two maps of 256 floats.
    assert 0 <= told["AdamW8bit"] - (2 * elements + 2 * 4 * elements // 256) <= 4096
    assert told["PagedAdamW8bit"] < 2 * 4 * elements // 256 + 4096


def test_pinned_memory_is_the_hosts_and_its_integers_arrive(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        rows = torch.arange(4096).reshape(4, 1024)
        [batch] = torch.utils.data.DataLoader(rows, batch_size=4, pin_memory=True)
        tell(pinned=batch.is_pinned(), taken=torch.cuda.memory_allocated())
        there = batch.to("cuda", non_blocking=True)
        tell(sum=there.sum().item(), unpinned=rows.is_pinned(), copied=torch.cuda.max_memory_allocated() > 8 * 4096)
        """,
    ).values
    assert told == {"pinned": True, "taken": 0, "sum": 4095 * 4096 // 2, "unpinned": False, "copied": True}


def test_optimizers_of_torch_take_their_states(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        settings = {"fused": {"fused": True}, "foreach": {"foreach": True}, "plain": {"foreach": False}}
        for name, options in settings.items():
            weights = torch.nn.Parameter(torch.empty(1024, 1024, device="cuda"))
            weights.grad = torch.empty_like(weights)
            optimizer = torch.optim.AdamW([weights], **options)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            optimizer.step()
            tell(**{name: [torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before]})
        """,
    ).values
    states = 2 * 4 * 1024**2
    fused, _ = told["fused"]
    assert fused == states + 512  # its count of steps lies on the device
    assert told["foreach"][0] == told["plain"][0] == states
    assert told["foreach"][1] > told["foreach"][0]


def test_weights_that_are_quantised_to_four_bits_take_half_a_byte_and_their_scales(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        from bitsandbytes import functional
        weights = torch.empty(4096, 4096, device="cuda", dtype=torch.bfloat16)
        before = torch.cuda.memory_allocated()
        packed, state = functional.quantize_4bit(weights, quant_type="nf4", compress_statistics=False)
        tell(taken=torch.cuda.memory_allocated() - before)
        tell(back=list(functional.dequantize_4bit(packed, state).shape), type=str(packed.dtype))
        """,
    ).values
    elements = 4096**2
    assert told["taken"] == elements // 2 + 4 * elements // 64 + 512  # the code book takes a block of its own
    assert (told["back"], told["type"]) == ([4096, 4096], "torch.uint8")


def test_a_process_that_is_forked_after_cuda_began_cannot_use_it(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        import os
        torch.cuda.init()
        child = os.fork()
        if child == 0:
            import ctypes
            os._exit(ctypes.CDLL(None).cudaFree(None))
        tell(error=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
    ).values
    assert told["error"] == 3  # cudaErrorInitializationError
