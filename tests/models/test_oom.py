"""Batches that are halved where the memory does not hold them."""

from __future__ import annotations

import logging

import pytest
import torch

from safesteer.direction.activations import prompt_means
from safesteer.errors import SafeSteerError
from safesteer.models import hidden_states as forward
from safesteer.models.generate import Decoding, generate
from safesteer.models.oom import BatchSize, in_batches


def work_that_holds(most: int, tried: list[int]):  # type: ignore[no-untyped-def]
    def work(rows):  # type: ignore[no-untyped-def]
        tried.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return list(rows)

    return work


def test_batches_are_halved_and_stay_so(caplog):
    """Every row once and in order; the note is made once for each halving."""
    tried: list[int] = []
    with caplog.at_level(logging.WARNING, "safesteer"):
        found = list(in_batches(range(11), 8, work_that_holds(3, tried)))
    assert [row for part in found for row in part] == list(range(11))
    assert tried == [8, 4, 2, 2, 2, 2, 2, 1]
    assert [r.getMessage().split(";")[0] for r in caplog.records] == [
        "out of memory with 8 sequences in a batch",
        "out of memory with 4 sequences in a batch",
    ]


def test_a_batch_size_stays_halved_and_may_depend_on_the_row():
    """Across loops that share it; a function of the first row bounds each batch anew."""
    size, tried = BatchSize(8), []
    list(in_batches(range(4), size, work_that_holds(2, tried)))
    list(in_batches(range(4), size, work_that_holds(9, tried)))
    assert (size.rows, tried) == (2, [4, 2, 2, 2, 2])
    tried.clear()
    list(in_batches([3, 3, 3, 1, 1], lambda row: row, work_that_holds(2, tried)))
    assert tried == [3, 1, 1, 1, 1, 1]


def test_a_single_row_that_does_not_fit_is_said():
    with pytest.raises(SafeSteerError, match=r"out of memory with a single sequence\. Try"):
        list(in_batches([1, 2], 2, work_that_holds(0, [])))


def test_other_errors_and_passes_in_step_are_not_repeated():
    tried: list[int] = []
    with pytest.raises(torch.OutOfMemoryError):
        list(in_batches(range(4), 4, work_that_holds(1, tried), halve=False))
    with pytest.raises(ZeroDivisionError):
        list(in_batches(range(4), 4, lambda rows: 1 / 0))
    assert tried == [4]


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
