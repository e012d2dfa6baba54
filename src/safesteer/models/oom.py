"""Batches of sequences of similar length, bounded by tokens, and halved when memory runs out.

Finished batches stay finished, so the work on a batch must change nothing before it is done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from safesteer.errors import SafeSteerError
from safesteer.models.hidden_states import common_prefix, is_worthwhile

_log = logging.getLogger(__name__)

# A batch of n rows holds at most n times this many tokens, padding included. Prompts are shorter as
# a rule, and 32 such rows fill a device.
ROW_TOKENS = 256

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
    sequences: Sequence[Sequence[int]],
    size: int | BatchSize,
    work: Callable[[list[int]], Result],
    device: torch.device,
    *,
    fitting: Callable[[int], int] | None = None,
    passes: int = 1,
    in_step: bool = False,
) -> Iterator[tuple[list[int], Result]]:
    """Yield (rows, ``work(rows)``) for batches of rows of `sequences`, sorted by length.

    A batch ends early where longer rows would make it mostly padding (see `rows_together`). One
    that does not fit into memory is halved, and so are those after it; a warning says so.

    Args:
        sequences: token ids, of which the lengths and the common prefix decide.
        size: the most rows in a batch.
        work: gets row numbers; must not return None.
        device: where the passes run.
        fitting: how many rows fit if the longest has so many tokens; the longest rows then come
            first. By default the shortest do, and a batch holds `size` times `ROW_TOKENS` tokens,
            the common prefix counted once.
        passes: how often the model runs for a batch, as for each token that it generates.
        in_step: several processes make the passes in step. Then a batch neither ends early nor is
            halved: one that does not fit into memory is an error.

    Raises:
        SafeSteerError: memory does not hold a single row.
    """
    most = size if isinstance(size, BatchSize) else BatchSize(size)
    shared = common_prefix(sequences)
    sign = 1 if fitting is None else -1
    order = sorted(range(len(sequences)), key=lambda row: sign * len(sequences[row]))
    start = 0
    while start < len(order):
        part = order[start : start + most.rows]
        if fitting is not None:
            part = part[: max(1, fitting(len(sequences[part[0]])))]
        if not in_step:
            lengths = [len(sequences[row]) - shared for row in part]
            tokens = None if fitting else most.rows * ROW_TOKENS
            part = part[: rows_together(lengths, device, shared, tokens=tokens, passes=passes)]
        found = work(part) if in_step else attempt(lambda part=part: work(part))  # type: ignore[misc]
        if found is not None:
            yield part, found
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


def row_by_row(
    sequences: Sequence[Sequence[int]],
    size: int | BatchSize,
    work: Callable[[list[int]], Sequence[Result]],
    device: torch.device,
    **options: Any,
) -> list[Result]:
    """The results of `work`, one for each row it gets, in the order of `sequences`.

    The arguments are those of `in_batches`.
    """
    found: dict[int, Result] = {}
    for rows, part in in_batches(sequences, size, work, device, **options):
        found.update(zip(rows, part, strict=True))
    return [found[row] for row in range(len(sequences))]


def rows_together(
    lengths: Sequence[int],
    device: torch.device,
    shared: int = 0,
    *,
    tokens: int | None = None,
    passes: int = 1,
) -> int:
    """How many of the first rows go into one batch.

    The batch is cut in two as long as it is mostly padding and the padding saved is worth more
    passes, so that sets of similar lengths fill their batches.

    Args:
        lengths: tokens of each row without the common prefix, sorted either way.
        device: where the passes run, which decides what a pass costs.
        shared: tokens of the common prefix, which every batch reads once.
        tokens: the most in a batch of several rows, padding included.
        passes: how often the model runs for a batch.
    """

    def cost(start: int, end: int) -> int:
        return shared + (end - start) * max(lengths[start], lengths[end - 1])

    count = len(lengths)
    while tokens is not None and count > 1 and cost(0, count) - shared > tokens:
        count -= 1
    while cost(0, count) - shared > 2 * sum(lengths[:count]):
        parts = [cost(0, end) + cost(end, count) for end in range(1, count)]
        if not is_worthwhile((cost(0, count) - min(parts)) // passes, device):
            break
        count = 1 + parts.index(min(parts))
    return count
