"""Rows of words for the terminal: every judge, shares over our own sets, drift, changes."""

from __future__ import annotations

from safesteer.report.rows import (
    change_rows,
    repair_lines,
    result_lines,
    result_rows,
    sides_line,
    step_words,
)


def test_rows_name_figures_judges_and_drift(judged):
    drift = {"metric": "next_token_agreement", "value": 0.95, "ci95": [0.9, 1.0], "n": 20}
    results = {"base": judged["base"], "aligned": {**judged["aligned"], "agreement": drift}}
    rows = {row[0]: row[1:] for row in result_rows(results)}
    assert list(rows) == [
        "harmbench: attack success (lower is better)",
        "  offline-refusal: not refused",
        "  judges disagree",
        "mmlu: accuracy (higher is better)",
        "same next token as the base (higher is better)",
    ]
    assert rows["harmbench: attack success (lower is better)"] == [
        "60.0% (55-65; 50; 2 without verdict)",
        "20.0% (15-25; 50; 2 without verdict)",
    ]
    assert rows["  judges disagree"] == ["10.0%", "10.0%"]
    assert rows["same next token as the base (higher is better)"] == ["", "95.0%"]


def test_changes_and_lines(judged):
    assert change_rows({"aligned": judged["aligned"]}) == [
        ["harmbench", "-40.0 points (95% -50 to -30, n = 50, p < 0.001)"]
    ]
    own = {"metric": "refusal_rate", "value": 0.9, "ci95": [0.8, 1.0], "n": 20}
    lines = result_lines("aligned", {"harmful": own, "mmlu": judged["aligned"]["mmlu"]})
    assert lines == [
        "aligned refused: 90.0% of harmful requests",
        "aligned, mmlu: accuracy: 40.0% (30-50; 80)",
    ]


def test_a_step_in_a_few_words():
    metrics = {"loss": 0.25, "refusal_rate": 0.5, "anchor_refusal_rate": 0.0, "unfinished": None}
    assert step_words(metrics) == "loss 0.2500  refused 50%  anchors refused 0%"
    assert step_words({"loss": 1.0, "unfinished": 0.0}) == "loss 1.0000"
    assert step_words({"loss": 1.0, "unfinished": 0.5}) == "loss 1.0000  without an answer 50%"
    mass = {"mass_student": 0.4, "mass_teacher": 0.5}
    assert step_words({"loss": 1.0, **mass}) == "loss 1.0000  p(S) 0.40 (teacher 0.50)"
    repaired = {"loss": 1.0, "repaired_refusal_rate": 0.25}
    assert step_words(repaired) == "loss 1.0000  repaired ones refused 25%"


def test_both_sides_in_one_line():
    """Of the sets that base and aligned model answered."""
    base = {"harmful": {"value": 0.44}, "harmless": {"value": 0.09}, "borderline": {"value": 0.5}}
    aligned = {
        "harmful": {"value": 0.91},
        "harmless": {"value": None},
        "borderline": {"value": 0.3},
    }
    line = sides_line({"base": base, "aligned": aligned})
    assert line == "refused, base -> aligned: harmful 44% -> 91%, borderline 50% -> 30%"
    assert sides_line({"aligned": aligned}) == ""


def test_wrong_refusals_in_sentences():
    """Each kind of prompt that is not repaired, and why."""
    content = {
        "asked": {"harmless": 10, "borderline": 5},
        "repaired": {"harmless": [], "borderline": ["a", "b"]},
        "categories": {"harmless": {}, "borderline": {"homonyms": 1, "": 1}},
        "doubted": {"harmless": ["c"], "borderline": []},
        "left_out": {"harmless": [], "borderline": ["d"]},
        "surplus": 1,
    }
    first, kinds, *others = repair_lines(content)
    assert first.startswith("The base wrongly refuses 3 of 15 harmless training prompts, and")
    assert first.endswith("repairs 2 of them.")
    assert kinds == "borderline: 2 of 5 (homonyms 1, no category 1)."
    assert [line.split()[0] for line in others] == ["1", "1", "1"]
