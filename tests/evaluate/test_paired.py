"""Paired comparison with the base on the same prompts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from judged import SOURCE, make_rate, make_score

from safesteer.evaluate.paired import paired_change
from safesteer.evaluate.refusals import Rate
from safesteer.judges import Verdict


def test_the_same_prompts_are_compared_with_the_base():
    before = make_rate({"a": [Verdict(unsafe=True)] * 20}, "attack_success_rate")
    after = make_rate({"a": [Verdict(unsafe=False)] * 19 + [Verdict()]}, "attack_success_rate")
    found = paired_change(after.to_json(), after.rows(), before.to_json(), before.rows())
    assert found is not None
    assert (found["value"], found["n"]) == (-1.0, 19)
    assert found["p"] < 1e-4 and found["words"].startswith("-100.0 points")
    same = paired_change(before.to_json(), before.rows(), before.to_json(), before.rows())
    assert same is not None and same["words"].startswith("no detectable difference")
    json.dumps(found, allow_nan=False)


def test_scores_are_compared_with_the_base_too():
    before, after = make_score([1.0, 1.0, 0.0]), make_score([0.0, 1.0, 0.0])
    found = paired_change(after.to_json(), after.rows(), before.to_json(), before.rows())
    assert found is not None and found["value"] == pytest.approx(-1 / 3)


def test_what_was_not_measured_alike_is_not_compared():
    one = make_rate({"a": [Verdict(unsafe=True)] * 3}, "attack_success_rate")
    other_judge = make_rate({"b": [Verdict(unsafe=True)] * 3}, "attack_success_rate")
    fewer = make_rate({"a": [Verdict(unsafe=True)] * 2}, "attack_success_rate")
    silent = make_rate({"a": [Verdict()] * 3}, "attack_success_rate")
    elsewhere = make_rate({"a": [Verdict(unsafe=True)] * 3}, "attack_success_rate", source=SOURCE)

    def compare(after: Rate, before: Rate) -> Any:
        return paired_change(after.to_json(), after.rows(), before.to_json(), before.rows())

    assert paired_change(one.to_json(), one.rows(), None, []) is None
    assert compare(one, other_judge) is None
    assert compare(one, fewer) is None
    assert compare(fewer, one) is not None
    assert compare(silent, silent) is None
    assert compare(elsewhere, one) is None
