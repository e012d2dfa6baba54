"""Training setups on GPUs: the largest micro-batch, and what to change where none fits."""

from __future__ import annotations

import pytest
from tiny import plain

from safesteer.config.settings import Settings
from safesteer.memory.gpus import gpu_fits, largest_micro_batch, peak_of_run, suggest
from safesteer.memory.shape import Shape
from safesteer.memory.stages import Lengths, Placement

LENGTHS = Lengths(prompt=40, teacher=40)
SETTINGS = Settings.model_validate(
    plain(
        direction={"advanced": {"train_prompts": 2}},
        tokens={"advanced": {"num_prompts": 1}},
        train={"prompts_per_step": 6, "num_generations": 1, "max_completion_length": 400},
        evaluate={"advanced": {"batch_size": 1}},
    )
)
CUDA = Placement("cuda", 2, gpu_memory=8 << 30)


@pytest.fixture
def shape(new_chat_model) -> Shape:
    return Shape.of(new_chat_model(hidden_size=128, intermediate_size=512).model)


def test_the_largest_micro_batch_divides_a_step(shape):
    room = peak_of_run(shape, SETTINGS, LENGTHS, CUDA, 4)
    assert peak_of_run(shape, SETTINGS, LENGTHS, CUDA, 6) > room
    assert largest_micro_batch(shape, SETTINGS, LENGTHS, CUDA, room) == 3
    assert largest_micro_batch(shape, SETTINGS, LENGTHS, CUDA, 1) == 0


def test_a_larger_gpu_never_fits_less(shape):
    for fit in gpu_fits(shape, SETTINGS, LENGTHS):
        counts = list(fit.micro_batches.values())
        assert counts == sorted(counts)
        assert fit.least <= fit.peak
        assert counts[-1] == 6


def test_the_suggestion_fits(shape):
    def advice(micro_batch: int, share: float) -> str:
        room = share * peak_of_run(shape, SETTINGS, LENGTHS, CUDA, micro_batch)
        return suggest(shape, SETTINGS, LENGTHS, CUDA, room)

    assert advice(3, 1.0) == "train.per_device_train_batch_size=3"
    assert advice(1, 0.99).startswith("train.gradient_checkpointing=true")
    assert advice(1, 0.001).startswith("a device with")


def test_training_of_all_weights_is_pointed_to_lora(new_chat_model):
    shape = Shape.of(new_chat_model(hidden_size=512, intermediate_size=1024).model)
    train = SETTINGS.train.model_copy(update={"method": "full"})
    full = SETTINGS.model_copy(update={"train": train})
    room = 0.9 * peak_of_run(shape, full, LENGTHS, CUDA, 1)
    assert "train.method=lora" in suggest(shape, full, LENGTHS, CUDA, room)
