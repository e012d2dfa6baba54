"""Loops in text."""

import pytest

from safesteer.judges.looping import is_looping

SENTENCE = "I can help you with that request today. "


@pytest.mark.parametrize(
    "text",
    [
        "no " * 8,
        "Fine: " + "ha ha, " * 6,
        SENTENCE * 4,
        "It began well. " + SENTENCE * 5,
        "a b c d e f g h i j k l " * 4,
        "!" * 30,
        "1 2 " * 10,
    ],
)
def test_loops(text):
    """One stretch of words again and again until the end."""
    assert is_looping(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Yes.",
        "very, very, very good",
        SENTENCE * 3,
        SENTENCE * 6 + "But then it went on in another way and stopped.",
        "The sum is 0 0 0 0 0 0 0 0",
        "1. Take eggs. 2. Take milk. 3. Take flour. 4. Stir.",
        "no no no no",
    ],
)
def test_no_loops(text):
    """Style, lists, sums, and repetition that ended."""
    assert not is_looping(text)
