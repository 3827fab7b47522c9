"""Files of measured rates, and what is read between the points that were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from lorabench.cli import main
from lorabench.estimator.devices.device import find_device
from lorabench.estimator.errors import UserError
from lorabench.estimator.models.catalogue import find_model
from lorabench.estimator.recipes.recipe import make_recipe
from lorabench.estimator.recipes.resolved import ResolvedRecipe
from lorabench.estimator.speed.calibrated_rates import CalibratedRates
from lorabench.estimator.speed.calibrations import (
    AttentionRates,
    Calibration,
    MatmulTimes,
    MemoryBoundTimes,
    file_name,
    find_calibration,
    read_calibration,
    user_folder,
)
from lorabench.estimator.speed.operations import Kernel
from lorabench.estimator.speed.throughput import estimate_throughput

LLAMA = "meta-llama/Llama-3.1-8B"
TFLOPS = 100e12
EXTENTS = (16, 256, 4096)


def made_up(backend: str = "cuda", **changes: Any) -> Calibration:
    """Return the calibration of a GPU that does 100 TFLOP/s of all shapes, and 1 TB/s."""
    seconds = tuple(2 * m * n * k / TFLOPS for m in EXTENTS for n in EXTENTS for k in EXTENTS)
    matmuls = {"bfloat16": MatmulTimes(m=EXTENTS, n=EXTENTS, k=EXTENTS, seconds=seconds)}
    settings: dict[str, Any] = {
        "device": "NVIDIA GeForce RTX 4090",
        "backend": backend,
        "software": {"torch": "2.13.0"},
        "date": "2026-11-22",
        "matmuls": matmuls | {"float32": matmuls["bfloat16"]},
        "memory_bound": dict.fromkeys(get_args(Kernel), MemoryBoundTimes(bytes=(10_000, 10**9), seconds=(1e-6, 1e-3))),
        "attention": {
            "bfloat16": AttentionRates(forward=50e12, backward=40e12, masked_forward=2e12, masked_backward=1e12)
        },
        "dequantisation": MemoryBoundTimes(bytes=(10_000, 10**9), seconds=(1e-6, 2e-3)),
        "forward_seconds": 5e-6,
        "backward_seconds": 2e-6,
        "optimizer_seconds": 1e-6,
    }
    return Calibration(**(settings | changes))


def test_where_every_shape_is_as_fast_so_is_any_between_and_beyond() -> None:
    rates = CalibratedRates(made_up())
    for m, n, k in [(16, 256, 4096), (100, 300, 999), (16384, 4096, 14336)]:
        assert rates.matmul(m, n, k, 3, "bfloat16") == pytest.approx(3 * 2 * m * n * k / TFLOPS)


def test_a_matmul_smaller_than_any_measured_takes_as_long_as_the_smallest() -> None:
    rates = CalibratedRates(made_up())
    assert rates.matmul(1, 256, 256, 1, "bfloat16") == pytest.approx(rates.matmul(16, 256, 256, 1, "bfloat16"))


def test_between_two_points_the_rate_is_their_geometric_mean() -> None:
    slow_ranks = tuple(
        2 * m * n * k / (TFLOPS / (4 if n == 16 else 1)) for m in EXTENTS for n in EXTENTS for k in EXTENTS
    )
    matmuls = {"bfloat16": MatmulTimes(m=EXTENTS, n=EXTENTS, k=EXTENTS, seconds=slow_ranks)}
    rates = CalibratedRates(made_up(matmuls=matmuls))
    assert rates.matmul(256, 64, 256, 1, "bfloat16") == pytest.approx(2 * 256 * 64 * 256 / (TFLOPS / 2))


def test_memory_bound_operations_take_the_time_of_the_smallest_and_the_rate_of_the_largest() -> None:
    rates = CalibratedRates(made_up())
    assert rates.memory_bound(1) == pytest.approx(1e-6)
    assert rates.memory_bound(4 * 10**9) == pytest.approx(4e-3)
    assert rates.memory_bound((10_000 * 10**9) ** 0.5) == pytest.approx((1e-6 * 1e-3) ** 0.5)


def test_attention_is_as_measured_with_a_mask_and_without_but_no_faster_than_its_bytes() -> None:
    rates = CalibratedRates(made_up())
    assert rates.attention(1e12, 1, "bfloat16", "sdpa", backward=False) == pytest.approx(1e12 / 50e12)
    assert rates.attention(1e12, 1, "bfloat16", "masked", backward=True) == pytest.approx(1.0)
    assert rates.attention(1, 10**9, "bfloat16", "sdpa", backward=False) == pytest.approx(1e-3)


def test_a_processor_s_own_work_is_not_counted_twice() -> None:
    gpu, cpu = CalibratedRates(made_up()), CalibratedRates(made_up("cpu"))
    assert gpu.launch_seconds("forward") == 5e-6
    assert cpu.launch_seconds("forward") == pytest.approx(4e-6)  # the shortest pass takes 1 µs of it
    assert gpu.asynchronous
    assert not cpu.asynchronous


def test_what_was_not_measured_is_refused() -> None:
    rates = CalibratedRates(made_up(dequantisation=None))
    with pytest.raises(UserError, match="lorabench calibrate --dtype float16"):
        rates.matmul(1, 1, 1, 1, "float16")
    with pytest.raises(UserError, match="has no 4-bit weights"):
        rates.dequantisation(1.0)


def test_twice_the_rates_are_twice_the_speed() -> None:
    spec, device = find_model(LLAMA), find_device("rtx-4090")
    recipe = make_recipe(LLAMA, seq_len=4096)

    def faster(times: int) -> float:
        plain = made_up()
        seconds = tuple(second / times for second in plain.matmuls["bfloat16"].seconds)
        matmuls = {"bfloat16": msgspec.structs.replace(plain.matmuls["bfloat16"], seconds=seconds)}
        attention = {
            dtype: AttentionRates(**{name: times * rate for name, rate in msgspec.structs.asdict(rates).items()})
            for dtype, rates in plain.attention.items()
        }
        one = plain.memory_bound["arithmetic"]
        memory_bound = dict.fromkeys(
            plain.memory_bound,
            MemoryBoundTimes(bytes=one.bytes, seconds=tuple(second / times for second in one.seconds)),
        )
        calibration = made_up(matmuls=matmuls, attention=attention, memory_bound=memory_bound)
        speed = estimate_throughput(ResolvedRecipe(spec, recipe), device, calibration)
        assert speed is not None
        return speed.tokens_per_second

    assert faster(2) == pytest.approx(2 * faster(1))


# Files


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    user_folder().mkdir(parents=True)
    return user_folder()


def test_a_calibration_is_found_by_any_name_of_its_device(folder: Path) -> None:
    (folder / file_name("NVIDIA GeForce RTX 4090")).write_bytes(msgspec.json.encode(made_up()))
    for name in ("rtx-4090", "4090", "NVIDIA GeForce RTX 4090"):
        assert find_calibration(name) == made_up()
    assert find_calibration("rtx-3090") is None
    assert find_calibration("Some CPU @ 2.40GHz / 8 cores") is None


def test_a_calibration_of_schema_1_is_read_by_its_older_names(tmp_path: Path) -> None:
    path = tmp_path / "older.json"
    older = msgspec.json.encode(made_up()).replace(b'"schema_version":2', b'"schema_version":1')
    path.write_bytes(older.replace(b'"matmuls":', b'"products":').replace(b'"memory_bound":', b'"passes":'))
    assert read_calibration(path) == made_up()


def test_a_folder_that_may_not_be_entered_holds_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if folder in path.parents:
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    (folder / file_name("rtx-4090")).write_bytes(msgspec.json.encode(made_up()))
    monkeypatch.setattr(Path, "is_file", refused)
    assert find_calibration("rtx-4090") is None


def test_no_calibration_is_the_user_s_where_no_home_folder_is_known(
    monkeypatch: pytest.MonkeyPatch, no_home: None
) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert find_calibration("rtx-4090") is None
    with pytest.raises(UserError, match=r"there is no home folder .*: set HOME, or name a file with -o"):
        user_folder()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Input data was truncated"),
        (b"{}", " is missing"),
        (
            msgspec.json.encode(made_up()).replace(b'"schema_version":2', b'"schema_version":3'),
            "schema_version must be one of 2, got 3",
        ),
        (msgspec.json.encode(made_up()).replace(b'"m":[16,256,4096]', b'"m":[16,4096,256]'), "rising numbers"),
        (msgspec.json.encode(made_up()).replace(b'"m":[16,256,4096]', b'"m":[16,256]'), "for each point of the grid"),
        (msgspec.json.encode(made_up()).replace(b'"tanh":', b'"rows":'), "memory_bound lacks tanh"),
        (
            msgspec.json.encode(made_up()).replace(b'"forward_seconds":5e-6', b'"forward_seconds":-1'),
            "must be a number from 1e-12 to 1000000000, got -1",
        ),
    ],
)
def test_a_file_that_is_no_calibration_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_calibration(path)
    assert said in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_estimates_are_made_from_what_was_calibrated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def speed(*arguments: str) -> Any:
        with pytest.raises(SystemExit) as stopped:
            main(["estimate", LLAMA, "--method", "lora", "--gpu", "rtx-4090", "--format", "json", *arguments])
        assert stopped.value.code == 0
        return json.loads(capsys.readouterr().out)["throughput"]

    plain = speed()
    own = tmp_path / "own.json"
    own.write_bytes(msgspec.json.encode(made_up()))
    calibrated = speed("--calibration", str(own))
    assert (plain["rates"], calibrated["rates"]) == ("datasheet", "calibrated")
    (folder / "rtx-4090.json").write_bytes(own.read_bytes())
    assert speed() == calibrated


def test_a_calibration_of_another_gpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "4090.json"
    path.write_bytes(msgspec.json.encode(made_up()))
    with pytest.raises(SystemExit) as stopped:
        main(["estimate", LLAMA, "--method", "lora", "--gpu", "rtx-3090", "--calibration", str(path)])
    assert stopped.value.code == 2
    assert "was measured on NVIDIA GeForce RTX 4090, not on rtx-3090" in capsys.readouterr().err
