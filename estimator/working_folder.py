"""The working folder of the process."""

from __future__ import annotations

import os

from lorabench.estimator.errors import UserError


def require_working_folder() -> None:
    """Refuse a working folder that was deleted: oneMKL ends a process that imports torch there.

    Raises:
        UserError: the working folder does not exist.
    """
    try:
        os.getcwd()  # noqa: PTH109 - Path.cwd() does the same
    except FileNotFoundError:
        raise UserError("the working folder was deleted, and torch cannot be loaded there: change to another") from None
