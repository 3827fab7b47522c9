from __future__ import annotations

import os
import sys

import msgspec
import pytest

from lorabench.bench.machine.environment import driver_version, probe_surroundings
from lorabench.estimator.errors import UserError


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
