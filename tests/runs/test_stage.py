import errno
import json
import os
import shutil
import time

import pytest

from safesteer.config.settings import Settings
from safesteer.errors import InputError, SafeSteerError
from safesteer.files import sha256_file
from safesteer.runs.directory import RunDirectory

INPUTS = {"layer": 3, "prompts": {"harmful": "a", "harmless": "b"}}


def run_direction(run: RunDirectory, inputs=INPUTS) -> None:
    stage = run.stage("direction", inputs)
    assert not stage.finished
    with stage:
        folder = run.path / "direction"
        folder.mkdir(exist_ok=True)
        for name in ("direction.safetensors", "direction.json"):
            (folder / name).write_text(json.dumps(inputs))
            stage.add_output(folder / name)


def recorded(run: RunDirectory, name: str = "direction"):
    """The entry on the disk, not the one in memory."""
    return json.loads((run.path / "manifest.json").read_text())["stages"][name]


def test_a_stage_that_ran_is_not_run_again(open_run):
    run_direction(open_run())
    run = open_run()
    stage = run.stage("direction", dict(reversed(INPUTS.items())))
    assert stage.finished
    assert stage.changed == []
    assert not stage.resumes
    entry = recorded(run)
    assert entry["status"] == "done"
    assert entry["inputs"] == INPUTS
    assert entry["outputs"] == {
        f"direction/{name}": sha256_file(run.path / "direction" / name)
        for name in ("direction.safetensors", "direction.json")
    }
    assert entry["peak_memory_bytes"] > 1 << 20


def test_other_inputs_run_it_again_and_say_why(open_run):
    run = open_run()
    run_direction(run)
    changed = {"layer": 4, "prompts": {"harmful": "a", "harmless": "c"}}
    stage = run.stage("direction", changed)
    assert not stage.finished
    assert not stage.resumes
    assert stage.changed == ["layer", "prompts.harmless"]
    run_direction(run, changed)
    assert run.stage("direction", changed).finished
    assert not run.stage("direction", INPUTS).finished


def test_a_stage_never_run_has_nothing_changed(open_run):
    stage = open_run().stage("direction", INPUTS)
    assert not stage.finished
    assert stage.changed == []


@pytest.mark.parametrize("what", ["damaged", "missing"])
def test_a_damaged_or_missing_output_is_named(open_run, what):
    run = open_run()
    run_direction(run)
    path = run.path / "direction" / "direction.safetensors"
    path.unlink() if what == "missing" else path.write_text("x")
    with pytest.raises(InputError) as caught:
        _ = run.stage("direction", INPUTS).finished
    problem = "is missing" if what == "missing" else "was damaged or changed after it was written"
    assert str(caught.value) == (
        f"{path} {problem}. Try: delete {run.path / 'direction'} and run `safesteer run {run.path}`"
        " to make it again"
    )
    # The advice works, and other inputs would have overwritten the file anyway.
    assert not run.stage("direction", {}).finished
    shutil.rmtree(run.path / "direction")
    run_direction(run)
    assert run.stage("direction", INPUTS).finished


def test_every_folder_of_a_stage_has_to_go(open_run):
    run = open_run()
    with run.stage("train", {}) as stage:
        for name in ("train", "adapter"):
            (run.path / name).mkdir()
            (run.path / name / "file").touch()
            stage.add_output(name)
    shutil.rmtree(run.path / "adapter")
    advice = r"delete .*train and .*adapter and run"
    with pytest.raises(InputError, match=rf"adapter/file is missing\. Try: {advice}"):
        _ = run.stage("train", {}).finished
    shutil.rmtree(run.path / "train")
    assert not run.stage("train", {}).finished


def test_a_folder_as_output_means_every_file_in_it(open_run):
    run = open_run()
    with run.stage("train", {}) as stage:
        (run.path / "adapter" / "deep").mkdir(parents=True)
        (run.path / "adapter" / "a").touch()
        (run.path / "adapter" / "deep" / "b").touch()
        stage.add_output("adapter")
    assert list(recorded(run, "train")["outputs"]) == ["adapter/a", "adapter/deep/b"]


def test_an_output_may_grow_until_the_stage_ends(open_run):
    run = open_run()
    with run.stage("report", {}) as stage:
        stage.add_output("report.html")
        (run.path / "report.html").write_text("late")
    assert run.stage("report", {}).finished


