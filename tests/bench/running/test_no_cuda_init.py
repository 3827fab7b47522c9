"""What is imported before workers are forked must not start CUDA; here with a GPU that is only pretended."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from lorabench.bench.running.no_cuda_init import no_cuda_init


class Driver(ModuleType):
    """A management library that torch has opened twice."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.opened = 2
        self.gpus = {"handle of 5": [9, 0]}

    def nvmlInit(self) -> None:  # noqa: N802
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        if not self.opened:
            raise RuntimeError("Uninitialized")
        self.opened -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        return f"handle of {index}"

    def nvmlDeviceGetCudaComputeCapability(self, handle: str) -> list[int]:  # noqa: N802
        return self.gpus[handle]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    monkeypatch.setattr(torch.cuda, "_get_nvml_device_index", lambda device: 4 + device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: f"torch's of {device}")
    return driver


def test_the_driver_tells_the_capability_and_is_closed_afterwards(driver: Driver) -> None:
    asked: Any = torch.cuda
    with no_cuda_init():
        assert asked.get_device_capability(1) == (9, 0)
        assert asked.get_device_capability(0) == "torch's of 0"  # of which the driver does not know
    assert driver.opened == 0
    assert asked.get_device_capability(1) == "torch's of 1"


IMPORTS = """
import torch
torch.version.cuda = "13.0"
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch._C._cuda_getCurrentRawStream = lambda device: 0
torch.cuda._get_nvml_device_index = lambda device: 0
torch.cuda._lazy_init = lambda: print("CUDA is started")
import pynvml
pynvml.nvmlInit = pynvml.nvmlDeviceGetHandleByIndex = lambda *_: None
pynvml.nvmlDeviceGetCudaComputeCapability = lambda handle: print("the driver is asked") or [9, 0]
from lorabench.bench.running import server
server.preload()
"""


def test_no_import_of_the_server_starts_cuda() -> None:
    ran = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "the driver is asked\n"), ran.stderr
