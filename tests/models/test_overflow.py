"""Activations that overflow are named with their type and block, wherever a model runs."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from safesteer.direction.activations import prompt_means
from safesteer.direction.behavior import observe
from safesteer.direction.edited_passes import RepeatedPrompts
from safesteer.errors import SafeSteerError
from safesteer.evaluate.drift import measure_drift
from safesteer.inference.variant import ModelVariant
from safesteer.models.generate import Decoding
from safesteer.models.hidden_states import hidden_states
from safesteer.models.steering import steer
from safesteer.safety_tokens import select_safety_tokens
from safesteer.teacher import Teacher

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hi", "How far is the moon?")]
OVERFLOW = (
    r"LlamaForCausalLM are NaN or infinite in float16 from layer 2 on\. Try: --dtype bfloat16"
)


@pytest.fixture
def overflowing(tiny_chat_model):  # type: ignore[no-untyped-def]
    """Finite weights in float16, of which block 2 makes numbers beyond 65,504."""
    model = tiny_chat_model.model
    model.model.layers[2].mlp.down_proj.weight *= 3e4
    model.half()
    assert all(weight.isfinite().all() for weight in model.parameters())
    return tiny_chat_model


STAGES = {
    "direction": lambda model: prompt_means(model, PROMPTS, 2),
    "behavior": lambda model: observe(model, None, PROMPTS),
    "tokens": lambda model: select_safety_tokens(model, Teacher(), PROMPTS),
    "drift": lambda model: measure_drift(model, model.model, PROMPTS, max_new_tokens=2),
    "answers": lambda model: ModelVariant("model", model, model.model).generate(
        PROMPTS, Decoding(2)
    ),
    "sampled": lambda model: ModelVariant("model", model, model.model).generate(
        PROMPTS, Decoding(2, 1.0)
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_an_overflow_names_type_and_layer(stage, overflowing):
    with pytest.raises(SafeSteerError, match=OVERFLOW):
        STAGES[stage](overflowing)


def test_in_a_wider_type_nothing_overflows(overflowing):
    overflowing.model.to(torch.bfloat16)
    assert prompt_means(overflowing, PROMPTS, 2)[0].isfinite().all()


def test_an_overflow_by_steering_is_an_error(tiny_chat_model):
    model = tiny_chat_model
    model.model.half()
    with pytest.raises(SafeSteerError, match="infinite in float16"):
        RepeatedPrompts(model, PROMPTS).last_hidden(
            torch.full((1, 32), 7e4), partial(steer, model.model, 1), 1
        )


def test_padding_may_hold_anything(tiny_chat_model):
    """Some attention kernels give NaN where a row attends to nothing."""
    model = tiny_chat_model.model
    ids = torch.tensor([[0, 5, 9], [7, 5, 9]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    expected = hidden_states(model, ids, mask)

    def spoil(module, args, output):  # type: ignore[no-untyped-def]
        return torch.where(mask[..., None].bool(), output, torch.nan)

    handle = model.model.norm.register_forward_hook(spoil)
    found = hidden_states(model, ids, mask)
    handle.remove()
    assert torch.equal(found[1], expected[1]) and found[0, 0].isnan().all()