def test_an_output_has_to_exist_and_to_lie_in_the_run(open_run):
    run = open_run()
    with pytest.raises(ValueError, match="not in the run"), run.stage("report", {}) as stage:
        stage.add_output("../elsewhere")
    with (
        pytest.raises(SafeSteerError, match="stage report did not write"),
        run.stage("report", {}) as stage,
    ):
        stage.add_output("report.html")
    assert recorded(run, "report")["status"] == "failed"
    assert not run.stage("report", {}).finished


def test_outputs_of_a_run_with_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = {"id": "tiny", "revision": None, "sha256": "1"}
    with RunDirectory.open("run", settings=Settings(), model=model) as run:
        with run.stage("report", {}) as stage:
            (run.path / "report.html").touch()
            stage.add_output(run.path / "report.html")
            stage.add_output(tmp_path / "run" / "config.yaml")
            stage.add_output("config.yaml")
        assert list(recorded(run, "report")["outputs"]) == ["report.html", "config.yaml"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "failed"), (SystemExit, "failed"), (KeyboardInterrupt, "interrupted")],
)
def test_what_ended_a_stage_is_recorded(open_run, error, status):
    run = open_run()
    with pytest.raises(error), run.stage("direction", INPUTS):
        assert recorded(run)["status"] == "running"
        raise error
    assert recorded(run)["status"] == status
    stage = open_run().stage("direction", INPUTS)
    assert not stage.finished
    assert stage.resumes


def test_seconds_of_saved_work_add_up(open_run):
    """What an attempt did after its last checkpoint is done again, and counts once."""
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), open_run().stage("train", INPUTS) as stage:
            time.sleep(0.1)
            stage.save_progress()
            time.sleep(1.5)
            raise KeyboardInterrupt
    run = open_run()
    with run.stage("train", INPUTS):
        time.sleep(0.1)
    assert 0.3 <= recorded(run, "train")["seconds"] < 3
    assert run.summary()[0].seconds == recorded(run, "train")["seconds"]


def test_seconds_start_again_with_other_inputs(open_run):
    run = open_run()
    with pytest.raises(KeyboardInterrupt), run.stage("train", INPUTS):
        time.sleep(0.3)
        raise KeyboardInterrupt
    with run.stage("train", {}):
        pass
    assert recorded(run, "train")["seconds"] < 0.3


def test_peak_memory_is_that_of_the_worst_attempt(open_run):
    run = open_run()
    with pytest.raises(KeyboardInterrupt), run.stage("train", INPUTS) as stage:
        ballast = b"\1" * (64 << 20)
        stage._sampler._sample()
        raise KeyboardInterrupt
    first = recorded(run, "train")["peak_memory_bytes"]
    del ballast
    with run.stage("train", INPUTS):
        pass
    assert recorded(run, "train")["peak_memory_bytes"] >= first


def test_saved_progress_counts(open_run):
    run = open_run()
    with run.stage("train", INPUTS) as stage:
        time.sleep(0.1)
        stage.save_progress()
        assert recorded(run, "train")["seconds"] >= 0.1
        assert recorded(run, "train")["status"] == "running"


def test_a_full_disk_in_a_stage_is_one_line(open_run, monkeypatch):
    run = open_run()
    with (
        pytest.raises(
            SafeSteerError, match=r"the disk is full\. Try: free some space and run the same"
        ),
        run.stage("train", {}),
    ):
        monkeypatch.setattr(os, "fsync", full)
        full()
    monkeypatch.undo()
    # The record could not be written either: the last whole manifest is still there.
    assert recorded(run, "train")["status"] == "running"
    assert not open_run().stage("train", {}).finished


def test_torchs_words_for_a_full_disk_are_one_line_too(open_run):
    run = open_run()
    words = "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"
    with (
        pytest.raises(SafeSteerError, match=rf"cannot write {run.path}: the disk is full\. Try"),
        run.stage("train", {}),
    ):
        raise RuntimeError(words)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_inputs_from_earlier_outputs_run_later_stages_again(open_run):
    run = open_run()
    run_direction(run)
    with run.stage("tokens", {"direction": run.output_hashes("direction")}):
        pass
    run_direction(run, {"layer": 9})
    tokens = run.stage("tokens", {"direction": run.output_hashes("direction")})
    assert not tokens.finished
    assert "direction.direction/direction.json" in tokens.changed
