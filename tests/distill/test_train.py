"""A whole training: prompts that fit, memory that runs out, seeds."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_training import (
    prompts,
    run,
    weights,
    without_timing,
)

from safesteer.distill.trainer import SafeSteerTrainer
from safesteer.errors import InputError, SafeSteerError

pytestmark = pytest.mark.usefixtures("no_warmup")


def test_a_micro_batch_that_does_not_divide_the_step_is_made_smaller(tiny_chat_model, tmp_path):
    """Eight completions by five: micro-batches stay equal, so that each completion counts alike."""
    _, metrics = run(tiny_chat_model, tmp_path, max_steps=1, per_device_train_batch_size=5)
    assert len(metrics) == 1


@pytest.mark.parametrize("method, micro_batch", [("lora", None), ("full", None), ("lora", 4)])
def test_a_step_that_does_not_fit_is_repeated_in_smaller_parts(
    method, micro_batch, tiny_chat_model, tmp_path, monkeypatch, caplog
):
    """Out of memory in the third update: from the checkpoint on, halved, with the same result."""
    plain_model = copy.deepcopy(tiny_chat_model)
    settings = {"method": method, "per_device_train_batch_size": micro_batch, "max_steps": 3}
    expected, lines = run(plain_model, tmp_path / "plain", **settings)
    original = SafeSteerTrainer._compute_loss
    tried: list[int] = []

    def small(self, student, inputs, *args):  # type: ignore[no-untyped-def]
        tried.append(len(inputs["strength"]))
        if self.state.global_step == 2 and len(inputs["strength"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return original(self, student, inputs, *args)

    monkeypatch.setattr(SafeSteerTrainer, "_compute_loss", small)
    with caplog.at_level("WARNING", "safesteer"):
        student, repeated = run(tiny_chat_model, tmp_path / "halved", **settings)
    sizes = [8, 8, 8, 4, 2, 2, 2, 2] if micro_batch is None else [4, 4, 4, 4, 4, 2, 2, 2, 2]
    assert tried == sizes
    assert "micro-batches of 2" in caplog.text
    assert [line["step"] for line in repeated] == [1, 2, 3]
    for one, other in zip(repeated, lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    mine, theirs = weights(student), weights(expected)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], atol=2e-5), name


def test_a_single_completion_that_does_not_fit_is_an_error(tiny_chat_model, tmp_path, monkeypatch):
    """The message says what would fit, and the model is left as it was."""

    def never(self, *args):  # type: ignore[no-untyped-def]
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte")

    monkeypatch.setattr(SafeSteerTrainer, "_compute_loss", never)
    with pytest.raises(SafeSteerError, match=r"at a time\. Try: train\.gradient_checkpointing"):
        run(tiny_chat_model, tmp_path)


def test_seed_decides_the_run(new_chat_model, tmp_path):
    """The same seed gives the same numbers in the same process; another seed gives others."""
    runs = [
        run(new_chat_model(), tmp_path / str(number), max_steps=1, seed=seed)[1]
        for number, seed in enumerate((0, 0, 1))
    ]
    assert without_timing(runs[0]) == without_timing(runs[1]) != without_timing(runs[2])


def test_prompts_that_are_too_long_are_skipped(tiny_chat_model, recorded, tmp_path):
    """No row of any update has more prompt tokens than allowed; if none is left, it is an error."""
    chat = tiny_chat_model.chat
    lengths = sorted(len(chat.ids(m)) for m in prompts("harmful") + prompts("harmless"))
    limit = lengths[6]
    run(tiny_chat_model, tmp_path, advanced={"max_prompt_length": limit})
    used = [len(chat.ids(row["prompt"])) for update in recorded for row in update["rows"]]
    assert max(used) <= limit < lengths[-1]
    with pytest.raises(InputError, match="no harmful training prompts are left"):
        run(tiny_chat_model, tmp_path / "none", advanced={"max_prompt_length": 8})


def test_a_prefilled_prompt_is_no_longer_than_allowed(tiny_chat_model, recorded, tmp_path):
    """The longest beginning counts."""
    chat = tiny_chat_model.chat
    limit = sorted(len(chat.ids(m)) for m in prompts("harmful") + prompts("harmless"))[-1]
    run(
        tiny_chat_model,
        tmp_path,
        prefill_share=0.5,
        advanced={"max_prompt_length": limit, "prefills": ["Of it"]},
    )
    used = [len(chat.ids(r["prompt"], r["prefill"])) for update in recorded for r in update["rows"]]
    assert max(used) <= limit


def test_a_model_that_thinks_first_gets_no_prefill(tiny_chat_model, tmp_path, monkeypatch):
    """One line says what to set."""
    monkeypatch.setattr(type(tiny_chat_model.chat), "thinks", True)
    with pytest.raises(InputError, match="prefill_share"):
        run(tiny_chat_model, tmp_path, prefill_share=0.5)


def test_rollouts_follow_no_wish_of_the_model(new_chat_model, tmp_path):
    """What generation_config.json asks for changes no step of a training."""
    plain, wishing = new_chat_model(), new_chat_model()
    wishes = {
        "suppress_tokens": list(range(3, 200)),
        "min_new_tokens": 7,
        "stop_strings": ["e"],
        "repetition_penalty": 9.0,
        "return_dict_in_generate": True,
    }
    wishing.model.generation_config.update(**wishes)
    steps = [
        without_timing(run(model, tmp_path / name)[1])
        for name, model in (("plain", plain), ("wishing", wishing))
    ]
    assert steps[0] == steps[1] and len(steps[0]) == 2
    assert wishing.model.generation_config.stop_strings == ["e"]


def test_prompts_beyond_the_models_positions_are_skipped(
    new_chat_model, recorded, tmp_path, caplog
):
    """With room for the answer."""
    model = new_chat_model()
    lengths = sorted(len(model.chat.ids(m)) for m in prompts("harmful") + prompts("harmless"))
    model.model.config.max_position_embeddings = lengths[6] + 4
    with caplog.at_level("WARNING", "safesteer"):
        run(model, tmp_path, max_completion_length=4)
    used = [len(model.chat.ids(row["prompt"])) for update in recorded for row in update["rows"]]
    assert max(used) <= lengths[6] < lengths[-1]
    assert "positions less 4 for the answer" in caplog.text
