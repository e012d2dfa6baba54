"""Paired tests of results need the same prompts."""

from __future__ import annotations

from safesteer.report.findings import read_findings
from safesteer.report.results import change_words


def test_pairs_need_the_same_prompts(new_run):
    run = new_run(refused=(20, 0, 1))
    findings = read_findings(run)
    assert change_words(findings, "harmful").startswith("+95.0 points")
    assert change_words(findings, "agreement") == ""
    findings.samples["harmful"]["aligned"][3]["prompt"] = "another"
    assert change_words(findings, "harmful") == ""
    findings.samples["harmful"]["aligned"].pop()
    assert change_words(findings, "harmful") == ""
