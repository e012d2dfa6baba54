"""Failures of the work and interruptions: one line, the right exit code. (pytest tests/cli)"""

from __future__ import annotations

import errno
import json
import os
import signal

import pytest

from safesteer.pipeline import Pipeline
from tests.cli.conftest import SMALL, start


@pytest.fixture
def run_that(monkeypatch, safesteer, tiny_model_folder, tmp_path):
    """Runs the command with the given function in place of the stages."""

    def run(action, *arguments):
        monkeypatch.setattr(Pipeline, "run_all", lambda self, last: action())
        return safesteer("run", tiny_model_folder, "-o", tmp_path / "run", "--quiet", *arguments)

    return run


def fail(error):
    raise error


def test_an_unexpected_error_is_one_line(run_that):
    outcome = run_that(lambda: fail(ZeroDivisionError("oh\nno")))
    assert outcome.code == 1
    assert "ZeroDivisionError: oh no" in outcome.error and "--debug" in outcome.error


def test_debug_shows_the_traceback(run_that):
    outcome = run_that(lambda: fail(ZeroDivisionError("oh no")), "--debug")
    assert outcome.code == 1
    assert "Traceback" in outcome.err


def test_a_full_disk_is_one_line(run_that):
    outcome = run_that(lambda: fail(OSError(errno.ENOSPC, "No space left", "/x/y")))
    assert outcome.code == 1
    assert "/x/y" in outcome.error and "disk is full" in outcome.error


def test_sigterm_is_an_interruption(run_that):
    outcome = run_that(lambda: os.kill(os.getpid(), signal.SIGTERM), "--fresh", "--seed=3")
    assert outcome.code == 130
    assert outcome.error.startswith("interrupted; go on with: safesteer run ")
    assert "--seed=3" in outcome.error and "--fresh" not in outcome.error


def test_an_interrupted_run_goes_on_where_it_was(safesteer, tiny_model_folder, tmp_path):
    run = tmp_path / "run"
    arguments = ["run", tiny_model_folder, "-o", run, "--updates=300", *SMALL]
    process = start(*arguments)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("  update 5/"):
            process.send_signal(signal.SIGINT)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.count("\n") == 1 and err.startswith("interrupted; go on with: safesteer run ")
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    assert manifest["stages"]["train"]["status"] == "interrupted"
    reached = max(int(path.name.rpartition("-")[2]) for path in run.glob("train/checkpoint-*"))
    # The number of updates belongs to the schedule, so it stays; one update more shows the rest.
    first = start(*arguments)
    assert first.stdout is not None
    updates = []
    for line in first.stdout:
        if line.startswith("  update "):
            updates.append(int(line.split()[1].partition("/")[0]))
            first.send_signal(signal.SIGTERM)
            break
    first.communicate(timeout=120)
    assert first.returncode == 130
    assert updates == [reached + 1]
