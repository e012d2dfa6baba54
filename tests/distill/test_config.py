"""The configuration of the trainer."""

from __future__ import annotations

from dataclasses import fields

import pytest
from tiny import plain_training
from trl import DistillationConfig, TrlParser

from safesteer.config.settings import TrainSettings
from safesteer.distill.config import SafeSteerConfig
from safesteer.errors import InputError

OWN = {field.name for field in fields(SafeSteerConfig)} - {
    field.name for field in fields(DistillationConfig)
}
# Fields that TRL has too, with another default here.
CHANGED = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "max_completion_length",
    "bf16",
    "gradient_checkpointing",
)


def test_every_field_has_help_in_a_sentence():
    own = [field for field in fields(SafeSteerConfig) if field.name in OWN]
    assert len(own) == 10
    assert all(field.metadata["help"].endswith(".") for field in own)


def test_the_defaults_are_those_of_the_recipe_default(tiny_chat_model, tmp_path):
    config = SafeSteerConfig(str(tmp_path))
    recipe = SafeSteerConfig.from_settings(
        TrainSettings(), tiny_chat_model.model, output_dir=str(tmp_path)
    )
    for name in (*OWN, *CHANGED):
        assert getattr(config, name) == getattr(recipe, name), name


def test_settings_are_translated_and_changes_win(tiny_chat_model, tmp_path):
    settings = plain_training(
        divergence="paper",
        max_steps=7,
        short_rollout_length=3,
        steps_per_generation=4,
        advanced={"short_rollout_share": 0.25, "save_steps": 6},
    )
    config = SafeSteerConfig.from_settings(
        settings, tiny_chat_model.model, output_dir=str(tmp_path), steps_per_generation=2, seed=3
    )
    assert (config.divergence, config.max_steps, config.seed) == ("paper", 7, 3)
    assert (config.short_rollout_length, config.short_rollout_share) == (3, 0.25)
    assert config.steps_per_generation == 2
    assert config.save_steps == 8  # between generations
    assert config.use_cpu and not config.bf16


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"divergence": "papr"}, r"divergence = 'papr' is unknown \(did you mean 'paper'\?\)"),
        ({"loss_tokens": "some"}, "loss_tokens = 'some' is unknown. Try: safety, all"),
        ({"anchor_weight": -1.0}, "anchor_weight = -1.0 is too small. Try: 0 or more"),
        ({"short_rollout_length": 0}, "short_rollout_length = 0 is too small"),
        ({"short_rollout_share": 1.5}, "short_rollout_share = 1.5 is no share"),
        ({"steps_per_generation": 0}, "steps_per_generation = 0 is too small"),
        ({"max_completion_length": None}, "rollouts need a limit"),
    ],
)
def test_a_wrong_value_is_one_line(field, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        SafeSteerConfig(str(tmp_path), **field)
    assert "\n" not in str(caught.value)


def test_a_script_reads_it_from_the_command_line(tmp_path):
    (config,) = TrlParser(SafeSteerConfig).parse_args_and_config(
        [f"--output_dir={tmp_path}", "--divergence=forward", "--short_rollout_length=4"]
    )
    assert (config.divergence, config.short_rollout_length) == ("forward", 4)


@pytest.mark.parametrize(
    "option",
    [
        {"top_p": 0.9},
        {"top_k": 20},
        {"min_p": 0.1},
        {"repetition_penalty": 1.1},
        {"generation_kwargs": {"suppress_tokens": [3]}},
    ],
)
def test_rollouts_are_drawn_from_the_student_itself(option, tmp_path):
    """TRL's other options of sampling are refused, and not passed over."""
    with pytest.raises(InputError, match=rf"{next(iter(option))} = .* on-policy\. Try: without"):
        SafeSteerConfig(str(tmp_path), **option)
