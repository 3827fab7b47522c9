"""Which kernels torch chooses on which GPU, and what it says of those that cannot be rehearsed."""

from __future__ import annotations

import pytest

from tests.bench.null_gpu.conftest import Run

pytestmark = pytest.mark.cuda_build

ATTENTION = """
import torch.nn.functional as F
heads, kv_heads, type = int(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3])
query = torch.empty(1, heads, 512, 64, device="cuda", dtype=type, requires_grad=True)
key, value = (torch.empty(1, kv_heads, 512, 64, device="cuda", dtype=type, requires_grad=True) for _ in range(2))
out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=heads != kv_heads)
out.sum().backward()
tell(kernel=out.grad_fn.name().removeprefix("ScaledDotProduct").removesuffix("Backward0"))
"""


@pytest.mark.parametrize(
    ("gpu", "kv_heads", "dtype", "kernel"),
    [
        # aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: flash from compute capability 8.0 on, cuDNN first on 9.0
        # and 10.0; where neither runs, only the math kernel groups queries.
        ("t4", 8, "float16", "EfficientAttention"),
        ("t4", 2, "float16", "Math"),
        ("a100-sxm-80gb", 2, "bfloat16", "FlashAttention"),
        ("a100-sxm-80gb", 8, "float32", "EfficientAttention"),
        ("h100-sxm", 2, "bfloat16", "CudnnAttention"),
    ],
)
def test_attention_runs_by_the_kernel_of_its_generation(
    run_on: Run, gpu: str, kv_heads: int, dtype: str, kernel: str
) -> None:
    told = run_on(gpu, ATTENTION, "8", str(kv_heads), dtype).values["kernel"]
    if kernel == "Math":
        assert not told.endswith("Attention")  # it is made of products and a softmax
    else:
        assert told == kernel


def test_launches_are_counted_by_kernel_if_asked_for(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        tensor = torch.empty(2**20, device="cuda")
        for _ in range(5):
            tensor.mul_(2)
        """,
        count_launches=True,
    )
    [path] = told.notes.glob("launches.*")
    counts = {name: int(count) for count, name in (line.split("\t") for line in path.read_text().splitlines())}
    assert [count for name, count in counts.items() if "MulFunctor<float>" in name] == [5]


def test_a_graph_is_refused_by_name(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                torch.empty(2, device="cuda")
        except Exception as error:
            tell(said=str(error))
        """,
    )
    assert "cudaStreamBeginCapture (CUDA graphs) cannot be rehearsed" in told.values["said"]
    assert (told.notes / "refused").read_text() == "cudaStreamBeginCapture (CUDA graphs)\n"
    assert "null GPU: cudaStreamBeginCapture (CUDA graphs) cannot be rehearsed, and failed" in told.errors


def test_a_library_that_is_not_replaced_fails_by_the_functions_name(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        try:
            torch.fft.fft(torch.empty(8, 8, device="cuda"))
        except RuntimeError as error:
            tell(failed=True)
        """,
    )
    assert told.values == {"failed": True}
    assert (told.notes / "refused").read_text().startswith("cufft")


def test_triton_kernels_are_compiled_and_launched(run_on: Run) -> None:
    told = run_on(
        "h100-sxm",
        """
        import triton, triton.language as tl
        @triton.jit
        def double(x, n, BLOCK: tl.constexpr):
            at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
            tl.store(x + at, 2 * tl.load(x + at, mask=at < n), mask=at < n)
        x = torch.empty(4096, device="cuda")
        for _ in range(3):
            double[(4,)](x, 4096, BLOCK=1024)
        """,
        count_launches=True,
    )
    [path] = told.notes.glob("launches.*")
    assert "3\tdouble" in path.read_text().splitlines()


@pytest.mark.parametrize("gpu", ["t4", "a100-sxm-80gb", "rtx-3090", "rtx-4090", "h100-sxm", "b200", "rtx-5090"])
def test_each_generation_runs_the_machine_code_that_torch_has_for_it(run_on: Run, gpu: str) -> None:
    told = run_on(
        gpu,
        """
        # Its library looks up for which capability the kernel was compiled that the card runs.
        positions = torch.ones(1, 2048, dtype=torch.long, device="cuda").cumsum(-1)
        torch.empty(4096, device="cuda").sort()
        tell(last=positions[0, -1].item())
        """,
    )
    assert told.values == {"last": 2048}


def test_a_card_for_which_torch_has_no_code_fails_as_a_real_one(run_on: Run) -> None:
    told = run_on(
        "v100-sxm-16gb",
        """
        tell(has_code=any(each.startswith("sm_7") and each <= "sm_70" for each in torch.cuda.get_arch_list()))
        try:
            torch.zeros(8, device="cuda").add_(1)
        except RuntimeError as error:
            tell(said=str(error))
        """,
    ).values
    assert told["has_code"] or "no kernel image is available for execution on the device" in told["said"]
