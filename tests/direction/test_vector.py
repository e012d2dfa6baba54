"""Steering by a direction: on a model of every architecture, and on a PEFT model around it."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import make_model, make_tokenizer

from safesteer.direction.vector import Direction
from safesteer.models.layers import find_blocks

IDS = torch.tensor([[5, 9, 20, 31, 8], [7, 7, 41, 10, 3]])


def steered_inputs(model, direction, strengths=1.0):  # type: ignore[no-untyped-def]
    """Inputs [B, T, D] of the block after the steered one, and the logits, without and with it."""
    block, seen = find_blocks(model)[direction.layer], []

    def look(module, args, kwargs):  # type: ignore[no-untyped-def]
        seen.append(args[0] if args else kwargs["hidden_states"])

    with torch.no_grad():
        handle = block.register_forward_pre_hook(look, with_kwargs=True)
        plain = model(input_ids=IDS).logits
        handle.remove()
        with direction.steer(model, strengths):
            handle = block.register_forward_pre_hook(look, with_kwargs=True)  # after the edit
            steered = model(input_ids=IDS).logits
            handle.remove()
    assert torch.equal(model(input_ids=IDS).logits, plain)
    return seen, plain, steered


def test_any_model_in_memory_is_steered(model):
    """The block's input moves by coefficient x vector at every position; afterwards by nothing."""
    width = model.get_output_embeddings().weight.shape[1]
    direction = Direction(torch.linspace(-1, 1, width), 1, 2.0)
    (before, after), plain, steered = steered_inputs(model, direction)
    torch.testing.assert_close(after - before, (2 * direction.vector).expand_as(before))
    assert not torch.allclose(steered, plain, atol=1e-3)


@pytest.mark.parametrize("merged", [False, True])
def test_a_peft_model_is_steered_with_its_adapter(merged):
    """The adapter stays on; a PEFT model and the merged model give the same."""
    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(make_model(make_tokenizer()), config).eval()
    direction = Direction(torch.linspace(-1, 1, 32), 2)
    _, plain, steered = steered_inputs(model, direction)
    if merged:
        whole = model.merge_and_unload()
        _, plain_merged, steered_merged = steered_inputs(whole, direction)
        torch.testing.assert_close(plain_merged, plain, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(steered_merged, steered, atol=1e-4, rtol=1e-4)
    else:
        with model.disable_adapter(), direction.steer(model):
            assert not torch.allclose(model(input_ids=IDS).logits, steered, atol=1e-3)


def test_rows_of_a_batch_are_steered(tiny_chat_model):
    direction = Direction(torch.linspace(-1, 1, 32), 2)
    _, plain, steered = steered_inputs(tiny_chat_model.model, direction, torch.tensor([-0.5, 0.0]))
    assert torch.equal(plain[1], steered[1]) and not torch.allclose(plain[0], steered[0], atol=1e-3)
    _, _, alike = steered_inputs(tiny_chat_model.model, direction, -0.5)
    assert torch.allclose(alike[0], steered[0], atol=1e-6)


def test_the_record_names_no_vector():
    direction = Direction(torch.ones(4), 3, 0.5, "refuse-comply", -2)
    assert direction.to_json() == {
        "method": "refuse-comply",
        "layer": 3,
        "position": -2,
        "coefficient": 0.5,
        "norm": 2.0,
    }
