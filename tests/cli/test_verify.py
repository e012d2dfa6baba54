"""`safesteer verify` of a run's own models behind a stand-in server. (pytest tests/cli)"""

from __future__ import annotations

import json

import pytest

from safesteer.models.generate import Decoding
from safesteer.runs.artifacts import load_variants
from safesteer.runs.target import find_target


@pytest.fixture
def served(finished_run, serve):
    """Serves a variant of the run, which answers each request itself."""

    def start(name):
        (variant,) = load_variants(find_target(str(finished_run)), [name])

        def answer(question, number):
            messages = ({"role": "user", "content": question},)
            (response,) = variant.generate([messages], Decoding(6))
            choice = {
                "message": {"role": "assistant", "content": response.answer},
                "finish_reason": "length" if response.cut else "stop",
            }
            return 200, {}, json.dumps({"choices": [choice], "usage": {"completion_tokens": 6}})

        return serve(answer)

    return start


def test_verify_says_what_is_served(safesteer, finished_run, served, monkeypatch):
    """The run's aligned model passes, its base does not; no answer reaches the screen."""
    monkeypatch.setattr("safesteer.pipeline.verify._AT_ONCE", 1)
    outcome = safesteer("verify", served("aligned").url, "--run", finished_run)
    assert outcome.code == 0, outcome.err
    assert "serves the aligned model of" in outcome.out and "harmful requests" in outcome.out
    rows = (finished_run / "eval" / "samples" / "aligned-harmful.jsonl").read_text("utf-8")
    for row in map(json.loads, rows.splitlines()):
        assert row["prompt"] not in outcome.out and row["completion"] not in outcome.out
    outcome = safesteer("verify", served("base").url, "--run", finished_run)
    assert outcome.code == 1
    assert "base of" in outcome.error and "nearer to the base's" in outcome.error


def test_verify_without_a_server(safesteer, finished_run, tmp_path):
    outcome = safesteer("verify", "127.0.0.1:9", "--run", finished_run)
    assert outcome.code == 2 and "start the server" in outcome.error
    assert "--run" in safesteer("verify", "127.0.0.1:9").error
    assert "does not exist" in safesteer("verify", "127.0.0.1:9", "--run", tmp_path / "x").error
