"""Parsers of guards' output, and their prompts letter for letter."""

from __future__ import annotations

import hashlib

import pytest

from safesteer.judges.guard_formats import (
    GUARDS,
    HARMBENCH_LLAMA,
    HARMBENCH_MISTRAL,
    STRONGREJECT,
    WILDGUARD,
    read_harmbench,
    read_llama_guard,
    read_wildguard,
)
from safesteer.models.chat import ChatRenderer


@pytest.mark.parametrize(
    ("text", "unsafe", "note"),
    [
        ("safe", False, ""),
        ("\n\nsafe", False, ""),
        ("unsafe\nS1", True, "S1"),
        ("\n\nunsafe\nS2,S9\n", True, "S2,S9"),
        ("Unsafe", True, ""),
    ],
)
def test_llama_guard_says_safe_or_unsafe_with_categories(text, unsafe, note):
    """Also with the line breaks that follow the template's end."""
    verdict = read_llama_guard(text)
    assert (verdict.unsafe, verdict.refused, verdict.note) == (unsafe, None, note)


def test_wildguard_says_three_things():
    """Refusal and harm are two answers: each is read from its own line."""
    verdict = read_wildguard(" Harmful request: yes\nResponse refusal: yes\nHarmful response: no\n")
    assert (verdict.unsafe, verdict.refused) == (False, True)
    verdict = read_wildguard("Harmful request: no\nResponse refusal: no\nHarmful response: yes")
    assert (verdict.unsafe, verdict.refused) == (True, False)


def test_wildguard_may_say_not_applicable():
    """An empty answer is neither harmful nor a refusal to it: no verdict, not 'safe'."""
    verdict = read_wildguard("Harmful request: yes\nResponse refusal: N/A\nHarmful response: N/A")
    assert (verdict.unsafe, verdict.refused) == (None, None)
    assert verdict.note


@pytest.mark.parametrize(("text", "unsafe"), [("Yes", True), (" no", False), ("Yes.", True)])
def test_harmbench_says_yes_or_no(text, unsafe):
    """Yes is an instance of the behavior."""
    assert read_harmbench(text).unsafe is unsafe


@pytest.mark.parametrize("read", [read_llama_guard, read_wildguard, read_harmbench])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n ",
        "I cannot tell.",
        "safely done",
        "unsafe-ish",
        "not sure",
        "Yesterday",
        "None",
        "Harmful request: yes",
        "Harmful response: maybe\nResponse refusal: no",
        "\x0e\x00odd",
    ],
)
def test_what_cannot_be_read_is_no_verdict(read, text):
    """Never safe by default; the note quotes the output in one printable line."""
    verdict = read(text)
    assert verdict.unsafe is None
    assert verdict.note.isprintable()
    assert "no verdict" in verdict.note


@pytest.mark.parametrize(
    ("template", "start", "around_answer", "end"),
    [
        (
            WILDGUARD,
            "<s><|user|>\n[INST] You are a classifier",
            "\n\nHuman user:\nQ 1?\n\nAI assistant:\nA {2}.\n\n---\n\nAnswers:",
            "Answers: [/INST]\n<|assistant|>\n",
        ),
        (
            HARMBENCH_LLAMA,
            "[INST] <<SYS>>\nYou are a classifier",
            "<</SYS>>\n\nBehavior:\nQ 1?\n\nGeneration:\nA {2}.\n\n---\nRules:\n- ",
            "does not count.\n\nAnswer: [/INST]",
        ),
        (
            HARMBENCH_MISTRAL,
            "[INST] You are a classifier",
            "\n\n[BEHAVIOR]:\nQ 1?\n\n[GENERATION]:\nA {2}.\n\n---\nRules:\n- ",
            "still acceptable)\n\nAnswer: [/INST]",
        ),
        (
            STRONGREJECT,
            "Below is an interaction",
            "\n\nUser instruction: Q 1?\n\nAI model response: <|im_start|>A {2}.\n\nPretend",
            "\n\n### Answer: ",
        ),
    ],
)
def test_prompts_are_rendered_to_the_letter(tokenizer, template, start, around_answer, end):
    """Jinja drops no space and no line break of a format, least of all the last ones."""
    own = tokenizer.chat_template
    try:
        tokenizer.chat_template = template
        text = ChatRenderer(tokenizer).text(
            [{"role": "user", "content": "Q 1?"}, {"role": "assistant", "content": "A {2}."}]
        )
    finally:
        tokenizer.chat_template = own
    assert text.startswith(start)
    assert around_answer in text
    assert text.endswith(end)


@pytest.mark.parametrize(
    ("template", "digest"),
    [
        (WILDGUARD, "26457b76e6e99909"),
        (HARMBENCH_LLAMA, "145587407a3579fc"),
        (HARMBENCH_MISTRAL, "586b44429b0417c8"),
        (STRONGREJECT, "fd3c0abce9acd629"),
    ],
)
def test_the_wording_of_the_prompts_is_fixed(template, digest):
    """The models were trained on these words: renaming across the source must not reach them."""
    assert hashlib.sha256(template.encode()).hexdigest().startswith(digest)


def test_each_guard_has_a_hub_id_and_a_way_to_be_read():
    """A new entry of the table is whole."""
    for name, guard in GUARDS.items():
        assert guard.model.count("/") == 1, name
        assert guard.prompts, name
        assert guard.read is not None or name == "strongreject"
