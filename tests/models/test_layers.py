"""Blocks, backbone and output head on tiny models of many architectures."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from safesteer.errors import InputError
from safesteer.models.hidden_states import hidden_states
from safesteer.models.layers import find_blocks
from safesteer.models.lm_head import OutputHead
from safesteer.models.steering import steer


def test_blocks_are_found_and_can_be_steered(model):
    """As many blocks as the configuration says, and a push at any of them moves the logits."""
    blocks = find_blocks(model)
    assert len(blocks) == 3
    assert len({type(block) for block in blocks}) == 1
    ids = torch.tensor([[5, 9, 33, 31, 8]])
    mask = torch.ones_like(ids)
    before = hidden_states(model, ids, mask)
    for layer in range(3):
        with steer(model, layer, torch.linspace(-9, 9, 16)):
            assert (hidden_states(model, ids, mask) - before).abs().max() > 1e-3


def test_padding_on_the_left_changes_no_hidden_state(model):
    """The last positions are the same with any amount of padding before them."""
    ids = torch.tensor([[5, 9, 33, 31, 8]])
    alone = hidden_states(model, ids, torch.ones_like(ids))
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    assert torch.allclose(hidden_states(model, padded, mask)[:, 3:], alone, atol=1e-5)


def test_output_head_gives_the_models_own_logits(model):
    """Scale, bias and soft-cap of every architecture are those of its forward."""
    ids = torch.tensor([[5, 9, 33, 31, 8]])
    head = OutputHead.of(model)
    logits = head.logits(hidden_states(model, ids, torch.ones_like(ids))[0])
    assert torch.allclose(logits, model(ids).logits[0], atol=1e-5)
    log_p, _ = head.log_probs(hidden_states(model, ids, torch.ones_like(ids))[0], torch.arange(64))
    assert torch.allclose(log_p, torch.log_softmax(model(ids).logits[0], dim=-1), atol=1e-5)


def test_vision_layers_are_passed_over():
    """A vision tower with more, or as many, layers is not taken for the language model."""

    class Both(nn.Module):
        class config:
            num_hidden_layers = 2

        def __init__(self) -> None:
            super().__init__()
            self.vision_tower = nn.Module()
            self.vision_tower.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
            self.language_model = nn.Module()
            self.language_model.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    model = Both()
    assert find_blocks(model) is model.language_model.layers


def test_a_model_without_blocks_is_an_input_error():
    """The error names the model and the lists that were found."""
    small = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=64, num_hidden_layers=2, **small))
    model.config.num_hidden_layers = 5
    with pytest.raises(
        InputError, match=r"blocks of BertModel.*length 5, only encoder.layer \(2\)"
    ):
        find_blocks(model)
    with pytest.raises(InputError, match="none"):
        find_blocks(type("Bare", (nn.Linear,), {"config": BertConfig()})(2, 2))
