"""Thinking blocks: found in a template, closed for scoring, told apart from the answer."""

from __future__ import annotations

import pytest
from thinking_templates import CHANNELS, OPENED, PLAIN, SILENT, SWITCHED, make_thinking
from tiny import make_model

from safesteer.evaluate.benchmarks import capability
from safesteer.inference.variant import ModelVariant
from safesteer.judges.guard import renderer_for
from safesteer.models.chat import ChatRenderer, Response
from safesteer.models.load import ChatModel
from safesteer.report.words import thinking_words

ON = {"enable_thinking": True}
EMPTY = "<think>\n\n</think>\n\n"
HEADER = "<|im_start|>assistant"
PROMPT = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture
def chat(new_chat_model):  # type: ignore[no-untyped-def]
    """Makes a renderer for a template."""
    return lambda template, kwargs=None: ChatRenderer(
        make_thinking(new_chat_model().tokenizer, template), kwargs
    )


@pytest.mark.parametrize(
    ("template", "off", "on"),
    [
        (SWITCHED, "\n" + EMPTY, "\n"),
        (SILENT, "\n" + EMPTY, "\n"),
        (OPENED, "\n" + EMPTY, "\n<think>\n"),
        (PLAIN, "\n", "\n"),
        (CHANNELS, "<|channel|>final<|message|>", ""),
    ],
)
def test_a_prompt_ends_in_an_empty_block_unless_thinking_is_asked_for(chat, template, off, on):
    """By default and when switched off alike; with thinking, the closed twin still does."""
    for kwargs in ({}, {"enable_thinking": False}):
        assert chat(template, kwargs).text(PROMPT).endswith(HEADER + off)
        assert chat(template, kwargs).without_thinking.text(PROMPT).endswith(HEADER + off)
    thinks = chat(template, ON)
    assert thinks.text(PROMPT).endswith(HEADER + on)
    assert thinks.without_thinking.text(PROMPT).endswith(HEADER + off)
    assert thinks.thinks == (template is not PLAIN) and not thinks.without_thinking.thinks


def test_the_templates_own_argument_is_used_where_it_has_one(chat):
    assert chat(SWITCHED).template_kwargs == {"enable_thinking": False}
    assert chat(SWITCHED).appended == ""
    assert chat(OPENED).template_kwargs == {} and chat(OPENED).appended == "\n</think>\n\n"
    assert chat(PLAIN).thinking is None and chat(PLAIN).template_kwargs == {}


def test_a_block_is_closed_by_the_tokens_of_a_rendered_one(chat):
    """Appended to the prompt it gives the ids that the same text in a template gives."""
    opened = chat(OPENED)
    assert opened.ids(PROMPT) == opened.answer_ids(opened.text(PROMPT))
    assert opened.ids(PROMPT)[-len(opened.answer_ids(EMPTY)) :] == opened.answer_ids(EMPTY)


def test_scoring_begins_where_the_answer_does(chat):
    """Post-instruction tokens end in the closed block, also where the model may think."""
    for kwargs in ({}, ON):
        tail = chat(OPENED, kwargs).post_instruction_ids()
        assert chat(OPENED).tokenizer.decode(tail).endswith(EMPTY)


def test_a_given_answer_follows_a_closed_block(chat):
    """What the model is said to have begun with is its answer and no thought."""
    thinks = chat(SWITCHED, ON)
    assert thinks.ids(PROMPT, "Sure") == thinks.without_thinking.ids(PROMPT) + thinks.answer_ids(
        "Sure"
    )
    assert thinks.ids(PROMPT) != thinks.without_thinking.ids(PROMPT)


