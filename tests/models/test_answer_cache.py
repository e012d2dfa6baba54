"""The cache of generated batches: what it keeps, and what it does not, on a tiny model."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from safesteer.errors import SafeSteerError
from safesteer.models import generate as module
from safesteer.models.answer_cache import Cache, user_cache, weights_digest
from safesteer.models.generate import Decoding, generate

TEXTS = ["Hi", "How far is the moon?", "Name a colour.", "Why?", "Name a colour and say why.", "So"]


@pytest.fixture
def prompts(tiny_chat_model, user):
    return [tiny_chat_model.chat.ids(user(text)) for text in TEXTS]


@pytest.fixture
def ask(tiny_chat_model, prompts):
    """Greedy answers of the tiny model, two at once unless told otherwise."""

    def run(**named):  # type: ignore[no-untyped-def]
        decoding = Decoding(named.pop("max_new_tokens", 5), named.pop("temperature", 0.0))
        options = {"batch_size": 2, **named}
        model, tokenizer = tiny_chat_model.model, tiny_chat_model.tokenizer
        return generate(model, tokenizer, prompts, decoding, **options)

    return run


@pytest.fixture
def batches(monkeypatch):
    """The sizes of the batches that the model really answered."""
    sizes: list[int] = []
    original = module._continue_batch

    def counted(model, tokenizer, batch, *args):  # type: ignore[no-untyped-def]
        sizes.append(len(batch))
        return original(model, tokenizer, batch, *args)

    monkeypatch.setattr(module, "_continue_batch", counted)
    return sizes


def test_a_batch_that_fits_gives_the_same_answers(ask):
    assert ask(batch_size=None) == ask() == ask(batch_size=6)


def test_sampling_is_the_same_with_a_cache(ask, tmp_path):
    torch.manual_seed(3)
    expected = ask(temperature=1.0)
    torch.manual_seed(3)
    assert ask(temperature=1.0, cache=Cache(tmp_path, "model")) == expected


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
    original = module._continue_batch

    def small(model, tokenizer, batch, *args):  # type: ignore[no-untyped-def]
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return original(model, tokenizer, batch, *args)

    monkeypatch.setattr(module, "_continue_batch", small)
    assert ask(batch_size=6, cache=Cache(tmp_path, "model")) == expected
    assert tried == [6, 3, 1, 1, 1, 1, 1, 1]


def test_a_single_prompt_that_does_not_fit_is_said(ask, monkeypatch):
    def none(*args, **named):  # type: ignore[no-untyped-def]
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte")

    monkeypatch.setattr(module, "_continue_batch", none)
    with pytest.raises(SafeSteerError, match="out of memory with a single sequence"):
        ask(batch_size=None)


def test_other_failures_are_not_hidden(ask, monkeypatch):
    def broken(*args, **named):  # type: ignore[no-untyped-def]
        raise RuntimeError("something else")

    monkeypatch.setattr(module, "_continue_batch", broken)
    with pytest.raises(RuntimeError, match="something else"):
        ask()


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
