"""Completion in bash: the script is printed, and what it asks is answered. (pytest tests/cli)"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest


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
