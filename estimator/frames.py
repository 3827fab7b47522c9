"""Data frames of pandas, which is imported when one is made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lorabench.estimator.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame


def frame_of(rows: Iterable[dict[str, Any]]) -> DataFrame:
    """Return a data frame with a line for each of ``rows``. Whole numbers stay whole where values are missing.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError("to_frame needs pandas, which is not installed: pip install 'lorabench[report]'") from error
    return pandas.DataFrame(list(rows)).convert_dtypes()
