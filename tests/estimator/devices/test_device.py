from __future__ import annotations

import contextlib
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabench.estimator.devices.device import device_names, find_device, known_device
from lorabench.estimator.errors import UserError

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("rtx-4090", "rtx-4090"),
        ("RTX 4090", "rtx-4090"),
        ("rtx_4090", "rtx-4090"),
        ("rtx4090", "rtx-4090"),
        ("RTX4090 24GB", "rtx-4090"),
        ("rtxa6000", "rtx-a6000"),
        ("A100 SXM4 80 GB", "a100-sxm-80gb"),
        ("4090", "rtx-4090"),
        ("3090", "rtx-3090"),
        ("3090 Ti", "rtx-3090-ti"),
        ("4060 ti", "rtx-4060-ti-16gb"),
        ("RTX 3060 12GB", "rtx-3060"),
        ("A6000", "rtx-a6000"),
        ("6000 Ada", "rtx-6000-ada"),
        ("l40", "l40"),
        ("a100 80gb sxm", "a100-sxm-80gb"),
        ("a100-pcie-40g", "a100-pcie-40gb"),
        ("h100 nvl", "h100-nvl"),
        ("mi300x", "mi300x"),
    ],
)
def test_a_gpu_is_found_by_any_name_that_fits_only_it(text: str, name: str) -> None:
    assert find_device(text).name == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-pcie-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA B200", "b200"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100-sxm-16gb"),
        ("Tesla V100-PCIE-32GB", "v100-pcie-32gb"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000-blackwell"),
        ("NVIDIA L40S", "l40s"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_the_names_that_drivers_write_are_known(text: str, name: str) -> None:
    assert find_device(text).name == name


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("NVIDIA GeForce RTX 4070", "rtx-4070-ti-super"),
        ("4070 ti", "rtx-4070-ti-super"),
        ("rtx 4060", "rtx-4060-ti-16gb"),
        ("5070", "rtx-5070-ti"),
        ("2080", "rtx-2080-ti"),
        ("rtx 4000", "rtx-4000-ada"),
        ("NVIDIA RTX 5000", "rtx-5000-ada"),
        ("rtx 6000", "rtx-6000-ada or rtx-pro-6000-blackwell"),
    ],
)
def test_a_gpu_is_not_taken_for_its_namesake_of_another_chip(text: str, other: str) -> None:
    with pytest.raises(UserError, match=rf"no GPU .* did you mean {other}\?"):
        find_device(text)


def test_every_gpu_is_found_by_its_name_and_its_title() -> None:
    assert len(device_names()) == len(set(device_names())) >= 35
    for name in device_names():
        device = find_device(name)
        assert find_device(name.upper().replace("-", " ")) == find_device(device.title) == device
        assert device.assumptions == ()


@pytest.mark.parametrize(
    ("text", "name", "others"),
    [
        ("a100-80gb", "a100-sxm-80gb", "a100-pcie-80gb (as much memory, another speed)"),
        ("A100  80 GB", "a100-sxm-80gb", "a100-pcie-80gb (as much memory, another speed)"),
        ("a100_40GB", "a100-sxm-40gb", "a100-pcie-40gb (as much memory, as fast)"),  # by their datasheets
        ("V100-32GB", "v100-sxm-32gb", "v100-pcie-32gb (as much memory, another speed)"),
        ("H100-80GB", "h100-sxm", "h100-pcie (as much memory, another speed)"),
        (
            "h100",
            "h100-sxm",
            "h100-pcie (as much memory, another speed) or h100-nvl (93.58 GiB, another speed)",
        ),
    ],
)
def test_of_several_gpus_it_is_the_one_that_people_mean_and_says_so(text: str, name: str, others: str) -> None:
    device = find_device(text)
    (said,) = device.assumptions
    assert device.name == name
    assert said == f"gpu {' '.join(text.split())} means {name}, not {others}"
    assert msgspec.structs.replace(device, assumptions=()) == find_device(name)


def test_of_each_chip_and_memory_that_comes_in_several_forms_one_is_meant() -> None:
    """What is added to the catalogue is not refused for want of a word that people do not write."""
    forms: dict[tuple[str, int], list[str]] = {}
    for name in device_names():
        chip = re.sub("-(sxm|pcie|nvl)", "", name)
        forms.setdefault((chip, round(find_device(name).memory_bytes / GIB)), []).append(name)
    several = {chip: names for (chip, _), names in forms.items() if len(names) > 1}
    assert set(several) == {"v100-16gb", "v100-32gb", "a100-40gb", "a100-80gb", "h100"}
    for chip, names in several.items():
        assert find_device(chip).name in names


@pytest.mark.parametrize("name", ["h100", "a100-80gb", "24GB", "local", "nothing", ""])
def test_what_was_measured_is_never_guessed(name: str) -> None:
    assert known_device(name) is None
    assert known_device("NVIDIA H100 80GB HBM3") == find_device("h100-sxm")


