"""`lorabench calibrate` on this machine's CPU, on a grid of few shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorabench.bench.machine import calibrate as measuring
from lorabench.bench.machine.calibrate import calibrate
from lorabench.bench.records.record import DeviceFacts
from lorabench.cli import main
from lorabench.cli.calibrate import default_dtypes
from lorabench.estimator.speed.calibrations import read_calibration

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MATMUL_EXTENTS", {"cpu": (8, 256)})
    monkeypatch.setattr(measuring, "MEMORY_BOUND_ELEMENTS", {"cpu": (256, 2**18)})
    monkeypatch.setattr(measuring, "DEQUANTISED_ELEMENTS", {"cpu": (4096, 2**16)})
    monkeypatch.setattr(measuring, "LEAST_SECONDS", 0.002)
    monkeypatch.setattr(measuring, "HOST_STEPS", 3)


def test_larger_work_takes_longer_and_runs_faster() -> None:
    told: list[str] = []
    calibration = calibrate("cpu", "Test CPU", ["float32"], told.append)
    matmuls = calibration.matmuls["float32"]
    smallest, largest = matmuls.seconds[0], matmuls.seconds[-1]
    assert smallest < largest
    assert 8**3 / smallest < 256**3 / largest
    for kernel, times in calibration.memory_bound.items():
        assert times.seconds[0] < times.seconds[1], kernel
    assert calibration.memory_bound["random"].seconds[1] > calibration.memory_bound["arithmetic"].seconds[1]
    assert calibration.dequantisation is not None
    assert calibration.dequantisation.seconds[0] < calibration.dequantisation.seconds[1]
    for seconds in (calibration.forward_seconds, calibration.backward_seconds, calibration.optimizer_seconds):
        assert 1e-7 < seconds < 1e-2
    assert calibration.attention["float32"].forward > 1e8
    assert calibration.threads == 1
    assert told[0] == "matmuls, float32"


def test_the_command_writes_what_estimates_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = DeviceFacts(backend="cpu", name="Test CPU", memory_bytes=2**33)
    facts = type("Surroundings", (), {"device": device, "null_gpu": False})
    monkeypatch.setattr("lorabench.bench.machine.environment.probe_surroundings", lambda choice: facts)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate"])
    assert stopped.value.code == 0
    path = tmp_path / "lorabench" / "calibrations" / "test-cpu.json"
    out = capsys.readouterr().out
    assert f"wrote {path}" in out
    assert out.startswith("Test CPU, 1 thread\nmatmul, float32         up to ")
    assert read_calibration(path).device == "Test CPU"


@pytest.mark.parametrize(
    ("output", "refusal"),
    [
        (".", "cannot write: not a file"),
        ("/dev/full", "cannot write: not a file"),
        ("file/rates.json", "cannot write (File exists): name another file"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    output: str, refusal: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()

    def measured(*given: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("lorabench.bench.machine.calibrate.calibrate", measured)
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", "--device", "cpu", "-o", str(tmp_path / output)])
    assert stopped.value.code == 2
    assert refusal in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gpu", "dtype"), [("Tesla T4", "float16"), ("NVIDIA H200", "bfloat16"), ("Unheard of", "bfloat16")]
)
def test_16_bit_matmuls_are_in_the_dtype_that_the_gpu_has_units_for(gpu: str, dtype: str) -> None:
    assert default_dtypes(gpu) == (dtype, "float32")
