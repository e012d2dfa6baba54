"""Dividing a set: named splits are kept, others come from a hash, and nothing leaks."""

from __future__ import annotations

import json
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer.config.settings import PromptSettings
from safesteer.errors import InputError
from safesteer.prompts import Prompt, PromptSet, load_prompt_set, load_prompt_sets
from safesteer.prompts.splits import (
    MAXIMUM_COMPARED_PROMPTS,
    _candidate_pairs,
    content_words,
    jaccard,
    split_prompts,
)


def prompt(text: str, identifier: str | None = None) -> Prompt:
    return Prompt(identifier or text, ({"role": "user", "content": text},))


def write(folder: Path, rows: list[Any]) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


def test_split_column_is_kept_in_order(tmp_path: Path) -> None:
    names = ["test", "Train", "dev", "train", "val", "validation"]
    rows = [{"id": str(n), "prompt": f"p{n}", "split": name} for n, name in enumerate(names)]
    loaded = load_prompt_set("harmful", write(tmp_path, rows))
    assert (ids(loaded.train), ids(loaded.validation), ids(loaded.test)) == (
        ["1", "3"],
        ["2", "4", "5"],
        ["0"],
    )
    assert {prompt.split for prompt in loaded.validation} == {"validation"}
    assert (loaded.name, loaded.source) == ("harmful", str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train", "test", "val", "tets"],
            "prompt '3': unknown split 'tets' (did you mean 'test'?)",
        ),
        (["train", "test", "val", ""], "prompt '3': unknown split ''"),
        (["train", "test", "test", "test"], "has no row with the split 'validation'"),
    ],
)
def test_faulty_split_columns(tmp_path: Path, names: list[str], message: str) -> None:
    rows = [{"id": str(n), "prompt": f"p{n}", "split": name} for n, name in enumerate(names)]
    with pytest.raises(InputError) as caught:
        load_prompt_set("harmful", write(tmp_path, rows))
    assert message in str(caught.value)


def test_too_few_prompts(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": text} for text in ("a", "b", "c", "c")])
    with pytest.raises(InputError, match=r"holds 3 different prompts; .* need at least 4\."):
        load_prompt_set("harmful", path)


def test_unknown_set() -> None:
    with pytest.raises(InputError, match=r"'harmles' \(did you mean 'harmless'\?\)"):
        load_prompt_set("harmles")


def test_four_prompts_fill_three_parts(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": text} for text in ("apple", "bread", "cheese", "dates")])
    loaded = load_prompt_set("harmless", path)
    assert [len(p) for p in (loaded.train, loaded.validation, loaded.test)] == [2, 1, 1]


def test_shares_and_seed() -> None:
    prompts = [prompt(f"word{n}") for n in range(200)]
    parts = split_prompts(prompts)
    assert {part: len(members) for part, members in parts.items()} == {
        "train": 120,
        "validation": 30,
        "test": 50,
    }
    assert ids(split_prompts(prompts, seed=1)["test"]) != ids(parts["test"])
    assert all(member.split == part for part, members in parts.items() for member in members)


def test_near_duplicates_stay_together() -> None:
    fruits = ["apples", "pears", "plums", "quinces", "cherries", "mangos", "lemons", "melons"]
    # One word of five differs within a family: Jaccard 4/6.
    prompts = [
        prompt(f"{fruit} in {fruit}land: peel, boil, {way} them with sugar{fruit}")
        for fruit in fruits
        for way in ("crush", "CRUSH", "strain", "freeze")
    ]
    parts = split_prompts(prompts)
    for left, right in combinations(parts.values(), 2):
        for a in left:
            for b in right:
                assert jaccard(content_words(a.text), content_words(b.text)) <= 0.6


def test_no_near_duplicate_is_missed_by_the_index() -> None:
    words = "apple bread cheese dates eggs figs grapes honey".split()  # noqa: SIM905
    sets = [
        frozenset(chosen) for size in (1, 2, 3, 4, 5, 8) for chosen in combinations(words, size)
    ]
    candidates = set(_candidate_pairs(sets))
    for (a, left), (b, right) in combinations(enumerate(sets), 2):
        assert jaccard(left, right) <= 0.6 or (a, b) in candidates


def test_a_single_template_is_divided_all_the_same() -> None:
    prompts = [prompt(f"Show each pupil how cakes rise in oven {n}") for n in range(20)]
    parts = split_prompts(prompts)
    assert [len(members) for members in parts.values()] == [12, 3, 5]


def test_large_sets_are_divided_fast() -> None:
    varied = [prompt(f"a{n % 977} b{n % 499} c{n % 31} d{n} e") for n in range(20_000)]
    one_template = [prompt(f"bake a fine dark loaf {n}") for n in range(MAXIMUM_COMPARED_PROMPTS)]
    start = time.perf_counter()
    for prompts in (varied, varied[:MAXIMUM_COMPARED_PROMPTS], one_template[:1000]):
        assert sum(map(len, split_prompts(prompts).values())) == len(prompts)
    assert time.perf_counter() - start < 10


WORDS = st.sampled_from("apple bread cheese dates eggs figs grapes honey".split())  # noqa: SIM905
SETS = st.lists(st.lists(WORDS, min_size=1, max_size=5).map(" ".join), min_size=4, unique=True)


@settings(deadline=None)  # a shared machine stalls now and then
@given(SETS, st.randoms(use_true_random=False), st.integers(0, 3))
def test_split_is_a_partition_that_ignores_row_order(
    texts: list[str], random: Any, seed: int
) -> None:
    prompts = [prompt(text) for text in texts]
    parts = split_prompts(prompts, seed=seed)
    assert all(parts.values())
    assert sorted(ids([p for part in parts.values() for p in part])) == sorted(texts)
    random.shuffle(prompts)
    assert split_prompts(prompts, seed=seed) == parts


def test_hash_is_of_the_content(tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": text} for text in "abcd"])
    as_list = tmp_path / "a.json"
    as_list.write_text(json.dumps(list("abcd")))
    loaded = load_prompt_set("harmful", path)
    assert loaded.sha256 == load_prompt_set("borderline", as_list).sha256
    assert len(loaded.sha256) == 64
    shorter = PromptSet("harmful", "x", loaded.train[1:], loaded.validation, loaded.test)
    assert shorter.sha256 != loaded.sha256
    assert load_prompt_set("harmful").sha256 != load_prompt_set("harmless").sha256


def test_one_column_per_set(tmp_path: Path) -> None:
    paths = {}
    for name, column in {"harmful": "ask", "harmless": "task"}.items():
        paths[name] = tmp_path / f"{name}.csv"
        paths[name].write_text(f"{column}\n" + "".join(f"{name} {n}\n" for n in range(5)))
    chosen = PromptSettings(
        harmful=str(paths["harmful"]),
        harmless=str(paths["harmless"]),
        column="harmful=ask, harmless=task",
    )
    sets = load_prompt_sets(chosen)
    assert [len(sets[name].train + sets[name].test) for name in paths] == [4, 4]
    with pytest.raises(InputError, match="no prompt set named 'harmles'"):
        load_prompt_sets(chosen.model_copy(update={"column": "harmful=ask,harmles=task"}))
    with pytest.raises(InputError, match="has no column 'ask'"):
        load_prompt_sets(chosen.model_copy(update={"column": "ask"}))
