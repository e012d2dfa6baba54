"""Markdown tables, and means with standard deviations for their cells."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def table_head(*columns: str) -> str:
    """The two first lines of a table."""
    return f"{table_row(*columns)}\n{'|---' * len(columns)}|"


def table_row(*cells: object) -> str:
    """One line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def mean_and_deviation(
    values: Sequence[float | None], *, scale: float = 100, digits: int = 1, unit: str = "%"
) -> str:
    """Mean and standard deviation of the known values, times `scale`; empty if none is known."""
    known = [scale * value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):.{digits}f}"
    if len(known) == 1:
        return mean + unit
    return f"{mean} ± {statistics.stdev(known):.{digits}f}{unit}"
