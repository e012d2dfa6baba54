"""Prompts longer than the model's positions are skipped with a count in every stage."""

from __future__ import annotations

import logging

import pytest

from safesteer.direction.extract import extract_direction
from safesteer.errors import InputError
from safesteer.evaluate.drift import measure_drift
from safesteer.evaluate.refusals import refusal_rate
from safesteer.inference.conversation import TOO_LONG, Conversation
from safesteer.inference.variant import ModelVariant
from safesteer.models import context
from safesteer.models.context import fitting_prompts, max_positions
from safesteer.models.generate import Decoding
from safesteer.prompts import Prompt
from safesteer.safety_tokens import select_safety_tokens
from safesteer.teacher import Teacher

SHORT = [{"role": "user", "content": "Hi"}]
LONG = [{"role": "user", "content": "word " * 400}]
NEW = 4


@pytest.fixture
def small(new_chat_model, monkeypatch):  # type: ignore[no-untyped-def]
    """A model of 256 positions that fails on more, as one with learned positions does."""
    model = new_chat_model(max_position_embeddings=256)
    embed = model.model.get_input_embeddings()

    def bounded(module, args):  # type: ignore[no-untyped-def]
        assert args[0].shape[1] <= 256

    embed.register_forward_pre_hook(bounded)
    return model


def variant(model):  # type: ignore[no-untyped-def]
    return ModelVariant("model", model, model.model)


STAGES = {
    "tokens": lambda model, prompts: select_safety_tokens(model, Teacher(), prompts),
    "drift": lambda model, prompts: measure_drift(model, model.model, prompts, max_new_tokens=NEW),
    "answers": lambda model, prompts: variant(model).generate(prompts, Decoding(NEW)),
    "rate": lambda model, prompts: refusal_rate(
        model, [Prompt(str(i), tuple(p)) for i, p in enumerate(prompts)], max_new_tokens=NEW
    ),
}


@pytest.mark.parametrize("stage", STAGES)
def test_too_long_prompts_are_counted_and_skipped(stage, small, caplog):
    with caplog.at_level(logging.WARNING, "safesteer"):
        STAGES[stage](small, [SHORT, LONG, SHORT])
    (line,) = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert line.startswith("1 of 3 prompts")
    assert "(the model's 256 positions less" in line


@pytest.mark.parametrize("stage", STAGES)
def test_a_set_left_empty_is_an_error(stage, small):
    with pytest.raises(InputError, match=r"all 2 prompts.* are longer than \d+ tokens .*\. Try"):
        STAGES[stage](small, [LONG, LONG])


def test_the_direction_is_found_without_them(small, caplog):
    """Each of the four sets is counted; the longest opening needs positions too."""
    texts = [[{"role": "user", "content": f"Name colour {number}"}] for number in range(3)]
    with caplog.at_level(logging.WARNING, "safesteer"):
        extract_direction(small, [*texts, LONG], texts, texts, [LONG, *texts])
    lines = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert [line.split(" is skipped")[0] for line in lines] == [
        "1 of 4 harmful training prompts",
        "1 of 4 harmless validation prompts",
    ]


def test_what_is_skipped_has_no_answer_and_no_verdict(small):
    found = variant(small).generate([LONG, SHORT], Decoding(NEW))
    assert found[0].skipped and not found[0].finished and found[0].answer == ""
    assert not found[1].skipped
    assert found[1] == variant(small).generate([SHORT], Decoding(NEW))[0]
    rate = refusal_rate(small, [Prompt("0", tuple(LONG)), Prompt("1", tuple(SHORT))])
    assert rate.samples[0].refused is None and rate.samples[1].refused is not None
    assert rate.to_json()["unfinished"] == 1


def test_a_conversation_that_grows_too_long_can_be_left(small):
    conversation = Conversation([variant(small)], Decoding(NEW))
    assert conversation.generate(LONG[0]["content"]) == {"model": TOO_LONG}
    assert conversation.generate("Hi")["model"] != TOO_LONG


def test_the_smaller_of_two_limits_is_named(small, caplog, monkeypatch):
    assert max_positions(small.model) == 256
    prompts = [[1] * 10, [1] * 30]
    with caplog.at_level(logging.WARNING, "safesteer"):
        assert fitting_prompts(small.model, prompts, NEW, most=20) == [0]
        assert fitting_prompts(small.model, [[1] * 252, [1] * 253], NEW, most=512) == [0]
    assert [r.getMessage() for r in caplog.records] == [
        "1 of 2 prompts is skipped: longer than 20 tokens",
        "1 of 2 prompts is skipped: longer than 252 tokens (the model's 256 positions less 4 for"
        " the answer)",
    ]
    monkeypatch.setattr(context, "text_config", lambda model: None)
    assert fitting_prompts(small.model, prompts, NEW) == [0, 1]
