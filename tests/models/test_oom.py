"""Batches that are halved where the memory does not hold them."""

from __future__ import annotations

import logging

import pytest
import torch

from safesteer.direction.activations import prompt_means
from safesteer.errors import SafeSteerError
from safesteer.models import hidden_states as forward
from safesteer.models.generate import Decoding, generate
from safesteer.models.oom import BatchSize, in_batches, row_by_row, rows_together


def work_that_holds(most: int, tried: list[int]):  # type: ignore[no-untyped-def]
    def work(rows):  # type: ignore[no-untyped-def]
        tried.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return list(rows)

    return work


CPU = torch.device("cpu")


def rows_of(count: int, length: int = 3) -> list[list[int]]:
    """Sequences without a common prefix."""
    return [[row] + [0] * (length - 1) for row in range(count)]


def batches(sequences, size, **options):  # type: ignore[no-untyped-def]
    return [rows for rows, _ in in_batches(sequences, size, list, CPU, **options)]


def test_batches_are_halved_and_stay_so(caplog):
    """Every row once and in order; the note is made once for each halving."""
    tried: list[int] = []
    with caplog.at_level(logging.WARNING, "safesteer"):
        found = row_by_row(rows_of(11), 8, work_that_holds(3, tried), CPU)
    assert found == list(range(11))
    assert tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert [r.getMessage().split(";")[0] for r in caplog.records] == [
        "out of memory with 8 sequences in a batch",
        "out of memory with 4 sequences in a batch",
    ]


def test_a_batch_size_stays_halved_and_may_depend_on_the_length():
    """Across loops that share it; a function of the longest length bounds each batch anew."""
    size, tried = BatchSize(8), []
    row_by_row(rows_of(4), size, work_that_holds(2, tried), CPU)
    row_by_row(rows_of(4), size, work_that_holds(9, tried), CPU)
    assert (size.rows, tried) == (2, [4, 2, 2, 2, 2])
    tried.clear()
    lengths = [*rows_of(2, 1), *rows_of(3, 3)]
    work = work_that_holds(2, tried)
    assert row_by_row(lengths, 9, work, CPU, fitting=int) == list(range(5))
    assert tried == [3, 1, 1, 1, 1, 1]


def test_a_single_row_that_does_not_fit_is_said():
    with pytest.raises(SafeSteerError, match=r"out of memory with a single sequence\. Try"):
        batches_of = in_batches(rows_of(2), 2, work_that_holds(0, []), CPU)
        list(batches_of)


def test_other_errors_and_passes_in_step_are_not_repeated():
    tried: list[int] = []
    with pytest.raises(torch.OutOfMemoryError):
        list(in_batches(rows_of(4), 4, work_that_holds(1, tried), CPU, in_step=True))
    with pytest.raises(ZeroDivisionError):
        list(in_batches(rows_of(4), 4, lambda rows: 1 / 0, CPU))
    assert tried == [4]


@pytest.mark.parametrize("fitting", [None, lambda longest: 32], ids=["ascending", "descending"])
def test_a_long_row_among_short_ones_gets_a_batch_of_its_own(fitting):
    """Processes in step must make the same passes, whatever their rows."""
    sequences = [[0] * 930, *rows_of(31, 30)]
    found = batches(sequences, 32, fitting=fitting)
    assert sorted(map(len, found)) == [1, 31] and [0] in found
    assert sorted(row for rows in found for row in rows) == list(range(32))
    assert len(batches(sequences, 32, fitting=fitting, in_step=True)) == 1


def test_rows_of_similar_lengths_fill_their_batches():
    """Padding of less than half a batch is no reason to end it."""
    sequences = [[row] * (20 + row) for row in range(40)]
    assert batches(sequences, 32) == [list(range(32)), list(range(32, 40))]
    together = batches(sequences, 32, fitting=lambda longest: 32)
    assert together == [list(range(39, 7, -1)), list(range(7, -1, -1))]


def test_what_another_pass_costs_decides():
    """A GPU reads some padding sooner than it makes another pass; generation makes many."""
    lengths = [10] * 31 + [100]
    assert rows_together(lengths, CPU) == 31
    assert rows_together(lengths, CPU, passes=25) == 32
    assert rows_together(lengths, torch.device("cuda")) == 32
    # The second batch reads the common prefix again.
    assert rows_together(lengths, CPU, shared=3000) == 32


def test_batches_of_long_rows_are_smaller():
    """256 tokens for each row of the size; what all rows begin with is read once, and not counted.

    Where a row does not fit at all it still gets its batch.
    """
    own = [[row] * 1024 for row in range(8)]
    assert list(map(len, batches(own, 8))) == [2, 2, 2, 2]
    assert list(map(len, batches(own, 1))) == [1] * 8
    alike = [[0] * 1024 + [row] * 30 for row in range(8)]
    assert list(map(len, batches(alike, 8))) == [8]


def test_stages_give_the_same_in_smaller_batches(tiny_chat_model, monkeypatch):
    """Means of the residual stream and greedy answers, on a device that holds two sequences."""
    prompts = [[{"role": "user", "content": "word " * count}] for count in range(1, 8)]
    ids = [tiny_chat_model.chat.ids(messages) for messages in prompts]
    means, _ = prompt_means(tiny_chat_model, prompts, 2)
    answers = generate(tiny_chat_model.model, tiny_chat_model.tokenizer, ids, Decoding(5))
    inner = forward.backbone(tiny_chat_model.model)
    original = inner.forward

    def small(input_ids=None, **named):  # type: ignore[no-untyped-def]
        if len(input_ids) > 2:
            raise RuntimeError("CUDA out of memory.")
        return original(input_ids=input_ids, **named)

    monkeypatch.setattr(inner, "forward", small)
    assert torch.allclose(prompt_means(tiny_chat_model, prompts, 2)[0], means, atol=1e-5)
    again = generate(tiny_chat_model.model, tiny_chat_model.tokenizer, ids, Decoding(5))
    assert again == answers
