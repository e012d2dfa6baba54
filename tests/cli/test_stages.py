"""`safesteer train` of a run, with every tracker. (pytest tests/cli)

No tracker sends anything: tensorboard and trackio write files, wandb stays offline.
"""

from __future__ import annotations

import shutil
import sqlite3
from importlib.util import find_spec

import pytest
import yaml

from safesteer.distill import trackers, vllm


def test_a_run_keeps_its_own_settings_and_folder(safesteer, finished_run, tmp_path):
    assert "--output-dir" in safesteer("train", finished_run, "-o", tmp_path).error
    assert "--set" in safesteer("train", finished_run, "-c", "mine").error


def test_a_trained_run_needs_no_vllm(safesteer, finished_run, monkeypatch):
    """Who wrote the rollouts is no reason to train again."""
    monkeypatch.setattr(vllm, "find_spec", lambda name: None)
    before = (finished_run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    config = (finished_run / "config.yaml").read_text()
    assert yaml.safe_load(config)["train"]["rollouts"] == "transformers"
    outcome = safesteer("train", finished_run, "--rollouts=vllm")
    (finished_run / "config.yaml").write_text(config)  # other tests read the run
    assert outcome.code == 0, outcome.err
    assert (finished_run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before


@pytest.fixture
def train(safesteer, new_process, finished_run, tmp_path):
    """Trains the finished run again for one update with a tracker; gives the run's folder."""

    def run(tracker):
        if find_spec(tracker) is None:
            pytest.skip(f"{tracker} is not installed")
        path = shutil.copytree(finished_run, tmp_path / "run")
        # trackio reads its folder when it is imported, which trl may have done in this process.
        command = new_process if tracker == "trackio" else safesteer
        outcome = command("train", path, "--max-steps=1", "--report-to", tracker, "--quiet")
        assert outcome.code == 0, outcome.err
        return path

    return run


def test_tensorboard_gets_the_loss(train):
    path = train("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (path / "train" / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "train/refusal_rate"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1]


def test_trackio_gets_the_loss(train, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train("trackio")
    (database,) = (tmp_path / "trackio").rglob("safesteer*.db")
    rows = sqlite3.connect(database).execute("select run_name, metrics from metrics").fetchall()
    assert any(name == "run" and "train/loss" in str(figures) for name, figures in rows)


def test_wandb_stays_offline_where_it_is_set_so(train, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb"))
    train("wandb")
    assert list((tmp_path / "wandb").rglob("*.wandb"))


def test_a_tracker_that_is_not_installed_is_named_at_once(
    safesteer, tiny_model_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    path = tmp_path / "run"
    outcome = safesteer("run", tiny_model_folder, "-o", path, "--report-to", "wandb,trackio")
    assert outcome.code == 2 and "pip install wandb" in outcome.error
    assert not path.exists()
    assert "'tensorboard'" in safesteer("run", "--report-to", "tensorbord").error
