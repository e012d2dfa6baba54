"""Exit codes, one-line errors and completion of the command. (pytest tests/cli)"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest

from safesteer import __version__
from safesteer.pipeline.stages import Pipeline


def test_version(safesteer):
    assert __version__ in safesteer("--version").out


def test_a_process_prints_one_line_and_exits_with_2(new_process, tmp_path):
    outcome = new_process("run", tmp_path / "none.gguf", "-o", tmp_path / "run")
    assert outcome.code == 2
    assert "none.gguf" in outcome.error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "did you mean 'run'"),
        (["run", "--max-stps", "3"], "--max-steps"),
        (["run", "--max-steps", "many"], "'--max-steps'"),
        (["run", "--max-steps", "0"], "train.max_steps = 0"),
        (["run", "--divergence", "genralized"], "generalized"),
        (["run", "--config", "smolm2"], "no recipe named 'smolm2'"),
        (["run", "--config", "none.yaml"], "none.yaml"),
        (["run", "--set", "train.max_stps=3"], "did you mean 'max_steps'"),
        (["run", "--set", "updates"], "section.key=value"),
        (["run", "--harmful", "none.jsonl"], "none.jsonl"),
        (["run", "a", "b"], "b"),
        (["eval"], "RUN_OR_MODEL"),
        (["eval", "x", "--base", "--teacher"], "exclude"),
        (["generate", "x"], "--prompts"),
        (["recipes", "shwo"], "did you mean 'show'"),
        (["recipes", "show", "none"], "no recipe named 'none'"),
    ],
)
def test_wrong_words(safesteer, arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    outcome = safesteer(*arguments)
    assert outcome.code == 2
    assert said in outcome.error.replace("Did", "did")
    assert not list(tmp_path.iterdir())


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


def test_bash_gets_its_script():
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    # A second command keeps bash alive as the parent that is to be recognised.
    line = f"{sys.executable} -m safesteer --show-completion; exit $?"
    done = subprocess.run([bash, "--norc", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "complete -o default -F _safesteer_completion safesteer" in done.stdout
    assert "_SAFESTEER_COMPLETE=complete_bash" in done.stdout


@pytest.mark.parametrize(
    ("typed", "word", "offered"),
    [("safesteer do", 1, "doctor"), ("safesteer run --push", 2, "--push-to-hub")],
)
def test_commands_and_options_are_completed(typed, word, offered):
    asked = {"_SAFESTEER_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(word)}
    done = subprocess.run(
        [sys.executable, "-m", "safesteer"],
        capture_output=True,
        text=True,
        env={**os.environ, **asked},
    )
    assert done.stdout.split() == [offered] and done.returncode == 0


@pytest.mark.parametrize("command", ["run", "direction", "report"])
@pytest.mark.parametrize("model", ["nothing-here", "./nothing-here", "none.gguf"])
def test_a_model_that_is_not_there_gets_no_heading(safesteer, tmp_path, command, model):
    outcome = safesteer(command, model, "-o", tmp_path / "run")
    assert (outcome.code, outcome.out) == (2, "")
    assert model.removeprefix("./") in outcome.error
    assert not (tmp_path / "run").exists()
