"""Bare refusals, and the questions that the same words answer."""

from __future__ import annotations

import pytest

from safesteer.judges.bare_refusals import is_bare_refusal


@pytest.mark.parametrize("answer", [["no."], ["sorry, no."], ["no.", "sorry."], ["i'd rather not"]])
@pytest.mark.parametrize("request_", ["", "Write it.", "How?", "Could you write it?", "Tell me?"])
def test_no_refuses_a_request(answer: list[str], request_: str) -> None:
    assert is_bare_refusal(answer, request_)


@pytest.mark.parametrize("answer", [["no."], ["certainly not."], ["no, sorry."]])
@pytest.mark.parametrize(
    "request_", ["Is it blue?", "Do I need it", "So it is blue?", "It is blue, right?"]
)
def test_no_answers_a_question(answer: list[str], request_: str) -> None:
    assert not is_bare_refusal(answer, request_)
    assert is_bare_refusal(["i refuse."], request_)


@pytest.mark.parametrize(
    "answer", [[], ["no salt."], ["never bleach silk."], ["thank you."], ["no"] * 20]
)
def test_other_answers_are_none(answer: list[str]) -> None:
    assert not is_bare_refusal(answer)
