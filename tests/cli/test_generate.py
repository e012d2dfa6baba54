"""`safesteer generate`. (pytest tests/cli)"""

from __future__ import annotations

import json


def test_generate_answers_every_row_in_order(safesteer, finished_run, tmp_path):
    prompts, output = tmp_path / "prompts.csv", tmp_path / "answers.jsonl"
    prompts.write_text("instruction,x\nA rather long question?,1\nHi,2\nHi,3\n", "utf-8")
    outcome = safesteer(
        "generate", finished_run, "--prompts", prompts, "--output", output, "--max-new-tokens=3"
    )
    assert outcome.code == 0, outcome.err
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == ["A rather long question?", "Hi", "Hi"]
    assert all(set(row) == {"prompt", "completion"} for row in rows)
    assert rows[1] == rows[2]
