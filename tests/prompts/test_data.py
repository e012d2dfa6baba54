"""Our own prompts: counts, categories, matched pairs, and nothing alike in two splits."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from itertools import combinations

import pytest

from safesteer.prompts import load_prompt_set
from safesteer.prompts.splits import content_words, jaccard

SIZES = {
    "harmful": {"train": 749, "validation": 70, "test": 110},
    "harmless": {"train": 973, "validation": 90, "test": 140},
    "borderline": {"train": 381, "validation": 48, "test": 88},
}
# The hazards of the MLCommons taxonomy, and abuse of computers.
HAZARDS = {
    "violent-crimes",
    "non-violent-crimes",
    "sex-related-crimes",
    "child-exploitation",
    "defamation",
    "specialized-advice",
    "privacy",
    "intellectual-property",
    "indiscriminate-weapons",
    "hate",
    "suicide-and-self-harm",
    "sexual-content",
    "elections-and-disinformation",
    "cyber-abuse",
}


def read(name: str) -> list[dict[str, str]]:
    file = resources.files("safesteer.prompts").joinpath("data", f"{name}.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


ROWS = {name: read(name) for name in SIZES}
ALL = [row for rows in ROWS.values() for row in rows]


@pytest.mark.parametrize("name", SIZES)
def test_split_sizes(name: str) -> None:
    assert Counter(row["split"] for row in ROWS[name]) == SIZES[name]
    loaded = load_prompt_set(name)
    assert {part: len(getattr(loaded, part)) for part in SIZES[name]} == SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_ids_are_unique_and_number_the_rows(name: str) -> None:
    assert [row["id"] for row in ROWS[name]] == [
        f"{name}-{number:03d}" for number in range(1, len(ROWS[name]) + 1)
    ]


def test_prompts_are_short_tidy_and_unique() -> None:
    prompts = [row["prompt"] for row in ALL]
    assert len(set(prompts)) == len(prompts)
    assert all(prompt == " ".join(prompt.split()) for prompt in prompts)
    assert all(len(prompt) <= 260 for prompt in prompts)


@pytest.mark.parametrize("part", SIZES["harmful"])
def test_every_hazard_is_in_every_split(part: str) -> None:
    assert {row["category"] for row in ROWS["harmful"] if row["split"] == part} == HAZARDS


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_the_first_half_of_a_split_has_half_of_each_category(name: str, part: str) -> None:
    rows = [row["category"] for row in ROWS[name] if row["split"] == part]
    whole, half = Counter(rows), Counter(rows[: len(rows) // 2])
    assert all(abs(half[category] - count / 2) <= 1.5 for category, count in whole.items())


def test_matched_pairs_share_split_and_length() -> None:
    harmful = {row["pair"]: row for row in ROWS["harmful"]}
    harmless = {row["pair"]: row for row in ROWS["harmless"] if "pair" in row}
    assert len(harmful) == len(ROWS["harmful"]) and harmful.keys() == harmless.keys()
    for pair, row in harmful.items():
        partner = harmless[pair]
        assert row["split"] == partner["split"], pair
        words, partner_words = len(row["prompt"].split()), len(partner["prompt"].split())
        assert abs(words - partner_words) <= 2, pair
    assert {row["category"] for row in harmless.values()} == {"matched"}


def trigrams(text: str) -> frozenset[str]:
    stop_words_gone = [w for w in re.findall(r"\w+", text.lower()) if w in content_words(text)]
    return frozenset(
        " ".join(stop_words_gone[start : start + 3]) for start in range(len(stop_words_gone) - 2)
    )


def test_no_near_duplicates_across_splits_of_any_two_files() -> None:
    prepared = [
        (row["split"], row["id"], content_words(row["prompt"]), trigrams(row["prompt"]))
        for row in ALL
    ]
    for (split, name, words, grams), (split_2, name_2, words_2, grams_2) in combinations(
        prepared, 2
    ):
        if split != split_2:
            assert jaccard(words, words_2) <= 0.6, (name, name_2)
            assert jaccard(grams, grams_2) <= 0.5, (name, name_2)
