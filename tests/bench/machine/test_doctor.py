"""The doctor says what is there, what is missing, and what mends it."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lorabench.bench.machine import doctor
from lorabench.bench.machine.doctor import (
    Check,
    check_package,
    computes_in_bfloat16,
    diagnose,
    run_probe,
)
from lorabench.bench.machine.doctor_probe import Probe, ProbedGpu, driver_of_kernel_module
from lorabench.bench.null_gpu.installed import InstalledCuda

A100 = ProbedGpu(name="A100", memory_bytes=80 * 2**30, free_bytes=79 * 2**30, capability="8.0", bfloat16=True)
T4 = ProbedGpu(name="T4", memory_bytes=15 * 2**30, free_bytes=15 * 2**30, capability="7.5", bfloat16=False)
ON_CPU = Probe(quantization_errors={"cpu": None})
ON_A100 = Probe(torch_cuda="13.0", driver="580.1", gpus=(A100,), quantization_errors={"cpu": None, "cuda": None})


def installed_as(name: str, torch_build: str = "+cu130") -> dict[str, str]:
    """Return the versions that a set pins of what training needs."""
    lines = (Path(doctor.__file__).parent / "versions" / f"{name}.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    pinned["torch"] += torch_build
    return {package: pinned[package] for package in doctor.admitted_versions()}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine that trains on its CPU, which a test changes."""
    there: dict[str, Any] = {"probe": ON_CPU, "installed": installed_as("pinned"), "modules": set()}
    monkeypatch.setattr(doctor, "run_probe", lambda: there["probe"])
    monkeypatch.setattr(doctor, "installed_version", lambda name: there["installed"].get(name))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in there["modules"] or None)
    return there


def check(name: str, choice: Any = "auto", folder: Path = Path()) -> Check:
    return next(check for check in diagnose(choice, folder).checks if check.name == name)


def test_a_checkout_that_is_not_installed_knows_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", not_installed)
    needed = doctor.admitted_versions.__wrapped__()
    assert (needed["torch"], needed["transformers"]) == (">=2.11", "<6,>=5.17")
    assert "jinja2" not in needed
    monkeypatch.setattr(doctor, "CHECKOUT", Path("/nowhere/pyproject.toml"))
    assert doctor.admitted_versions.__wrapped__() == {}


def test_on_a_null_gpu_the_doctor_says_that_nothing_is_computed(machine: dict[str, Any]) -> None:
    machine["probe"] = msgspec.structs.replace(ON_A100, null_gpu=True)
    told = diagnose("cuda")
    assert (told.ready, told.can_train) == (True, ("full", "lora", "qlora", "ia3"))
    assert check("null GPU").found == "a null GPU, which computes nothing: runs on it are rehearsals"
    assert check("quantisation").found == "NF4 round trip runs on the null GPU, which computes no values"


def test_a_machine_with_all_libraries_can_train_by_every_method(machine: dict[str, Any]) -> None:
    told = diagnose()
    assert (told.ready, told.can_train, told.backend) == (True, ("full", "lora", "qlora", "ia3"), "cpu")
    assert {check.status for check in told.checks} <= {"ok", "limited"}


@pytest.mark.parametrize("package", ["torch", "transformers", "peft", "accelerate", "numpy"])
def test_a_package_that_is_not_installed_is_missing(machine: dict[str, Any], package: str) -> None:
    del machine["installed"][package]
    if package == "torch":
        machine["probe"] = Probe()
    assert not diagnose().ready
    assert check(package).status == "missing"
    assert check(package).remedy == "pip install 'lorabench[bench]'"


def test_without_bitsandbytes_all_but_qlora_trains(machine: dict[str, Any]) -> None:
    del machine["installed"]["bitsandbytes"]
    machine["probe"] = Probe()
    assert diagnose().can_train == ("full", "lora", "ia3")
    assert check("quantisation").found == "no bitsandbytes; qlora needs it"


def test_versions_that_are_too_old_or_too_new_are_missing_with_those_that_are_needed(machine: dict[str, Any]) -> None:
    machine["installed"] |= {"torch": "2.4.1+cu121", "transformers": "6.0.0"}
    assert diagnose().can_train == ()
    old, new = check("torch"), check("transformers")
    assert (old.status, old.remedy) == ("missing", "pip install 'torch>=2.11'")
    assert "6.0.0, but lorabench needs" in new.found


def test_a_package_that_cannot_be_imported_is_missing_with_its_error() -> None:
    told = check_package("peft", "0.21.2", "ImportError: cannot import name 'X'")
    assert (told.status, told.found) == ("missing", "0.21.2 cannot be imported: ImportError: cannot import name 'X'")


@pytest.mark.parametrize("name", ["pinned", "newest", "lowest"])
def test_each_tested_set_is_known_by_its_versions(machine: dict[str, Any], name: str) -> None:
    machine["installed"] = installed_as(name, torch_build="+cpu")
    assert check("version set").status == "ok"
    assert check("version set").found.startswith(f"the {name} set")


