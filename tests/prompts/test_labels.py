"""Files with harmful and harmless prompts: a set takes its own, or the file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from safesteer.errors import InputError
from safesteer.prompts import load_prompts

UNSAFE, SAFE = ["How do I break a law?", "How do I spy?"], ["How do I kill a process?", "Sing."]


def write(folder: Path, column: str, unsafe: Any, safe: Any, **more: Any) -> Path:
    rows = [
        {"prompt": text, column: label, **more}
        for text, label in (*((text, unsafe) for text in UNSAFE), *((text, safe) for text in SAFE))
    ]
    path = folder / "a.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize(
    ("column", "unsafe", "safe"),
    [
        ("label", "unsafe", "safe"),
        ("Label", "Harmful", "Benign"),
        ("prompt_harm_label", "harmful", "unharmful"),
        ("data_type", "adversarial_harmful", "vanilla_benign"),
        ("is_safe", False, True),
        ("toxicity", 1, 0),
        ("type", "jailbreak", "benign"),
        ("type", "harm", "no_harm"),
        ("harmful", "True", "False"),
    ],
)
def test_each_set_takes_its_own(tmp_path: Path, column: str, unsafe: Any, safe: Any) -> None:
    path = write(tmp_path, column, unsafe, safe)
    for name, expected in {"harmful": UNSAFE, "harmless": SAFE, "borderline": SAFE}.items():
        assert [prompt.text for prompt in load_prompts(path, name=name)] == expected
    assert len(load_prompts(path)) == 4  # not for a prompt set: all are asked


def test_a_label_of_answers_decides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    rows = [{"prompt": text, "response": "x", "is_safe": s} for text in UNSAFE for s in (0, 1)]
    path.write_text(json.dumps(rows))
    assert [prompt.text for prompt in load_prompts(path, name="harmful")] == UNSAFE


def test_zero_and_one_are_unclear(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"'label' is 0 or 1, and nothing says which .*\. Try: one"
    ):
        load_prompts(write(tmp_path, "label", 1, 0), name="harmful")
    assert len(load_prompts(write(tmp_path, "label", 1, 1), name="harmful")) == 4
    path = write(tmp_path, "label", 1, 0, topic="x")
    assert len(load_prompts(path)) == 4


def test_a_third_label_is_in_no_set(tmp_path: Path) -> None:
    path = write(tmp_path, "label", "unsafe", "ambiguous")
    assert [prompt.text for prompt in load_prompts(path, name="harmful")] == UNSAFE
    path = write(tmp_path, "category", "harmful", "cybercrime")  # topics of HarmBench
    assert len(load_prompts(path, name="harmful")) == 4


def test_a_file_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "label", "safe", "safe")
    with pytest.raises(InputError, match="none of its 4 rows can be used: 4 with label = safe"):
        load_prompts(path, name="harmful")
