"""Batches that are halved when memory runs out.

Finished batches stay finished, so the work on a batch must change nothing before it is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from safesteer.errors import SafeSteerError

_log = logging.getLogger(__name__)

Row = TypeVar("Row")
Result = TypeVar("Result")


@dataclass
class BatchSize:
    """The most rows in a batch; once halved, it stays so for every loop that shares the object."""

    rows: int


def attempt(work: Callable[[], Result]) -> Result | None:
    """The result of `work`, or None when memory ran out; other errors are raised."""
    try:
        return work()
    except Exception as error:
        if not should_reduce_batch_size(error):
            raise
    # Outside the handler, whose traceback holds the tensors of the failed try.
    clear_device_cache(garbage_collection=True)
    return None


def in_batches(
    rows: Sequence[Row],
    size: int | BatchSize | Callable[[Row], int],
    work: Callable[[Sequence[Row]], Result],
    *,
    halve: bool = True,
) -> Iterator[Result]:
    """Yield ``work(batch)`` for batches of `rows`, in their order.

    A batch that does not fit into memory is halved, and so are those after it; a warning says so.

    Args:
        rows: what to work on.
        size: the most rows in a batch, or a function of a batch's first row that gives them.
        work: must not return None.
        halve: False if several processes make the passes in step; then a batch that does not fit
            is an error.

    Raises:
        SafeSteerError: memory does not hold a single row.
    """
    most = size if isinstance(size, BatchSize) else BatchSize(len(rows) if callable(size) else size)
    start = 0
    while start < len(rows):
        count = min(most.rows, size(rows[start])) if callable(size) else most.rows
        part = rows[start : start + count]
        found = attempt(lambda part=part: work(part)) if halve else work(part)  # type: ignore[misc]
        if found is not None:
            yield found
            start += len(part)
            continue
        if len(part) == 1:
            raise SafeSteerError(
                "out of memory with a single sequence. Try: a smaller model or model.dtype,"
                " shorter prompts and answers, or a device with more memory"
            )
        most.rows = len(part) // 2
        _log.warning(
            "out of memory with %d sequences in a batch; continuing with %d", len(part), most.rows
        )
