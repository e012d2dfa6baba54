"""Checkpoints: a resumed training is the uninterrupted one."""

from __future__ import annotations

import pytest
import torch
from tiny_training import (
    drop_out,
    read_metrics,
    run,
    weights,
    without_timing,
)

from safesteer.distill.checkpoints import last_checkpoint, mark_complete, prepare_resume
from safesteer.errors import InputError

pytestmark = pytest.mark.usefixtures("no_warmup")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "full"},
        {"per_device_train_batch_size": 2},
        {"dropout": 0.3},
        {"steps_per_generation": 2, "save_steps": 1},
        {"lora": {"r": 4, "alpha": 8, "extrapolation": 0.5}},
        {"lora": {"r": 4, "alpha": 8, "kfac_damping": 0.1}},
    ],
    ids=["lora", "full", "micro-batches", "dropout", "windows", "extrapolated", "preconditioned"],
)
def test_a_resumed_run_is_the_uninterrupted_one(changes, new_chat_model, tmp_path, monkeypatch):
    """Losses, every other number and the final weights are exactly those of one go."""
    changes = dict(changes)
    drop_out(monkeypatch, changes.pop("dropout", 0.0))
    whole, expected = run(new_chat_model(), tmp_path / "whole", max_steps=4, **changes)

    def stop(line, total):  # type: ignore[no-untyped-def]
        assert total == 4
        if line["step"] == 3:
            raise KeyboardInterrupt

    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        run(new_chat_model(), folder, max_steps=4, on_step=stop, **changes)
    assert len(read_metrics(folder)) == 3  # the third is made again
    (folder / "checkpoint-3").mkdir()  # a kill in the middle of saving
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # and in the middle of a line
    torch.manual_seed(12345)  # what else the process has drawn does not matter
    resumed, found = run(new_chat_model(), folder, max_steps=4, **changes)
    assert without_timing(found) == without_timing(expected)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    after = weights(resumed)
    assert all(torch.equal(after[name], value) for name, value in weights(whole).items())


def test_a_run_that_ends_within_a_window_resumes_to_its_own_end(new_chat_model, tmp_path):
    """Killed after the last checkpoint: the last window is made again, and no update more."""
    changes = {"max_steps": 3, "steps_per_generation": 2, "save_steps": 2}
    whole, expected = run(new_chat_model(), tmp_path, **changes)
    resumed, found = run(new_chat_model(), tmp_path, **changes)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert without_timing(found) == without_timing(expected)
    after = weights(resumed)
    assert all(torch.equal(after[name], value) for name, value in weights(whole).items())


def test_a_checkpoint_without_its_mark_is_deleted(tmp_path):
    """Of several folders the last whole one counts, whatever was cut short after it."""
    for name in ("checkpoint-2", "checkpoint-10", "checkpoint-12"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-2", "checkpoint-10"):
        (tmp_path / name / "complete.json").write_text("{}")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path, 4) is None
    assert not (tmp_path / "checkpoint-12").exists()
    assert last_checkpoint(tmp_path / "nothing") is None


def checkpoint(folder, step):
    """A checkpoint of two files, marked as complete."""
    made = folder / f"checkpoint-{step}"
    (made / "states").mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    (made / "states" / "rng_state.pth").write_bytes(b"random")
    mark_complete(folder, step)
    return made


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "states/rng_state.pth"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_checkpoint_is_named(tmp_path, name, damage):
    checkpoint(tmp_path, 2)
    last = checkpoint(tmp_path, 4)
    assert prepare_resume(tmp_path, "replicated", 1) == str(last)
    file = last / name
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(content[:-1] + (b"?" if damage == "flipped" else b""))
    problem = "is missing" if damage == "missing" else "was damaged or changed"
    said = f"{file} {problem}.*Try: delete {last} and .* resumes from checkpoint-2"
    with pytest.raises(InputError, match=said):
        prepare_resume(tmp_path, "replicated", 1)
    with pytest.raises(InputError, match="starts from the beginning"):
        prepare_resume(tmp_path, "replicated", 4)  # windows of four steps


@pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"step": 4, "la'])
def test_a_damaged_mark_is_named(tmp_path, content):
    marker = checkpoint(tmp_path, 4) / "complete.json"
    marker.write_text(content)
    with pytest.raises(InputError, match=f"{marker} .*Try: delete {marker.parent} and run"):
        prepare_resume(tmp_path, "replicated", 1)


def test_large_files_are_told_by_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr("safesteer.distill.checkpoints._HASHED", 6)
    last = checkpoint(tmp_path, 2)
    (last / "adapter_model.safetensors").write_bytes(b"heights")
    assert prepare_resume(tmp_path, "replicated", 1) == str(last)
    (last / "adapter_model.safetensors").write_bytes(b"weight")
    with pytest.raises(InputError, match="was damaged"):
        prepare_resume(tmp_path, "replicated", 1)
