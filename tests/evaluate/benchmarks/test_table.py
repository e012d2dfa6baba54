"""The table of benchmarks: complete, found by name, and what a wrong name says."""

from __future__ import annotations

import re

import pytest

from safesteer.errors import InputError
from safesteer.evaluate.benchmarks import BENCHMARKS, benchmark_names, find_benchmark
from safesteer.judges import judge_names

ASKED_FOR = {
    *("harmful", "harmless", "borderline"),
    *("advbench", "pku-saferlhf", "harmbench", "jailbreakbench", "sorry-bench", "harmfulqa"),
    *("alert", "strongreject", "do-not-answer", "maliciousinstruct", "prefill", "jailbreaks"),
    *("xstest-safe", "xstest-unsafe", "or-bench-hard", "or-bench-toxic", "alpaca-eval"),
    *("mmlu", "gsm8k", "math500", "humaneval", "ifeval", "alpaca-eval-win"),
}


def test_every_benchmark_of_the_papers_is_there_once():
    names = benchmark_names()
    assert len(set(names)) == len(names) == len(BENCHMARKS)
    assert set(names) >= ASKED_FOR


@pytest.mark.parametrize("entry", BENCHMARKS, ids=lambda entry: entry.name)
def test_an_entry_says_where_it_is_from_and_what_was_checked(entry):
    """Licence, citation, a source, and for what is not ours what documentation confirmed."""
    assert entry.licence and entry.citation
    if entry.citation == "this package":
        return
    assert re.search(r"arXiv \d{4}\.\d{4,5}|github\.com", entry.citation)
    assert entry.checked
    assert entry.hub is not None or entry.files or entry.name == "jailbreaks"
    assert entry.judge in {"", *judge_names()}
    assert (entry.harness is not None) == (entry.metric == "accuracy")
    metrics = {
        "safety": {"attack_success_rate"},
        "over_refusal": {"refusal_rate"},
        "capability": {"accuracy", "win_rate"},
    }
    assert entry.metric in metrics[entry.kind]


def test_our_harmful_set_keeps_its_metric():
    """Outside sets count attacks; ours counts refusals, as the run directory promises."""
    assert find_benchmark("harmful").metric == "refusal_rate"
    assert find_benchmark("advbench").metric == "attack_success_rate"


def test_any_safety_benchmark_can_begin_the_answers():
    entry = find_benchmark("harmbench+prefill")
    assert entry.name == "harmbench+prefill" and entry.form.answer
    assert entry.hub == find_benchmark("harmbench").hub
    assert find_benchmark("harmful+prefill").metric == "attack_success_rate"
    assert find_benchmark("prefill").hub == find_benchmark("advbench").hub


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("advbnch", "did you mean 'advbench'"),
        ("xstest", "did you mean 'xstest-safe'"),
        ("hrmbench+prefill", "did you mean 'harmbench'"),
        ("gsm8k+prefill", "is for safety benchmarks"),
        ("xstest-safe+prefill", "is for safety benchmarks"),
        ("prefill+prefill", "has a form already"),
        ("prefill+story", "has a form already"),
        ("gsm8k+story", "is of kind capability"),
        ("", "no benchmark named ''"),
    ],
)
def test_a_wrong_name_is_one_line(name, said):
    with pytest.raises(InputError) as error:
        find_benchmark(name)
    assert said in str(error.value) and "\n" not in str(error.value)
