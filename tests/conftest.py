from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported, here or in a process that a test starts: tests run side by side.
os.environ["OMP_NUM_THREADS"] = "1"

# A loaded machine is no failure. In CI the same change gets the same examples; people's own runs look for new ones.
settings.register_profile(
    "lorabench", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("lorabench")


OF_VERSIONS = (
    "tests/bench/machine/",
    "tests/bench/measuring/",
    "tests/bench/running/test_workers.py",
    "tests/bench/training/",
    "tests/cli/check/",
    "tests/cli/test_cli.py",
    "tests/cli/test_doctor.py",
    "tests/cli/test_report.py",
    "tests/cli/test_run.py",
    "tests/cli/test_startup.py",
    "tests/cli/test_trace.py",
    *(
        f"tests/estimator/closed_form/test_against_trace.py::test_the_closed_form_meets_the_trace[{part}]"
        for part in range(3)
    ),
    "tests/estimator/closed_form/test_memory.py",
    "tests/estimator/memory/test_optimizers.py",
    "tests/estimator/memory/test_quantization.py",
    "tests/estimator/optimizers/test_against_trace.py",
    "tests/estimator/recipes/test_parameters.py",
    "tests/estimator/speed/test_flops.py",
    "tests/estimator/trace/",
    "tests/estimator/training/",
    "tests/test_api.py",
    "tests/test_cpus.py",
    "tests/test_packaging.py",
)
"""Where tests begin that are marked ``versions``: they build, train and trace models, parse and print the command line,
render the page, and make packages. All tests would take some three times as long, most of it in arithmetic and in
Chromium, which no version of a library changes, and in more samples of what these try."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let people without Chromium test the rest."""
    parser.addoption("--no-browser", action="store_true", help="skip the tests that look at pages in Chromium")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs with every set of versions."""
    for item in items:
        if item.nodeid.startswith(OF_VERSIONS):
            item.add_marker("versions")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is none, and ``cuda_build`` where torch is built without CUDA."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    if item.get_closest_marker("cuda_build") is not None:
        import torch

        if torch.version.cuda is None:
            pytest.skip("torch is built without CUDA")


def pytest_collection_finish() -> None:
    """Leave what was imported out of every garbage collection: a tenth of the time that traces take."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_calibrations_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the system does not know, as in many a container."""

    def unknown(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
