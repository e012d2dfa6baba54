"""Failures of the work and interruptions: one line, the right exit code. (pytest tests/cli)"""

from __future__ import annotations

import errno
import json
import os
import signal

import pytest

from safesteer.pipeline.stages import Pipeline


@pytest.fixture
def run_that(monkeypatch, safesteer, tiny_model_folder, tmp_path):
    """Runs the command with the given function in place of the stages."""

    def run(action, *arguments):
        monkeypatch.setattr(Pipeline, "run_all", lambda self, stages: action())
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
    assert outcome.error.startswith("interrupted. Resume with: safesteer run ")
    assert "--seed=3" in outcome.error and "--fresh" not in outcome.error


def test_an_interrupted_run_goes_on_where_it_was(start, small, tiny_model_folder, tmp_path):
    run = tmp_path / "run"
    arguments = ["run", tiny_model_folder, "-o", run, "--max-steps=300", *small]

    def interrupt_after(updates, number):
        """Interrupt after so many training updates; return them and the last line on stderr."""
        seen = []
        process = start(*arguments)
        for line in process.stdout:
            if line.startswith("  step "):
                seen.append(int(line.split()[1].partition("/")[0]))
                if len(seen) == updates:
                    process.send_signal(number)
                    break
        _, err = process.communicate()
        assert process.returncode == 130
        assert err.count("\n") == 1 and err.startswith("interrupted. Resume with: safesteer run ")
        return seen

    assert interrupt_after(5, signal.SIGINT) == [1, 2, 3, 4, 5]
    manifest = json.loads((run / "manifest.json").read_text("utf-8"))
    assert manifest["stages"]["train"]["status"] == "interrupted"
    reached = max(int(path.name.rpartition("-")[2]) for path in run.glob("train/checkpoint-*"))
    assert reached >= 4
    assert interrupt_after(1, signal.SIGTERM) == [reached + 1]
