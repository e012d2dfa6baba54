"""Answers that are kept, batch by batch, and batches that fit the memory. On a tiny model."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from safesteer.errors import SafeSteerError
from safesteer.models import answer_cache as answers
from safesteer.models.answer_cache import Cache, generate, user_cache, weights_digest
from safesteer.models.batch_size import CPU_ROWS, CPU_TOKENS, bytes_per_token, rows_that_fit
from safesteer.models.generate import generate as plain_generate

TEXTS = ["Hi", "How far is the moon?", "Name a colour.", "Why?", "Name a colour and say why.", "So"]


@pytest.fixture
def prompts(tiny_chat_model, user):
    return [tiny_chat_model.chat.ids(user(text)) for text in TEXTS]


@pytest.fixture
def ask(tiny_chat_model, prompts):
    """Greedy answers of the tiny model, two at once unless told otherwise."""

    def run(**named):  # type: ignore[no-untyped-def]
        options = {"max_new_tokens": 5, "batch_size": 2, **named}
        return generate(tiny_chat_model.model, tiny_chat_model.tokenizer, prompts, **options)

    return run


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that the model really answered."""
    sizes: list[int] = []

    def counted(model, tokenizer, batch, **named):  # type: ignore[no-untyped-def]
        sizes.append(len(batch))
        return plain_generate(model, tokenizer, batch, **named)

    monkeypatch.setattr(answers.plain, "generate", counted)
    return sizes


def test_answers_are_those_of_the_plain_function(ask, tiny_chat_model, prompts):
    expected = plain_generate(
        tiny_chat_model.model, tiny_chat_model.tokenizer, prompts, max_new_tokens=5, batch_size=2
    )
    assert ask() == expected
    assert ask(batch_size=None) == plain_generate(
        tiny_chat_model.model, tiny_chat_model.tokenizer, prompts, max_new_tokens=5
    )


def test_sampling_draws_what_the_plain_function_draws(ask, tiny_chat_model, prompts):
    torch.manual_seed(3)
    expected = plain_generate(
        tiny_chat_model.model, tiny_chat_model.tokenizer, prompts,
        max_new_tokens=5, batch_size=2, temperature=1.0,
    )  # fmt: skip
    torch.manual_seed(3)
    assert ask(temperature=1.0) == expected


def test_what_is_kept_is_not_asked_again(ask, tmp_path, batches):
    """The same answers with and without, in another process's place too; sampling keeps nothing."""
    without = ask()
    batches.clear()
    assert ask(cache=Cache(tmp_path, "model-a")) == without
    assert batches == [2, 2, 2]
    done = []
    again = ask(cache=Cache(tmp_path, "model-a"), progress=lambda d, t: done.append((d, t)))
    assert again == without and batches == [2, 2, 2]
    assert done == [(2, 6), (4, 6), (6, 6)]
    ask(cache=Cache(tmp_path, "model-a"), temperature=1.0)
    assert batches == [2] * 6


def test_another_model_length_or_batch_is_asked(ask, tmp_path, batches):
    ask(cache=Cache(tmp_path, "model-a"))
    for named in (
        {"cache": Cache(tmp_path, "model-b")},
        {"cache": Cache(tmp_path, "model-a"), "max_new_tokens": 4},
        {"cache": Cache(tmp_path, "model-a"), "batch_size": 3},
    ):
        batches.clear()
        ask(**named)
        assert sum(batches) == 6


def test_an_interrupted_evaluation_goes_on(ask, tmp_path, batches):
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(cache=Cache(tmp_path, "model"), progress=stop)
    assert batches == [2, 2]
    found = ask(cache=Cache(tmp_path, "model"))
    assert batches == [2, 2, 2]
    assert found == ask()


def test_half_a_line_is_passed_over_and_not_written_into(ask, tmp_path, batches):
    """As a kill leaves it: the batch is asked again, and its line starts a new one."""
    expected = ask(cache=Cache(tmp_path, "model"))
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(b"no json\n" + whole[:-9])
    batches.clear()
    assert ask(cache=Cache(tmp_path, "model")) == expected
    assert batches == [2]
    lines = file.read_bytes().split(b"\n")
    assert sum(b'"key"' in line and line.endswith(b"}") for line in lines) == 3
    batches.clear()
    assert ask(cache=Cache(tmp_path, "model")) == expected and not batches


def test_no_text_is_kept(ask, tmp_path, tiny_chat_model):
    found = ask(cache=Cache(tmp_path, "model"))
    (file,) = tmp_path.iterdir()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert {frozenset(row) for row in rows} == {frozenset({"key", "value"})}
    assert all(text not in file.read_text() for text in TEXTS if len(text) > 3)
    assert sorted(map(tuple, found)) == sorted(tuple(ids) for row in rows for ids in row["value"])


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(ask, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING, "safesteer"):
        assert ask(cache=Cache(blocked, "model")) == ask()
    assert "answers are not kept" in caplog.text


def test_a_batch_that_does_not_fit_is_halved(ask, tmp_path, monkeypatch):
    """What was finished stays, and the smaller size is kept for what follows."""
    expected = ask(batch_size=1)
    tried: list[int] = []

    def small(model, tokenizer, batch, **named):  # type: ignore[no-untyped-def]
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return plain_generate(model, tokenizer, batch, **named)

    monkeypatch.setattr(answers.plain, "generate", small)
    assert ask(batch_size=6, cache=Cache(tmp_path, "model")) == expected
    assert tried == [6, 3, 1, 1, 1, 1, 1, 1]


def test_a_single_answer_that_does_not_fit_is_said(ask, monkeypatch):
    def none(*args, **named):  # type: ignore[no-untyped-def]
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte")

    monkeypatch.setattr(answers.plain, "generate", none)
    with pytest.raises(SafeSteerError, match="out of memory with a single answer"):
        ask(batch_size=None)


def test_other_failures_are_not_hidden(ask, monkeypatch):
    def broken(*args, **named):  # type: ignore[no-untyped-def]
        raise RuntimeError("something else")

    monkeypatch.setattr(answers.plain, "generate", broken)
    with pytest.raises(RuntimeError, match="something else"):
        ask()


def test_the_batch_size_depends_on_the_length(tiny_chat_model):
    """More short sequences than long ones at once; at least one, at most the limit."""
    model = tiny_chat_model.model
    assert rows_that_fit(model, 1) == CPU_ROWS
    assert rows_that_fit(model, CPU_TOKENS // 4) == 4
    assert rows_that_fit(model, 100 * CPU_TOKENS) == 1
    # 2 (keys, values) x 4 layers x 2 heads x 16 numbers, and 12 vectors of 32, in float32.
    assert bytes_per_token(model) == 4 * (2 * 4 * 2 * 16 + 12 * 32)


def test_weights_of_most_of_a_card_leave_room_for_more_than_one_answer(monkeypatch):
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


def test_a_digest_sees_every_number_type_and_name():
    one = [("a", torch.zeros(3)), ("b", torch.ones((), dtype=torch.bfloat16))]
    assert weights_digest(one) == weights_digest(list(one))
    for other in (
        [("a", torch.tensor([0.0, 0.0, 1e-30])), one[1]],
        [("c", torch.zeros(3)), one[1]],
        [("a", torch.zeros(3, dtype=torch.float64)), one[1]],
        [("a", torch.zeros(3, 1)), one[1]],
        one[:1],
    ):
        assert weights_digest(other) != weights_digest(one)


def test_the_users_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "safesteer" / "answers"
