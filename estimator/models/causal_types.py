"""The types of causal language models that the installed transformers can build.

They are read from its source, since its import takes seconds, and a misspelt type is refused at once.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Collection
from functools import cache
from pathlib import Path

FILE = Path("models", "auto", "modeling_auto.py")
MAPPING = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


@cache
def causal_model_types() -> Collection[str]:
    """Return the values of ``model_type`` for which transformers has a causal language model.

    Raises:
        ImportError: transformers is not installed.
    """
    found = importlib.util.find_spec("transformers")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder, FILE)
        types = _written_in(path.read_text(encoding="utf-8")) if path.is_file() else None
        if types:
            return types
    from transformers.models.auto import modeling_auto  # a version that writes the table otherwise

    return frozenset(getattr(modeling_auto, MAPPING))


def _written_in(source: str) -> frozenset[str] | None:
    """Return the first of each pair of strings in the table of ``source``; None if it is not a list of such pairs."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == MAPPING:
            call = statement.value
            try:
                pairs = dict(ast.literal_eval(call.args[0] if isinstance(call, ast.Call) else call))
            except (ValueError, TypeError, IndexError):
                return None
            return frozenset(pairs) if all(isinstance(name, str) for name in pairs) else None
    return None
