from __future__ import annotations

import json
from pathlib import Path

from lorabench.reports import page

ECHARTS = Path(page.__file__).parent / "vendor" / "echarts"


def test_the_chart_library_is_the_version_that_the_build_pins() -> None:
    pinned = json.loads((ECHARTS / "package.json").read_text())["devDependencies"]["echarts"]
    locked = json.loads((ECHARTS / "package-lock.json").read_text())["packages"]["node_modules/echarts"]
    assert locked["version"] == pinned
    assert (ECHARTS / "echarts.min.js").read_text().startswith(f"/*! Apache ECharts {pinned} ")


def test_its_licences_come_with_it() -> None:
    terms = {path.name: path.read_text() for path in [*ECHARTS.glob("LICENSE*"), *ECHARTS.glob("NOTICE")]}
    assert set(terms) == {"LICENSE", "LICENSE-d3", "LICENSE-zrender", "NOTICE"}
    assert "Apache License" in terms["LICENSE"]
    assert all("Redistribution and use" in terms[name] for name in ("LICENSE-d3", "LICENSE-zrender"))
