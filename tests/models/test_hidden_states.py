"""A common beginning that is run once gives what the whole batch gives."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from safesteer.models import hidden_states as forward
from safesteer.models.chat import pad_left
from safesteer.models.generate import Decoding, generate
from safesteer.models.hidden_states import completion_states, hidden_states, share_prefix
from safesteer.models.layers import find_blocks
from safesteer.models.steering import ablate, steer

BEGINNING = [5, 9, 33, 31, 8, 40, 41]
ENDS = [[11, 12, 13, 14], [21], [5, 9, 33, 31, 8, 40], [11, 12, 44]]
IDS, MASK = pad_left([BEGINNING + end for end in ENDS], pad_id=0)


@pytest.fixture
def sharing(monkeypatch):  # type: ignore[no-untyped-def]
    """Switches sharing on for the smallest batch, or off for all."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(forward, "_WORTHWHILE", {"cpu": 1 if on else 10**9})

    return switch


def both_ways(sharing, compute):  # type: ignore[no-untyped-def]
    """What `compute` gives without and with sharing."""
    results = []
    for on in (False, True):
        sharing(on)
        results.append(compute())
    return results


def wide(model):  # type: ignore[no-untyped-def]
    """The model with windows wider than any batch here."""
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 64
        for module in model.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = 64
    return model


def test_every_architecture_gives_the_same_hidden_states(model, sharing):
    """Padding left and right, a beginning that ends inside the shortest row."""
    model = wide(model)
    sharing(True)
    assert share_prefix(model, IDS, MASK).length == len(BEGINNING)
    right = MASK.clone()
    right[2, -2:] = 0  # a completion shorter than the others
    for mask in (MASK, right):
        plain, shared = both_ways(sharing, lambda mask=mask: hidden_states(model, IDS, mask))
        real = mask.bool()
        assert torch.allclose(plain[real], shared[real], atol=1e-5)


def test_hooks_do_the_same(model, sharing):
    """Steering by one vector, by one for each row, and ablation."""
    model = wide(model)
    width = model.get_output_embeddings().weight.shape[1]
    torch.manual_seed(0)
    vectors = torch.randn(len(ENDS), width)
    for hook in (
        lambda: steer(model, 1, vectors[0]),
        lambda: steer(model, 1, vectors, 2.0),
        lambda: ablate(model, vectors[0]),
    ):

        def steered(hook=hook):  # type: ignore[no-untyped-def]
            with hook():
                return hidden_states(model, IDS, MASK)

        plain, shared = both_ways(sharing, steered)
        assert torch.allclose(plain[MASK.bool()], shared[MASK.bool()], atol=1e-4)


def test_greedy_answers_are_the_same(model, sharing, tokenizer):
    """Generation goes on from the shared keys and values."""
    model = wide(model)
    prompts = [BEGINNING + end for end in ENDS]
    plain, shared = both_ways(sharing, lambda: generate(model, tokenizer, prompts, Decoding(6)))
    assert plain == shared


def test_gradients_are_the_same(tiny_chat_model, sharing):
    """The beginning takes part in the loss of every row, and so in the gradient."""
    model = tiny_chat_model.model
    weight = find_blocks(model)[0].self_attn.k_proj.weight.requires_grad_(True)
    torch.manual_seed(0)
    weights = torch.randn(int(MASK.sum()), 32)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        (hidden_states(model, IDS, MASK)[MASK.bool()] * weights).sum().backward()
        return weight.grad.clone()

    plain, shared = both_ways(sharing, gradient)
    assert plain.abs().max() > 1e-3
    assert torch.allclose(plain, shared, rtol=1e-3, atol=1e-5)


def test_what_cannot_be_shared_is_not(sharing):
    """A window narrower than the batch, a state-space layer, no common beginning, one row."""
    sharing(True)
    common = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
    narrow = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING["mistral"](
            **common, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1,
            head_dim=8, sliding_window=4,
        )
    ).eval()  # fmt: skip
    assert share_prefix(narrow, IDS, MASK) is None
    falcon = CONFIG_MAPPING["falcon_h1"](
        **common, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=4,
    )  # fmt: skip
    assert share_prefix(AutoModelForCausalLM.from_config(falcon).eval(), IDS, MASK) is None
    llama = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING["llama"](
            **common, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1
        )
    ).eval()
    assert share_prefix(llama, IDS, MASK) is not None
    assert share_prefix(llama, IDS[:1], MASK[:1]) is None
    assert share_prefix(llama, *pad_left([[1, 2, 3], [2, 2, 3]], 0)) is None
    assert share_prefix(llama, *pad_left([[7], [7], [7]], 0)) is None
    llama.gradient_checkpointing_enable()
    llama.train()
    assert share_prefix(llama, IDS, MASK) is None


@pytest.mark.parametrize("run_last", [False, True])
def test_completion_states_are_those_before_each_token(run_last, tiny_chat_model, sharing):
    """[T, D] for each completion, padded or not, with a shared beginning or not, or empty."""
    model, prompts = tiny_chat_model.model, [BEGINNING, [*BEGINNING, 4, 4], BEGINNING[:3]]
    completions = [[11, 12, 13], [21], []]
    for on in (False, True):
        sharing(on)
        found = completion_states(model, prompts, completions, 0, run_last=run_last)
        for states, prompt, completion in zip(found, prompts, completions, strict=True):
            ids = torch.tensor([prompt + completion])
            expected = hidden_states(model, ids, torch.ones_like(ids))[0, len(prompt) - 1 : -1]
            assert states.shape == (len(completion), 32)
            assert torch.allclose(states, expected, atol=1e-5)


def test_the_last_tokens_can_be_kept_apart(tiny_chat_model, sharing):
    """Rows that are all alike keep `tail` tokens of their own, for hooks that read these."""
    sharing(True)
    ids, mask = pad_left([BEGINNING] * 4, 0)
    assert share_prefix(tiny_chat_model.model, ids, mask).length == len(BEGINNING) - 1
    assert share_prefix(tiny_chat_model.model, ids, mask, tail=3).length == len(BEGINNING) - 3
    assert share_prefix(tiny_chat_model.model, ids, mask, tail=len(BEGINNING)) is None


def test_a_small_batch_is_not_worth_a_second_pass(tiny_chat_model):
    """Sharing starts where the tokens saved outweigh a pass of their own."""
    assert share_prefix(tiny_chat_model.model, IDS, MASK) is None
    ids, mask = pad_left([BEGINNING * 5 + [3, end] for end in range(20)], 0)
    assert share_prefix(tiny_chat_model.model, ids, mask).length == 36


def test_a_window_that_answers_grow_past_is_not_shared(sharing, tokenizer):
    """Padding between the beginning and the rest would take the beginning out of sight early."""
    sharing(True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        CONFIG_MAPPING["mistral"](
            vocab_size=tokenizer.vocab_size + 8, hidden_size=16, num_hidden_layers=2,
            intermediate_size=24, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
            sliding_window=24, pad_token_id=0, initializer_range=0.5,
        )
    ).eval()  # fmt: skip
    assert share_prefix(model, IDS, MASK) is not None
    assert share_prefix(model, IDS, MASK, new_tokens=40) is None
    prompts = [BEGINNING + end for end in ENDS]
    plain, shared = both_ways(sharing, lambda: generate(model, tokenizer, prompts, Decoding(40)))
    assert plain == shared and max(map(len, plain)) > 24
