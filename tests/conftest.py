import pytest
from hypothesis import settings

# A loaded machine is no failure.
settings.register_profile("lorabench", deadline=None)
settings.load_profile("lorabench")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
