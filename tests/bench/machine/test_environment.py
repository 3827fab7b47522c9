from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from lorabench.bench.machine import environment
from lorabench.bench.machine.environment import Surroundings, driver_version, probe_surroundings
from lorabench.estimator.errors import UserError
from tests.bench.pretend_training import FACTS


def test_surroundings_name_the_software_and_no_host() -> None:
    told = probe_surroundings("cpu")
    assert (told.device.backend, told.equal_devices) == ("cpu", (0,))
    assert told.device.memory_bytes == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= told.environment.packages.keys()
    assert os.uname().nodename not in msgspec.json.encode(told).decode().replace(told.environment.operating_system, "")


def test_asking_for_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError, match=r"no CUDA device .* use --device cpu"):
        probe_surroundings("cuda")


def test_without_nvmls_package_the_driver_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert driver_version() is None


def test_only_a_machine_that_may_have_a_gpu_asks_torch_for_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = FACTS.device
    probed = Surroundings(device=gpu, environment=FACTS.environment)
    monkeypatch.setattr(environment, "probe_surroundings", lambda choice: probed)
    monkeypatch.setattr(environment, "on_null_gpu", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(environment, "GPU_FILES", (str(tmp_path / "nvidiactl"),))
    assert environment.local_device("auto").name == environment.processor_name()
    assert environment.local_device("cuda") is gpu  # and says what torch lacks, if it does
    (tmp_path / "nvidiactl").touch()
    assert environment.local_device("auto") is gpu
    assert environment.local_device("cpu").name == environment.processor_name()
