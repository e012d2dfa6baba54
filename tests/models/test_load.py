"""A model in memory, wrapped: its checks, and every stage on it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import JOB_OF_SECONDS, make_model, make_tokenizer, plain
from transformers import AutoModelForCausalLM, AutoTokenizer

import safesteer
from safesteer.config.load import load_settings
from safesteer.distill.plan import TrainingPrompts
from safesteer.errors import InputError
from safesteer.models.load import ChatModel, load_model
from safesteer.prompts import load_prompt_set
from safesteer.teacher import Teacher


def test_a_wrapped_model_is_the_loaded_one(tiny_model_folder):
    """The same weights, frozen and in evaluation mode, and the same prompts."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).train()
    wrapped = ChatModel.wrap(model, AutoTokenizer.from_pretrained(tiny_model_folder))
    loaded = load_model(str(tiny_model_folder))
    assert wrapped.model is model and not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert wrapped.layers == loaded.layers == 4
    messages = [{"role": "user", "content": "Hello."}]
    assert wrapped.chat.ids(messages) == loaded.chat.ids(messages)
    assert model.config.pad_token_id == wrapped.tokenizer.pad_token_id is not None


def test_the_stages_run_on_a_wrapped_model(new_prompt_sets, tmp_path):
    """Direction, tokens, training and evaluation, without any file of a model."""
    tokenizer = make_tokenizer()
    model = ChatModel.wrap(make_model(tokenizer), tokenizer)
    settings = load_settings(**plain(**JOB_OF_SECONDS))
    sets = new_prompt_sets(8, 4)
    harmful, harmless = (load_prompt_set(name, sets[name]) for name in ("harmful", "harmless"))

    def messages(prompts):  # type: ignore[no-untyped-def]
        return [prompt.messages for prompt in prompts]

    found = safesteer.extract_direction(
        model,
        messages(harmful.train),
        messages(harmless.train),
        messages(harmful.validation),
        messages(harmless.validation),
        settings.direction,
    )
    teacher = Teacher(found.direction)
    tokens = safesteer.select_safety_tokens(
        model, teacher, messages(harmful.validation), settings.tokens
    )
    student = safesteer.train(
        model,
        teacher,
        tokens.ids,
        TrainingPrompts(messages(harmful.train), messages(harmless.train)),
        settings.train,
        output=tmp_path / "train",
    )
    rate = partial(safesteer.refusal_rate, model, harmful.test, max_new_tokens=3)
    for rates in (rate(), rate(teacher=teacher), rate(student=student)):
        assert len(rates.samples) == len(harmful.test)
    drift = safesteer.measure_drift(model, student, messages(harmless.test), max_new_tokens=3)
    assert len(drift.pairs) == len(harmless.test)


def test_a_wrapped_model_has_no_adapters(tiny_chat_model):
    """The base must not contain a part that training would take for its own."""
    adapted = get_peft_model(tiny_chat_model.model, LoraConfig(r=2, target_modules=["q_proj"]))
    for model in (adapted, tiny_chat_model.model):
        with pytest.raises(InputError, match=r"has adapters.*merge_and_unload"):
            ChatModel.wrap(model, tiny_chat_model.tokenizer)
    merged = adapted.merge_and_unload()
    assert ChatModel.wrap(merged, tiny_chat_model.tokenizer).model is merged


def test_a_tokenizer_of_another_model_is_an_input_error(new_chat_model):
    """Its template writes tokens that the model has no row for, and they are named."""
    model = new_chat_model(vocab_size=64)
    with pytest.raises(InputError, match=r"LlamaForCausalLM: .*no row for \(\d+ '.*64 rows"):
        ChatModel.wrap(model.model, model.tokenizer)


def test_a_token_too_many_is_allowed_until_it_is_used(new_chat_model):
    """Gemma 3's tokenizer has one token more than its output matrix has rows."""
    tiny = new_chat_model()
    tokenizer, rows = tiny.tokenizer, len(tiny.tokenizer)
    tokenizer.add_tokens(["<one too many>"])
    chat = ChatModel.wrap(tiny.model, tokenizer).chat
    assert max(chat.ids([{"role": "user", "content": "Hello."}])) < rows == len(tokenizer) - 1
    with pytest.raises(InputError, match=rf"no row for \({rows} '<one too many>'; .*{rows} rows"):
        chat.ids([{"role": "user", "content": "Hello <one too many>."}])
    with pytest.raises(InputError, match="no row for"):
        chat.ids([{"role": "user", "content": "Hello."}], "<one too many>")
    tokenizer.pad_token = "<one too many>"
    with pytest.raises(InputError, match=rf"no row for \({rows} "):
        ChatModel.wrap(tiny.model, tokenizer)
