import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safesteer.runs.manifest import as_json, canonical_hash, changed_keys

scalars = st.none() | st.booleans() | st.integers() | st.sampled_from([0.5, -1e-9, "", "a", "é"])
keys = st.sampled_from(["a", "b", "c", "é", ""])
inner = st.lists(scalars, max_size=3) | st.dictionaries(keys, scalars, max_size=3)
mappings = st.dictionaries(keys, scalars | inner, max_size=4)


def shuffled(value: Any, generator: random.Random) -> Any:
    if isinstance(value, dict):
        keys = list(value)
        generator.shuffle(keys)
        return {key: shuffled(value[key], generator) for key in keys}
    if isinstance(value, list):
        return [shuffled(item, generator) for item in value]
    return value


@settings(deadline=None)
@given(mappings, st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_matter(value: Any, generator: random.Random) -> None:
    assert canonical_hash(shuffled(value, generator)) == canonical_hash(value)
    assert changed_keys(shuffled(value, generator), value) == []


@settings(deadline=None)
@given(mappings, mappings)
def test_keys_change_exactly_when_the_hash_does(before: Any, after: Any) -> None:
    same = canonical_hash(before) == canonical_hash(after)
    assert (changed_keys(before, after) == []) == same


def test_the_order_of_a_list_matters() -> None:
    assert canonical_hash([1, 2]) != canonical_hash([2, 1])


def test_changed_keys_are_dotted() -> None:
    before = {"a": {"b": 1, "c": {"d": 2}}, "list": [1], "gone": 0, "same": {"x": 1}}
    after = {"a": {"b": 1, "c": {"d": 3}}, "list": [2], "new": 0, "same": {"x": 1}}
    assert changed_keys(before, after) == ["a.c.d", "gone", "list", "new"]


def test_inputs_become_what_a_file_would_give_back() -> None:
    assert as_json({"pair": (1, 2), "by_layer": {3: 0.5}}) == {
        "pair": [1, 2],
        "by_layer": {"3": 0.5},
    }
    with pytest.raises(ValueError):
        as_json({"rate": float("nan")})
    with pytest.raises(TypeError):
        as_json({"rate": object()})
