"""Passes that continue prompts read once give the states of a pass over the whole."""

from __future__ import annotations

import pytest
import torch

from safesteer.models.chat import pad_left
from safesteer.models.hidden_states import hidden_states
from safesteer.models.prompt_states import continue_prompts, read_prompts


def batch(shared: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prompts of 9 to 11 tokens behind a common prefix, and completions of 4 and 2."""
    prefix = list(range(20, 20 + shared))
    prompts = [prefix + [30 + row * 7 + n for n in range(9 + row)] for row in range(3)]
    ids, mask = pad_left(prompts, 0, torch.device("cpu"))
    completions = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0], [11, 12, 13, 14]])
    return ids, mask, completions, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize("last", [1, 5, 500])
@pytest.mark.parametrize("shared", [1, 200])  # the second is worth a pass of its own
def test_the_states_are_those_of_one_pass(tiny_chat_model, last, shared):
    model = tiny_chat_model.model
    ids, mask, completions, kept = batch(shared)
    whole = hidden_states(model, torch.cat([ids, completions], 1), torch.cat([mask, kept], 1))
    prompts = read_prompts(model, ids, mask, last=last, new_tokens=4)
    found = continue_prompts(model, prompts, completions, kept)
    expected = whole[:, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(found[kept.bool()], expected[kept.bool()], atol=1e-4, rtol=1e-3)
    second = continue_prompts(model, prompts.rows(slice(1, 3)), completions[1:], kept[1:])
    torch.testing.assert_close(second, found[1:], atol=1e-5, rtol=1e-4)


def test_gradients_come_from_the_last_tokens_and_the_completion(tiny_chat_model):
    """Of the embeddings, those of tokens that were read before get none."""
    model = tiny_chat_model.model
    ids, mask, completions, kept = batch(1)
    embeddings = model.get_input_embeddings().weight.requires_grad_(True)
    head = model.get_output_embeddings().weight
    assert head is not embeddings
    prompts = read_prompts(model, ids, mask, last=2, new_tokens=4)
    continue_prompts(model, prompts, completions, kept).square().sum().backward()
    moved = embeddings.grad.abs().sum(-1).nonzero().flatten().tolist()
    read = {*ids[:, -2:].flatten().tolist(), *completions[:, :-1].flatten().tolist()}
    assert set(moved) == read - {0}  # the padding


def test_a_model_without_a_plain_cache_reads_nothing(new_chat_model):
    model = new_chat_model().model
    model._supports_default_dynamic_cache = lambda: False
    ids, mask, _, _ = batch(1)
    assert read_prompts(model, ids, mask, last=2, new_tokens=4) is None