@pytest.mark.parametrize(
    ("end", "tag"),
    [
        ("<think>\n", "<think>"),
        ("[THINK]", "[THINK]"),
        ("<|begin_of_thought|>", "<|begin_of_thought|>"),
        ("\u25c1think\u25b7", "\u25c1think\u25b7"),
        ("<reasoning>", "<reasoning>"),
        ("", ""),
        ("</think>\n", ""),
        ("<|end_of_thought|>", ""),
        ("<answer>", ""),
    ],
)
def test_a_block_that_nothing_closes_is_unknown(new_chat_model, end, tag):
    """The template names the opening tag alone: this is said, and not taken for no thoughts."""
    tokenizer = new_chat_model().tokenizer
    tokenizer.chat_template = PLAIN.replace(
        "assistant\n{% endif %}", f"assistant\n{end}{{% endif %}}"
    )
    chat = ChatRenderer(tokenizer)
    assert chat.text(PROMPT).endswith(HEADER + "\n" + end)
    assert chat.thinking is None and chat.unclosed == tag
    assert any("unknown" in note and tag in note for note in chat.notes) == bool(tag)
    if tag:
        assert "unknown" in thinking_words(None, tag)


def test_as_is_leaves_the_template_alone(chat):
    renderer = ChatRenderer(chat(OPENED).tokenizer, as_is=True)
    assert renderer.text(PROMPT).endswith("<think>\n") and not renderer.thinks


@pytest.mark.parametrize(
    ("template", "written", "said"),
    [
        (SWITCHED, "<think>\nA few.\n</think>\n\nRed.", Response("Red.", "A few.")),
        (SWITCHED, "<think>\nA few.", Response("", "A few.", finished=False)),
        (SWITCHED, "Red.", Response("Red.")),
        (SWITCHED, "<think></think>Red. </think>", Response("Red. </think>")),
        (OPENED, "A few.\n</think>\n\nRed.", Response("Red.", "A few.")),
        (OPENED, "A few.", Response("", "A few.", finished=False)),
        (OPENED, "\n</think>\n\n", Response("")),
        (PLAIN, "<think>A few.</think>Red.", Response("<think>A few.</think>Red.")),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>A few.<|end|><|im_start|>assistant"
            "<|channel|>final<|message|>Red.",
            Response("Red.", "A few."),
        ),
        (CHANNELS, "<|channel|>analysis<|message|>A", Response("", "A", finished=False)),
    ],
)
def test_thoughts_are_told_apart_from_the_answer(chat, template, written, said):
    """An answer has none of the thoughts, and what did not end is no answer."""
    thinks = chat(template, ON)
    ids = thinks.answer_ids(written)
    assert thinks.response([*ids, thinks.tokenizer.eos_token_id]) == said
    start = thinks.answer_start(ids)
    assert (start is None) == (not said.finished)
    if start:
        assert thinks.decode(ids[start:]).strip() == said.answer


def test_a_closing_tag_of_several_tokens_is_found(new_chat_model):
    """Where the tag is no token of its own, the answer begins after the token that ends it."""
    tokenizer = new_chat_model().tokenizer
    tokenizer.chat_template = OPENED
    thinks = ChatRenderer(tokenizer, ON)
    ids = thinks.answer_ids("A few.\n</think>\n\nRed.")
    assert len(thinks.answer_ids("</think>")) > 1
    assert thinks.response(ids) == Response("Red.", "A few.")


def test_a_model_with_its_thinking_off_that_thinks_all_the_same_is_split_too(chat):
    closed = chat(OPENED)
    assert closed.response(closed.answer_ids("Hm.</think>Red.")) == Response("Red.", "Hm.")
    assert closed.response(closed.answer_ids("Red.")) == Response("Red.")


def test_a_guards_prompt_is_its_templates(chat):
    assert renderer_for(chat(OPENED).tokenizer).text(PROMPT).endswith("<think>\n")


@pytest.mark.parametrize("kwargs", [{}, ON])
def test_lm_eval_reads_the_prompts_of_the_run_and_drops_thoughts(chat, kwargs):
    pytest.importorskip("lm_eval")
    renderer = chat(OPENED, kwargs)
    vocabulary = len(renderer.tokenizer)
    model = ChatModel(make_model(renderer.tokenizer, vocab_size=vocabulary), renderer)
    harness = capability._model(ModelVariant("base", model, model.model), 1, 1, None)
    assert harness.apply_chat_template(PROMPT) == renderer.text(PROMPT)
    assert harness.think_end_token == ("</think>" if kwargs else None)


def test_a_tag_before_every_answer_is_no_thinking(chat):
    """A header that looks like a tag stands before answers without thoughts as well."""
    template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    assert chat(template).thinking is None
    assert chat(template).text(PROMPT).endswith("</user><assistant>")
