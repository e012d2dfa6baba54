"""Terminal tables of results. (pytest tests/cli/test_tables.py)"""

from __future__ import annotations

from typing import Any

from rich.console import Console

from safesteer.cli.tables import evaluation


def entry(refused: int, n: int, **more: Any) -> dict[str, Any]:
    return {
        "metric": "refusal_rate", "value": refused / n, "ci95": [0.0, 1.0], "n": n,
        "judge": "offline-refusal", "kind": "safety", "looping": 0.0, **more,
    }  # fmt: skip


def test_shares_over_the_sets_are_of_all_that_they_are_shares_of():
    """9 of 30 refusals end; of the shares of the sets the mean would be 55%."""
    benchmarks = {
        "harmful": entry(20, 40, looping=0.5, refusals=20, refusals_ended=0.1),
        "harmless": entry(10, 10, refusals=10, refusals_ended=0.7),
        "borderline": entry(0, 10),
    }
    console = Console(width=100, file=None)
    with console.capture() as shown:
        console.print(evaluation({"base": {"harmful": entry(0, 40)}, "aligned": benchmarks}))
    rows = [line.split() for line in shown.get().splitlines()]
    (ended,) = (row for row in rows if row[:3] == ["refusals", "that", "end"])
    (loops,) = (row for row in rows if row[:2] == ["looping", "answers"])
    assert ended[-1] == "30.0%" and ended[-2] == "limit"  # the base refused nothing
    assert loops[-2:] == ["0.0%", "33.3%"]


def test_drift_says_in_which_type_it_was_read():
    drift = {"metric": "next_token_agreement", "value": 0.95, "kind": "capability", "judge": None}
    for dtype, shown in (("float32", "95.0%"), ("bfloat16", "95.0% in bfloat16")):
        console = Console(width=100)
        with console.capture() as text:
            results = {"aligned": {"agreement": {**drift, "ci95": [0.9, 1.0], "dtype": dtype}}}
            console.print(evaluation(results))
        (row,) = (line for line in text.get().splitlines() if "same next token" in line)
        assert row.endswith(shown)
