from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.reports.chromium import Browser, open_browser
from tests.reports.sample_pages import make_page


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium, which shows each page of `sample_pages`."""
    if request.config.getoption("--no-browser"):
        pytest.skip("needs Chromium, and --no-browser was given")
    folder = tmp_path_factory.mktemp("pages")
    with open_browser(folder) as driver:
        yield Browser(driver, folder, make_page)
