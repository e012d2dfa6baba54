"""What several processes, and processes that are killed, do to a run."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import safesteer
from safesteer.errors import InputError
from safesteer.runs.directory import RunDirectory
from safesteer.runs.lock import RunLock

IN_A_STAGE = """
import sys, time
from safesteer.config.settings import Settings
from safesteer.runs.directory import RunDirectory
model = {"id": "tiny", "revision": None, "sha256": "1" * 64}
run = RunDirectory.open(sys.argv[1], settings=Settings(), model=model)
with run.stage("direction", {"layer": 1}):
    print("ready", flush=True)
    time.sleep(60)
"""


@contextmanager
def process_in_a_stage(path: Path) -> Iterator[subprocess.Popen[str]]:
    source = str(Path(safesteer.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_STAGE, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_refused_and_a_killed_one_leaves_a_run_that_reopens(tmp_path, open_run):
    path = tmp_path / "run"
    with process_in_a_stage(path) as process:
        for fresh in (False, True):
            with pytest.raises(InputError, match=rf"another process \({process.pid}\)") as caught:
                open_run(fresh=fresh)
            assert f"is working in {path}" in str(caught.value)
        assert RunDirectory.load(path).manifest["stages"]["direction"]["status"] == "running"
        process.send_signal(signal.SIGKILL)
        process.wait()
    run = open_run()
    assert run.manifest["stages"]["direction"]["status"] == "running"
    stage = run.stage("direction", {"layer": 1})
    assert not stage.finished
    assert stage.resumes
    with stage:
        pass
    assert open_run().stage("direction", {"layer": 1}).finished


def test_the_same_process_is_told_that_it_has_the_run_open(tmp_path):
    lock = RunLock(tmp_path)
    with pytest.raises(InputError, match=r"this process has .* open already"):
        RunLock(tmp_path)
    lock.release()
    lock.release()
    RunLock(tmp_path).release()


def test_a_run_that_is_forgotten_is_free_again(tmp_path):
    lock = RunLock(tmp_path)
    del lock
    RunLock(tmp_path).release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    lock = RunLock(tmp_path)
    started, done = context.Event(), context.Event()
    child = context.Process(target=lambda: (started.set(), done.wait(30)))
    child.start()
    assert started.wait(30)
    try:
        with pytest.raises(InputError):
            RunLock(tmp_path)  # the child's letting go does not free the parent's lock
        lock.release()
        RunLock(tmp_path).release()
    finally:
        done.set()
        child.join()
