"""Several GPUs, ranks that are not there, and what NVML tells of them."""

from __future__ import annotations

import pytest

from tests.bench.null_gpu.conftest import Run

pytestmark = pytest.mark.cuda_build
MIB = 2**20


def test_each_gpu_has_its_own_memory_and_processes_share_it(run_on: Run) -> None:
    told = run_on(
        "rtx-4090",
        """
        import os, subprocess
        tell(count=torch.cuda.device_count())
        here = torch.empty(20 * 2**30, dtype=torch.uint8, device="cuda:0")
        there = torch.empty(20 * 2**30, dtype=torch.uint8, device="cuda:1")
        other = "import torch; torch.empty(4 * 2**30, dtype=torch.uint8, device='cuda')"
        for gpu in "02":
            done = subprocess.run([sys.executable, "-c", other], env=os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
                                  capture_output=True, text=True)
            tell(**{f"on {gpu}": "OutOfMemoryError" in done.stderr})
        """,
        gpus=3,
    )
    assert told.values == {"count": 3, "on 0": True, "on 2": False}


def test_nvml_tells_memory_and_processes_and_nothing_that_takes_time(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        import os
        import pynvml
        held = torch.empty(2**30, dtype=torch.uint8, device="cuda")
        pynvml.nvmlInit()
        tell(count=pynvml.nvmlDeviceGetCount(), driver=pynvml.nvmlSystemGetDriverVersion())
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
        tell(name=pynvml.nvmlDeviceGetName(gpu), total=memory.total, used=memory.used)
        [process] = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)
        tell(own=process.pid == os.getpid(), bytes=process.usedGpuMemory)
        for ask in (pynvml.nvmlDeviceGetTotalEnergyConsumption, pynvml.nvmlDeviceGetPowerUsage):
            try:
                ask(gpu)
            except pynvml.NVMLError_NotSupported:
                tell(**{ask.__name__: "not supported"})
        pynvml.nvmlShutdown()
        try:
            pynvml.nvmlShutdown()
            while True:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError_Uninitialized:
            tell(ended=True)
        """,
        gpus=2,
    ).values
    assert (told["count"], told["name"], told["own"], told["ended"]) == (2, "NVIDIA A100 SXM4 80GB", True, True)
    assert "null GPU" in told["driver"]
    assert told["total"] == 81920 * MIB
    assert (told["bytes"], told["used"]) == (1024 * MIB, (1024 + 768) * MIB)
    assert told["nvmlDeviceGetTotalEnergyConsumption"] == told["nvmlDeviceGetPowerUsage"] == "not supported"


def test_one_rank_of_a_sharded_training_holds_its_part(run_on: Run) -> None:
    told = run_on(
        "a100-sxm-80gb",
        """
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        dist.init_process_group("nccl")
        tell(rank=dist.get_rank(), ranks=dist.get_world_size())
        count = torch.tensor([3], device="cuda")
        dist.all_reduce(count)
        gathered = [torch.empty(1, dtype=torch.long, device="cuda") for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, torch.tensor([7], device="cuda"))
        tell(sum=count.item(), gathered=[each.item() for each in gathered])
        model = torch.nn.Sequential(*(torch.nn.Linear(4096, 4096, bias=False, device="cuda") for _ in range(4)))
        whole = torch.cuda.memory_allocated()
        fully_shard(model, mesh=init_device_mesh("cuda", (dist.get_world_size(),)))
        tell(part=torch.cuda.memory_allocated() / whole)
        model(torch.empty(8, 4096, device="cuda")).sum().backward()
        tell(shard=list(model[0].weight.to_local().shape), grad=list(model[0].weight.grad.to_local().shape))
        dist.barrier()
        try:
            dist.new_group(backend="gloo")
        except RuntimeError as error:
            tell(gloo=str(error))
        dist.destroy_process_group()
        """,
        ranks=8,
        rank=3,
        gpus=8,
    ).values
    assert (told["rank"], told["ranks"], told["sum"]) == (3, 8, 24)
    assert told["gathered"] == [7] * 8
    assert told["part"] == pytest.approx(1 / 8, rel=0.01)
    assert "a Gloo group cannot be made while the other ranks do not run" in told["gloo"]
    assert told["shard"] == told["grad"] == [512, 4096]
