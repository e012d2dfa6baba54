"""A pass that begins at a block gives what the whole pass gives."""

from __future__ import annotations

import pytest
import torch

from safesteer.models import hidden_states as forward
from safesteer.models.chat import pad_left
from safesteer.models.hidden_states import hidden_states
from safesteer.models.layer_cache import record_inputs, start_at_layer, startable_layers
from safesteer.models.layers import find_blocks
from safesteer.models.steering import steer

BEGINNING = [5, 9, 33, 31]
IDS, MASK = pad_left([BEGINNING + end for end in ([11, 12, 13], [21], [40, 8])], pad_id=0)


@pytest.fixture(params=[False, True], ids=["one pass", "common beginning"])
def sharing(request, monkeypatch):  # type: ignore[no-untyped-def]
    """Whether the common beginning of the batch is a pass of its own."""
    monkeypatch.setattr(forward, "_WORTHWHILE", {"cpu": 1 if request.param else 10**9})
    return request.param


def test_every_architecture_gives_the_same_steered_or_not(model, sharing):
    """From every block; padding, windows, experts and caches are as in the whole pass."""
    layers = range(1, len(find_blocks(model)))
    torch.manual_seed(0)
    vector = torch.randn(model.get_output_embeddings().weight.shape[1])
    with record_inputs(model, layers) as entered:
        plain = hidden_states(model, IDS, MASK)
    for layer in layers:
        with steer(model, layer, vector):
            expected = hidden_states(model, IDS, MASK)
        with start_at_layer(model, layer, entered[layer]):
            again = hidden_states(model, IDS, MASK)
        with steer(model, layer, vector), start_at_layer(model, layer, entered[layer]):
            steered = hidden_states(model, IDS, MASK)
        assert torch.equal(again[MASK.bool()], plain[MASK.bool()])
        assert torch.equal(steered[MASK.bool()], expected[MASK.bool()])
        assert not torch.allclose(steered, again, atol=1e-2)


def test_a_steered_pass_leaves_what_an_unsteered_one_begins_with(tiny_chat_model):
    """What is collected at a layer is from before the edit there."""
    model = tiny_chat_model.model
    plain = hidden_states(model, IDS, MASK)
    with steer(model, 2, torch.ones(32)), record_inputs(model, [2]) as entered:
        assert not torch.allclose(hidden_states(model, IDS, MASK), plain, atol=1e-2)
    with start_at_layer(model, 2, entered[2]):
        assert torch.equal(hidden_states(model, IDS, MASK), plain)


def test_the_blocks_below_do_not_run(tiny_chat_model, sharing):
    """That is what it is for; with a common beginning both passes begin there."""
    model = tiny_chat_model.model
    ran: list[int] = []
    for index, block in enumerate(find_blocks(model)):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    with record_inputs(model, [2]) as entered:
        hidden_states(model, IDS, MASK)
    passes = 2 if sharing else 1
    assert ran == [0, 1, 2, 3] * passes and len(entered[2]) == passes
    ran.clear()
    with start_at_layer(model, 2, entered[2]):
        hidden_states(model, IDS, MASK)
    assert ran == [2, 3] * passes


def test_gradients_reach_the_blocks_that_run(tiny_chat_model):
    """A student whose trainable weights lie at or above the layer learns what it always did."""
    model = tiny_chat_model.model
    weights = [find_blocks(model)[i].mlp.down_proj.weight for i in (2, 3)]
    for weight in weights:
        weight.requires_grad_(True)
    torch.manual_seed(0)
    loss_weights = torch.randn(int(MASK.sum()), 32)

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        (hidden_states(model, IDS, MASK)[MASK.bool()] * loss_weights).sum().backward()
        return [weight.grad.clone() for weight in weights]

    expected = gradients()
    with torch.no_grad(), record_inputs(model, [2]) as entered:
        hidden_states(model, IDS, MASK)
    with start_at_layer(model, 2, entered[2]):
        found = gradients()
    for one, other in zip(expected, found, strict=True):
        assert one.abs().max() > 1e-3 and torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_every_layer_of_usual_architectures_is_allowed(model, sharing):
    """Nothing is given up where nothing needs to be."""
    layers = range(len(find_blocks(model)))
    assert startable_layers(model, layers, lambda: hidden_states(model, IDS, MASK)) == set(layers)


def test_what_a_model_does_not_allow_is_found_out(unusual, sharing):
    """Shared keys and values, several streams, tuples: whole passes there, by trying."""
    model, allowed = unusual
    layers = range(len(find_blocks(model)))
    assert startable_layers(model, layers, lambda: hidden_states(model, IDS, MASK)) == allowed
    assert not any("forward" in vars(block) for block in find_blocks(model))


def test_other_passes_than_those_collected_are_refused(tiny_chat_model):
    """Another shape, and one pass too many; the model is whole again afterwards."""
    model = tiny_chat_model.model
    expected = hidden_states(model, IDS, MASK)
    with record_inputs(model, [1]) as entered:
        hidden_states(model, IDS, MASK)
    other = pytest.raises(ValueError, match=r"\(2, 7\) tokens .* of \(3, 7\)")
    with other, start_at_layer(model, 1, entered[1]):
        hidden_states(model, IDS[:2], MASK[:2])
    with pytest.raises(ValueError, match="of None"), start_at_layer(model, 1, entered[1]):
        hidden_states(model, IDS, MASK)
        hidden_states(model, IDS, MASK)
    assert torch.equal(hidden_states(model, IDS, MASK), expected)
    assert not any("forward" in vars(block) for block in find_blocks(model))


def test_a_forward_that_was_put_on_a_block_comes_back(tiny_chat_model):
    """accelerate puts its own there when a model is spread over devices."""
    block = find_blocks(tiny_chat_model.model)[0]
    own = block.forward
    vars(block)["forward"] = lambda *args, **kwargs: own(*args, **kwargs)
    put = vars(block)["forward"]
    with start_at_layer(tiny_chat_model.model, 2, []):
        assert vars(block)["forward"] is not put
    assert vars(block)["forward"] is put
