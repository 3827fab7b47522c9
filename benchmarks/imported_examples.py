"""Answer for every config of other tools below some folders, and print a table of what was taken.

The tools' source distributions hold their examples:

    pip download --no-deps --no-binary :all: axolotl==0.19.0 llamafactory==0.9.5
    pip download --no-deps torchtune==0.6.1
    tar xf axolotl-0.19.0.tar.gz; tar xf llamafactory-0.9.5.tar.gz; unzip torchtune-0.6.1-py3-none-any.whl
    python benchmarks/imported_examples.py axolotl-0.19.0/examples llamafactory-0.9.5/examples recipes/configs

With --every N only each N-th file is in the table; the counts are of all files. Only models of the catalogue and of the
Hub's cache are known, without a network. The estimate is the closed form's; architectures without one are not traced.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

from lorabench.estimator.answers.estimates import estimate_recipe
from lorabench.estimator.errors import UserError
from lorabench.estimator.imported.asked import asked
from lorabench.estimator.models.read_config import has_closed_form
from lorabench.estimator.quantities import in_gib

ENDINGS = {".yml", ".yaml", ".json", ".sh"}
NO_TRAINING = ("no config of", "names no model", "trains nothing", "has no keys")
UNKNOWN_MODEL = ("in the catalogue", "no such file: name a config.json")


class Row(NamedTuple):
    """One example."""

    outcome: str
    """answered, refused, unknown model, or no training."""
    taken: str
    """``fully``, or what is not taken into account."""
    answer: str


def answer(file: Path) -> Row:
    """Return what lorabench says to one config."""
    try:
        wanted = asked(None, file, {})
        resolved = wanted.resolved()
        _ = resolved.target_modules, resolved.modules_to_save
        assert wanted.imported is not None
        left = wanted.imported.not_taken_into_account
        keys = ", ".join(f"{each.key} ({each.memory or 'unknown key'})" for each in left)
        if not has_closed_form(wanted.spec):
            return Row("answered", keys or "fully", f"by a trace of {wanted.spec.model_type}")
        estimate = estimate_recipe(resolved)
    except UserError as error:
        said = str(error).removeprefix(f"{file}: ")
        if any(words in said for words in NO_TRAINING):
            return Row("no training", "", said)
        if any(words in said for words in UNKNOWN_MODEL):
            return Row("unknown model", "", said.partition(" in the catalogue")[0].partition(": no such")[0])
        return Row("refused", "", said)
    return Row("answered", keys or "fully", in_gib(estimate.memory.peak_allocated_bytes))


def main() -> None:
    """Print the table and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    print("| example | not taken into account | peak allocated, or why not |\n|---|---|---|")
    for folder in arguments.folders:
        files = sorted(path for path in folder.rglob("*") if path.suffix in ENDINGS and path.is_file())
        rows = [(file, answer(file)) for file in files]
        counts.update((str(folder), row.outcome) for _, row in rows)
        trainings = [(file, row) for file, row in rows if row.outcome in ("answered", "refused")]
        for file, row in trainings[:: arguments.every]:
            name = file.relative_to(folder.parent.parent if folder.name == "configs" else folder.parent)
            print(f"| {name} | {row.taken} | {row.answer} |")
    print()
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name}: {count} {outcome}")


if __name__ == "__main__":
    main()