@pytest.mark.parametrize(
    ("text", "gib"),
    [("24GB", 24), ("24GiB", 24), ("24G", 24), (" 24 gb ", 24), ("1.5g", 1.5), ("24", 24), (24, 24), (1.5, 1.5)],
)
def test_a_size_is_a_gpu_of_which_only_the_memory_is_known(text: str | float, gib: float) -> None:
    device = find_device(text)
    assert device.memory_bytes == gib * GIB
    assert find_device(device.name) == device
    assert (device.bandwidth_bytes_per_second, device.peak_flops_per_second) == (None, {})
    assert (device.supports_bfloat16, device.tdp_watts, device.compute_capability) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A100", "name a100-pcie-40gb or a100-sxm-40gb or a100-pcie-80gb or a100-sxm-80gb"),
        ("v100-sxm", "name v100-sxm-16gb or v100-sxm-32gb"),
        ("rtx-4091", "did you mean rtx-4090?"),
        ("nvidia", "a size such as 24GB will do"),
        ("gtx-1080", "a size such as 24GB will do"),
    ],
)
def test_what_names_no_gpu_or_several_is_refused_with_the_nearest(text: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        find_device(text)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "5060", "1080", "24 GBs", "GB", "1e3GB", "nan", "inf GB", "24TB", "24,5GB", "24 gigabytes"]
)
def test_what_is_no_size_and_no_name_is_refused_with_how_to_write_a_size(text: str) -> None:
    with pytest.raises(UserError, match=r"and no size: write GiB, such as 24GB or 1\.5GiB$"):
        find_device(text)


@pytest.mark.parametrize("text", ["0GB", "-24GB", "-5 gib", "-24", "0", "0.75GB", "100001GB", "99999999999999999999GB"])
def test_a_size_that_no_gpu_has_is_refused_with_the_range(text: str) -> None:
    with pytest.raises(UserError, match=r"above 0\.75 GiB, which the driver keeps, and at most 100,000 GiB"):
        find_device(text)


@given(st.text(max_size=30) | st.from_regex(r"[0-9.]{1,40}\s?[gG][iI]?[bB]?", fullmatch=True))
def test_no_text_gives_another_error_than_a_user_error(text: str) -> None:
    with contextlib.suppress(UserError):
        assert find_device(text).memory_bytes >= 0


def test_rates_are_dense_and_ordered_as_hardware_is() -> None:
    for name in device_names():
        device = find_device(name)
        rates = device.peak_flops_per_second
        assert device.bandwidth_bytes_per_second is not None
        assert 100e9 < device.bandwidth_bytes_per_second < 10e12
        rounding = 1.01
        assert rates["float32"] <= rounding * rates.get("tf32", rates["float32"])
        assert rates.get("tf32", rates["float32"]) <= rounding * rates["float16"] / 2
        assert rates.get("bfloat16", rates["float16"]) == rates["float16"]
        assert device.supports_bfloat16 == ("bfloat16" in rates)
        assert device.sources["rates"]
        assert device.sources["units"]
        assert device.sources["memory"]
        assert (device.cache_bytes is None) == ("cache not known" in device.sources["units"])


@pytest.mark.parametrize(
    ("name", "streaming_multiprocessors", "boost_ghz", "float16_per_clock"),
    [
        # Operations of one streaming multiprocessor in one clock, dense, float16 accumulated in float32: NVIDIA's
        # architecture whitepapers. GeForce has half the rate of the same chip in a workstation or a server.
        ("rtx-3060", 28, 1.777, 512),
        ("rtx-3090", 82, 1.695, 512),
        ("rtx-4060-ti-16gb", 34, 2.535, 512),
        ("rtx-4090", 128, 2.52, 512),
        ("rtx-5070-ti", 70, 2.452, 512),
        ("rtx-5090", 170, 2.407, 512),
        ("rtx-a4000", 48, 1.56, 1024),
        ("rtx-4000-ada", 48, 2.175, 1024),
        ("a10", 72, 1.695, 1024),
        ("l4", 58, 2.04, 1024),
        ("l40s", 142, 2.49, 1024),
        ("v100-sxm-32gb", 80, 1.53, 1024),
        ("a100-sxm-80gb", 108, 1.41, 2048),
        ("h100-sxm", 132, 1.83, 4096),
    ],
)
def test_tensor_peaks_are_units_times_clock(
    name: str, streaming_multiprocessors: int, boost_ghz: float, float16_per_clock: int
) -> None:
    assert find_device(name).multiprocessors == streaming_multiprocessors
    derived = streaming_multiprocessors * boost_ghz * 1e9 * float16_per_clock
    assert find_device(name).peak_flops_per_second["float16"] == pytest.approx(derived, rel=0.02)


@pytest.mark.parametrize(
    ("name", "bfloat16", "flash_attention"),
    [("t4", False, False), ("v100-sxm-16gb", False, False), ("rtx-3060", True, True), ("mi300x", True, True)],
)
def test_what_a_gpu_supports_follows_from_its_generation(name: str, bfloat16: bool, flash_attention: bool) -> None:
    device = find_device(name)
    assert (device.supports_bfloat16, device.supports_flash_attention) == (bfloat16, flash_attention)
    assert device.supports_bitsandbytes


def test_multiprocessors_make_the_float32_peak_at_a_clock_that_gpus_have() -> None:
    for name in device_names():
        device = find_device(name)
        assert device.multiprocessors is not None
        lanes = 64 if device.compute_capability in ("7.0", "7.5", "8.0") else 128
        per_clock = device.multiprocessors * lanes * 2
        assert 0.9e9 < device.peak_flops_per_second["float32"] / per_clock < 3e9, name


def test_caches_are_a_small_part_of_memory_and_grew_sixteenfold_from_ampere_to_ada() -> None:
    known = [device for device in map(find_device, device_names()) if device.cache_bytes is not None]
    assert len(known) >= 40
    for device in known:
        assert device.cache_bytes is not None
        assert 2 * 2**20 <= device.cache_bytes < device.memory_bytes / 200
    assert find_device("l40s").cache_bytes == 16 * (find_device("a40").cache_bytes or 0)
