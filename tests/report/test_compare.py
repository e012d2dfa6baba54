"""Runs side by side: what may be compared, the paired tests, and the front."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safesteer.errors import InputError
from safesteer.files import sha256_file, write_json
from safesteer.report.compare import (
    compare,
    front,
    paired_words,
    read_entrants,
    render_comparison,
    table_rows,
    why_not_comparable,
)

shares = st.floats(0, 1)


@given(st.dictionaries(st.text(max_size=3), st.tuples(shares, shares), min_size=1, max_size=8))
def test_the_front_holds_those_that_none_beats(runs):
    axes = {"a": {n: v[0] for n, v in runs.items()}, "b": {n: v[1] for n, v in runs.items()}}
    best = front(axes)
    assert best
    for name in runs:
        beaten = any(
            all(axis[other] >= axis[name] for axis in axes.values())
            and any(axis[other] > axis[name] for axis in axes.values())
            for other in runs
        )
        assert (name in best) != beaten


def test_runs_are_compared_on_the_same_prompts(new_run):
    paths = [new_run("one").path, new_run("two", refused=(4, 3, 1)).path]
    found = compare(read_entrants(paths))
    assert [run["name"] for run in found["runs"]] == ["one", "two"]
    assert [run["on_front"] for run in found["runs"]] == [True, False]
    lines = paired_words(found)
    assert lines[0].startswith("harmful requests, two against one: -60.0 points")
    assert any("no detectable difference" in line for line in lines)
    rows, notes = table_rows(found)
    assert notes == []
    shown = {row[0]: row[1:] for row in rows}
    assert shown["harmful requests refused (higher is better)"][0] == "80.0% (58-92)"
    assert shown["same next token as the base (higher is better)"][0] == "95.0% (94-96)"
    drift = shown["KL(base ‖ aligned) per token (lower is better)"]
    assert drift[0] == "0.0100 nats (0.00800-0.0120)"
    assert shown["on the Pareto front"] == ["yes", "no"]
    assert shown["time"][0].endswith(" s") and "B" in shown["peak memory"][0]


def test_what_must_not_be_compared_is_marked(new_run, judged):
    longer = new_run("longer", evaluate={"max_new_tokens": 99}).path
    fewer = new_run("fewer", n=10, refused=(5, 1, 1)).path
    found = compare(read_entrants([new_run("one", benchmarks=judged).path, longer, fewer]))
    _, notes = table_rows(found)
    assert any("harmful requests of longer" in n and "99 instead of" in n for n in notes)
    assert any("harmful requests of fewer" in n and "10 instead of 20" in n for n in notes)
    assert found["axes"] == {}  # drift too belongs to its prompts and their length
    assert paired_words(found) == []


def test_drift_in_another_type_is_named_and_not_compared(new_run):
    drift = {"metric": "next_token_agreement", "value": 0.95, "ci95": [0.94, 0.96], "n": 20}
    entry = {**drift, "judge": None, "kind": "capability"}
    paths = [
        new_run(dtype, benchmarks={"aligned": {"agreement": {**entry, "dtype": dtype}}}).path
        for dtype in ("float32", "bfloat16")
    ]
    rows, notes = table_rows(compare(read_entrants(paths)))
    (shown,) = (row[1:] for row in rows if row[0].startswith("same next token"))
    assert [cell.split(" (")[0] for cell in shown] == ["95.0%", "95.0% in bfloat16"]
    assert any("different dtype (bfloat16)" in note for note in notes)


def test_other_prompts_of_the_same_number_are_noticed(new_run):
    other = new_run("other")
    name = "eval/samples/aligned-harmful.jsonl"
    file, manifest = other.path / name, other.path / "manifest.json"
    before = sha256_file(file)
    file.write_text(file.read_text("utf-8").replace("prompt 0?", "prompt zero?"), "utf-8")
    manifest.write_text(manifest.read_text("utf-8").replace(before, sha256_file(file)), "utf-8")
    found = compare(read_entrants([new_run("one").path, other.path]))
    assert found["benchmarks"][0]["runs"]["other"]["not_comparable"] == "different prompts"


def test_evaluation_files_stand_beside_runs(new_run, tmp_path):
    file = tmp_path / "plain.json"
    shared = {"metric": "refusal_rate", "n": 20, "judge": "offline-refusal"}
    benchmarks = {
        "asked": {**shared, "value": 0.1, "harness": {"chat": True}},
        "harmful": {**shared, "value": 0.1, "ci95": [0.03, 0.3], "kind": "safety"},
        "harmless": {**shared, "value": 0.0, "ci95": [0.0, 0.16], "kind": "over_refusal"},
    }
    write_json(file, {"model": "model", "benchmarks": benchmarks})
    found = compare(read_entrants([new_run("one").path, file]))
    plain = found["runs"][1]
    assert plain["name"] == "plain" and plain["seconds"] is None
    assert found["benchmarks"][0]["runs"]["plain"]["not_comparable"] == ""
    assert [run["on_front"] for run in found["runs"]] == [True, True]
    json.dumps(found, allow_nan=False)
    assert read_entrants([file])[0].benchmarks == benchmarks  # whatever else they hold


def test_the_page_shows_planes_and_tests(new_run):
    paths = [new_run(f"run <{i}>", refused=(10 + i, i, 1)).path for i in range(3)]
    text = render_comparison(compare(read_entrants(paths)))
    assert text.count('class="chart plane"') == 2
    assert "run &lt;0&gt;" in text and "<0>" not in text
    assert "<script" not in text


def test_runs_of_the_same_name_get_different_names(new_run, tmp_path):
    one, two = new_run("a/run").path, new_run("b/run").path
    assert [e.name for e in read_entrants([one, two])] == ["a/run", "b/run"]
    with pytest.raises(InputError, match="named twice"):
        read_entrants([one, one])


GOOD = {"metric": "accuracy", "value": 0.5, "n": 4, "kind": "capability"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ('{"benchmarks": {"a": {"metric"', "is not valid JSON"),
        ("[1]", "no evaluation"),
        ('"text"', "no evaluation"),
        ("{}", r"no evaluation \(at 'benchmarks'\)"),
        ({}, r"no evaluation \(at 'benchmarks'\)"),
        ({"a": {}}, r"no evaluation \(at 'benchmarks.a.metric'\)"),
        ({"a": [GOOD]}, "at 'benchmarks.a'"),
        ({"a": {**GOOD, "value": "high"}}, "at 'benchmarks.a.value'"),
        ({"a": {**GOOD, "value": float("nan")}}, "at 'benchmarks.a.value"),
        ({"a": {**GOOD, "value": 57}}, "a is 57"),
        ({"a": {**GOOD, "n": -1}}, "at 'benchmarks.a.n'"),
        ({"a": {**GOOD, "kind": "speed"}}, "at 'benchmarks.a.kind'"),
        ({"a": {**GOOD, "ci95": 3}}, "at 'benchmarks.a.ci95'"),
        ({"a": {**GOOD, "judge": "x", "judges": {"x": 1}}}, "at 'benchmarks.a.judges"),
    ],
)
def test_other_files_are_refused(tmp_path, content, said):
    file = tmp_path / "x.json"
    text = content if isinstance(content, str) else json.dumps({"benchmarks": content})
    file.write_text(text, "utf-8")
    with pytest.raises(InputError, match=f"x.json.*{said}.*Try: the folder of a run, or what"):
        read_entrants([file])


@pytest.mark.parametrize("name", ["aligned.json", "samples/aligned-harmful.jsonl"])
@pytest.mark.parametrize("content", ['{"benchmarks": []}', '{"prompt": "cut', None])
def test_a_run_whose_evaluation_changed_is_refused(new_run, name, content):
    run = new_run().path
    file = run / "eval" / name
    file.write_text(content, "utf-8") if content is not None else file.unlink()
    with pytest.raises(InputError, match=rf"{name} (was damaged|is missing).*safesteer run {run}"):
        read_entrants([run])


def test_missing_and_unfinished_runs_are_refused(new_run, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_entrants([tmp_path / "none"])
    unfinished = new_run(until="train").path
    with pytest.raises(InputError, match=f"safesteer eval {unfinished}"):
        read_entrants([unfinished])


def test_drift_on_fewer_prompts_is_not_compared(new_run):
    """Agreement and KL too belong to their prompts and their length of answers."""
    first, other = (read_entrants([new_run(name).path])[0] for name in ("first", "other"))
    assert why_not_comparable("agreement", first, other) == ""
    other.benchmarks["agreement"]["n"] -= 1
    assert "different prompts" in why_not_comparable("agreement", first, other)
    other.benchmarks["agreement"]["n"] += 1
    other.answer_tokens = 1
    assert "different answer length" in why_not_comparable("agreement", first, other)


def test_a_missing_verdict_does_not_make_other_prompts(new_run):
    """What was asked counts, and not what was judged."""
    first, other = (read_entrants([new_run(name).path])[0] for name in ("first", "other"))
    entry = other.benchmarks["harmful"]
    entry["n"] -= 1
    entry["judges"] = {entry["judge"]: {"no_verdict": 1}}
    assert why_not_comparable("harmful", first, other) == ""


def test_a_run_and_a_file_of_one_name_get_different_names(new_run, tmp_path):
    """The ending of a file is no part of its name."""
    run = new_run("same").path
    file = run.parent / "same.json"
    write_json(file, {"benchmarks": read_entrants([run])[0].benchmarks})
    assert len({entrant.name for entrant in read_entrants([run, file])}) == 2


@pytest.mark.parametrize("width", [375, 1280])
def test_the_comparison_fits(browser, new_run, tmp_path, width):
    paths = [new_run(f"run-{i}", refused=(10 + i, i, 1)).path for i in range(4)]
    page = tmp_path / "compare.html"
    page.write_text(render_comparison(compare(read_entrants(paths))))
    browser.check(page, width)