def test_versions_between_the_tested_ones_are_fine_and_said_to_be_another_combination(machine: dict[str, Any]) -> None:
    machine["installed"] = installed_as("pinned") | {"transformers": installed_as("lowest")["transformers"]}
    assert (check("version set").status, check("version set").remedy) == ("ok", None)
    assert "this combination is untested" in check("version set").found


def test_versions_newer_than_any_that_was_tested_are_unknown_and_not_broken(machine: dict[str, Any]) -> None:
    newest = installed_as("newest", torch_build="")
    machine["installed"] = newest | {"torch": "2.99.0+cu140", "peft": "0.99"}
    together = check("version set")
    assert together.status == "unknown"
    assert f"torch 2.99.0+cu140 is newer than tested ({newest['torch']})" in together.found
    assert str(together.remedy).endswith(f"pip install torch=={newest['torch']} peft=={newest['peft']}")
    assert diagnose().ready


def test_nothing_is_said_of_versions_together_where_one_is_missing(machine: dict[str, Any]) -> None:
    del machine["installed"]["peft"]
    assert (check("version set").status, check("version set").found) == ("unknown", "unknown without peft")


def test_a_gpu_is_needed_only_where_it_is_asked_for(machine: dict[str, Any]) -> None:
    assert (check("GPU").status, diagnose().ready) == ("limited", True)
    assert (check("GPU", "cuda").status, diagnose("cuda").ready) == ("missing", False)
    assert "GPU" not in {check.name for check in diagnose("cpu").checks}
    machine["probe"] = ON_A100
    told = diagnose("cuda")
    assert (told.ready, told.backend, told.driver, told.torch_cuda) == (True, "cuda", "580.1", "13.0")
    assert check("GPU").found == "A100, 80.0 GiB, 79.0 GiB free, compute capability 8.0"


@pytest.mark.parametrize(
    ("probe", "found"),
    [
        (Probe(), "no NVIDIA driver"),
        (Probe(driver="580.1"), "driver 580.1, but torch without CUDA"),
        (Probe(driver="470.2", torch_cuda="13.0", cuda_error="RuntimeError: too old"), "but RuntimeError: too old"),
        (Probe(driver="580.1", torch_cuda="13.0"), "but CUDA lists no device"),
    ],
)
def test_why_there_is_no_gpu_is_said(machine: dict[str, Any], probe: Probe, found: str) -> None:
    machine["probe"] = msgspec.structs.replace(probe, quantization_errors={"cpu": None})
    told = check("GPU", "cuda")
    assert found in told.found
    assert told.remedy is not None


def test_bitsandbytes_must_quantise_on_the_device_that_trains(machine: dict[str, Any]) -> None:
    errors = {"cpu": None, "cuda": "RuntimeError: no kernel image"}
    machine["probe"] = msgspec.structs.replace(ON_A100, quantization_errors=errors)
    assert (diagnose().can_train, diagnose().ready) == (("full", "lora", "ia3"), False)
    assert check("quantisation").found == "fails on the GPU: RuntimeError: no kernel image"
    assert diagnose("cpu").ready


def test_a_gpu_without_bfloat16_is_told_what_to_use(machine: dict[str, Any]) -> None:
    machine["probe"] = ON_A100
    assert check("bfloat16").status == "ok"
    machine["probe"] = msgspec.structs.replace(ON_A100, gpus=(A100, T4))
    told = check("bfloat16")
    assert (told.status, told.found) == ("limited", "only emulated on T4")
    assert "--mixed-precision fp16" in str(told.remedy)


def test_kernels_are_tried_where_they_are_installed(machine: dict[str, Any]) -> None:
    machine["probe"] = ON_A100
    assert check("flash attention").remedy == "pip install flash-attn --no-build-isolation"
    assert check("liger").remedy == "pip install 'liger-kernel>=0.8.3'"
    machine["modules"] = {"flash_attn", "liger_kernel"}
    machine["installed"] |= {"flash-attn": "2.8.3", "liger-kernel": "0.8.5"}
    assert (check("flash attention").status, check("flash attention").found) == ("ok", "2.8.3")
    assert (check("liger").status, check("liger").found) == ("ok", "0.8.5")
    machine["probe"] = msgspec.structs.replace(ON_A100, flash_attention_error="ImportError: undefined symbol")
    told = check("flash attention")
    assert told.status == "limited"
    assert "2.8.3 does not run: ImportError: undefined symbol" in told.found
    assert diagnose().ready


def test_a_liger_that_run_would_refuse_is_not_called_ok(machine: dict[str, Any]) -> None:
    machine |= {"probe": ON_A100, "modules": {"liger_kernel"}}
    machine["installed"]["liger-kernel"] = "0.8.2"
    told = check("liger")
    assert (told.status, told.remedy) == ("limited", "pip install 'liger-kernel>=0.8.3'")
    assert told.found.startswith("0.8.2, but lorabench needs 0.8.3 or newer")


