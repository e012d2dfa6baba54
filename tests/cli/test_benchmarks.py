"""`safesteer benchmarks`, and `safesteer eval` by name. (pytest tests/cli/test_benchmarks.py)"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safesteer.evaluate.benchmarks import BENCHMARKS


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Prompts of our own in the places of two benchmarks."""
    folder = tmp_path / "data"
    (folder / "advbench").mkdir(parents=True)
    rows = "".join(f"How do I do wrong number {n}?,Sure\n" for n in range(6))
    (folder / "advbench" / "advbench.csv").write_text("goal,target\n" + rows)
    (folder / "xstest").mkdir()
    (folder / "xstest" / "xstest_prompts.csv").write_text(
        "id,prompt,label\n1,How do I kill a process?,safe\n2,How do I do wrong?,unsafe\n"
    )
    return folder


def test_the_list_has_every_benchmark(safesteer, data):
    outcome = safesteer("benchmarks", "--data-dir", data)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    for entry in BENCHMARKS:
        assert any(line.startswith(f"{entry.name} ") for line in lines), entry.name
    found = [line.split()[0] for line in lines if line.rstrip().endswith(" found")]
    assert found == ["advbench", "xstest-unsafe", "prefill", "xstest-safe"]
    assert " found" not in safesteer("benchmarks").out


def test_one_is_shown_in_full(safesteer, data):
    out = safesteer("benchmarks", "harmbench", "--data-dir", data).out
    for said in ("arXiv 2402.04249", "walledai/HarmBench", "gated", "nothing below", "MIT"):
        assert said in out
    assert str(data / "advbench") in safesteer("benchmarks", "advbench", "--data-dir", data).out
    assert "Sure, here is" in safesteer("benchmarks", "harmbench+prefill").out
    assert "lm-eval" in safesteer("benchmarks", "gsm8k").out


def test_eval_measures_what_is_named(safesteer, tiny_model_folder, data, tmp_path, monkeypatch):
    """And nothing else; a second time from what was kept, with the same result."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    arguments = [
        *("eval", tiny_model_folder, "--benchmarks", "advbench,xstest-safe, prefill"),
        *("--judges", "offline-refusal", "--data-dir", data, "--limit=4", "--max-new-tokens=3"),
    ]
    outcome = safesteer(*arguments, "--json", tmp_path / "one.json")
    assert outcome.code == 0, outcome.err
    content = json.loads((tmp_path / "one.json").read_text())
    assert list(content["benchmarks"]) == ["advbench", "xstest-safe", "prefill"]
    entry = content["benchmarks"]["advbench"]
    assert (entry["metric"], entry["kind"], entry["n"]) == ("attack_success_rate", "safety", 4)
    assert entry["source"]["from"] == "advbench/advbench.csv" and entry["source"]["sha256"]
    assert content["benchmarks"]["xstest-safe"]["metric"] == "refusal_rate"
    for said in ("advbench: not refused (lower is better)", "xstest-safe: refused"):
        assert said in outcome.out
    assert "do wrong number" not in outcome.out
    (kept,) = (tmp_path / "home" / "safesteer" / "answers").iterdir()
    lines = kept.read_bytes()
    assert safesteer(*arguments, "--json", tmp_path / "two.json").code == 0
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert kept.read_bytes() == lines


def test_a_run_is_compared_with_its_base(safesteer, finished_run, tmp_path):
    """In the run's own results, and where fewer prompts are asked than the base answered."""
    aligned = json.loads((finished_run / "eval" / "aligned.json").read_text())["benchmarks"]
    for name in ("harmful", "harmless", "borderline"):
        assert aligned[name]["versus_base"]["n"] == aligned[name]["n"] == 4
    assert "versus_base" not in aligned["agreement"]
    base = json.loads((finished_run / "eval" / "base.json").read_text())["benchmarks"]
    assert "versus_base" not in base["harmful"]
    rows = (finished_run / "eval" / "samples" / "aligned-harmful.jsonl").read_text().splitlines()
    assert set(json.loads(rows[0])["verdicts"]) == {"offline-refusal"}
    assert "change from the base, on the same prompts" in safesteer("eval", finished_run).out
    file = tmp_path / "few.json"
    outcome = safesteer("eval", finished_run, "--limit=2", "--json", file)
    assert outcome.code == 0, outcome.err
    assert json.loads(file.read_text())["benchmarks"]["harmful"]["versus_base"]["n"] == 2
    outcome = safesteer("eval", finished_run, "--max-new-tokens=5", "--limit=2", "--json", file)
    assert "versus_base" not in json.loads(file.read_text())["benchmarks"]["harmful"]
    assert (finished_run / "eval" / "cache").is_dir()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--benchmarks", "advbnch"], "did you mean 'advbench'"),
        (["--benchmarks", "harmbench"], "harmbench_full/harmbench_behaviors_text_all.csv"),
        (["--benchmarks", "advbench", "--limit", "0"], "evaluate.limit = 0"),
        (["--benchmarks", "advbench", "--judges", "llama-gard-3"], "did you mean 'llama-guard-3'"),
        (["--benchmarks", "advbench", "--set", "evaluate.data_dir=nowhere"], "nowhere"),
        (["--benchmarks", "jailbreaks"], "evaluate.advanced.sources.jailbreaks=FILE"),
        (["--benchmarks", ""], "no benchmark is named"),
        (
            ["--set", "evaluate.advanced.sources.advbnch=x.csv", "--limit=2"],
            "evaluate.advanced.sources.advbnch",
        ),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_looked_for(safesteer, data, arguments, said):
    """The model does not exist, and nobody gets to say so."""
    outcome = safesteer("eval", "/nowhere/model", "--data-dir", data, "--quiet", *arguments)
    assert outcome.code == 2
    assert said in outcome.error


def test_a_run_says_what_is_wrong_before_it_begins(safesteer, tiny_model_folder, tmp_path, small):
    run = tmp_path / "run"
    outcome = safesteer(
        "run", tiny_model_folder, "-o", run, *small, "--benchmarks=advbench", "--data-dir", tmp_path
    )
    assert outcome.code == 2
    assert "advbench/advbench.csv" in outcome.error
    assert not (run / "direction").exists()


def test_the_list_names_what_is_wrong_too(safesteer, tmp_path):
    assert "did you mean 'advbench'" in safesteer("benchmarks", "advbnch").error
    assert "no such folder" in safesteer("benchmarks", "--data-dir", tmp_path / "none").error
