"""Answers from a model: order, ends, and the distribution of samples."""

import pytest
import torch
from tiny import with_lora
from transformers import GenerationConfig

from safesteer.models.generate import (
    Decoding,
    InverseCdfSampler,
    end_of_turn_ids,
    generate,
    unused_wishes,
)

TEXTS = ["Hi", "How far is the moon?", "Name a colour and explain it at some length.", "A", "B c"]


@pytest.fixture
def prompts(tiny_chat_model):  # type: ignore[no-untyped-def]
    """Rendered prompts of different lengths, not in the order of their lengths."""
    chat = tiny_chat_model.chat
    rendered = [chat.ids([{"role": "user", "content": text}]) for text in TEXTS]
    assert len({len(ids) for ids in rendered}) > 2
    return rendered


@torch.no_grad()
def greedy_by_hand(model, ids, count, ends):  # type: ignore[no-untyped-def]
    """One sequence, no padding, no cache: argmax of the logits, again and again."""
    answer: list[int] = []
    while len(answer) < count:
        answer.append(int(model(torch.tensor([ids + answer])).logits[0, -1].argmax()))
        if answer[-1] in ends:
            break
    return answer


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_greedy_answers_are_those_of_one_prompt_at_a_time(batch_size, tiny_chat_model, prompts):
    """Whatever the batch and its padding, in the order of the prompts."""
    model = tiny_chat_model.model
    found = generate(model, tiny_chat_model.tokenizer, prompts, Decoding(9), batch_size=batch_size)
    assert found == [greedy_by_hand(model, ids, 9, {2}) for ids in prompts]
    assert len({tuple(answer) for answer in found}) == len(prompts)


def test_answers_end_with_the_turn(tiny_chat_model, prompts):
    """Every token that the model or the tokenizer declares ends an answer and is its last token."""
    model, tokenizer = tiny_chat_model.model, tiny_chat_model.tokenizer
    free = generate(model, tokenizer, prompts, Decoding(9))
    ends = [free[0][3], free[1][5]]
    model.generation_config.eos_token_id = ends
    assert end_of_turn_ids(model, tokenizer) == [*ends, tokenizer.eos_token_id]
    stopped = generate(model, tokenizer, prompts, Decoding(9))
    for whole, cut in zip(free, stopped, strict=True):
        assert cut == whole[: len(cut)]
        assert not set(cut[:-1]) & set(ends)
        assert cut[-1] in ends or len(cut) == 9
    assert len(stopped[0]) <= 4 and len(stopped[1]) <= 6


WISHES = {
    "repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "num_beams": 3,
    "do_sample": True,
    "temperature": 3.0,
    "top_k": 2,
    "top_p": 0.1,
    "min_p": 0.9,
    "typical_p": 0.1,
    "min_length": 500,
    "min_new_tokens": 9,
    "max_time": 1e-9,
    "suppress_tokens": list(range(3, 300)),
    "begin_suppress_tokens": list(range(3, 300)),
    "bad_words_ids": [[token] for token in range(3, 300)],
    "sequence_bias": [[[7], 1e4]],
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "exponential_decay_length_penalty": [1, 50.0],
    "guidance_scale": 7.0,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "watermarking_config": {"greenlist_ratio": 0.25, "bias": 50.0},
    "stop_strings": ["e", "a"],
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_hidden_states": True,
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 1,
    "cache_implementation": "static",
    "use_cache": False,
    "token_healing": True,
    "made_up": 3,
}


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_models_own_wishes_change_no_text(wish, temperature, tiny_chat_model, prompts):
    """Nothing of generation_config.json but the ids counts, with and without an adapter."""

    def answers(runner):  # type: ignore[no-untyped-def]
        torch.manual_seed(0)
        decoding = Decoding(6, temperature)
        return generate(runner, tiny_chat_model.tokenizer, prompts[:3], decoding)

    model = tiny_chat_model.model
    plain = answers(model)
    model.generation_config.eos_token_id = [2, plain[0][2]]
    plain = answers(model)
    assert len(plain[0]) <= 3
    wished = {**model.generation_config.to_dict(), wish: WISHES[wish]}
    model.generation_config = GenerationConfig.from_dict(wished)
    assert answers(model) == plain
    assert getattr(model.generation_config, wish) == WISHES[wish] or wish == "watermarking_config"
    assert answers(with_lora(model, trained=False)) == plain


def test_wishes_are_named_and_neutral_values_are_none():
    neutral = {"temperature": 1.0, "top_p": 1.0, "use_cache": True, "do_sample": False}
    assert unused_wishes({"eos_token_id": [2], "pad_token_id": 0, **neutral}) == []
    asked = {"eos_token_id": 2, "min_new_tokens": 3, "suppress_tokens": [4], **neutral}
    assert unused_wishes(asked) == ["min_new_tokens", "suppress_tokens"]


def test_sampling_draws_from_the_softmax():
    """Frequencies over many draws agree with the softmax at the temperature (chi-square test)."""
    torch.manual_seed(0)
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -torch.inf])
    draws = 40_000
    chosen = InverseCdfSampler(0.7)(torch.zeros(draws, 1), scores.expand(draws, -1))
    assert ((chosen == 0).sum(-1) == 1).all() and (chosen.isinf().sum(-1) == 5).all()
    counts = torch.bincount(chosen.argmax(-1), minlength=6).double()
    expected = torch.softmax(scores / 0.7, dim=-1).double() * draws
    assert counts[5] == 0
    chi_square = ((counts - expected)[:5] ** 2 / expected[:5]).sum().item()
    assert chi_square < 18.5  # 0.1 % point for four degrees of freedom
    wrong = torch.softmax(scores, dim=-1).double() * draws
    assert ((counts - wrong)[:5] ** 2 / wrong[:5]).sum().item() > 100


def test_first_sampled_tokens_follow_the_models_distribution(tiny_chat_model, prompts):
    """Through `generate`, with padding, the first token's frequencies are the model's."""
    model, ids = tiny_chat_model.model, prompts[1]
    torch.manual_seed(1)
    answers = generate(
        model,
        tiny_chat_model.tokenizer,
        [ids] * 2000 + [prompts[2]],
        Decoding(1, 0.5),
        batch_size=2001,
    )
    p = torch.softmax(model(torch.tensor([ids])).logits[0, -1] / 0.5, dim=-1)
    counts = torch.bincount(torch.tensor([a[0] for a in answers[:2000]]), minlength=len(p))
    likely = p > 0.02
    assert likely.sum() >= 3
    error = (counts[likely] / 2000 - p[likely]).abs()
    assert (error < 4.5 * (p[likely] / 2000).sqrt()).all()


def test_the_seed_reproduces_samples(tiny_chat_model, prompts):
    """Same seed, same samples; another seed, others; prompts do not share their randomness."""

    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return generate(
            tiny_chat_model.model,
            tiny_chat_model.tokenizer,
            [prompts[0]] * 4,
            Decoding(6, 1.0),
        )

    assert sample(0) == sample(0) != sample(1)
    assert len({tuple(answer) for answer in sample(0)}) == 4


def test_progress_counts_sequences(tiny_chat_model, prompts):
    """After each batch the sequences done and all of them are reported."""
    seen = []
    generate(
        tiny_chat_model.model,
        tiny_chat_model.tokenizer,
        prompts,
        Decoding(1),
        batch_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