def test_a_full_disk_is_missing(machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**40, 2**40, 2**20))
    assert check("disk, results", folder=tmp_path / "new").status == "missing"
    assert check("disk, hub cache").status == "limited"


def test_folders_that_nobody_can_name_cannot_be_written(
    machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_home: None
) -> None:
    def no_scratch() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    for variable in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("tempfile.gettempdir", no_scratch)
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    found = {name: check(f"disk, {name}") for name in ("results", "scratch", "hub cache")}
    assert {name: one.status for name, one in found.items()} == {
        "results": "missing",
        "scratch": "missing",
        "hub cache": "limited",
    }
    assert all(one.found == "cannot be written" and one.remedy for one in found.values())


def test_the_hub_s_cache_is_where_the_hub_looks_for_it(
    machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**40, 0, 2**40 if path == tmp_path / "here" else 0))
    (tmp_path / "here").mkdir()
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    assert check("disk, hub cache").status == "ok"
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert check("disk, hub cache").status == "limited"


def rehearsals() -> dict[str, Check]:
    found = {one.name: one for one in diagnose().checks if one.name.startswith("rehearsal")}
    return {name.removeprefix("rehearsal, "): one for name, one in found.items()}


def test_what_a_rehearsal_lacks_is_said_with_how_to_get_it(
    machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setenv("PATH", str(tmp_path))  # in which there is no compiler
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/some one/.cache")
    lacking = rehearsals()  # torch too: the fixture hides it
    assert diagnose().ready
    assert {one.status for one in lacking.values()} == {"limited"}
    assert lacking["system"].found == "nobody has tried it on aarch64"
    assert lacking["torch"].found == "the null GPU needs a CUDA build of torch, and torch is not installed"
    assert "pip install torch" in str(lacking["torch"].remedy)
    assert lacking["compiler"].found == "the null GPU needs a C++ compiler"
    assert "install g++" in str(lacking["compiler"].remedy)
    assert "/home/some one/.cache/lorabench" in lacking["cache"].found
    assert str(lacking["cache"].remedy).endswith("set XDG_CACHE_HOME to a path without spaces and colons")
    assert all(str(one.remedy).startswith("only for rehearsals: ") for one in lacking.values())


def test_a_machine_that_can_rehearse_is_told_so(
    machine: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = InstalledCuda(torch=tmp_path / "torch", libraries=(), callers=(), headers=())
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(doctor, "find_installed_cuda", lambda: there)
    monkeypatch.setenv("CXX", sys.executable)  # any program
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert {name: (one.status, one.found) for name, one in rehearsals().items()} == {
        "system": ("ok", "Linux, x86_64"),
        "torch": ("ok", f"a CUDA build, in {tmp_path / 'torch'}"),
        "compiler": ("ok", sys.executable),
        "cache": ("ok", str(tmp_path / "lorabench" / "null-gpu")),
    }


def test_libraries_that_take_the_process_down_are_missing(machine: dict[str, Any]) -> None:
    machine["probe"] = "importing them failed: killed by SIGSEGV: no message"
    told = diagnose()
    assert (told.ready, told.can_train) == (False, ())
    assert told.checks[0].found == "importing them failed: killed by SIGSEGV: no message"


def test_a_probe_that_dies_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dies = tmp_path / "python"
    dies.write_text("#!/bin/sh\necho broken library >&2\nkill -SEGV $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    assert run_probe() == "importing them failed: killed by SIGSEGV: broken library"


def test_the_probe_really_quantises_here() -> None:
    probe = run_probe()
    assert isinstance(probe, Probe)
    assert probe.import_errors == {}
    assert probe.quantization_errors["cpu"] is None


def test_without_torch_the_doctor_still_tells_what_is_missing() -> None:
    """In an interpreter that finds none of the libraries that train."""
    program = """
import sys
from lorabench.bench.machine import doctor
gone = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy", "scipy", "pynvml")
sys.modules.update(dict.fromkeys(gone))  # so that nobody finds them
doctor.installed_version = lambda name: None
import lorabench.cli as cli
cli.main(["doctor", "--format", "json"])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    told = msgspec.json.decode(ran.stdout)
    assert told["can_train"] == []
    assert {check["name"] for check in told["checks"] if check["status"] == "missing"} >= {"torch", "bitsandbytes"}


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build", "580.65.06"),
        ("something else", None),
    ],
)
def test_the_drivers_version_is_read_from_the_kernel(line: str, version: str | None) -> None:
    assert driver_of_kernel_module(line) == version


def test_bfloat16_is_read_from_the_cpus_features() -> None:
    assert computes_in_bfloat16({"sse", "avx512_bf16"})
    assert not computes_in_bfloat16({"sse", "avx512f"})
