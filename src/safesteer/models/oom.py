"""Work in batches, which are halved where the memory does not hold them.

What is finished stays finished; the work on a batch must change nothing before it is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from safesteer.errors import SafeSteerError

_log = logging.getLogger(__name__)

Row = TypeVar("Row")
Result = TypeVar("Result")


def attempt(work: Callable[[], Result]) -> Result | None:
    """What `work` returns, or None when the memory did not hold it; other errors are raised."""
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
    size: int,
    work: Callable[[Sequence[Row]], Result],
    *,
    halve: bool = True,
) -> Iterator[Result]:
    """``work`` of every batch of at most `size` rows, in their order.

    A batch that does not fit into memory is halved, and so are those after it, in one line; not so
    without `halve`, for passes that several processes have to make in step.

    Raises SafeSteerError when a single row does not fit.
    """
    start = 0
    while start < len(rows):
        part = rows[start : start + size]
        found = attempt(lambda part=part: work(part)) if halve else work(part)  # type: ignore[misc]
        if found is not None:
            yield found
            start += len(part)
            continue
        size = halved(len(part), "sequence")


def halved(rows: int, what: str) -> int:
    """Half of `rows`, with a warning that says so; raises SafeSteerError when there is but one."""
    if rows == 1:
        raise SafeSteerError(
            f"out of memory with a single {what}; what would do: a smaller model or model.dtype,"
            " shorter prompts and answers, or a device with more memory"
        )
    _log.warning("out of memory with %d %ss at once; going on with %d", rows, what, rows // 2)
    return rows // 2
