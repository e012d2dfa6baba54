"""Our own prompts: counts, categories, matched pairs, frames, and nothing alike in two splits."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from itertools import groupby

import pytest

from safesteer.prompts import PROMPT_SETS, load_prompt_set
from safesteer.prompts.splits import STOP_WORDS, content_words, jaccard

SIZES = {
    "harmful": {"train": 749, "validation": 70, "test": 110},
    "harmless": {"train": 973, "validation": 90, "test": 140},
    "borderline": {"train": 381, "validation": 48, "test": 88},
    "borderline-more": {"train": 1300, "validation": 156, "test": 156},
}
# Training prompts of borderline-more: XSTest's ten types, and three of ours. Validation and test
# hold twelve of each.
TYPES = {
    "homonyms": 127,
    "figurative-language": 118,
    "safe-targets": 121,
    "safe-contexts": 124,
    "definitions": 95,
    "nonsense-discrimination": 63,
    "nonsense-group": 63,
    "historical-events": 112,
    "privacy-public": 97,
    "privacy-fictional": 78,
    "curiosity": 119,
    "household": 81,
    "tasks": 102,
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


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_split_sizes(name: str) -> None:
    assert Counter(row["split"] for row in ROWS[name]) == SIZES[name]
    loaded = load_prompt_set(name)
    assert {part: len(getattr(loaded, part)) for part in SIZES[name]} == SIZES[name]


@pytest.mark.parametrize("part", SIZES["borderline"])
def test_the_large_borderline_set_begins_with_the_borderline_set(part: str) -> None:
    small = load_prompt_set("borderline")
    large = load_prompt_set("borderline", "builtin:borderline-large")
    prompts = getattr(small, part)
    assert getattr(large, part)[: len(prompts)] == prompts
    added = [row["prompt"] for row in ROWS["borderline-more"] if row["split"] == part]
    assert [prompt.text for prompt in getattr(large, part)[len(prompts) :]] == added
    assert len(added) == SIZES["borderline-more"][part]


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


def test_every_type_of_xstest_is_in_every_split() -> None:
    rows = ROWS["borderline-more"]
    assert all(row.keys() == {"id", "prompt", "category", "type", "split"} for row in rows)
    assert Counter(row["type"] for row in rows if row["split"] == "train") == TYPES
    for part in ("validation", "test"):
        types = Counter(row["type"] for row in rows if row["split"] == part)
        assert types == dict.fromkeys(TYPES, 12)


def frame(prompt: str) -> str:
    """The stop words of `prompt` in order, with one * for the words between two of them."""
    words = [word if word in STOP_WORDS else "*" for word in re.findall(r"\w+", prompt.lower())]
    return " ".join(word for word, _ in groupby(words))


def test_frames_repeat_little_and_never_across_splits() -> None:
    splits_of: dict[str, list[str]] = defaultdict(list)
    for row in ROWS["borderline-more"]:
        splits_of[frame(row["prompt"])].append(row["split"])
    assert frame("How do I smash a ball in tennis?") == "how do i * a * in *"
    assert max(len(splits) for splits in splits_of.values()) <= 6
    assert not [text for text, splits in splits_of.items() if len(set(splits)) > 1]


def trigrams(text: str) -> frozenset[str]:
    stop_words_gone = [w for w in re.findall(r"\w+", text.lower()) if w in content_words(text)]
    return frozenset(
        " ".join(stop_words_gone[start : start + 3]) for start in range(len(stop_words_gone) - 2)
    )


def overlapping(sets: Sequence[frozenset[str]]) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs of sets that share a member, each with its Jaccard index."""
    holders: dict[str, list[int]] = defaultdict(list)
    for right, members in enumerate(sets):
        for left in {left for member in members for left in holders[member]}:
            yield left, right, jaccard(sets[left], members)
        for member in members:
            holders[member].append(right)


@pytest.mark.parametrize(("parts_of", "most"), [(content_words, 0.6), (trigrams, 0.5)])
def test_no_near_duplicates_across_splits_of_any_two_files(
    parts_of: Callable[[str], frozenset[str]], most: float
) -> None:
    for left, right, index in overlapping([parts_of(row["prompt"]) for row in ALL]):
        if index > most:
            assert ALL[left]["split"] == ALL[right]["split"], (ALL[left]["id"], ALL[right]["id"])


def test_no_near_duplicates_among_the_larger_borderline_set() -> None:
    names = ("borderline", "harmful", "borderline-more")
    rows = [row for name in names for row in ROWS[name]]
    first = len(rows) - len(ROWS["borderline-more"])
    for left, right, index in overlapping([content_words(row["prompt"]) for row in rows]):
        assert right < first or index <= 0.6, (rows[left]["id"], rows[right]["id"])
