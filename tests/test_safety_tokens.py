"""Safety tokens: the streamed sums against a slow computation of everything at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from safesteer import safety_tokens as select
from safesteer.config.settings import TokenSettings
from safesteer.direction.vector import Direction
from safesteer.errors import SafeSteerError
from safesteer.safety_tokens import select_safety_tokens
from safesteer.teacher import Teacher

TEXTS = ["Hi", "How far is the moon?", "Name a colour and explain it."]
PROMPTS = [({"role": "user", "content": text},) for text in TEXTS]
TEACHERS = {
    "steering": Teacher(Direction(torch.linspace(-3, 3, 32), 2)),
    "context": Teacher(context=({"role": "system", "content": "Refuse what is harmful."},)),
}


def make_settings(num_tokens: int = 12, method: str = "mass", **advanced: Any) -> TokenSettings:
    return TokenSettings(
        method=method,
        num_tokens=num_tokens,
        num_generations=4,
        horizon=5,
        advanced={
            "votes_per_position": 9,
            "min_teacher_prob": 0.0,
            "end_of_turn": False,
            **advanced,
        },
    )


@pytest.fixture
def continuations(monkeypatch):  # type: ignore[no-untyped-def]
    """The continuations that `select_safety_tokens` samples, in the order of its prompts."""
    seen: list[list[list[int]]] = []
    original = select.generate

    def record(*args, **kwargs):  # type: ignore[no-untyped-def]
        seen.append(original(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(select, "generate", record)
    return seen


@torch.no_grad()
def slow(model, teacher, tails, settings, ends):  # type: ignore[no-untyped-def]
    """Sums over [V] by running every sequence alone and comparing full distributions."""
    vocabulary = len(model.tokenizer)
    sums = {name: torch.zeros(vocabulary, dtype=torch.float64) for name in ("votes", "t", "0", "m")}
    positions = 0
    for index, tail in enumerate(tails):
        messages = list(PROMPTS[index // settings.num_generations])
        taught = torch.tensor([model.chat.ids([*teacher.context, *messages]) + tail])
        plain = torch.tensor([model.chat.ids(messages) + tail])
        handle = None
        if teacher.direction is not None:
            block = model.model.model.layers[teacher.direction.layer]
            handle = block.register_forward_pre_hook(
                lambda module, args: (args[0] + teacher.direction.vector, *args[1:])
            )
        p_t = torch.softmax(model.model(taught).logits[0, -len(tail) - 1 : -1].double(), dim=-1)
        if handle:
            handle.remove()
        p_0 = torch.softmax(model.model(plain).logits[0, -len(tail) - 1 : -1].double(), dim=-1)
        for j in range(len(tail)):
            ratios = (p_t[j].log() - p_0[j].log()).tolist()
            best = sorted(range(vocabulary), key=lambda v: -ratios[v])[
                : settings.advanced.votes_per_position
            ]
            sums["votes"][best] += 1
            sums["t"] += p_t[j]
            sums["0"] += p_0[j]
            sums["m"] += (p_t[j] - p_0[j]).abs()
            positions += 1
            if int(p_0[j].argmax()) in ends:
                break  # the model would have ended its turn here
    return sums, positions


@pytest.mark.parametrize("ends", [[], [32, *range(150, 260)]], ids=["one end", "many ends"])
@pytest.mark.parametrize("method", ["vote", "mass"])
@pytest.mark.parametrize("teacher", TEACHERS.values(), ids=TEACHERS.keys())
def test_streamed_sums_are_the_slow_ones(teacher, method, ends, tiny_chat_model, continuations):
    """Votes, mass, mean probabilities, coverage and the number of positions agree."""
    model = tiny_chat_model
    ends = [*ends, model.tokenizer.eos_token_id]
    model.model.generation_config.eos_token_id = ends
    settings = make_settings(method=method)
    found = select_safety_tokens(model, teacher, PROMPTS, settings, seed=3, batch_size=5)
    tails = continuations[0]
    assert len(tails) == 12
    sums, positions = slow(model, teacher, tails, settings, ends)
    full = sum(map(len, tails))
    assert (positions < full) == (
        len(ends) > 1
    )  # some positions after the model's end are left out
    assert found.positions == positions
    score = sums["votes"] * 1e3 + sums["t"] / positions if method == "vote" else sums["m"].clone()
    score[model.tokenizer.all_special_ids] = -1
    assert found.ids == score.argsort(descending=True)[:12].tolist()
    for token in found.tokens:
        assert token.votes == int(sums["votes"][token.id])
        assert token.mass == pytest.approx(sums["m"][token.id].item(), rel=1e-3)
        assert token.p_teacher == pytest.approx(sums["t"][token.id].item() / positions, rel=1e-3)
        assert token.p_base == pytest.approx(sums["0"][token.id].item() / positions, rel=1e-3)
        assert token.text == model.tokenizer.decode([token.id])
    coverage = sums["m"][found.ids].sum() / sums["m"].sum()
    assert found.coverage == pytest.approx(coverage.item(), rel=1e-3)


def test_votes_and_mass_choose_differently(tiny_chat_model):
    """The two methods are two: rare words against words that carry the difference."""
    chosen = {
        method: select_safety_tokens(
            tiny_chat_model, TEACHERS["steering"], PROMPTS, make_settings(method=method)
        )
        for method in ("vote", "mass")
    }
    assert set(chosen["vote"].ids) != set(chosen["mass"].ids)
    assert chosen["mass"].coverage > chosen["vote"].coverage


def test_the_seed_decides(tiny_chat_model):
    """Same seed, same tokens, whatever was drawn before; another seed, other continuations."""
    results = []
    for seed, noise in ((0, 1), (0, 2), (1, 3)):
        torch.manual_seed(noise)
        found = select_safety_tokens(
            tiny_chat_model, TEACHERS["steering"], PROMPTS, make_settings(), seed=seed
        )
        results.append(found.to_json())
    assert results[0] == results[1] != results[2]


def test_special_tokens_and_unlikely_ones_are_left_out(tiny_chat_model):
    """No control token is in S, however many tokens are asked for, and none under the floor."""
    tokenizer = tiny_chat_model.tokenizer
    everything = select_safety_tokens(
        tiny_chat_model, TEACHERS["steering"], PROMPTS, make_settings(10_000)
    )
    control = set(tokenizer.all_special_ids)
    assert set(everything.ids) == set(range(len(tokenizer))) - control
    floor = sorted(token.p_teacher for token in everything.tokens)[len(everything.tokens) // 2]
    likely = select_safety_tokens(
        tiny_chat_model,
        TEACHERS["steering"],
        PROMPTS,
        make_settings(num_tokens=10_000, min_teacher_prob=floor),
    )
    assert set(likely.ids) == {t.id for t in everything.tokens if t.p_teacher >= floor}
    with pytest.raises(SafeSteerError, match=r"lower tokens\.advanced\.min_teacher_prob"):
        select_safety_tokens(
            tiny_chat_model, TEACHERS["steering"], PROMPTS, make_settings(min_teacher_prob=0.999)
        )


def test_control_tokens_that_the_tokenizer_does_not_list_are_left_out(tiny_chat_model):
    """Llama 3 lists two of its control tokens as special ids; the others are marked special."""
    tokenizer = tiny_chat_model.tokenizer
    hidden = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.pad_token = "<|im_end|>"
    assert hidden not in tokenizer.all_special_ids
    found = select_safety_tokens(
        tiny_chat_model, TEACHERS["steering"], PROMPTS, make_settings(10_000)
    )
    assert hidden not in found.ids


def test_the_end_of_the_turn_may_be_a_safety_token(tiny_chat_model):
    """With end_of_turn S may hold what ends an answer, and still no other control token."""
    tokenizer = tiny_chat_model.tokenizer
    found = select_safety_tokens(
        tiny_chat_model,
        TEACHERS["steering"],
        PROMPTS,
        make_settings(num_tokens=10_000, end_of_turn=True),
    )
    assert set(found.ids) & set(tokenizer.all_special_ids) == {tokenizer.eos_token_id}


def test_rows_beyond_the_tokenizer_are_left_out(new_chat_model):
    """Output matrices are often padded with rows that no text has."""
    model = new_chat_model(vocab_size=400)
    found = select_safety_tokens(model, TEACHERS["steering"], PROMPTS, make_settings(10_000))
    assert max(found.ids) < len(model.tokenizer)


def test_result_is_json(tiny_chat_model):
    """to_json holds the contract's keys and survives a round trip."""
    found = select_safety_tokens(tiny_chat_model, TEACHERS["steering"], PROMPTS, make_settings())
    content = found.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert {
        "tokens",
        "horizon",
        "num_generations",
        "num_prompts",
        "min_teacher_prob",
    } <= content.keys()
    assert {"id", "text", "votes", "p_base", "p_teacher"} <= content["tokens"][0].keys()
    assert len(content["tokens"]) == 12
