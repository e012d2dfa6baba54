"""The hooks: what they change, and that nothing of them stays."""

import pytest
import torch
from torch import nn

from safesteer.errors import SafeSteerError
from safesteer.models.hidden_states import hidden_states
from safesteer.models.layers import find_blocks
from safesteer.models.steering import ablate, edit_block_input, steer

IDS = torch.tensor([[5, 9, 200, 31, 8], [7, 7, 41, 100, 3]])
MASK = torch.ones_like(IDS)


class Config:
    num_hidden_layers = 3


class Block(nn.Module):
    """A block that adds a constant; it returns its output as transformers versions differ."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden_states, extra=None):  # type: ignore[no-untyped-def]
        self.seen = hidden_states
        result = hidden_states * 2 + 1
        return (result, extra) if self.as_tuple else result


class Stack(nn.Module):
    """Blocks called by position or by keyword, returning tensors or tuples."""

    def __init__(self, keyword: bool, as_tuple: bool) -> None:
        super().__init__()
        self.config = Config()
        self.layers = nn.ModuleList([Block(as_tuple) for _ in range(3)])
        self.keyword = keyword

    def forward(self, hidden):  # type: ignore[no-untyped-def]
        for block in self.layers:
            out = block(hidden_states=hidden, extra=1) if self.keyword else block(hidden, extra=1)
            hidden = out[0] if isinstance(out, tuple) else out
        return hidden


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.fixture(params=[False, True], ids=["position", "keyword"])
def keyword(request):  # type: ignore[no-untyped-def]
    return request.param


@pytest.fixture(params=[False, True], ids=["tensor", "tuple"])
def as_tuple(request):  # type: ignore[no-untyped-def]
    return request.param


def test_the_vector_is_added_to_one_blocks_input_alone(keyword, as_tuple):
    """Block 1 gets h + c d at every position, block 0 what it always got, unedited."""
    model = Stack(keyword, as_tuple)
    hidden, direction = torch.randn(2, 4, 6), torch.randn(6)
    before = hidden.clone()
    with steer(model, 1, direction, 0.5):
        result = model(hidden)
    assert torch.equal(hidden, before) and torch.equal(model.layers[0].seen, before)
    assert torch.allclose(model.layers[1].seen, before * 2 + 1 + 0.5 * direction)
    assert torch.allclose(result, ((before * 2 + 1 + 0.5 * direction) * 2 + 1) * 2 + 1, atol=1e-5)


def test_one_vector_per_sequence(keyword):
    """A [B, D] direction gives every sequence of the batch its own."""
    model = Stack(keyword, False)
    hidden, directions = torch.randn(2, 4, 6), torch.randn(2, 6)
    with steer(model, 0, directions):
        model(hidden)
    assert torch.allclose(model.layers[0].seen, hidden + directions[:, None])


def test_ablation_removes_the_component_before_and_after_every_block(keyword, as_tuple):
    """Neither the input of any block nor the output of the last has a part along the direction."""
    model = Stack(keyword, as_tuple)
    direction = torch.randn(6) * 7
    with ablate(model, direction):
        result = model(torch.randn(2, 4, 6))
    for hidden in [*(block.seen for block in model.layers), result]:
        assert (hidden @ direction).abs().max() < 1e-4
    orthogonal = torch.randn(6)
    orthogonal -= (orthogonal @ direction) / direction.norm() ** 2 * direction
    with ablate(model, direction):
        model(orthogonal.expand(1, 1, 6))
    assert torch.allclose(model.layers[0].seen[0, 0], orthogonal, atol=1e-5)


@pytest.mark.parametrize("context", ["steer", "ablate"])
def test_no_hook_is_left_behind(context, tiny_chat_model):
    """Neither after leaving nor after an exception inside; and the model answers as before."""
    model = tiny_chat_model.model
    direction = torch.randn(32)
    enter = (
        (lambda: steer(model, 2, direction))
        if context == "steer"
        else (lambda: ablate(model, direction))
    )
    before = model(IDS).logits
    with enter():
        assert hooks_of(model) > 0
        assert not torch.allclose(model(IDS).logits, before, atol=1e-2)
    assert hooks_of(model) == 0
    with pytest.raises(KeyError), enter():
        raise KeyError
    assert hooks_of(model) == 0
    assert torch.equal(model(IDS).logits, before)


def test_steering_a_real_model_equals_adding_by_hand(tiny_chat_model):
    """With the embeddings changed by hand, layer 0 gives the same logits as the hook."""
    model = tiny_chat_model.model
    direction = torch.randn(32)
    with steer(model, 0, direction, 0.7):
        found = model(IDS).logits
    by_hand = model(inputs_embeds=model.model.embed_tokens(IDS) + 0.7 * direction).logits
    assert torch.allclose(found, by_hand, atol=1e-5)


def test_hooks_nest(tiny_chat_model):
    """Two directions at one layer are their sum."""
    model = tiny_chat_model.model
    one, two = torch.randn(2, 32)
    with steer(model, 1, one), steer(model, 1, two):
        both = hidden_states(model, IDS, MASK)
    with steer(model, 1, one + two):
        assert torch.allclose(hidden_states(model, IDS, MASK), both, atol=1e-4)


def test_gradient_flows_through_a_steered_model(tiny_chat_model):
    """The hook is no dead end: blocks below the steered layer get gradients, the direction none."""
    model = tiny_chat_model.model.requires_grad_(True)
    direction = torch.randn(32, requires_grad=True)
    with steer(model, 3, direction):
        model(IDS).logits.sum().backward()
    assert find_blocks(model)[0].mlp.up_proj.weight.grad.abs().max() > 0
    assert direction.grad is None


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_is_not_there_is_an_index_error(layer, tiny_chat_model):
    """No layer is guessed, and no hook is left."""
    with (
        pytest.raises(IndexError, match=r"outside 0\.\.3"),
        steer(tiny_chat_model.model, layer, torch.ones(32)),
    ):
        pass
    assert hooks_of(tiny_chat_model.model) == 0


def test_a_block_without_hidden_states_is_named():
    """An architecture that hands over its states some other way fails loudly."""
    block = nn.Identity()
    with (
        edit_block_input(block, lambda hidden: hidden),
        pytest.raises(SafeSteerError, match="Identity got no hidden states"),
    ):
        block("text")
