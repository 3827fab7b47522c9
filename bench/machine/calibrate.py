"""Measure the speed of a device, for speed estimates: `lorabench calibrate`.

It measures the operations of a step (`estimator.speed.operations`): matmuls by shape, elementwise operations,
attention, dequantisation of 4-bit weights, and launch overhead. None of it is a training run that estimates are
compared with.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from lorabench.bench.machine.environment import installed_version
from lorabench.estimator.devices.backend import Backend
from lorabench.estimator.memory.quantization import BLOCK
from lorabench.estimator.models.read_config import read_config
from lorabench.estimator.quiet import quiet_libraries
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.calibrations import AttentionRates, Calibration, MatmulTimes, MemoryBoundTimes
from lorabench.estimator.speed.flops import BACKWARD_MATMULS_DONE, FORWARD_MATMULS
from lorabench.estimator.speed.operations import Kernel, micro_batch_operations
from lorabench.estimator.speed.timing import dequantisation_bytes
from lorabench.estimator.training.libraries import leave_out_hub_kernels

if TYPE_CHECKING:
    import torch

MATMUL_EXTENTS: dict[Backend, tuple[int, ...]] = {
    "cuda": (16, 128, 1024, 4096, 16384),
    "cpu": (8, 32, 128, 512, 2048),
}
"""Values of m, n and k of the matmuls: from ranks and short batches to long batches and wide layers."""
MEMORY_BOUND_ELEMENTS: dict[Backend, tuple[int, ...]] = {
    "cuda": tuple(2**power for power in range(12, 29, 2)),
    "cpu": tuple(2**power for power in range(8, 25, 2)),
}
ROW_COLUMNS = 256
"""Row length of the tensors for row-wise kernels (norms, softmax)."""
DEQUANTISED_ELEMENTS: dict[Backend, tuple[int, ...]] = {
    "cuda": tuple(2**power for power in range(16, 29, 2)),
    "cpu": tuple(2**power for power in range(12, 23, 2)),
}
ATTENTION_SHAPES: dict[Backend, tuple[int, int, int, int]] = {"cuda": (4, 16, 2048, 128), "cpu": (2, 4, 256, 64)}
"""(B, H, S, head_dim)."""
LEAST_SECONDS, MOST_REPEATS, LEAST_REPEATS = 0.03, 300, 5
"""A measurement is repeated for this time, or this number of times."""
HOST_STEPS = 30
"""Steps of the smallest model; the first third is warm-up."""
SOFTWARE = ("torch", "transformers", "peft", "bitsandbytes")


@quiet_libraries()
def calibrate(backend: Backend, device_name: str, dtypes: Sequence[str], say: Callable[[str], None]) -> Calibration:
    """Return the rates of this machine's GPU or CPU, named ``device_name``, for matmuls in ``dtypes``.

    ``say`` reports each stage. The calibration takes about a minute, and up to 4 GiB of memory on a GPU.
    """
    leave_out_hub_kernels()
    import torch

    bench = _Bench(backend)
    matmuls = {}
    attention = {}
    for dtype in dtypes:
        say(f"matmuls, {dtype}")
        matmuls[dtype] = bench.matmuls(getattr(torch, dtype))
        say(f"attention, {dtype}")
        attention[dtype] = bench.attention(getattr(torch, dtype))
    say("elementwise operations")
    memory_bound = bench.memory_bound()
    say("dequantisation")
    dequantisation = bench.dequantisation(getattr(torch, dtypes[0]), dtypes[0])
    say("launch overhead")
    forward, backward, optimizer = _host_seconds(backend)
    return Calibration(
        device=device_name,
        backend=backend,
        threads=torch.get_num_threads() if backend == "cpu" else None,
        software={name: version for name in SOFTWARE if (version := installed_version(name)) is not None},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        matmuls=matmuls,
        memory_bound=memory_bound,
        attention=attention,
        dequantisation=dequantisation,
        forward_seconds=forward,
        backward_seconds=backward,
        optimizer_seconds=optimizer,
    )


class _Bench:
    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def seconds(self, function: Callable[[], Any]) -> float:
        """Return the seconds that the device needs for ``function``: median on a GPU, fastest on a CPU."""
        return _gpu_seconds(function) if self.backend == "cuda" else _cpu_seconds(function)

    def random(self, *shape: int, dtype: torch.dtype, requires_grad: bool = False) -> torch.Tensor:
        import torch

        return torch.randn(*shape, device=self.backend, dtype=dtype, requires_grad=requires_grad)

    def matmuls(self, dtype: torch.dtype) -> MatmulTimes:
        from torch.nn.functional import linear

        extents = MATMUL_EXTENTS[self.backend]
        seconds = []
        for m in extents:
            for n in extents:
                for k in extents:
                    x, weight = self.random(m, k, dtype=dtype), self.random(n, k, dtype=dtype)
                    seconds.append(self.seconds(lambda x=x, weight=weight: linear(x, weight)))  # type: ignore[misc]
        return MatmulTimes(m=extents, n=extents, k=extents, seconds=tuple(seconds))

    def memory_bound(self) -> dict[Kernel, MemoryBoundTimes]:
        """Time elementwise operations on float32, with freshly allocated outputs as in training."""
        from torch.nn.functional import dropout, silu

        def columns(x: torch.Tensor) -> torch.Tensor:
            return x.view(-1, ROW_COLUMNS)

        draws = {"cuda": 9, "cpu": 12}[self.backend]  # input, output, and the mask: 1 byte on CUDA, float32 on a CPU
        kernels: dict[Kernel, tuple[int, Callable[[torch.Tensor, torch.Tensor], Any]]] = {
            "arithmetic": (12, lambda x, y: x * y),
            "activation": (8, lambda x, _: silu(x)),
            "tanh": (8, lambda x, _: x.tanh()),
            "rows": (8, lambda x, _: columns(x).softmax(-1)),
            "random": (draws, lambda x, _: dropout(x, 0.1, training=True)),
        }
        return {kernel: self._elementwise_times(bytes_each, run) for kernel, (bytes_each, run) in kernels.items()}

    def _elementwise_times(self, bytes_each: int, run: Callable[[torch.Tensor, torch.Tensor], Any]) -> MemoryBoundTimes:
        import torch

        times = []
        for elements in MEMORY_BOUND_ELEMENTS[self.backend]:
            x, y = (self.random(elements, dtype=torch.float32) for _ in range(2))
            times.append((bytes_each * elements, self.seconds(lambda x=x, y=y: run(x, y))))  # type: ignore[misc]
        return MemoryBoundTimes(bytes=tuple(size for size, _ in times), seconds=tuple(second for _, second in times))

    def attention(self, dtype: torch.dtype) -> AttentionRates:
        """Time `scaled_dot_product_attention` without and with a mask."""
        import torch

        batch, heads, length, columns = ATTENTION_SHAPES[self.backend]
        q, k, v = (self.random(batch, heads, length, columns, dtype=dtype, requires_grad=True) for _ in range(3))
        mask = torch.ones(length, length, dtype=torch.bool, device=self.backend).tril()
        pair = 2 * batch * heads * columns
        causal = self._attention_rates(q, k, v, pair * length * (length + 1) / 2, is_causal=True)
        masked = self._attention_rates(q, k, v, pair * length * length, attn_mask=mask)
        return AttentionRates(
            forward=causal[0], backward=causal[1], masked_forward=masked[0], masked_backward=masked[1]
        )

    def _attention_rates(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, flops: float, **how: Any
    ) -> tuple[float, float]:
        from torch.nn.functional import scaled_dot_product_attention as attend

        gradient = self.random(*q.shape, dtype=q.dtype)
        forward = self.seconds(lambda: attend(q, k, v, **how))

        def both() -> None:
            attend(q, k, v, **how).backward(gradient)  # type: ignore[no-untyped-call]

        backward = max(self.seconds(both) - forward, forward / 10)
        return FORWARD_MATMULS * flops / forward, BACKWARD_MATMULS_DONE * flops / backward

    def dequantisation(self, dtype: torch.dtype, name: str) -> MemoryBoundTimes | None:
        """Time bitsandbytes' dequantisation of 4-bit weights; None if it is not installed."""
        try:
            from bitsandbytes.functional import dequantize_4bit, quantize_4bit
        except ImportError:
            return None
        bytes_, seconds = [], []
        for elements in DEQUANTISED_ELEMENTS[self.backend]:
            weight = self.random(elements // BLOCK, BLOCK, dtype=dtype)
            quantized, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
            bytes_.append(round(dequantisation_bytes(elements, name)))
            seconds.append(self.seconds(lambda q=quantized, s=state: dequantize_4bit(q, s)))  # type: ignore[misc]
        return MemoryBoundTimes(bytes=tuple(bytes_), seconds=tuple(seconds))


def _cpu_seconds(function: Callable[[], Any]) -> float:
    """Return the seconds of the fastest call. Slower calls include the load of other processes."""
    function()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < LEAST_REPEATS or (time.perf_counter() - started < LEAST_SECONDS and len(times) < MOST_REPEATS):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return min(times)


def _gpu_seconds(function: Callable[[], Any]) -> float:
    """Return the seconds of one call, from a batch of queued calls, on the GPU's own clock."""
    import torch

    def together(count: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(count):
            function()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000 / count

    for _ in range(LEAST_REPEATS):
        function()  # kernels are chosen and loaded
    torch.cuda.synchronize()
    once = max(together(1), 1e-6)
    count = min(max(int(LEAST_SECONDS / LEAST_REPEATS / once), 1), MOST_REPEATS)
    return median(together(count) for _ in range(LEAST_REPEATS))


def _host_seconds(backend: Backend) -> tuple[float, float, float]:
    """Return the CPU seconds of one forward operation, one backward operation, and one tensor in the optimizer step.

    The model is so small that nothing else takes time.
    """
    import torch

    from lorabench.estimator.training.model import build_model
    from lorabench.estimator.training.optimizer import make_optimizer
    from lorabench.estimator.training.step import TrainingStep

    spec = read_config(SMALLEST_MODEL, "lorabench/smallest")
    recipe = make_recipe(
        spec.name, rank=1, dtype="float32", mixed_precision="no", seq_len=8, gradient_checkpointing=False
    )
    resolved = ResolvedRecipe(spec, recipe)
    model = build_model(resolved, backend, seed=0)
    marks: list[tuple[str, float]] = []

    def mark(phase: str) -> None:
        if backend == "cuda":
            torch.cuda.synchronize()  # otherwise a full queue would make the CPU wait
        marks.append((phase, time.perf_counter()))

    step = TrainingStep(model, make_optimizer(model, recipe), recipe, on_phase=mark)
    tokens = torch.zeros(recipe.batch_size, recipe.seq_len, dtype=torch.int64, device=backend)
    spent: dict[str, list[float]] = {"forward": [], "backward": [], "optimizer": []}
    for number in range(HOST_STEPS):
        marks.clear()
        step([{"input_ids": tokens, "labels": tokens}])
        end = time.perf_counter()
        if number >= HOST_STEPS // 3:
            for (phase, begun), (_, ended) in zip(marks, [*marks[1:], ("", end)], strict=True):
                spent[phase].append(ended - begun)
    launches = micro_batch_operations(resolved, backend).launches
    tensors = sum(alike.count for alike in resolved.trained_tensors)
    return (
        min(spent["forward"]) / launches["forward"],
        min(spent["backward"]) / launches["backward"],
        min(spent["optimizer"]) / tensors,
    )


SMALLEST_MODEL = {
    "model_type": "llama",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
