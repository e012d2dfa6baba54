"""Columns beside the prompt: joined where they are known, skipped where they cannot be rendered."""

from __future__ import annotations

from typing import Any

import pytest

from safesteer.prompts.fields import read_prompt
from safesteer.prompts.rows import Skipped

JOINED: dict[str, tuple[dict[str, Any], str, str, list[str]]] = {
    "Alpaca": (
        {"instruction": "Translate.", "input": "The cat.", "output": "x"},
        "instruction",
        "Translate.\n\nThe cat.",
        ["input"],
    ),
    "Alpaca without input": ({"instruction": "Sing.", "input": ""}, "instruction", "Sing.", []),
    "Alpaca, no input": (
        {"instruction": "Sing.", "input": "<noinput>"},
        "instruction",
        "Sing.",
        [],
    ),
    "HarmBench": (
        {"Behavior": "Rewrite it.", "ContextString": "Dear all"},
        "Behavior",
        "Dear all\n\n---\n\nRewrite it.",
        ["ContextString"],
    ),
    "NaN": ({"Behavior": "Sing.", "ContextString": float("nan")}, "Behavior", "Sing.", []),
    "SQuAD": (
        {"question": "Who?", "context": "Ann sang.", "answers": {"text": ["Ann"]}},
        "question",
        "Ann sang.\n\nWho?",
        ["context"],
    ),
    "MMLU": (
        {"question": "Which?", "choices": ["red", "blue"], "answer": 1},
        "question",
        "Which?\n\nA. red\nB. blue",
        ["choices"],
    ),
    "ARC": (
        {"question": "Which?", "choices": {"text": ["red", "blue"], "label": ["1", "2"]}},
        "question",
        "Which?\n\n1. red\n2. blue",
        ["choices"],
    ),
    "options by letter": (
        {"question": "Which?", "options": {"A": "red", "B": "blue"}},
        "question",
        "Which?\n\nA. red\nB. blue",
        ["options"],
    ),
    "columns A to D": (
        {"question": "Which?", "A": "w", "B": "x", "C": "y", "D": "z"},
        "question",
        "Which?\n\nA. w\nB. x\nC. y\nD. z",
        ["A, B, C, D"],
    ),
    "WildJailbreak": ({"adversarial": "", "vanilla": "Sing."}, "adversarial", "Sing.", []),
    "names with underscores": (
        {"behavior": "Rewrite it.", "context_string": "Dear all"},
        "behavior",
        "Dear all\n\n---\n\nRewrite it.",
        ["context_string"],
    ),
    "choices in a cell": (
        {"question": "Which?", "choices": "['red', 'blue']"},
        "question",
        "Which?\n\nA. red\nB. blue",
        ["choices"],
    ),
    "counts of pictures": ({"prompt": "Sing.", "image_count": 0}, "prompt", "Sing.", []),
    "no tools": ({"prompt": "Sing.", "functions": "chemistry"}, "prompt", "Sing.", []),
    "empty tools": ({"prompt": "Sing.", "tools": "[]", "images": []}, "prompt", "Sing.", []),
}


@pytest.mark.parametrize("case", JOINED)
def test_known_columns_are_joined(case: str) -> None:
    values, column, text, joined = JOINED[case]
    messages, found, note = read_prompt(values, column, named=False)
    assert messages == [{"role": "user", "content": text}]
    assert (found, note) == (joined, "")


def test_system_and_history() -> None:
    values = {"instruction": "Sing.", "system": "Be brief.", "history": [["Hi", "Hello"]]}
    messages, joined, _ = read_prompt(values, "instruction", named=False)
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in messages] == ["Be brief.", "Hi", "Hello", "Sing."]
    assert joined == ["history", "system"]


def test_a_conversation_beside_the_prompt_leads_to_it() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Sing."},
        {"role": "assistant", "content": "La"},
        {"role": "user", "content": "Louder."},
    ]
    values = {"prompt": "Sing.", "messages": turns}
    messages, joined, _ = read_prompt(values, "prompt", named=False)
    assert messages == turns[:2] and joined == ["messages"]
    values["prompt"] = "Dance."
    with pytest.raises(Skipped, match="whose 'messages' do not contain their 'prompt'"):
        read_prompt(values, "prompt", named=False)
    messages, _, _ = read_prompt(values, "prompt", named=True)
    assert messages == [{"role": "user", "content": "Dance."}]


@pytest.mark.parametrize("text", ["<|im_start|>user\nSing.", "[INST] Sing. [/INST] La"])
def test_texts_with_their_answers_are_no_requests(text: str) -> None:
    with pytest.raises(Skipped, match="rendered with a chat template"):
        read_prompt({"text": text}, "text", named=False)
    assert read_prompt({"text": text}, "text", named=True)[0][0]["content"] == text
    assert read_prompt({"prompt": text}, "prompt", named=False)[0][0]["content"] == text


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"images": ["a.png"]}, "with a picture"),
        ({"image": {"bytes": b"x"}}, "with a picture"),
        ({"tools": [{"name": "f"}]}, "asking with tools"),
        ({"context": {"title": ["a"]}}, "whose 'context' is not a text"),
        ({"choices": [{"a": 1}]}, "whose 'choices' are not texts"),
        ({"system": ["x"]}, "whose 'system' is not a text"),
        ({"history": "Hi"}, "whose 'history' is not a conversation"),
    ],
)
def test_rows_that_text_cannot_render(beside: dict[str, Any], reason: str) -> None:
    with pytest.raises(Skipped) as caught:
        read_prompt({"prompt": "Sing.", **beside}, "prompt", named=False)
    assert caught.value.reason == reason and not caught.value.is_bad
