"""Scores of capability benchmarks."""

from __future__ import annotations

import pytest
from judged import make_score


def test_a_score_is_a_mean_with_an_interval():
    entry = make_score([1.0, 0.0, 0.0, 0.0]).to_json()
    assert (entry["value"], entry["n"], entry["kind"]) == (0.25, 4, "capability")
    assert entry["judge"] is None and entry["ci95"] == pytest.approx([0.0456, 0.6994], abs=1e-4)
    wins = make_score([1.0, 0.5, None], metric="win_rate", judge="endpoint").to_json()
    assert (wins["value"], wins["n"], wins["no_verdict"]) == (0.75, 2, 1)
    assert wins["ci95"] == [0.5, 1.0]
    assert make_score([None]).to_json()["value"] is None
