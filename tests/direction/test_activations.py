"""Mean activations: padding and batches never change them."""

import pytest
import torch

from safesteer.direction.activations import answer_means, prompt_means

TEXTS = ["Hi", "How far is the moon?", "Name a colour and explain it at some length.", "A b"]
PROMPTS = [({"role": "user", "content": text},) for text in TEXTS]
OPENINGS = ["Sorry.", "I can't assist with that request because it is harmful."]


@torch.no_grad()
def inputs_of_blocks(model, ids):  # type: ignore[no-untyped-def]
    """[L, T, D]: the input of every block for one unpadded sequence."""
    states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.stack([state[0].double() for state in states[:4]])


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_prompt_means_are_those_of_single_prompts(batch_size, tiny_chat_model):
    """Positions count from the end of each prompt, whatever is padded before it."""
    chat = tiny_chat_model.chat
    found = prompt_means(tiny_chat_model, PROMPTS, 5, batch_size=batch_size)
    single = [inputs_of_blocks(tiny_chat_model.model, chat.ids(m))[:, -5:] for m in PROMPTS]
    expected = torch.stack(single).mean(0).transpose(0, 1)  # [P, L, D]
    assert found.dtype == torch.float64 and found.shape == (5, 4, 32)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_answer_means_weigh_every_opening_the_same(batch_size, tiny_chat_model):
    """The mean over the opening's tokens first, then over prompts and openings."""
    chat = tiny_chat_model.chat
    found = answer_means(tiny_chat_model, PROMPTS, OPENINGS, batch_size=batch_size)
    means = []
    for opening in OPENINGS:
        tail = chat.answer_ids(opening)
        for messages in PROMPTS:
            states = inputs_of_blocks(tiny_chat_model.model, chat.ids(messages) + tail)
            means.append(states[:, -len(tail) :].mean(1))
    assert len(chat.answer_ids(OPENINGS[0])) != len(chat.answer_ids(OPENINGS[1]))
    assert torch.allclose(found, torch.stack(means).mean(0), atol=1e-5)


def test_no_hook_is_left(tiny_chat_model):
    """Collecting leaves the model as it was."""
    prompt_means(tiny_chat_model, PROMPTS, 2)
    assert not any(module._forward_pre_hooks for module in tiny_chat_model.model.modules())
