"""Write the table of recorded architectures to docs/models.md: ``python -m benchmarks.recorded_models``.

The errors are those that `lorabench.estimator.recording` noted: the closed form's peak against the trace's, the largest
of five recipes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median

from benchmarks.rehearsal_errors import replace_between

from lorabench.estimator.models.read_config import MODEL_TYPES, read_config
from lorabench.estimator.models.recordings import contents, recorded_types
from lorabench.estimator.recording.configs import PREFIX, config_of, default_config, default_types

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- begin: benchmarks/recorded_models.py -->", "<!-- end: benchmarks/recorded_models.py -->"


def table() -> str:
    """Return the table of all recorded architectures, in markdown."""
    rows = [*_rows()]
    forms = [row for row in rows if row[3] != "none"]
    types = {row[0] for row in forms}
    errors = [float(row[3].removesuffix("%")) for row in forms]
    lines = [
        f"{len(types)} model types have a recorded closed form, and {len(MODEL_TYPES)} one that is written by hand.",
        f"Of the {len([*default_types()])} causal model types of transformers {len(_covered(types))} have one,",
        "by themselves or as the language model of a multimodal one.",
        f"The median error is {median(errors):.3f} %, the largest {max(errors):.3f} %.",
        "",
        "| model type | recorded from | parameters | closed form against trace |",
        "|---|---|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines)


def _covered(recorded: set[str]) -> list[str]:
    """Return transformers' causal model types whose language model is of a type in ``recorded``, or written by hand."""
    known, found = recorded | {*MODEL_TYPES}, []
    for model_type in default_types():
        with suppress(Exception):  # the class of the config may raise anything
            config = default_config(model_type)
            text = config.get("text_config")
            if (text if isinstance(text, dict) else config)["model_type"] in known:
                found.append(model_type)
    return found


def _rows() -> Iterator[tuple[str, str, str, str]]:
    for model_type in recorded_types():
        for variant in contents(model_type)["variants"]:
            model = variant["model"]
            spec = read_config(config_of(model), model)
            error = f"{variant['error']:.3%}" if variant["around"] is not None else "none"
            source = "transformers' defaults" if model.startswith(PREFIX) else model
            yield model_type, source, f"{spec.parameters / 1e9:,.2f} B", error


if __name__ == "__main__":
    replace_between(PAGE, BEGIN, END, table())
