"""Which folder may import from which: each from the floors below it, never from those above."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (
    "estimator",
    "estimator/devices",
    "estimator/models",
    "estimator/methods",
    "estimator/optimizers",
    "estimator/losses",
    "estimator/recipes",
    "estimator/imported",
    "estimator/memory",
    "estimator/closed_form",
    "estimator/speed",
    "estimator/training",
    "estimator/trace",
    "estimator/answers",
    "estimator/explanation",
    "estimator/recording",
    "bench",
    "bench/records",
    "bench/null_gpu",
    "bench/check",
    "bench/training",
    "bench/measuring",
    "bench/machine",
    "bench/suites",
    "bench/running",
    "bench/rehearsing",
    "reports",
    "lorabench",
)
"""From the ground up. A folder inside one of these is on its floor; ``lorabench`` is the API and the command line."""
SOURCES = {"estimator": ROOT / "estimator", "bench": ROOT / "bench", "reports": ROOT / "reports"}


def _modules() -> dict[str, Path]:
    """Return each module of lorabench by its path below the package, such as ``estimator/trace/trace``."""
    found = {
        f"{name}/{path.relative_to(folder).with_suffix('')}": path
        for name, folder in SOURCES.items()
        for path in folder.rglob("*.py")
    }
    package = ROOT / "src" / "lorabench"
    own = [*package.glob("*.py"), *(package / "cli").rglob("*.py")]
    return found | {f"lorabench/{path.relative_to(package).with_suffix('')}": path for path in own}


MODULES = _modules()


def _floor(module: str) -> int:
    folder = module.rpartition("/")[0]
    while folder not in FLOORS:
        folder = folder.rpartition("/")[0]
    return FLOORS.index(folder)


def _imported(path: Path) -> Iterator[str]:
    """Yield the modules of lorabench that a file imports, also inside functions and for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name == "lorabench" or name.startswith("lorabench.cli"):
                yield f"lorabench/{'/'.join(name.split('.')[1:]) or '__init__'}"
            elif name.startswith("lorabench."):
                module = "/".join(name.split(".")[1:])
                yield module if module in MODULES else f"{module}/__init__"


def test_every_folder_with_code_has_its_floor() -> None:
    folders = {module.rpartition("/")[0] for module in MODULES}
    assert set(FLOORS) <= folders
    assert folders - set(FLOORS) == {
        "bench/measuring/meters",
        "bench/null_gpu/inside",
        "bench/null_gpu/startup",
        "estimator/closed_form/decoders",
        "estimator/closed_form/operators",
        "estimator/closed_form/programs",
        "estimator/models/config_fields",
        "estimator/models/families",
        "lorabench/cli",
        "reports/sections",
    }


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_import_runs_up_between_folders(module: str) -> None:
    up = {name for name in _imported(MODULES[module]) if name in MODULES and _floor(name) > _floor(module)}
    assert not up, f"{module} imports from the floors above it: {sorted(up)}"
