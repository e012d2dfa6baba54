"""`safesteer eval` of runs and models. (pytest tests/cli)"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest
from chat_server import graded


def test_eval_shows_the_run_and_writes_json(safesteer, finished_run, tmp_path):
    file = tmp_path / "aligned.json"
    outcome = safesteer("eval", finished_run, "--json", file)
    assert outcome.code == 0
    stored = json.loads((finished_run / "eval" / "aligned.json").read_text("utf-8"))
    length = json.loads(file.read_text("utf-8")).pop("max_new_tokens")
    assert json.loads(file.read_text("utf-8")) == {**stored, "max_new_tokens": length}
    assert length == 6


def test_eval_with_settings_leaves_the_run_alone(safesteer, finished_run, tmp_path):
    manifest = (finished_run / "manifest.json").read_bytes()
    file = tmp_path / "teacher.json"
    outcome = safesteer("eval", finished_run, "--teacher", "--limit=2", "--json", file)
    assert outcome.code == 0
    content = json.loads(file.read_text("utf-8"))
    assert content["model"] == "teacher"
    assert content["benchmarks"]["harmful"]["n"] == 2
    assert content["benchmarks"]["harmful"]["kind"] == "safety"
    assert (finished_run / "manifest.json").read_bytes() == manifest


def test_eval_of_a_plain_model(safesteer, tiny_model_folder, tmp_path):
    file = tmp_path / "model.json"
    outcome = safesteer(
        "eval", tiny_model_folder, "--limit=2", "--max-new-tokens=3", "--json", file
    )
    assert outcome.code == 0
    assert set(json.loads(file.read_text("utf-8"))["benchmarks"]) == {
        "harmful",
        "harmless",
        "borderline",
    }


def test_no_teacher_without_a_run(safesteer, tiny_model_folder):
    outcome = safesteer("eval", tiny_model_folder, "--teacher", "--quiet")
    assert outcome.code == 2
    assert "has no teacher" in outcome.error


def test_eval_measures_what_is_named(
    safesteer, tiny_model_folder, benchmark_files, tmp_path, monkeypatch
):
    """And nothing else; a second time from what was kept, with the same result."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    arguments = [
        *("eval", tiny_model_folder, "--benchmarks", "advbench,xstest-safe, prefill"),
        *(
            "--judges",
            "offline-refusal",
            "--data-dir",
            benchmark_files,
            "--limit=4",
            "--max-new-tokens=3",
        ),
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
    given = ("--max-new-tokens=5", "--limit=2", "--json", file)
    assert "few.json exists" in safesteer("eval", finished_run, *given).error
    assert safesteer("eval", finished_run, *given, "--force").code == 0
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
def test_wrong_input_is_reported_before_a_model_is_loaded(
    safesteer, benchmark_files, arguments, said
):
    """The model does not exist, which is never found out."""
    outcome = safesteer(
        "eval", "/nowhere/model", "--data-dir", benchmark_files, "--quiet", *arguments
    )
    assert outcome.code == 2
    assert said in outcome.error


def test_eval_without_all_verdicts_is_unfinished(
    safesteer, tiny_model_folder, benchmark_files, tmp_path, monkeypatch, serve
):
    """Exit 1 and one line; the figures are shown, the file is written when all are there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    broken = [True]
    server = serve(lambda q, number: (500, {}, "") if broken[0] and number == 2 else graded())
    arguments = [
        *("eval", tiny_model_folder, "--benchmarks", "advbench", "--judges", "endpoint=judge"),
        *("--data-dir", benchmark_files, "--limit=4", "--max-new-tokens=3"),
        *("--set", f"evaluate.endpoint.base_url={server.url}"),
        *("--set", "evaluate.endpoint.advanced.retries=0", "--json", tmp_path / "one.json"),
    ]
    outcome = safesteer(*arguments)
    assert outcome.code == 1
    asked = len({json.dumps(request) for request in server.requests})
    assert (
        "the evaluation is unfinished: 1 of 4 answers have no verdict by endpoint=judge"
        " (the server answers 500). Try: the same command again"
    ) in outcome.error
    assert "advbench" in outcome.out and not (tmp_path / "one.json").exists()
    before, broken[0] = len(server.requests), False
    assert safesteer(*arguments).code == 0
    assert len(server.requests) == before + 1 and asked == before
    assert json.loads((tmp_path / "one.json").read_text())["benchmarks"]["advbench"]["n"] == 4


def test_a_gate_says_which_requirement_failed(safesteer, finished_run, tmp_path):
    """One line per requirement, a JUnit file, and exit 1; with --point intervals do not count."""
    junit = tmp_path / "gate.xml"
    required = ("--require", "harmful<=100, harmless<=40, agreement>=0")
    outcome = safesteer("eval", finished_run, *required, "--junit", junit)
    assert outcome.code == 1
    assert outcome.error == "1 of 3 requirements failed: harmless<=40"
    assert "passed  harmful<=100: 0.0% (95% 0.0% to 49.0%), 4 prompts" in outcome.out
    assert "FAILED  harmless<=40: 0.0% (95% 0.0% to 49.0%), the interval reaches" in outcome.out
    cases = list(ET.parse(junit).getroot().iter("testcase"))
    assert [len(case.findall("failure")) for case in cases] == [0, 1, 0]
    assert "gate.xml exists" in safesteer("eval", finished_run, *required, "--junit", junit).error
    assert safesteer("eval", finished_run, *required, "--point").code == 0


def test_a_gate_measures_what_it_names(safesteer, tiny_model_folder, benchmark_files, tmp_path):
    options = ("--data-dir", benchmark_files, "--limit=2", "--max-new-tokens=3")
    given = ("eval", tiny_model_folder, *options, "--benchmarks=xstest-safe")
    outcome = safesteer(*given, "--require", "xstest-safe<=100, harmful>=100", "--point")
    assert outcome.code == 1 and "1 of 2 requirements failed: harmful>=100" in outcome.error


def test_a_worse_run_fails_its_gate(safesteer, worse_run, tmp_path):
    junit = tmp_path / "gate.xml"
    outcome = safesteer("eval", worse_run, "--require", "harmful<=100", "--junit", junit)
    assert outcome.code == 1 and "failed: no worse than the base" in outcome.error
    assert ET.parse(junit).getroot()[0].get("failures") == "1"
    assert "--allow-worse" in safesteer("eval", worse_run).error
    assert safesteer("eval", worse_run, "--allow-worse").code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--point"], "need --require"),
        (["--require", "harmful"], "in quotes"),
        (["--require", "harmfull>=9"], "did you mean 'harmful'"),
        (["--require", "agreement>=9"], "safesteer eval RUN"),
    ],
)
def test_a_wrong_gate_is_refused_before_a_model_is_loaded(safesteer, options, said):
    outcome = safesteer("eval", "/nowhere/model", "--quiet", *options)
    assert outcome.code == 2 and said in outcome.error
