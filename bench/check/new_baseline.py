"""Make results the new baseline, after they were compared with the old one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from lorabench.bench.check.matching import Work
from lorabench.bench.records.atomic_writes import replace_folder, write_atomically
from lorabench.bench.records.record import SUFFIX, RunRecord, encode_record, read_record
from lorabench.estimator.errors import UserError

REVIEW = "review.md"
"""The comparison with the old baseline, for the reviewer of the change."""


def write_baseline(results: Sequence[RunRecord], baseline: Path, review: str) -> None:
    """Replace the records in the folder ``baseline`` by ``results``, atomically.

    Records of recipes that ``results`` lacks stay, and so do other files of the folder. ``review`` is written beside
    them.

    Raises:
        UserError: the folder cannot be written, or one of its records cannot be read.
    """
    replaced = {Work(record.digest, record.engine) for record in results}

    def fill(folder: Path) -> None:
        for path in sorted(baseline.iterdir()) if baseline.is_dir() else []:
            if path.name.endswith(SUFFIX):
                old = read_record(path)
                if Work(old.digest, old.engine) not in replaced:
                    shutil.copy2(path, folder)
            elif path.is_dir() and not path.is_symlink():
                shutil.copytree(path, folder / path.name, symlinks=True)
            else:
                shutil.copy2(path, folder, follow_symlinks=False)
        for record in results:
            write_atomically(folder / record.file_name, encode_record(record))
        (folder / REVIEW).write_text(review + "\n", encoding="utf-8")

    try:
        replace_folder(baseline, fill)
    except OSError as error:
        why = error.strerror or str(error)  # shutil joins the errors of a folder into one text
        raise UserError(f"{baseline}: cannot write the baseline: {why}: name another folder") from error
