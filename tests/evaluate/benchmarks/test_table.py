"""The table of benchmarks: complete, found by name, with an error for a wrong name."""

from __future__ import annotations

import re

import pytest

from safesteer.errors import InputError
from safesteer.evaluate.benchmarks import BENCHMARKS, find_benchmark
from safesteer.judges import JUDGES

ASKED_FOR = {
    *("harmful", "harmless", "borderline"),
    *("advbench", "pku-saferlhf", "harmbench", "jailbreakbench", "sorry-bench", "harmfulqa"),
    *("alert", "strongreject", "do-not-answer", "maliciousinstruct", "prefill", "jailbreaks"),
    *("xstest-safe", "xstest-unsafe", "or-bench-hard", "or-bench-toxic", "alpaca-eval"),
    *("mmlu", "gsm8k", "math500", "humaneval", "ifeval", "alpaca-eval-win"),
}


def test_every_benchmark_of_the_papers_is_there_once():
    names = [entry.name for entry in BENCHMARKS]
    assert len(set(names)) == len(names) == len(BENCHMARKS)
    assert set(names) >= ASKED_FOR


@pytest.mark.parametrize("entry", BENCHMARKS, ids=lambda entry: entry.name)
def test_an_entry_has_a_source_and_what_was_checked(entry):
    """License, citation, a source, and for benchmarks of others what documentation confirmed."""
    assert entry.license and entry.citation
    if entry.citation == "this package":
        return
    assert re.search(r"arXiv \d{4}\.\d{4,5}|github\.com", entry.citation)
    assert entry.checked
    assert entry.hub is not None or entry.files or entry.name == "jailbreaks"
    assert entry.judge in {"", *JUDGES}
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


def test_any_safety_benchmark_can_prefill_answers():
    entry = find_benchmark("harmbench+prefill")
    assert entry.name == "harmbench+prefill" and entry.form.prefill
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
        ("prefill+prefill", "already has a form"),
        ("prefill+story", "already has a form"),
        ("gsm8k+story", "is of kind capability"),
        ("", "no benchmark named ''"),
    ],
)
def test_a_wrong_name_is_one_line(name, said):
    with pytest.raises(InputError) as error:
        find_benchmark(name)
    assert said in str(error.value) and "\n" not in str(error.value)
