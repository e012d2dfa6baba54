"""Conversations in the formats of others, and those that text cannot render."""

from __future__ import annotations

import json
from typing import Any

import pytest

from safesteer.prompts.messages import is_missing, parse_prompt
from safesteer.prompts.rows import Skipped

SING = {"role": "user", "content": "Sing."}
HISTORY = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}

READ: dict[str, tuple[Any, list[dict[str, str]]]] = {
    "sharegpt": (
        [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "Sing."},
            {"from": "gpt", "value": "La"},
        ],
        [{"role": "system", "content": "Be brief."}, *HISTORY, SING],
    ),
    "roles in capitals": ([{"role": "User", "content": "Sing."}], [SING]),
    "parts": ([{"role": "user", "content": [{"type": "text", "text": "Sing."}]}], [SING]),
    "several parts": (
        [{"role": "user", "content": [{"type": "input_text", "text": "Sing"}, "it."]}],
        [{"role": "user", "content": "Sing\nit."}],
    ),
    "tool calls after the request": (
        [SING, CALL, {"role": "tool", "content": "la"}, {"role": "assistant", "content": "La"}],
        [SING],
    ),
    "picture in an answer": (
        [SING, {"role": "assistant", "content": [{"type": "image_url"}]}],
        [SING],
    ),
    "JSON in a cell": (json.dumps([SING]), [SING]),
    "a single message": (SING, [SING]),
    "two turns of the user": ([HISTORY[0], SING], [HISTORY[0], SING]),
}


@pytest.mark.parametrize("case", READ)
def test_conversations(case: str) -> None:
    value, messages = READ[case]
    assert parse_prompt(value, "messages") == (messages, "")


@pytest.mark.parametrize(
    ("turns", "reason", "is_bad"),
    [
        ([HISTORY[0], CALL, {"role": "tool", "content": "la"}, SING], "with tool calls", False),
        ([HISTORY[0], {"from": "observation", "value": "x"}, SING], "with tool calls", False),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "with a picture", False),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "'input_audio'", False),
        ([{"role": "user", "content": None}], "not a conversation", True),
        ([SING, {"role": "system", "content": "x"}], "without a request", True),
        (["Hi", "Hello"], "not a conversation", True),
        ([{"role": "user", "content": " \u200b"}], "empty", True),
    ],
)
def test_conversations_without_a_request_in_text(
    turns: list[Any], reason: str, is_bad: bool
) -> None:
    with pytest.raises(Skipped) as caught:
        parse_prompt(turns, "messages")
    assert reason in caught.value.reason and caught.value.is_bad is is_bad


def test_transcripts_become_turns() -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Sing.\n\nAssistant: La"
    assert parse_prompt(text, "chosen") == ([*HISTORY, SING], "")
    assert parse_prompt("\n\nHuman: Sing.\n\nAssistant:", "prompt") == ([SING], "")
    for plain in ("Human: a species", "Is the\n\nHuman: label\n\nAssistant: odd?"):
        assert parse_prompt(plain, "prompt")[0][0]["content"] == plain


def test_of_several_strings_the_first_is_read_and_said() -> None:
    assert parse_prompt(["Sing."], "turns") == ([SING], "")
    messages, note = parse_prompt(["Sing.", "Louder."], "turns")
    assert messages == [SING] and note == "only the first of several turns is read"


def test_missing_cells() -> None:
    assert all(map(is_missing, (None, float("nan"), "", "NaN", "null", "\u200b\ufeff", [], {})))
    assert not any(map(is_missing, ("a", 0, False, "nano", ["a"])))
