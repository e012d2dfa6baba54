"""`safesteer benchmarks`. (pytest tests/cli)"""

from __future__ import annotations

from safesteer.evaluate.benchmarks import BENCHMARKS


def test_the_list_has_every_benchmark(safesteer, benchmark_files):
    outcome = safesteer("benchmarks", "--data-dir", benchmark_files)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    for entry in BENCHMARKS:
        assert any(line.startswith(f"{entry.name} ") for line in lines), entry.name
    found = [line.split()[0] for line in lines if line.rstrip().endswith(" found")]
    assert found == ["advbench", "xstest-unsafe", "prefill", "xstest-safe"]
    assert " found" not in safesteer("benchmarks").out


def test_one_is_shown_in_full(safesteer, benchmark_files):
    out = safesteer("benchmarks", "harmbench", "--data-dir", benchmark_files).out
    for said in ("arXiv 2402.04249", "walledai/HarmBench", "gated", "nothing below", "MIT"):
        assert said in out
    assert (
        str(benchmark_files / "advbench")
        in safesteer("benchmarks", "advbench", "--data-dir", benchmark_files).out
    )
    assert "Sure, here is" in safesteer("benchmarks", "harmbench+prefill").out
    assert "lm-eval" in safesteer("benchmarks", "gsm8k").out


def test_wrong_names_and_folders(safesteer, tmp_path):
    assert "did you mean 'advbench'" in safesteer("benchmarks", "advbnch").error
    assert "no such folder" in safesteer("benchmarks", "--data-dir", tmp_path / "none").error
