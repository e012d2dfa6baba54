"""Train, validation and test parts of a prompt set, without near-duplicates across parts.

A set that names its own splits keeps them; near-duplicates in it are not searched for.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safesteer.config.settings import PromptSettings
from safesteer.errors import InputError, nearest
from safesteer.prompts.load import Prompt, load_prompts
from safesteer.prompts.readers import BUILTIN_PREFIX
from safesteer.prompts.rows import PROMPT_SETS

SHARES = {"train": 0.60, "validation": 0.15, "test": 0.25}
SPLIT_NAMES = {name: name for name in SHARES} | {"val": "validation", "dev": "validation"}
MINIMUM_PROMPTS = 4
NEAR_DUPLICATE_JACCARD = 0.6
# Comparing all pairs of a larger set that repeats one template takes minutes.
MAXIMUM_COMPARED_PROMPTS = 5_000
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about all also am an and any are as at be been but by can could did do does for from get
        give had has have he her him his how i if in into is it its just let ll may me might must
        my no not of on or our out please s shall she should so some t tell than that the their
        them then there these they this those to too up us ve very was we were what when where
        which who whom whose why will with without would write you your
        """,
    )
)


@dataclass(frozen=True)
class PromptSet:
    """The three parts of a prompt set."""

    name: str  # harmful, harmless or borderline
    source: str  # as `load_prompts` takes it
    train: list[Prompt]
    validation: list[Prompt]
    test: list[Prompt]

    @property
    def sha256(self) -> str:
        """Hash of the loaded prompts: the same for the same content in another file format."""
        parts = [[asdict(p) for p in part] for part in (self.train, self.validation, self.test)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_prompt_set(
    name: str, source: str | Path = "builtin", *, column: str | None = None, seed: int = 0
) -> PromptSet:
    """Load a prompt set in its three parts.

    Args:
        name: harmful, harmless or borderline.
        source: "builtin" or anything that `load_prompts` reads. A column `split` (train,
            validation or val or dev, test) decides the parts; without it `split_prompts` does.
        column: column of the prompts; found by its name by default.
        seed: another seed gives another division.

    Returns:
        The set; no part is empty.

    Raises:
        InputError: the source cannot be read, a split is unknown or empty, or there are too few
            prompts.
    """
    if name not in PROMPT_SETS:
        raise InputError(
            f"no prompt set named {name!r}{nearest(name, PROMPT_SETS)}."
            f" Try: {', '.join(PROMPT_SETS)}"
        )
    place = BUILTIN_PREFIX + name if str(source) == "builtin" else source
    prompts = load_prompts(place, column=column, name=name)
    if len(prompts) < MINIMUM_PROMPTS:
        raise InputError(
            f"{place} holds {len(prompts)} different prompts; train, validation and test need at"
            f" least {MINIMUM_PROMPTS}. Try: add prompts"
        )
    if any(prompt.split for prompt in prompts):
        parts = _named_splits(prompts, place)
    else:
        parts = split_prompts(prompts, seed=seed)
    return PromptSet(name, str(place), parts["train"], parts["validation"], parts["test"])


def load_prompt_sets(settings: PromptSettings, seed: int = 0) -> dict[str, PromptSet]:
    """Load the three sets that the settings name: {name: set}."""
    columns = _columns(settings.column)
    return {
        name: load_prompt_set(name, getattr(settings, name), column=columns.get(name), seed=seed)
        for name in PROMPT_SETS
    }


def _columns(setting: str | None) -> dict[str, str]:
    """{set: column} of `prompts.column`: one for all sets, or SET=COLUMN,SET=COLUMN."""
    pairs = [part.partition("=") for part in (setting or "").split(",")]
    sets = [name.strip() for name, _, _ in pairs]
    if setting is None or not any(name in PROMPT_SETS and column for name, _, column in pairs):
        return dict.fromkeys(PROMPT_SETS, setting) if setting is not None else {}
    if unknown := [name for name in sets if name not in PROMPT_SETS]:
        raise InputError(
            f"prompts.column = {setting!r}: no prompt set named {unknown[0]!r}"
            f"{nearest(unknown[0], PROMPT_SETS)}. Try: harmful=COLUMN,harmless=COLUMN"
        )
    return {name: column.strip() for name, (_, _, column) in zip(sets, pairs, strict=True)}


def _named_splits(prompts: Sequence[Prompt], source: str | Path) -> dict[str, list[Prompt]]:
    parts: dict[str, list[Prompt]] = {part: [] for part in SHARES}
    for prompt in prompts:
        part = SPLIT_NAMES.get(prompt.split.lower())
        if part is None:
            raise InputError(
                f"{source}, prompt {prompt.id!r}: unknown split {prompt.split!r}"
                f"{nearest(prompt.split, SPLIT_NAMES)}. Try: train, validation or test"
            )
        parts[part].append(replace(prompt, split=part))
    for part, members in parts.items():
        if not members:
            raise InputError(
                f"{source} has no row with the split {part!r}. Try: add some, or remove the column"
                " to have the prompts divided"
            )
    return parts


def split_prompts(prompts: Sequence[Prompt], *, seed: int = 0) -> dict[str, list[Prompt]]:
    """Divide prompts into train (60%), validation (15%) and test (25%).

    Near-duplicates stay together, so that the test part repeats nothing from training: prompts
    whose content words have a Jaccard index above `NEAR_DUPLICATE_JACCARD`. In sets larger than
    `MAXIMUM_COMPARED_PROMPTS`, or where nearly all prompts repeat one template, only prompts that
    are equal up to case and white space do.

    The order of the prompts, three or more, does not matter. Each part is ordered by a hash of
    prompt and seed, so that its first n are a random sample. No part is empty.
    """
    rank = {prompt.id: _rank(prompt, seed) for prompt in prompts}
    ordered = sorted(prompts, key=lambda prompt: rank[prompt.id])
    groups = _group_near_duplicates(ordered)
    # The largest groups are the hardest to place. Sorting is stable: groups of one size keep the
    # random order of their first members.
    groups.sort(key=len, reverse=True)
    parts: dict[str, list[Prompt]] = {part: [] for part in SHARES}
    for group in groups:
        empty = [part for part in ("train", "test", "validation") if not parts[part]]
        missing = {part: SHARES[part] * len(prompts) - len(parts[part]) for part in SHARES}
        part = empty[0] if empty else max(missing, key=lambda part: missing[part])
        parts[part] += [replace(prompt, split=part) for prompt in group]
    for members in parts.values():
        members.sort(key=lambda prompt: rank[prompt.id])
    return parts


def content_words(text: str) -> frozenset[str]:
    """The words of `text` in lower case, without stop words."""
    return frozenset(re.findall(r"\w+", text.lower())) - STOP_WORDS


def nearly_equal(prompts: Sequence[Prompt], others: Sequence[Prompt]) -> list[int]:
    """The numbers of those `prompts` that are near-duplicates of one of `others`."""
    texts = {_normalize(prompt.text) for prompt in others}
    words = [content_words(prompt.text) for prompt in (*others, *prompts)]
    near = {
        right - len(others)
        for left, right in _candidate_pairs(words)
        if left < len(others) <= right
        and jaccard(words[left], words[right]) > NEAR_DUPLICATE_JACCARD
    }
    return [n for n, prompt in enumerate(prompts) if n in near or _normalize(prompt.text) in texts]


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Jaccard index of two sets of words, in [0, 1]; 0 where one is empty."""
    return len(left & right) / len(left | right) if left and right else 0.0


def _normalize(text: str) -> str:
    return " ".join(text.casefold().split())


def _rank(prompt: Prompt, seed: int) -> tuple[str, str]:
    """A pseudo-random sort key; equal hashes are sorted by text."""
    digest = hashlib.sha256(f"{seed}\n{_normalize(prompt.text)}".encode()).hexdigest()
    return digest, json.dumps(prompt.messages, sort_keys=True)


def _group_near_duplicates(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """The connected components of "is a near-duplicate of", in the order of `prompts`."""
    leader = list(range(len(prompts)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    def components() -> list[list[Prompt]]:
        groups: dict[int, list[Prompt]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            groups[find(index)].append(prompt)
        return list(groups.values())

    first_with: dict[str, int] = {}
    for index, prompt in enumerate(prompts):
        leader[index] = first_with.setdefault(_normalize(prompt.text), index)
    if len(prompts) <= MAXIMUM_COMPARED_PROMPTS:
        equal_only = leader.copy()
        word_sets = [content_words(prompt.text) for prompt in prompts]
        for left, right in _candidate_pairs(word_sets):
            # The cheap test first: most candidates of a repeated template are joined already.
            if (
                find(left) != find(right)
                and jaccard(word_sets[left], word_sets[right]) > NEAR_DUPLICATE_JACCARD
            ):
                leader[find(left)] = find(right)
        if len(components()) < len(SHARES):
            leader = equal_only
    groups = components()
    return groups if len(groups) >= len(SHARES) else [[prompt] for prompt in prompts]


def _candidate_pairs(word_sets: Sequence[frozenset[str]]) -> Iterator[tuple[int, int]]:
    """Yield all pairs that may have a Jaccard index above the limit, and some others.

    Such a pair shares at least 0.6 of the words of either set, hence one of the rarest 0.4 n + 1
    words of both. Only these are looked up.
    """
    frequency = Counter(word for words in word_sets for word in words)
    index: dict[str, list[int]] = defaultdict(list)
    for right, words in enumerate(word_sets):
        rarest = sorted(words, key=lambda word: (frequency[word], word))
        looked_up = rarest[: len(words) - math.ceil(NEAR_DUPLICATE_JACCARD * len(words)) + 1]
        for left in {left for word in looked_up for left in index[word]}:
            yield left, right
        for word in looked_up:
            index[word].append(right)
