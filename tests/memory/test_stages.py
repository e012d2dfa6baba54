"""Predicted peaks of the stages, against tensors that exist: weights, adapters, moments."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import plain
from transformers import MixtralConfig

from safesteer.config.settings import LoraSettings, Settings
from safesteer.direction import behavior
from safesteer.direction import edited_passes as repeated
from safesteer.direction import extract as find
from safesteer.distill.lora import with_lora
from safesteer.memory import stages
from safesteer.memory.shape import Shape
from safesteer.memory.stages import Lengths, Placement, predict, weight_bytes
from safesteer.models import lm_head as head

LENGTHS = Lengths(prompt=40, teacher=60)
CPU = Placement("cpu", 4)


def settings(**train: object) -> Settings:
    return Settings.model_validate(plain(train={"per_device_train_batch_size": 8, **train}))


def answers_at_once(count: int) -> Settings:
    evaluate = {"max_new_tokens": 8, "advanced": {"batch_size": count}}
    return Settings.model_validate(plain(evaluate=evaluate))


def peak(shape: Shape, chosen: Settings, place: Placement = CPU, stage: str = "train") -> float:
    return predict(shape, chosen, LENGTHS, place)[stage].bytes


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_those_of_the_model(new_chat_model, tied):
    model = new_chat_model(tie_word_embeddings=tied).model
    shape = Shape.of(model)
    assert shape.tied is tied
    assert weight_bytes(shape, CPU) == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize(
    "lora",
    [
        LoraSettings(),
        LoraSettings(r=3, target_modules=["q_proj", "down_proj"], first_layer=2),
        LoraSettings(target_modules=r".*\.(up|gate)_proj"),
    ],
)
def test_adapters_are_those_that_peft_makes(new_chat_model, lora):
    model = new_chat_model().model
    shape = Shape.of(model)
    student = with_lora(model, settings(lora=lora.model_dump()).train, 0)
    trained = [p for p in student.parameters() if p.requires_grad]
    assert shape.lora_parameters(lora) == sum(p.numel() for p in trained)
    parts = predict(shape, settings(lora=lora.model_dump()), LENGTHS, CPU)["train"].parts
    assert parts["adapter"] == sum(p.nbytes for p in trained)
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [v for s in optimizer.state.values() for k, v in s.items() if k.startswith("exp")]
    assert parts["optimizer"] == sum(v.nbytes for v in moments)
    assert "K-FAC factors" not in parts
    preconditioned = LoraSettings(**{**lora.model_dump(), "kfac_damping": 0.1})
    parts = predict(shape, settings(lora=preconditioned.model_dump()), LENGTHS, CPU)["train"].parts
    factors = [(name, p.shape) for name, p in student.named_parameters() if "lora_" in name]
    sides = [shape[1] if "lora_A" in name else shape[0] for name, shape in factors]
    assert parts["K-FAC factors"] == sum(4 * side**2 for side in sides)


def test_more_of_anything_takes_more(new_chat_model):
    shape = Shape.of(new_chat_model(hidden_size=256, intermediate_size=512).model)
    base = peak(shape, settings())
    assert peak(shape, settings(per_device_train_batch_size=16)) > base
    assert peak(shape, settings(max_completion_length=1024)) > base
    assert peak(shape, settings(lora={"r": 64})) > base
    assert peak(shape, settings(method="full")) > base
    assert peak(shape, settings(lora={"first_layer": 2, "target_modules": ["q_proj"]})) < base
    assert peak(shape, settings(gradient_checkpointing=True)) < base
    for stage, changed in {
        "tokens": {"tokens": {"horizon": 100}},
        "evaluate": {"evaluate": {"max_new_tokens": 1000, "advanced": {"batch_size": 64}}},
    }.items():
        assert peak(shape, Settings.model_validate(plain(**changed)), stage=stage) > peak(
            shape, Settings.model_validate(plain()), stage=stage
        )


def test_only_the_blocks_are_quantized(new_chat_model):
    shape = Shape.of(new_chat_model().model)
    place = Placement("cuda", 2)
    rest = shape.parameters - shape.block_weights
    assert weight_bytes(shape, replace(place, bits=8)) == 2 * rest + shape.block_weights
    assert weight_bytes(shape, replace(place, bits=4)) == pytest.approx(
        2 * rest + 0.516 * shape.block_weights, rel=1e-3
    )


def test_the_batches_are_those_of_the_stages():
    assert stages.BLOCK == head._BLOCK_ELEMENTS
    assert stages.KEPT_BYTES == repeated._KEPT_BYTES
    assert {"cpu": stages.SCORED_ROWS["cpu"]} == repeated._ROWS
    assert stages.SCORED_ROWS["cuda"] == repeated._ROWS_ELSEWHERE
    assert stages.OBSERVED == find._OBSERVED_PROMPTS
    assert behavior.observe.__kwdefaults__["max_new_tokens"] == stages.OBSERVED_TOKENS


def test_lengths_of_prompts_and_what_they_share():
    lengths = Lengths.of([[1, 2, 3, 4], [1, 2, 9]], [[7, 1, 2], [7, 1, 2]])
    assert (lengths.prompt, lengths.prefix) == (4, 2)
    assert (lengths.teacher, lengths.teacher_prefix) == (3, 2)  # one token is left over


def test_drift_counts_the_largest_block_in_float32_experts_too():
    """A block of experts holds nearly all of its weights outside linear layers."""
    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=8,
        vocab_size=300,
    )
    shape = Shape.of_config(config)
    linears = [linear.weights for linear in shape.linears]
    assert max(shape.blocks) > 8 * 3 * 64 * 512 > 10 * sum(linears)

    def widened(place: Placement) -> float:
        chosen = answers_at_once(1)
        return predict(shape, chosen, LENGTHS, place)["evaluate"].parts.get("block in float32", 0)

    place = Placement("cuda", 2, gpu_memory=1e9)
    assert widened(place) == 4 * max(shape.blocks)
    # Linear layers stay in 4 bits, and one at a time is dequantized.
    outside = max(shape.blocks) - sum(linears) // 2
    assert widened(replace(place, bits=4)) == 4 * (outside + max(linears))
    assert widened(replace(place, bits=8)) == 0
    # Where the GPU does not hold the block, drift is measured in 16 bits.
    weights = weight_bytes(shape, place)
    assert widened(replace(place, gpu_memory=weights + 3.9 * max(shape.blocks))) == 0
    # Where it holds it with few rows, batches are halved, and no more than the GPU holds.
    many = answers_at_once(64)
    room = 1.1 * stages._Stages(shape, many, LENGTHS, place)._drift(1, 4).bytes

    def drift(gpu_memory: float | None) -> stages.Peak:
        stage = stages._Stages(shape, many, LENGTHS, replace(place, gpu_memory=gpu_memory))
        return stage._drift_that_fits(stages.Peak({"weights": weights}))

    assert drift(None).bytes > room >= drift(weights + room).bytes
    assert drift(weights + room).parts["block in float32"] > 0
