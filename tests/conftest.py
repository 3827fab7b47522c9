import os

import pytest
from hypothesis import settings

# A loaded machine is no failure. In CI the same change gets the same examples; people's own runs look for new ones.
settings.register_profile("lorabench", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("lorabench")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``gpu`` where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
