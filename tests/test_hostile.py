"""The hostile cases of bench: their number, and one in 40 of them run. (pytest this file)"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARE = 40  # of some 2,600 cases: a minute


@pytest.fixture
def hostile(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return import_module("bench.hostile")


def test_there_are_enough_cases_and_some_of_each_kind(hostile):
    every, some = hostile.all_cases(), hostile.all_cases(share=SHARE)
    assert len(every) == len({case.id for case in every}) >= 500
    assert sum(case.kills for case in every) >= 100
    assert 50 <= len(every) / SHARE <= len(some) <= len(every) / SHARE + len(hostile.KINDS)
    assert {case.kind for case in some} == {case.kind for case in every}
    assert max(Counter(case.kind for case in every).values()) < len(every) / 2


@pytest.mark.timeout(900)
def test_a_share_of_the_cases_holds(tmp_path):
    """In processes of its own: cases are forks of a process that has run nothing."""
    command = [sys.executable, "-m", "bench.hostile", str(tmp_path), "--share", str(SHARE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
