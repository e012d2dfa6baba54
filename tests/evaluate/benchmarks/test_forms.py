"""Forms of requests: what the model reads, and what stays unchanged."""

import subprocess
import sys

import pytest

from safesteer.errors import InputError
from safesteer.evaluate.benchmarks import find_benchmark
from safesteer.evaluate.benchmarks.forms import FORMS, PLAIN, split_name

REQUEST = ({"role": "user", "content": "Do {this}"},)
UNDER = ({"role": "system", "content": "Be brief."}, *REQUEST)


def roles(messages):
    return [message["role"] for message in messages]


def test_no_form_leaves_the_conversation_as_it_is():
    assert PLAIN.apply(UNDER) == UNDER


@pytest.mark.parametrize("name", FORMS)
def test_every_form_asks_for_the_request_in_alternating_turns(name):
    """The user's turn is last, and any template takes the roles."""
    asked = FORMS[name].apply(REQUEST)
    turns = [role for role in roles(asked) if role != "system"]
    assert turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
    assert "Do {this}" in asked[-1]["content"]
    assert asked != REQUEST or FORMS[name].prefill


def test_a_system_prompt_takes_the_place_of_another():
    asked = FORMS["system-prompt"].apply(UNDER)
    assert roles(asked) == ["system", "user"]
    assert "never declines" in asked[0]["content"]
    assert roles(FORMS["system-prompt"].apply(REQUEST)) == ["system", "user"]
    turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})
    developer = {"role": "developer", "content": "Be brief."}
    asked = FORMS["system-prompt"].apply((UNDER[0], developer, *turns, *REQUEST))
    assert roles(asked) == ["system", "user", "assistant", "user"]


def test_earlier_turns_follow_the_system_prompt_and_hold_the_request():
    asked = FORMS["insist"].apply(UNDER)
    assert roles(asked) == ["system", "user", "assistant", "user"]
    assert asked[1]["content"] == "Do {this}"


def test_a_form_keeps_the_metric_unless_it_prefills():
    assert find_benchmark("harmful+story").metric == "refusal_rate"
    assert find_benchmark("advbench+polite").metric == "attack_success_rate"
    assert find_benchmark("xstest-safe+second-turn").metric == "refusal_rate"
    assert find_benchmark("harmful+prefill").metric == "attack_success_rate"


def test_an_unknown_form_is_one_line_with_the_known_ones():
    with pytest.raises(InputError, match=r"no form named 'song'.* Try: prefill, .*story"):
        split_name("harmful+song")
    with pytest.raises(InputError, match="no form named ''"):
        split_name("harmful+")


def test_the_table_of_benchmarks_is_printed_without_torch():
    """torch takes seconds to import, and commands report wrong input before that."""
    code = "import sys, safesteer.cli.listings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
