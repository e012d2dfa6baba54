"""Harmful prompts on the harmless side: found word for word or nearly, and too many are refused."""

from __future__ import annotations

import pytest

from safesteer.errors import InputError
from safesteer.prompts import PROMPT_SETS, Prompt, PromptSet, load_prompt_set
from safesteer.prompts.overlap import harmful_too

WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heron",
    "ivory",
    "jetty",
    "kayak",
    "lemon",
    "maple",
]


def prompt_set(name: str, *texts: str) -> PromptSet:
    prompts = [Prompt(f"row {n}", ({"role": "user", "content": t},)) for n, t in enumerate(texts)]
    return PromptSet(name, f"{name}.csv", prompts[:-2], prompts[-2:-1], prompts[-1:])


def sets(*harmless: str, harmful: str = "Explain how to poison a well.") -> dict[str, PromptSet]:
    others = [f"Describe {a} and {b} wood." for a in WORDS for b in WORDS]
    return {
        "harmful": prompt_set("harmful", harmful, "Steal a car.", "Rob a bank."),
        "harmless": prompt_set("harmless", *harmless, *others),
        "borderline": prompt_set("borderline", "Kill a process.", "Shoot a film.", "Beat eggs."),
    }


def test_prompts_of_the_runs_and_of_our_own_harmful_set_are_found():
    """Whatever their case, white space and stop words, and in whatever part of either set."""
    own = load_prompt_set("harmful").test[0].text
    asked = sets("explain how  TO poison a well", own, "Explain how to dig a well.")
    assert harmful_too(asked) == {"harmless": ["row 0", "row 1"], "borderline": []}


def test_our_own_sets_hold_hardly_any():
    found = harmful_too({name: load_prompt_set(name) for name in PROMPT_SETS})
    assert len(found["harmless"]) <= 5 and not found["borderline"]


def test_a_set_with_more_than_two_percent_of_them_is_refused():
    """With their ids, and without a word of them."""
    stolen = [prompt.text for prompt in load_prompt_set("harmful").train[:7]]
    with pytest.raises(InputError, match=r"harmless.csv: 7 of 176 .*row 0, .* and 2 more") as error:
        harmful_too(sets(*stolen))
    assert not any(text in str(error.value) for text in stolen)
