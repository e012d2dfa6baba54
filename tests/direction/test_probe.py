"""The probe for harmful requests: it separates what is separable, and reads requests alone."""

from __future__ import annotations

import torch

from safesteer.direction import probe
from safesteer.direction.activations import request_means
from safesteer.models.hidden_states import common_prefix

TEXTS = ["Hi", "How far is the moon?", "Name a colour and explain it at some length.", "A b"]
PROMPTS = [({"role": "user", "content": text},) for text in TEXTS]


@torch.no_grad()
def test_request_means_are_over_the_tokens_of_the_request(tiny_chat_model):
    """Whatever the padding and the template around it."""
    chat, model = tiny_chat_model.chat, tiny_chat_model.model
    start = common_prefix([chat.ids(messages) for messages in PROMPTS])
    end = len(chat.post_instruction_ids())
    expected = []
    for messages in PROMPTS:
        ids = torch.tensor([chat.ids(messages)])
        states = model(ids, output_hidden_states=True).hidden_states[2][0].double()
        expected.append(states[start : states.shape[0] - end].mean(0))
    for size in (1, 3, 32):
        found = request_means(tiny_chat_model, PROMPTS, 2, batch_size=size)
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_the_probe_separates_two_kinds_of_states_of_any_share(tiny_chat_model, monkeypatch):
    """Harmful ones are one in ten, and wider than there are prompts."""
    torch.manual_seed(0)
    apart = torch.zeros(64, dtype=torch.float64)
    apart[:16] = 2.0
    means = {"harmful": apart, "harmless": -apart}

    def read(model, prompts, layer, **_):  # type: ignore[no-untyped-def]
        assert layer == model.layers // 2
        kinds = ["harmful" if "harmful" in p[-1]["content"] else "harmless" for p in prompts]
        return torch.stack([means[kind] + torch.randn(64, dtype=torch.float64) for kind in kinds])

    class Asked:
        def __init__(self, name: str) -> None:
            count = 3 if name == "harmful" else 15
            messages = [({"role": "user", "content": f"{name} {n}"},) for n in range(count)]
            self.validation = [type("P", (), {"messages": m})() for m in messages]

    monkeypatch.setattr(probe, "request_means", read)
    monkeypatch.setattr(probe, "load_prompt_set", Asked)
    found = probe.HarmProbe(tiny_chat_model)
    asked = [({"role": "user", "content": f"{k} {n}"},) for k in means for n in range(20)]
    assert found.is_harmful(asked) == [True] * 20 + [False] * 20
    assert found.is_harmful([]) == [] and found.accuracy == 1.0
    means.update(harmful=apart * 0, harmless=apart * 0)
    assert probe.HarmProbe(tiny_chat_model).accuracy < 0.75
