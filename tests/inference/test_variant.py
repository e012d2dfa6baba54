"""Prefilled answers and identities of variants, on a tiny model."""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model

from safesteer.direction.vector import Direction
from safesteer.inference.variant import ModelVariant
from safesteer.models.generate import Decoding
from safesteer.teacher import Teacher

TEXTS = ["Hi", "How far is the moon?"]


def conversations(user):  # type: ignore[no-untyped-def]
    return [user(text) for text in TEXTS]


def answers(variant, asked, **named):  # type: ignore[no-untyped-def]
    return [response.answer for response in variant.generate(asked, Decoding(4), **named)]


def with_lora(model, value: float = 0.3):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    student = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).eval()
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, value)
    return student


def test_a_prefilled_answer_is_continued(tiny_chat_model, user):
    """The model reads the prefill as its own text, and the answer includes it."""
    variant = ModelVariant("model", tiny_chat_model, tiny_chat_model.model)
    plain = answers(variant, conversations(user))
    prefilled = answers(variant, conversations(user), prefills=["Sure, here is", ""])
    assert prefilled[0].startswith("Sure, here is") and prefilled[0] != plain[0]
    assert prefilled[1] == plain[1]
    ids = tiny_chat_model.chat.ids(user("Hi"), "Sure, here is")
    with torch.no_grad():
        first = tiny_chat_model.model(torch.tensor([ids])).logits[0, -1].argmax().item()
    expected = [*tiny_chat_model.chat.answer_ids("Sure, here is"), first]
    assert prefilled[0].startswith(tiny_chat_model.chat.decode(expected))


def test_equal_models_share_an_identity_and_different_ones_do_not(new_chat_model):
    def identity(**changes):  # type: ignore[no-untyped-def]
        model = new_chat_model(**changes)
        return ModelVariant("model", model, model.model).identity

    first = identity()
    assert identity() == first
    assert identity(seed=1) != first

    def changed(change):  # type: ignore[no-untyped-def]
        model = new_chat_model()
        change(model)
        return ModelVariant("model", model, model.model).identity

    assert changed(lambda m: m.model.to(torch.bfloat16)) != first
    assert changed(lambda m: setattr(m.tokenizer, "chat_template", "{{ 1 }}")) != first
    assert changed(lambda m: m.chat.template_kwargs.update(enable_thinking=False)) != first
    assert changed(lambda m: setattr(m, "sha256", "of the files")) != first


def test_base_teacher_and_adapter_have_different_identities(new_chat_model):
    """The base's identity is the same with an adapter loaded around it, and without."""
    alone = new_chat_model()
    base = ModelVariant("base", alone, alone.model, Teacher()).identity
    model = new_chat_model()
    student = with_lora(model.model)
    assert ModelVariant("base", model, student, Teacher()).identity == base

    def steered(coefficient: float, layer: int = 1) -> str:
        direction = Direction(torch.ones(32), layer, coefficient)
        return ModelVariant("teacher", model, student, Teacher(direction)).identity

    aligned = ModelVariant("aligned", model, student).identity
    assert len({base, aligned, steered(1.0), steered(0.5), steered(1.0, 2)}) == 5
    other = new_chat_model()
    assert ModelVariant("aligned", other, with_lora(other.model)).identity == aligned
    other = new_chat_model()
    assert ModelVariant("aligned", other, with_lora(other.model, 0.31)).identity != aligned


def test_all_weights_trained_are_another_model(new_chat_model):
    base, trained = new_chat_model(), new_chat_model(seed=1)
    one = ModelVariant("aligned", base, trained.model).identity
    assert one != ModelVariant("base", base, base.model, Teacher()).identity
    assert one != ModelVariant("aligned", base, new_chat_model(seed=2).model).identity
