"""Mean activations: padding and batches never change them."""

import pytest
import torch

from safesteer.direction.activations import answer_means, prompt_means

TEXTS = ["Hi", "How far is the moon?", "Name a colour and explain it at some length.", "A b"]
PROMPTS = [({"role": "user", "content": text},) for text in TEXTS]
HARMFUL, HARMLESS = (
    [({"role": "user", "content": f"{name} {i} {'x' * (i % 4)}"},) for i in range(12)]
    for name in ("How do I break the law", "Name a colour")
)
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
    found, _ = prompt_means(tiny_chat_model, PROMPTS, 5, batch_size=batch_size)
    single = [inputs_of_blocks(tiny_chat_model.model, chat.ids(m))[:, -5:] for m in PROMPTS]
    expected = torch.stack(single).mean(0).transpose(0, 1)  # [P, L, D]
    assert found.dtype == torch.float64 and found.shape == (5, 4, 32)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_means_of_kept_prompts_take_one_pass(batch_size, tiny_chat_model):
    """Those that are kept by what they end in count, whatever batch they are in."""
    rows = []
    handle = tiny_chat_model.model.model.norm.register_forward_hook(
        lambda *call: rows.append(len(call[2]))
    )
    values: list[float] = []

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        values.extend(hidden[:, 0].tolist())
        return hidden[:, 0] > bound

    bound = -99.0
    everything, count = prompt_means(tiny_chat_model, PROMPTS, 2, keep, batch_size=batch_size)
    handle.remove()
    assert count == 4 and sum(rows) == 4
    assert torch.allclose(everything, prompt_means(tiny_chat_model, PROMPTS, 2)[0], atol=1e-4)
    bound = sum(sorted(values)[1:3]) / 2
    found, count = prompt_means(tiny_chat_model, PROMPTS, 2, keep, batch_size=batch_size)
    assert count == 2
    pairs = [
        prompt_means(tiny_chat_model, [one, other], 2)[0]
        for i, one in enumerate(PROMPTS)
        for other in PROMPTS[i + 1 :]
    ]
    assert sum(torch.allclose(found, pair, atol=1e-4) for pair in pairs) == 1
    bound = 99.0
    nothing, count = prompt_means(tiny_chat_model, PROMPTS, 2, keep, batch_size=batch_size)
    assert count == 0 and nothing.isnan().all()


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


def test_a_planted_difference_is_found(tiny_chat_model):
    """What separates harmful from harmless prompts at the end of the prompt is the direction.

    The first block's output gets a vector planted wherever a harmful prompt is read; the candidates
    of the layers behind it, and only those, point along it.
    """
    model = tiny_chat_model.model
    planted = torch.zeros(32)
    planted[5] = 300.0
    word = tiny_chat_model.chat.answer_ids(" break")[0]
    chat = tiny_chat_model.chat
    marks = set(chat.ids(HARMFUL[0])) - set(chat.ids(HARMLESS[0]))
    assert marks, word
    embed = model.model.embed_tokens
    flags: dict[str, torch.Tensor] = {}

    def remember(module, args):  # type: ignore[no-untyped-def]
        ids = args[0]
        hit = torch.isin(ids, torch.tensor(sorted(marks))).any(-1)
        flags["harmful"] = hit

    def plant(module, args, output):  # type: ignore[no-untyped-def]
        return output + flags["harmful"].float()[:, None, None] * planted

    handles = [
        embed.register_forward_pre_hook(remember),
        model.model.layers[0].register_forward_hook(plant),
    ]
    try:
        means = [prompt_means(tiny_chat_model, side, 3)[0] for side in (HARMFUL, HARMLESS)]
    finally:
        for handle in handles:
            handle.remove()
    difference = (means[0] - means[1]).float()
    cosine = torch.nn.functional.cosine_similarity(difference, planted.expand_as(difference), -1)
    assert (cosine[:, 0] < 0.7).all()
    assert (cosine[:, 1:] > 0.9).all()


def test_no_hook_is_left(tiny_chat_model):
    """Collecting leaves the model as it was."""
    prompt_means(tiny_chat_model, PROMPTS, 2)
    assert not any(module._forward_pre_hooks for module in tiny_chat_model.model.modules())
