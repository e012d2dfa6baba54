"""Batch sizes by memory: from the length of a sequence, the weights, and the device."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from safesteer.models.batch_size import CPU_ROWS, CPU_TOKENS, bytes_per_token, rows_that_fit


def test_the_batch_size_depends_on_the_length(tiny_chat_model):
    """More short sequences than long ones at once; at least one, at most the limit."""
    model = tiny_chat_model.model
    assert rows_that_fit(model, 1) == CPU_ROWS
    assert rows_that_fit(model, CPU_TOKENS // 4) == 4
    assert rows_that_fit(model, 100 * CPU_TOKENS) == 1
    # 2 (keys, values) x 4 layers x 2 heads x 16 numbers, and 12 vectors of 32, in float32.
    assert bytes_per_token(model) == 4 * (2 * 4 * 2 * 16 + 12 * 32)


def test_weights_of_most_of_a_gpu_leave_room_for_more_than_one_answer(monkeypatch):
    """Sixteen of 24 GB are weights: half of the other eight is for answers."""
    size = SimpleNamespace(total_memory=24e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: size)
    weight = SimpleNamespace(
        device=torch.device("cuda"), nbytes=16_000_000_000, element_size=lambda: 2
    )
    config = SimpleNamespace(
        num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=32, hidden_size=4096
    )
    model = SimpleNamespace(parameters=lambda: iter([weight]), config=config, dtype=torch.bfloat16)
    token = 2 * (2 * 32 * 8 * 128 + 12 * 4096)
    assert rows_that_fit(model, 200) == int(4e9 / (200 * token)) > 50
    half = rows_that_fit(model, 200, 2 * model.dtype.itemsize)
    assert half == rows_that_fit(model, 200) // 2
