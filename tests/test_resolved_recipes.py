from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "estimator", ROOT / "bench", ROOT / "reports", ROOT / "src" / "lorabench" / "cli")
JOINED = {"ModelSpec", "Recipe"}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    files = [*(path for folder in FOLDERS for path in folder.rglob("*.py")), ROOT / "src" / "lorabench" / "__init__.py"]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def named_types(annotation: ast.expr | None) -> set[str]:
    """Return the types that an annotation names, also as part of another such as a tuple."""
    if annotation is None:
        return set()
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}


def test_whatever_needs_a_model_and_a_recipe_takes_a_resolved_recipe() -> None:
    found = dict(functions())
    assert any("estimate_memory" in name for name in found)
    pairs = [
        name
        for name, function in found.items()
        if {type_ for argument in _arguments(function) for type_ in named_types(argument.annotation)} >= JOINED
    ]
    assert pairs == []


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
