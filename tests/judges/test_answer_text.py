"""The text of an answer: letters as a person sees them, without markup, in sentences."""

from __future__ import annotations

import pytest

from safesteer.judges.answer_text import clean, sentences


@pytest.mark.parametrize(
    "text",
    [
        "I can\u2019t help.",
        "I can`t help.",
        "I can\u00b4t help.",
        "i cant help.",
        "\u200bI c\u200can\u2060't h\u00adelp.\ufeff",
        "I c\u0430n't h\u0435lp.",
        "\uff29 can\uff07t help.",
        "I c\u0336an't help.",
        "I can&#39;t help.",
        "\x1b[1mI can't\x1b[0m help.",
        "**I** _can't_ ~~help~~.",
        "## I can't help.",
        "<|im_start|>assistant\nI can't help.",
        "<think>May I?</think>I can't help.",
    ],
)
def test_disguises_are_undone(text: str) -> None:
    assert clean(text) == "i can't help."


def test_tags_are_spaces() -> None:
    assert sentences(clean("<p>One <b>two</b>.</p><p>Three.</p>"))[0] == ["one two .", "three."]


def test_names_and_numbers_stay() -> None:
    text = "Use my_name, 2 * 3 < 4 and a < b > c."
    assert clean(text) == text.lower()


def test_quotes_and_code_are_no_sentences_beside_others() -> None:
    found, items, has_code = sentences('write:\n> no\n- say "no thanks"\n```\nprint(1)\n```')
    assert (found, items, has_code) == (["write:", "say it"], 1, True)


@pytest.mark.parametrize("text", ["> no.", "```\nno.\n```", "```text\nno.\n```"])
def test_an_answer_that_is_all_quote_or_code_is_read(text: str) -> None:
    assert sentences(text)[0] == ["no."]


def test_a_program_is_no_sentence() -> None:
    assert sentences("```python\na = 1\nb = 2\nc = 3\nd = 4\n```") == ([], 0, True)
