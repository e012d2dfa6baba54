"""Passes in float32 of models that are kept in 16 bits."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from safesteer.models.hidden_states import hidden_states
from safesteer.models.lm_head import OutputHead
from safesteer.models.lora_dtype import compute_in_model_dtype
from safesteer.models.upcast import in_float32


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.arange(3, 15).reshape(2, 6)
    return ids, torch.ones_like(ids)


@pytest.fixture
def rounded(tiny_chat_model):  # type: ignore[no-untyped-def]
    return tiny_chat_model.model.to(torch.bfloat16)


def test_values_are_those_of_the_weights_widened(rounded):
    """The same as a copy of the model in float32, adapter included, and not that in bfloat16."""
    torch.manual_seed(0)
    student = get_peft_model(rounded, LoraConfig(r=2, target_modules="all-linear")).eval()
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    whole = copy.deepcopy(student).float()
    compute_in_model_dtype(student)
    with torch.no_grad():
        expected = hidden_states(whole, *batch())
        plain = hidden_states(student, *batch())
        with in_float32(student):
            found = hidden_states(student, *batch())
        log_p = OutputHead.of(student).all_log_probs(found[0])
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(plain.float(), expected, atol=1e-3)
    assert torch.allclose(
        log_p, OutputHead.of(whole).logits(expected[0]).log_softmax(-1), atol=1e-4
    )


def test_the_model_is_as_before_afterwards_also_where_a_pass_fails(rounded):
    before = {name: value.clone() for name, value in rounded.state_dict().items()}
    with torch.no_grad():
        plain = hidden_states(rounded, *batch())
        with pytest.raises(IndexError), in_float32(rounded):
            hidden_states(rounded, torch.full((1, 2), 10**6), torch.ones(1, 2, dtype=torch.long))
        fails = rounded.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), in_float32(rounded):
            hidden_states(rounded, *batch())
        fails.remove()
        again = hidden_states(rounded, *batch())
    assert torch.equal(plain, again)
    for name, value in rounded.state_dict().items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, before[name])
    assert not any(module._forward_hooks for module in rounded.modules())


def test_one_block_at_a_time_is_widened(rounded):
    wide = []
    blocks = rounded.model.layers

    def look(*_: object) -> None:
        types = [next(block.parameters()).dtype for block in blocks]
        wide.append([dtype == torch.float32 for dtype in types])

    hooks = [block.self_attn.register_forward_hook(look) for block in blocks]
    with torch.no_grad(), in_float32(rounded):
        hidden_states(rounded, *batch())
    for hook in hooks:
        hook.remove()
    assert wide == torch.eye(len(blocks)).bool().tolist()


def test_weights_that_are_elsewhere_stay_as_they_are(rounded):
    """Offloaded weights lie on the meta device between passes."""
    block = rounded.model.layers[0].mlp
    block.up_proj.weight = torch.nn.Parameter(block.up_proj.weight.to("meta"), requires_grad=False)
    with in_float32(rounded) as dtype:
        assert not any(module._forward_pre_hooks for module in rounded.modules())
    assert dtype == torch.bfloat16
